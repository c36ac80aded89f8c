"""Pages as data: what they show is what the tables, tests and records say, and nothing hostile is markup."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_results import PROTOCOL, answers, result

from uqharness.leaderboard import (
    charts,
    comparison,
    costs,
    export,
    items,
    markup,
    ranking,
    reported,
    reported_table,
    run_view,
    table,
)
from uqharness.leaderboard.board import Board, build
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.curves import answers as answers_of
from uqharness.leaderboard.page import Cards, Figure, Grid, Methods, Page, Text, View
from uqharness.leaderboard.ranking import Rank
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.table_formats import lines, number
from uqharness.leaderboard.views import tables as views_tables
from uqharness.metrics.metric import Answers as Given
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import RECORD
from uqharness.results.record import digest, pack
from uqharness.results.runs import read_runs

EVIL = "<script>alert(1)</script>"
FIGURES = ("calibration", "uncertainty", "draws", "cost")


@pytest.fixture(scope="module")
def shared(results: Path) -> Results:
    return Results(build([results]))


def opened(results: Results, name: str, patient: bool = True, **params: str | list[str]) -> Page:
    given = {key: [value] if isinstance(value, str) else value for key, value in params.items()}
    return PAGES[name].make(View(results, given, patient=patient))


def of(page: Page, kind: type) -> list:
    return [block for block in page.blocks if isinstance(block, kind)]


def markup_of(page: Page) -> str:
    parts = [markup.methods(b) if isinstance(b, Methods) else markup.grid(b) for b in page.shown()]
    parts += [markup.link(b) for b in of(page, Text) if b.address]
    return "\n".join([*parts, *(b.html for b in of(page, Cards))])


def said(page: Page) -> str:
    return "\n".join([page.about, *page.notes, *(b.text for b in of(page, Text)), markup_of(page)])


def of_toyworld(folder: Path, method: str, seed: int = 0, **more: object) -> None:
    result(folder, method, seed, "toyworld_uq", run={"base": "toyworld"}, **more)


# ---------------------------------------------------------------- the landing page


@pytest.mark.parametrize("metric", ["nll", "ece", "acc", "brier"])
def test_the_landing_table_has_the_numbers_of_the_command_best_first(
    shared: Results, results: Path, metric: str
) -> None:
    good = [run for file in sorted(results.glob("results_[0-9]*.json")) for run in read_runs([file])]
    (expected,) = table.build(good, [metric])
    (block,) = of(opened(shared, "table", metric=metric), Methods)
    printed = {row[1]: row[4:] for row in lines(expected, {}, "±")}
    assert {row[1]: row[4:] for row in lines(block.table, {}, "±")} == printed
    values = [block.table.cells[metric, i, 0].mean for i in range(len(block.table.rows))]
    assert values == sorted(values, reverse=metric == "acc") and len(set(values)) > 1
    shown = re.findall(
        r'data-v="[^"]*">(?:<[bu]>)?<a href="items\?run=[0-9a-f]{16}">([^<]*)</a>', markup.methods(block)
    )
    assert shown == [number(cell.mean, metric) for cell in block.table.cells.values()]


def test_bold_follows_the_printed_numbers(shared: Results) -> None:
    for metric in ("ece", "nll", "acc"):
        (block,) = of(opened(shared, "table", metric=metric), Methods)
        for j in range(len(block.table.columns)):
            cells = [c for (_, _, k), c in block.table.cells.items() if k == j]
            best = max if METRICS[metric].higher_is_better else min
            printed = [round(c.mean * METRICS[metric].scale, METRICS[metric].decimals) for c in cells]
            assert [c.rank == 1 for c in cells] == [value == best(printed) for value in printed]


def test_ranks_are_ranges_of_the_paired_tests_and_rows_that_miss_a_cell_have_none(shared: Results) -> None:
    (block,) = of(opened(shared, "table"), Methods)
    expected = ranking.ranks_of(shared.tests(block.table, "nll") or {})
    assert block.ranks == {"nll": expected} and {len(column) for column in expected.values()} == {2}
    rows = re.findall(r'<tr><th scope="row".*?</tr>', markup.methods(block).partition("<tfoot>")[0], re.DOTALL)
    evil = next(row for row in rows if "&lt;script" in row)
    assert "1/2 cells" in evil and all(re.search(r'class="rank[^>]*>\d', row) for row in rows if row != evil)
    assert "mean rank" not in markup.methods(block).lower()


def test_while_ranks_are_tested_the_cells_say_so(results: Path) -> None:
    fresh = Results(build([results]))
    page = opened(fresh, "table", patient=False)
    text = markup_of(page)
    assert "testing …" in text and "not ranked" not in text and len(page.later) == 1
    for compute in page.later:
        compute()
    again = opened(fresh, "table", patient=False)
    assert not again.later and "testing …" not in markup_of(again)


def test_one_seed_has_the_interval_over_questions_where_the_deviation_would_stand(tmp_path: Path) -> None:
    result(tmp_path, "BLoB")
    shared = Results(build([tmp_path]))
    (run_id,) = [run.run_id for run in shared.runs]
    for metric in ("nll", "acc", "ece"):
        (block,) = of(opened(shared, "table", metric=metric), Methods)
        answers = shared.answers(run_id)
        low, high = METRICS[metric].confidence_interval(Given.of(answers.probs, answers.gold))
        spread = (
            f'<span class="sd" title="95 % interval over questions">{number(low, metric)} … {number(high, metric)}<'
        )
        assert spread in markup.methods(block) and "±" not in markup.methods(block).partition("</caption>")[2]


def test_ece_has_its_floor_and_an_interval_around_the_printed_value(shared: Results) -> None:
    (block,) = of(opened(shared, "table", metric="ece"), Methods)
    for key, cell in block.table.cells.items():
        low, high = block.intervals[key]
        assert low < cell.mean < high and f"floor {number(cell.floor, 'ece')}" in markup.methods(block)


def test_labels_seen_and_loras_trained_stand_beside_each_method(shared: Results) -> None:
    given = {"MLE": (400, 1), "TS": (1400, 1), "ENS": (400, 3), "base": (None, None)}
    runs = [replace(shared.runs[0], method=m, labels_seen=n, training_passes=k) for m, (n, k) in given.items()]
    texts = {run.method: costs.effort([run, run]) for run in runs}
    assert texts == {"MLE": ("400", "1"), "TS": ("1,400", "1"), "ENS": ("400", "3"), "base": ("–", "–")}
    (block,) = of(opened(shared, "table"), Methods)
    assert [title for title, _ in block.extra] == ["Labels seen", "LoRAs trained"]
    assert "LoRAs trained" in markup.methods(block)


def test_real_models_come_first_and_the_synthetic_world_is_last_and_says_so(tmp_path: Path) -> None:
    for method in ("MLE", "BLoB"):
        of_toyworld(tmp_path, method, numbers=len(method))
    only = opened(Results(build([tmp_path])), "table")
    headings = [b.text for b in of(only, Text) if b.kind == "heading"]
    assert headings[:2] == [
        "Reported by papers",
        "Measured here: synthetic world",
    ] and "says nothing about a language model" in said(only)
    assert "1 data set (synthetic) · 1 fine-tuned base model (synthetic)" in said(only)
    assert [b.address for b in of(only, Text) if b.text == "More tables on the page Papers"] == ["papers"]
    assert [b.measured for b in of(only, Methods)] == [False, True]
    result(tmp_path, "MLE", numbers=7)
    both = opened(Results(build([tmp_path])), "table")
    first, last = of(both, Methods)
    assert [first.table.columns[0].task, last.table.columns[0].task] == ["arc_easy_uq", "toyworld_uq"]
    heading = both.blocks.index(next(b for b in of(both, Text) if b.text == "Measured here: synthetic world"))
    assert "2 data sets (1 real, 1 synthetic) · 2 fine-tuned base models (1 pretrained, 1 synthetic)" in said(both)
    assert [b.text for b in of(both, Text) if b.kind == "heading"][0] == "Measured here: pretrained models"
    assert [b.address for b in of(both, Text) if b.address] == ["papers"]
    assert both.blocks.index(first) < heading < both.blocks.index(last)


def test_the_headline_is_the_difference_from_mle_with_early_stopping_among_the_rows(tmp_path: Path) -> None:
    for seed in range(2):
        result(tmp_path, "MLE", seed, draws=1, finite=1, numbers=seed)
        result(tmp_path, "BLoB", seed, numbers=10 + seed)
        chosen = {"select": "best", "select_split": "validation", "eval_every": 5}
        result(tmp_path, "MLE", seed, draws=1, finite=1, numbers=20 + seed, run=chosen, recipe_hash="early")
    shared = Results(build([tmp_path]))
    page = opened(shared, "table")
    (figure,) = of(page, Figure)
    grid = next(b for b in of(page, Grid) if b.caption.startswith("Difference from MLE"))
    rows = {(row[0], row[1]): row[2:] for row in grid.rows}
    assert set(rows) == {("MLE", "1"), ("MLE (stopped early)", "1"), ("BLoB", "4"), ("BLoB", "0")}
    first = of(page, Methods)[0]
    cells = {first.table.rows[i][0]: cell.mean for (_, i, _), cell in first.table.cells.items()}
    assert rows["BLoB", "4"][0].lstrip("+") == number(cells["BLoB"] - cells["MLE"], "nll")
    assert rows["MLE", "1"] == ["0.00", "–", "0.00", "–"] and figure.alt.startswith(
        "Difference from MLE on arc_easy_uq"
    )
    assert "40 test questions, 2 training seeds" in said(page)


def test_a_cell_of_a_paper_has_the_same_note_on_the_landing_page_and_on_papers(tmp_path: Path) -> None:
    of_toyworld(tmp_path, "BLoB")
    shared = Results(build([tmp_path]))
    for metric in ("nll", "ece", "acc"):
        short = of(opened(shared, "table", metric=metric), Methods)[0]
        full = of(opened(shared, "papers"), Methods)[0]
        assert short.marks == {at: numbers for at, numbers in full.marks.items() if at[0] == metric} != {}
        assert set(short.table.notes) < set(full.table.notes)
        caption, _, text = markup.methods(short).partition("</caption>")
        assert (
            "All data sets in distribution" in caption
            and "in distribution" not in text
            and "‡ The paper contradicts itself" in text
        )


def test_names_lead_to_their_methods_and_say_what_they_are(shared: Results) -> None:
    (block,) = of(opened(shared, "table"), Methods)
    names = {block.table.rows[i][0]: marks for i, marks in block.about.items()}
    assert names["BLoB"][1] == "method?method=BLoB" and "BLoB" in names["BLoB"][0]
    assert 'href="method?method=BLoB">BLoB</a>' in markup.methods(block)


def test_what_can_be_concluded_names_the_top_tier_and_what_could_have_been_seen(shared: Results) -> None:
    (block,) = of(opened(shared, "table"), Methods)
    tests = shared.tests(block.table, "nll") or {}
    text = " ".join("; ".join(line) for line in views_tables.conclusion(block.table, "nll", tests))
    summary, *short = [b.text for b in opened(shared, "table").blocks[:2]]  # in sight without scrolling
    near = views_tables.conclusion(block.table, "nll", {0: tests[0]})[0][0]  # of the data set that was trained on
    assert summary.startswith("Measured here") and short == [f"tiny on {near}."] and "openbookqa_uq: top tier" in near
    least = f"smallest detectable difference: {number(tests[0].smallest, 'nll')} NLL"
    assert (
        least in text and block.table.columns[0].task in text and text.split(". ")[0] in said(opened(shared, "table"))
    )


def test_a_top_tier_of_most_methods_is_said_to_be_no_finding_and_what_would_separate_it(shared: Results) -> None:
    (block,) = of(opened(shared, "table"), Methods)
    four = replace(block.table, rows=[("A", 1), ("B", 1), ("C", 1), ("D", 1)])
    scores = np.random.default_rng(0).normal(1.0, 0.1, (4, 300)) + np.array([[0.0], [0.01], [0.012], [0.5]])
    tests = ranking.compare_items("nll", ["0", "1", "2", "3"], [1] * 4, scores)
    assert [rank.top for rank in tests.ranks().values()] == [True, True, True, False]
    ((line, detail),) = views_tables.conclusion(four, "nll", {0: tests})
    assert line == "openbookqa_uq: the data cannot separate 3 of 4 methods by NLL (shown to be worse: D)"
    best = min("012", key=lambda name: tests.values[int(name)])
    fewest = min(tests.items_needed(best, name) for name in "012" if name != best)
    assert detail.endswith(f"would take {float(f'{fewest:.2g}'):,.0f} questions instead of 300")
    few = ranking.compare_items("nll", ["0", "1", "2", "3"], [1] * 4, scores + np.array([[0.0], [0.5], [0.5], [0.0]]))
    ((line, detail),) = views_tables.conclusion(four, "nll", {0: few})
    assert line == "openbookqa_uq: top tier by NLL: A (1 of 4)" and "would take" not in detail


def test_methods_that_a_constant_guess_beats_are_named(shared: Results) -> None:
    (block,) = of(opened(shared, "table"), Methods)
    cells = {(i, j): cell for (_, i, j), cell in block.table.cells.items() if not cell.reference}
    runs = {j: shared.record(cell.runs[0]) for (_, j), cell in cells.items()}
    guess = {j: float(np.mean(np.log(record.choices))) for j, record in sorted(runs.items())}
    for j, column in enumerate(block.table.columns):
        above = [block.table.rows[i][0] for (i, k), cell in cells.items() if k == j and cell.mean > guess[j] + 0.01]
        (line,) = views_tables.beyond_guess(block.table, "nll", list(guess.values()), [j])
        assert above and line == f"{column.task}: a constant guess shows a lower NLL than {', '.join(above)}"
        assert line.partition(":")[2] in said(opened(shared, "table"))
    assert not views_tables.beyond_guess(block.table, "ece", list(guess.values()), [0])


def test_a_worse_number_in_the_top_tier_than_outside_of_it_is_said_to_have_a_wide_interval(shared: Results) -> None:
    (block,) = of(opened(shared, "table", metric="acc"), Methods)
    best, worst = (Rank(1, 2), Rank(2, 2)), (Rank(2, 2), Rank(1, 2))  # rows are best first
    for (first, second), wide in ((best, 0), (worst, 1)):
        text = markup.methods(replace(block, ranks={"acc": {0: {0: first, 1: second}}}))
        assert text.count(markup.WIDE) == text.count('class="rank top wide"') == wide


def test_the_worlds_answer_the_bare_base_and_a_guess_are_said_to_be_no_methods(tmp_path: Path) -> None:
    for method in ("MLE", "BLoB"):
        of_toyworld(tmp_path, method, numbers=len(method))
    result(tmp_path, task="toyworld_uq", plain=True, numbers=9)
    board = build([tmp_path])
    oracle = replace(board.runs[-1], run_id="0" * 16, method="toyworld_oracle", model="toyworld_oracle", base="")
    shared = Results(replace(board, runs=[*board.runs, oracle]))
    shared.record = lambda run_id: board.record(board.runs[-1].run_id if run_id == oracle.run_id else run_id)  # type: ignore[method-assign]
    block = next(b for b in of(opened(shared, "table"), Methods) if b.measured)
    roles = {block.table.rows[i][0]: text for i, text in block.roles.items()}
    assert roles == {"tiny (zero-shot)": views_tables.ROLES["none"], "toyworld_oracle": views_tables.ROLES["oracle"]}
    text = markup.methods(block)
    assert all(role in html.unescape(text) for role in roles.values())
    head, _, foot = text.partition("<tfoot>")
    assert number(np.log(3), "nll") in foot and "constant guess" in foot and "constant guess" not in head
    assert "<small>synthetic</small>" in head  # on a phone, in the middle of the page


def test_abbreviations_are_written_out_once_on_the_page_and_at_each_name(shared: Results) -> None:
    (line,) = [b.text for b in of(opened(shared, "table"), Text) if b.text.startswith("Short for")]
    for words in ("BLoB Bayesian LoRA by backpropagation", "MLE maximum likelihood", "ECE expected calibration error"):
        assert line.count(words) == 1
    assert re.search('<abbr title="BLoB; Bayesian LoRA by backpropagation[^"]*"><a', markup_of(opened(shared, "table")))


def test_what_would_change_my_mind_is_what_would_separate_the_best_from_its_tier(shared: Results) -> None:
    page = opened(shared, "table", metric="acc")
    (block,), grids = (
        of(page, Methods),
        [b for b in of(page, Grid) if b.caption.startswith("What would change my mind")],
    )
    pairs = 0
    for tested in (shared.tests(block.table, "acc") or {}).values():
        pairs += sum(rank.top for rank in tested.ranks().values()) - 1
    assert sum(len(grid.rows) for grid in grids) == pairs > 0 and grids[0].folded


def test_filters_leave_what_has_one_of_the_values(shared: Results) -> None:
    (block,) = of(opened(shared, "table", method="MLE", shift=["id", "small"]), Methods)
    assert {name for name, _ in block.table.rows} == {"MLE"}
    page = opened(shared, "table", method=EVIL, shift="small")
    assert not [b for b in of(page, Methods) if b.measured] and "No measured run passes these filters." in said(page)


def test_order_is_best_first_and_what_is_missing_last(shared: Results) -> None:
    (made,) = table.build(shared.board.runs, ("acc", "nll"))
    j = next(j for j, c in enumerate(made.columns) if c.shift != "id")
    turned = replace(made, columns=made.columns[::-1], cells={(m, i, 1 - k): c for (m, i, k), c in made.cells.items()})
    shown = views_tables.ordered(turned, "acc")
    cells = [shown.cells.get(("acc", i, 1 - j)) for i in range(3)]
    assert cells[2] is None and cells[0] and cells[1] and cells[0].mean >= cells[1].mean
    before = {(*turned.rows[i], m, k): cell for (m, i, k), cell in turned.cells.items()}
    assert {(*shown.rows[i], m, k): cell for (m, i, k), cell in shown.cells.items()} == before


def test_all_metrics_are_one_row_per_method_and_data_set_with_costs(shared: Results) -> None:
    page = opened(shared, "table", metric="all")
    (grid,) = [b for b in of(page, Grid) if b.sortable]
    (made,) = table.build(shared.board.runs, views_tables.SHOWN)
    assert len(grid.rows) == 5 and all(len(row) == len(grid.header) for row in grid.rows)
    for column in ("Labels seen", "LoRAs trained", "Forward passes", "Hardware"):
        assert column in grid.header
    by_row = {(row[0], row[2]): row[grid.header.index("ACC")] for row in grid.rows}
    for (metric, i, j), cell in made.cells.items():
        if metric == "acc":
            assert by_row[made.rows[i][0], made.columns[j].task] == views_tables.plain(cell, "acc")


def test_names_are_letters_on_every_page(shared: Results) -> None:
    for name in PAGES:
        assert "<script" not in markup_of(opened(shared, name)), name
    assert html.escape(EVIL) in markup_of(opened(shared, "table"))


class Markup(HTMLParser):
    """Tags and attributes that could run something or ask another host."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.wrong += [tag] * (tag in ("script", "img", "iframe", "object", "embed", "link", "meta", "base", "svg"))
        for name, value in attrs:
            outside = name in ("href", "src", "action") and not re.fullmatch(r"[a-z]+(\?[\w=&.%+-]*)?", value or "")
            self.wrong += [f"{tag} {name}={value}"] * (name.startswith("on") or outside)


def test_no_view_of_hostile_names_has_markup_of_theirs(tmp_path: Path) -> None:
    """Every option of every control of every page, one at a time."""
    name = "<img src=//e.invalid onerror=alert(1)>\"' onmouseover=alert(2) [x](http://e.invalid) =1+1 %{x}"
    for k, (method, task) in enumerate(itertools.product(("MLE", name), ("arc_easy_uq", f"<b>{name}", "boolq_uq"))):
        run = {"base": name}
        result(tmp_path, method, k % 2, task, numbers=k, trained_on="arc_easy_uq", settings={name: name}, run=run)
    (tmp_path / "results_<img src=x>.json").write_text("{")
    shared, views = Results(build([tmp_path])), 0
    for page in PAGES:
        controls = [
            (c.name, str(o)) for c in opened(shared, page).controls for o in [*c.options, *["1"] * (not c.options)]
        ]
        for params in [{}, *({key: value} for key, value in controls)]:
            shown = opened(shared, page, **params)
            assert Markup(markup_of(shown)).wrong == [], (page, params)
            assert not [b for b in of(shown, Figure) if "<img" in charts.as_json(b.figure)], (page, params)
            views += 1
    assert views >= 71


def test_an_export_is_the_view_with_caption_and_link(shared: Results) -> None:
    page = opened(shared, "table", metric="acc")
    (block,), link = of(page, Methods), "http://localhost/?metric=acc&snapshot=abc"
    text = export.text("CSV", "what it\nshows", page.shown(), link)
    rows = list(csv.DictReader(io.StringIO(text.split("\n\n")[0])))[: len(block.table.cells)]
    for row, ((metric, i, j), cell) in zip(rows, block.table.cells.items(), strict=True):
        assert (row["metric"], row["method"], row["task"]) == (
            metric,
            block.table.rows[i][0],
            block.table.columns[j].task,
        )
        assert float(row["mean"]) == cell.mean and row["link"] == link
    tex, md = (export.text(kind, "what it\nshows", page.shown(), link) for kind in ("LaTeX", "Markdown"))
    assert tex.startswith(f"% what it shows\n% {link}\n") and r"\toprule" in tex and r"\textbf{" in tex and link in md
    assert export.text("Markdown", "<img src=x>![a](http://b)", [], link).startswith(
        r"&lt;img src=x&gt;!\[a](http://b)"
    )
    assert 'data-copy="% Table 1; needs booktabs' in markup.methods(block)


def test_a_missing_link_target_or_result_is_said_and_no_page_fails(tmp_path: Path, shared: Results) -> None:
    none = Results(build([tmp_path]))
    for name in PAGES:
        opened(none, name)
        page = opened(shared, name, run="0123456789abcdef", method="gone", page="x", other=EVIL, snapshot="0000")
        assert any("other" in note for note in page.notes) and any("numbers may differ" in note for note in page.notes)


# ---------------------------------------------------------------- the papers


def test_a_papers_table_is_corrected_by_default_with_what_was_printed_in_the_note() -> None:
    frame, name = reported.load(), "BLoB, table 1, Llama2-7B"
    new, old = (reported_table.build(frame, name, ["acc"], printed) for printed in (False, True))
    i, j = new.table.rows.index(("LAP", -1)), [c.task for c in new.table.columns].index("ARC-C")
    assert new.table.cells["acc", i, j].mean == pytest.approx(0.6678)
    assert old.table.cells["acc", i, j].mean == pytest.approx(0.2973)
    (mark,) = new.marks["acc", i, j]
    note = next(line for line in new.table.notes if line.startswith(f"{mark}: "))
    assert "the paper prints ACC 29.73 ± 12.02 for LAP on ARC-C" in note
    assert f"<sup>{mark}</sup>" in markup.methods(new)
    mcd = new.table.rows.index(("MCD", 10))
    assert all(("acc", mcd, k) in new.marks for k in range(5))


@pytest.mark.parametrize("name", reported_table.names(reported.load()))
def test_every_noted_cell_is_marked_and_what_failed_is_never_crowned(name: str) -> None:
    frame = reported.load()
    block = reported_table.build(frame, name, as_printed=True)
    own = frame[(frame["paper"] + ", table " + frame["table"] + ", " + frame["base"] == name) & (frame["note"] != "")]
    noted = own[own["metric"].isin(reported_table.PRINTED)]
    assert len(block.marks) >= len(noted.drop_duplicates(["method", "draws", "dataset", "trained_on", "metric"]))
    for key, cell in block.table.cells.items():
        if cell.suspect:
            assert cell.rank is None and key in block.marks


def test_a_papers_table_is_taken_away_without_what_papers_do_not_say() -> None:
    frame = reported.load()
    shown = [reported_table.build(frame, reported_table.names(frame)[0])]
    md, text = export.text("Markdown", "", shown, "x"), export.text("JSON", "", shown, "x")
    assert "- items" not in md and "- papers print no floor for ECE" in md
    (parsed,) = json.loads(text)["tables"]
    assert {column["items"] for column in parsed["columns"]} == {None}
    assert parsed["rows"][0] == {"method": "MLE", "samples": None, "mean_taken": None}
    first = next(csv.DictReader(io.StringIO(export.text("CSV", "", shown, "x"))))
    assert (first["method"], first["samples"], first["items"]) == ("MLE", "", "")


def test_without_results_the_papers_tables_are_there(tmp_path: Path) -> None:
    empty = Results(build([tmp_path]))
    assert "BLoB, table 1, Llama2-7B" in said(opened(empty, "table")) and "69.07" in markup_of(opened(empty, "papers"))


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("name", FIGURES)
def test_every_page_of_figures_draws_and_says_where_there_is_nothing(
    shared: Results, name: str, tmp_path: Path
) -> None:
    page = opened(shared, name)
    (figure,) = of(page, Figure)
    assert (
        (figure.figure["data"] or name == "cost")
        and page.notes == []
        and page.shown()
        and "<script>" not in str(figure.figure)
    )
    nothing = opened(Results(build([tmp_path])), name)
    assert not of(nothing, Figure) and "nothing to draw" in said(nothing)


@pytest.mark.parametrize("figure", ["parts", "risk"])
def test_the_figures_of_uncertainty(shared: Results, figure: str) -> None:
    page = opened(shared, "uncertainty", figure=figure, row=["MLE", "BLoB"])
    (drawn,), (grid,) = of(page, Figure), of(page, Grid)
    assert len(drawn.figure["data"]) == 2 and len(grid.rows) == (1 if figure == "parts" else 2)


def test_calibration_takes_bins_and_methods_of_the_link(shared: Results) -> None:
    (figure,) = of(opened(shared, "calibration", row="BLoB", bins="10"), Figure)
    assert [t["name"] for t in figure.figure["data"] if t.get("mode") == "lines+markers"] == ["BLoB"]
    (right,) = of(opened(shared, "calibration", figure="confidence", row="BLoB"), Figure)
    assert [t["name"] for t in right.figure["data"]] == ["right", "wrong"]


def test_draws_start_at_the_mean_and_end_at_all(shared: Results) -> None:
    (figure,) = of(opened(shared, "draws", metric="nll", row="BLoB"), Figure)
    band, line = figure.figure["data"]
    assert line["x"] == [1, 2, 3, 4, 0, 0] and line["y"][4] is None and len(band["x"]) == 8
    assert not of(opened(shared, "draws", metric=""), Figure)  # no metric is no figure


def test_results_published_without_their_draws_are_named_and_have_no_empty_figure(tmp_path: Path) -> None:
    from uqharness.leaderboard import publish

    result(tmp_path, "MLE", draws=1, finite=1)
    result(tmp_path, "BLoB")
    publish.create([tmp_path], tmp_path / "published.parquet", 0)
    published, whole = Results(build([tmp_path / "published.parquet"])), Results(build([tmp_path]))
    assert "Without answers" in said(opened(published, "calibration", samples="2"))
    assert "Without answers" not in said(opened(whole, "calibration", samples="2"))
    figures = {
        r: next(c for c in opened(r, "uncertainty").controls if c.name == "figure").options for r in (published, whole)
    }
    assert "parts" not in figures[published] and "parts" in figures[whole]
    rows = next(b for b in of(opened(published, "draws", metric="nll", row="BLoB"), Grid)).rows
    assert {row[4] for row in rows} == {"–"}  # values without a band


# ---------------------------------------------------------------- runs


@pytest.fixture
def board(tmp_path: Path) -> Board:
    for seed in range(2):
        for k, method in enumerate(("MLE", "BLoB")):
            result(tmp_path, method, seed, numbers=10 * k + seed)
            result(tmp_path, method, seed, task="boolq_uq", trained_on="arc_easy_uq", numbers=20 * k + seed)
    result(tmp_path, EVIL, 0, numbers=99)
    (tmp_path / "results_broken.json").write_text("{")
    return build([tmp_path])


def run_id(board: Board, method: str, task: str = "arc_easy_uq", seed: int = 0) -> str:
    return board.select(method=method, task=task, seed=seed)[0].run_id


def chosen(page: Page, name: str) -> object:
    return next(control.value for control in page.controls if control.name == name)


def test_items_shows_a_page_of_questions_filters_them_and_exports_all(board: Board) -> None:
    shared, blob = Results(board), run_id(board, "BLoB", seed=1)
    listed = items.items(board.record(blob), "BLoB", None, board.record(run_id(board, "MLE", seed=1)))
    page = opened(shared, "items", run=blob, show="broken", sort="confidence", size="5")
    wanted = items.select(listed, "broken", "confidence")["id"].tolist()
    assert re.findall(r"Question (\d+)<", of(page, Cards)[0].html) == [str(i) for i in wanted[:5]]
    assert f"{len(wanted)} of 40 questions" in said(page) and "--log_samples" in said(page)
    (grid,) = page.shown()
    assert [row[0] for row in grid.rows] == [str(i) for i in wanted] and len(wanted) > 5


def test_items_moves_to_the_same_method_and_seed_of_another_data_set(board: Board) -> None:
    blob = run_id(board, "BLoB", seed=1)
    page = opened(Results(board), "items", run=blob, task="boolq_uq")
    assert chosen(page, "run") == run_id(board, "BLoB", "boolq_uq", 1) and page.notes == []
    page = opened(Results(board), "items", run=blob, task="boolq_uq", method="MLE")
    assert chosen(page, "run") == run_id(board, "MLE", "boolq_uq", 1)
    first = board.run(chosen(opened(Results(board), "items"), "run"))
    assert first.draws > 1


def test_texts_of_questions_are_shown_as_letters(tmp_path: Path) -> None:
    task, docs = "x ![y](https:z.invalid)", [{"n": k} for k in range(2)]
    made = [{**item, "doc_hash": digest(doc)} for item, doc in zip(answers(0, 4, 2), docs, strict=True)]
    path = result(tmp_path, task=task)
    data = json.loads(path.read_text())
    data["results"][task][f"{RECORD},none"] = pack(made, task=task, protocol=PROTOCOL)
    path.write_text(json.dumps(data))
    arguments = {f"gen_args_{k}": {"arg_0": "<b>Which?</b>", "arg_1": str(k)} for k in range(3)}
    lines_of_samples = [json.dumps({"doc": doc, "arguments": arguments}) for doc in docs]
    path.with_name(path.name.replace("results_", f"samples_{task}_").replace(".json", ".jsonl")).write_text(
        "\n".join(lines_of_samples)
    )
    page = opened(Results(build([tmp_path])), "items")
    assert "&lt;b&gt;Which?&lt;/b&gt;" in of(page, Cards)[0].html
    assert any(task in b.text for b in of(page, Text) if b.kind == "caption")  # a renderer shows it letter by letter


def test_compare_tests_the_runs_of_the_link(board: Board) -> None:
    shared, ids = Results(board), [run_id(board, "MLE"), run_id(board, "BLoB")]
    page = opened(shared, "compare", run=ids)
    expected = comparison.shown_tests(comparison.tests(["MLE", "BLoB"], [answers_of(board.record(i), "") for i in ids]))
    difference, interval = (expected[0].index(name) for name in ("Difference", "95 % interval"))
    for row in expected[1]:
        assert row[difference] in said(page) and row[interval] in said(page)
    assert "at least two" in said(opened(shared, "compare", run=ids[:1]))
    other = opened(shared, "compare", run=ids, task="boolq_uq")
    assert chosen(other, "run") == tuple(run_id(board, m, "boolq_uq") for m in ("MLE", "BLoB")) and other.notes == []
    assert "Left out of these runs: 1" in said(opened(shared, "compare", run=[*ids, run_id(board, "BLoB", "boolq_uq")]))
    assert "Left out" not in said(page)


def test_a_method_to_compare_comes_with_the_same_seed_and_goes_with_all_its_runs(board: Board) -> None:
    shared = Results(board)
    blob, plain = [run_id(board, "BLoB", seed=seed) for seed in (1, 0)], run_id(board, "MLE", seed=1)
    page = opened(shared, "compare", run=blob)
    assert chosen(page, "method") == ("BLoB",)
    assert len(next(c.options for c in page.controls if c.name == "run")) == 2  # thousands would be no choice
    assert chosen(opened(shared, "compare", run=blob, method=["BLoB", "MLE"]), "run") == (*blob, plain)
    assert chosen(opened(shared, "compare", run=[*blob, plain], method=["MLE"]), "run") == (plain,)
    assert set(next(c for c in page.controls if c.name == "run").clears) == {"task", "method"}


def test_run_shows_numbers_commands_and_the_record(board: Board) -> None:
    blob = run_id(board, "BLoB")
    page = opened(Results(board), "run", run=blob)
    _, rows = run_view.numbers(board.run(blob), board.record(blob))
    assert all(row[2] in said(page) for row in rows) and "uqharness train blob" in said(page)
    record = next(b.text for b in of(page, Text) if b.kind == "json")
    assert json.loads(record)["method"]["name"] == "blob"
    assert f'href="items?run={blob}"' in markup_of(page)


def test_method_lists_its_runs_and_what_papers_report(board: Board) -> None:
    page = opened(Results(board), "method", method="BLoB")
    assert run_id(board, "BLoB", seed=1) in said(page) and "69.07 ± 0.34" in said(page)
    assert next(b.text for b in of(page, Text)) == "Bayesian LoRA by backpropagation"
    assert EVIL in said(opened(Results(board), "method", method=EVIL)).replace("&lt;", "<").replace("&gt;", ">")


def test_problems_are_listed_with_their_reason_and_remarks_stay_with_their_run(tmp_path: Path) -> None:
    result(tmp_path, "BLoB", leaks={"arc_easy_uq": [{"shared": 3}]})
    (tmp_path / "results_broken.json").write_text("{")
    board = build([tmp_path])
    page = opened(Results(board), "submit")
    assert "results_broken.json" in said(page) and "not valid JSON" in said(page) and "validate --submit" in said(page)
    assert "leaked" in board.runs[0].remarks and "fitted, tuned or selected" not in said(page)
    assert "fitted, tuned or selected" in said(opened(Results(board), "run"))
