"""The landing page, and the tables of the papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any, NamedTuple

from uqharness.leaderboard import about, charts, costs, headline, reported_table, reproduce
from uqharness.leaderboard import reproduce_formats as formats
from uqharness.leaderboard.page import Block, Figure, Grid, Methods, Page, Text, View
from uqharness.leaderboard.ranking import Tests, ranks_of
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.table import Cell, Table, by_plan, synthetic, titled_task, titled_tasks
from uqharness.leaderboard.table_formats import number, shown_draws, shown_range, titled
from uqharness.loose_json import value_of
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import RunSummary

PURPOSE = (
    "Does a fine-tuned language model know when it is wrong? Bayesian LoRA methods compared on the same questions, "
    "recipe and averaging rule, with intervals."
)
SHOWN = ("nll", "ece", "acc", "brier", "auroc", "aurc")  # metrics with a switch of their own
ALL = "all"
FILTERS = {
    "base": "Base model",
    "shift": "Shift",
    "method": "Method",
    "trained_on": "Trained on",
    "protocol": "Protocol",
    "origin": "Source",
}
SHIFTS = ("id", "small", "large")
MOST_RANKED = 300  # runs of a table: ranks need the answers of each
PER_PAGE, ROWS = 6, (25, 100, 500)  # tables of a page, rows of a table
PRETRAINED = "Real: pretrained language models, fine-tuned with LoRA and asked the test questions of real data sets."
SYNTHETIC = (
    "Synthetic: a tiny language model asked about an embedded world whose true answers are known. It shows that the "
    "methods and this page work; it says nothing about a language model of any real size."
)
MEASURED = (
    "± is the standard deviation over training seeds alone; with one seed the 95 % interval over questions stands "
    "there. The rank is a range: what paired tests over questions and seeds leave, corrected within a column and not "
    "between columns; shaded: top tier, nothing is significantly better. Bold: best printed number, underlined: "
    "second. A number leads to its questions, a name to its method."
)
EFFORT = ("Labels seen", "LoRAs trained")
CHANGE = (
    "What would change my mind: how many questions, or training seeds of each, would separate the best from its tier "
    "if the true difference is the shown one"
)
ROLES = {
    "oracle": "the world's own answer, not a method",
    "none": "the base itself, untrained",
    "recorded": "another recipe, for reference",
}
GUESS = "constant guess", "all choices equal, no model"
PROPER = ("nll", "brier")  # scores that a guess does not get cheaply
NO_DRAWS = "N = –: the paper states no number of draws."
AS_PRINTED = "Other prompts, budgets and bases than here: neither averaged nor ranked with what was measured."
NO_REPRODUCTION = (
    "No result here is on a data set that the papers report: run the suite of a paper's table, and open its folder."
)
RUN_SUITE = "uqharness suite run blob-table1 --out runs/blob-table1\nuqharness leaderboard runs/blob-table1"
OURS = formats.CELL_HEADS.index("Ours")
VERDICTS = (
    "Agrees: the 95 % interval of the difference lies within 2 points of ACC and ECE, or 0.05 of NLL. Differs: it lies "
    "outside on one side. Cannot be told: anything else. No verdict: another base, other settings, fewer questions or "
    "one seed, as the row says. ‡: the paper contradicts itself here."
)


def landing(view: View) -> Page:
    results = view.results
    words = "; ".join(f"{METRICS[name].label}: {METRICS[name].meaning.rstrip('.')}" for name in SHOWN)
    options = (*SHOWN, ALL)
    metric = view.one(
        "metric", "Metric of the tables", options, kind="segments", labels=_labels(), help=words, main=True
    )
    metrics = list(SHOWN) if metric == ALL else [metric]
    runs = _selected(view)
    samples = _draws(view)
    mixed = view.switch("recipes", "Recipes together", help="one table for adapters trained by different recipes")
    metrics += ["brier"] * (metric == "nll")
    tables = results.tables(runs, metrics, samples, mixed)
    most = view.one("rows", "Rows of a table", ROWS) if any(len(t.rows) > ROWS[0] for t in tables) else ROWS[0]
    pages = -(-len(tables) // PER_PAGE)
    page = view.number("page", f"Tables, page of {pages}", pages) if pages > 1 else 1
    first, blocks, short, explained = PER_PAGE * (page - 1), list[Block](), list[Block](), set[str]()
    for k, table in enumerate(tables[first : first + PER_PAGE], start=first):
        fake = _synthetic(table)
        if k == first or fake != _synthetic(tables[k - 1]):
            heading = Text(f"Measured here: {'synthetic world' if fake else 'pretrained models'}", "heading")
            blocks += [heading, Text(SYNTHETIC if fake else PRETRAINED), *_headline(view, table, fake)]
        name = f"Table {k + 1} of {len(tables)}, " if len(tables) > 1 else ""
        if metric == ALL:
            blocks += _flat(view, table, name)
        else:
            said, made = measured(view, table, metric, name, most, not k)
            short += [Text(f"{line}.") for line in said]
            blocks += [*made, *_legend(view, table, explained)]
    if not runs:
        none = "No measured run passes these filters." if results.runs else "No measured results were given."
        blocks.append(Text(none, "info"))
    if any(not _synthetic(table) for table in tables):
        blocks.append(Text("Tables that papers report are on the page Papers", address=view.link("papers")))
    else:  # nothing real was measured: the papers lead
        more = Text("More tables on the page Papers", address=view.link("papers"))
        name = reported_table.names(results.board.reported)[0]
        shown = metric if metric in reported_table.PRINTED else "nll"
        caption = f"{name}, {titled(shown)}, as corrected by its authors. {AS_PRINTED} {NO_DRAWS}"
        blocks = [Text("Reported by papers", "heading"), _paper(view, name, [shown], caption), more, *blocks]
    return view.page("Leaderboard", PURPOSE, [Text(_summary(results), "caption"), *short, *blocks])


def papers(view: View) -> Page:
    reported = view.results.board.reported
    name = view.one("paper", "Table of a paper", reported_table.names(reported), main=True)
    metric = view.one("metric", "Metric", (ALL, *reported_table.PRINTED), kind="segments", labels=_labels(), main=True)
    printed = reported_table.corrected(name) and view.switch(
        "printed", "As printed", help="without the corrections that the authors gave later", main=True
    )
    how = "as printed" if printed or not reported_table.corrected(name) else "as corrected by its authors"
    caption = f"{name}, {how}. Numbers in superscript are notes below. {NO_DRAWS}"
    block = _paper(view, name, reported_table.PRINTED if metric == ALL else [metric], caption, printed)
    what = "What the papers of the methods print, with ± and every note on a cell."
    return view.page("Reported in papers", what, [block, Text(AS_PRINTED, "caption")])


def _paper(view: View, name: str, metrics: Sequence[str], caption: str, printed: bool = False) -> Methods:
    block = reported_table.build(view.results.board.reported, name, metrics, printed)
    return replace(block, caption=caption, about=_methods(view, block.table))


def reproduced(view: View) -> Page:
    """`uqharness reproduce` as a page: a paper's cells beside ours."""
    title, what = "Reproduce", "A paper's numbers beside those measured here, cell by cell, each in its own column."
    reports = view.results.cached("reports", lambda: reproduce.reports(view.results.runs))
    if not reports:
        return view.page(title, what, [Text(NO_REPRODUCTION, "info"), Text(RUN_SUITE, "code")])
    name = view.one("paper", "Table of a paper", list(reports), main=True)
    report, blocks = reports[name], list[Block]()
    blocks += [Text(f"{name}: {formats.summary(report)}."), Text(VERDICTS, "caption")]
    if metrics := formats.metrics_of(report):
        labels = {metric: formats.title(metric) for metric in metrics}
        metric = view.one("metric", "Metric", metrics, kind="segments", labels=labels, main=True)
        only = view.switch("measured", "Measured cells only", any(cell.ours for cell in report.cells), main=True)
        rows = formats.cell_rows(report, metric, {1: ("", ""), 2: ("", "")})
        rows = [row for row in rows if not only or row[OURS] != "–"]
        blocks.append(Grid(formats.CELL_HEADS, rows, f"{name}, {labels[metric]}", "cells", sortable=True))
    if report.claims:
        rows = [formats.claim_row(claim, formats.shared_reasons(report)) for claim in report.claims]
        blocks.append(Grid(formats.CLAIM_HEADS, rows, f"{name}: what the paper says about it", "words", sortable=True))
    blocks.append(Grid(["Note"], [[note] for note in report.notes], f"{len(report.notes)} notes", "words", folded=True))
    return view.page(title, what, blocks)


def measured(
    view: View, table: Table, metric: str, name: str, most: int, explain: bool
) -> tuple[list[str], list[Block]]:
    """What one metric of a table lets one conclude, and the table, best first, with ranks and what would change it."""
    results = view.results
    table = ordered(table, metric)
    one = replace(table, metrics=[metric], cells={k: c for k, c in table.cells.items() if k[0] == metric})
    where = "Synthetic " if _synthetic(one) else f"{_bases(results, one)} on ".removeprefix(" on ")
    runs = {run for cell in one.cells.values() for run in cell.runs}
    few = len(runs) <= MOST_RANKED
    tests = results.tests(one, metric, known_only=not view.patient) if few else {}
    intervals = results.intervals(one, metric) if few and tests is not None else {}
    if tests is None:
        view.later.append(lambda: (results.tests(one, metric), results.intervals(one, metric)))
    guesses = _guesses(results, one, metric) if tests is not None else []
    lines = list(table.notes)
    if not few:
        lines.insert(0, f"Ranks are tested for up to {MOST_RANKED} runs; this table has {len(runs)}: filter it.")
    if most and len(one.rows) > most:
        lines.insert(0, f"The best {most} of {len(one.rows)} rows are shown: export has all.")
    beside = {}
    if metric == "nll":
        beside = {(i, j): f"Brier {number(c.mean, 'brier')}" for (m, i, j), c in table.cells.items() if m == "brier"}
    block = Methods(
        replace(one, notes=lines),
        f"{name}{METRICS[metric].label}{_base_of(results, one)}. {f'{METRICS[metric].meaning} {MEASURED}' * explain}",
        ranks={metric: ranks_of(tests)} if tests else {},
        pending=tests is None,
        extra=_effort(results, one),
        beside=beside,
        intervals=intervals,
        about=_methods(view, one),
        roles=_roles(results, one),
        guess=(*GUESS, [number(value, metric) for value in guesses]) if guesses else None,
        link=lambda cell: view.link("items", run=cell.runs[0]),
        most=most,
    )
    near = {j: result for j, result in (tests or {}).items() if one.columns[j].shift not in ("small", "large")}
    sentences = [Text(f"{where}{line}; {detail}.") for line, detail in conclusion(one, metric, tests or {})]
    said = [f"{where}{line}" for line, _ in conclusion(one, metric, near)]
    if tests:
        sentences += [Text(f"{where}{line}.") for line in beyond_guess(one, metric, guesses, tests)]
        said += [f"{where}{line}" for line in beyond_guess(one, metric, guesses, near)]
    return said, [*sentences, block, *_change_of_mind(one, tests or {})]


def beyond_guess(table: Table, metric: str, guesses: Sequence[float], columns: Iterable[int]) -> list[str]:
    """Which methods show a worse proper score than the same probability for every choice, on these data sets."""
    digits, groups = METRICS[metric].decimals, dict[str, list[int]]()
    for j in columns if metric in PROPER else ():
        cells = {table.rows[i][0]: c for (_, i, k), c in table.cells.items() if k == j and not c.reference}
        above = [name for name, c in cells.items() if round(c.mean, digits) > round(guesses[j], digits)]
        if above:
            groups.setdefault(", ".join(above), []).append(j)
    label = METRICS[metric].label
    return [
        f"{', '.join(table.columns[j].task for j in of)}: a constant guess shows a lower {label} than {names}"
        for names, of in groups.items()
    ]


def conclusion(table: Table, metric: str, tests: Mapping[int, Tests]) -> list[tuple[str, str]]:
    """(conclusion, what it rests on); data sets of which the same can be said are named together.

    A top tier of most methods is no finding: then the line says that the data cannot separate them, and the second
    text what would.
    """
    label, groups = METRICS[metric].label, dict[tuple[str, bool], list[int]]()
    for j, result in tests.items():
        ranks = {table.rows[int(name)][0]: rank for name, rank in result.ranks().items()}
        top, worse = ([name for name, rank in ranks.items() if rank.top is wanted] for wanted in (True, False))
        text, most = f"top tier by {label}: {', '.join(top)} ({len(top)} of {len(ranks)})", 2 * len(top) > len(ranks)
        if most:
            count = f"{len(top)} of {len(ranks)} methods" if worse else f"any of the {len(ranks)} methods"
            text = f"the data cannot separate {count} by {label}"
            text += f" (shown to be worse: {', '.join(worse)})" * bool(worse)
        groups.setdefault((text, most), []).append(j)
    return [
        (f"{', '.join(table.columns[j].task for j in of)}: {text}", _detail([tests[j] for j in of], most))
        for (text, most), of in groups.items()
    ]


def _detail(results: Sequence[Tests], most: bool) -> str:
    """The smallest detectable difference; of a tier of most methods also what would separate a first pair of it."""
    known = METRICS[results[0].metric]
    unit = " points" if known.scale == 100 else f" {known.label}"
    least = [f"{value * known.scale:.{known.decimals}f}" for value in sorted(result.smallest for result in results)]
    text = f"smallest detectable difference: {'–'.join(dict.fromkeys((least[0], least[-1])))}{unit}"
    if not most:
        return text
    pairs, ways = [(pair, result.spread) for result in results for pair in _open_pairs(result)], list[str]()
    if more := [(pair.items, has.items) for pair, has in pairs if pair.items and pair.items > has.items]:
        ways.append(f"{_about(min(more)[0])} questions instead of {min(more)[1]:,}")
    counts = [(pair.seeds, [int(n) for n in has.seeds]) for pair, has in pairs if pair.seeds]
    if again := [(n, shown_range(has)) for n, has in counts if n > max(has)]:
        ways.append("{} training seeds of each instead of {}".format(*min(again)))
    would = f"would take {' or '.join(ways)}" if ways else "is not a matter of more questions or seeds"
    return f"{text}; separating a first pair, if what is shown is true, {would}"


class _Pair(NamedTuple):
    """Two of a top tier, as places in `names`, and how many questions or seeds would separate them."""

    best: int
    other: int
    items: int | None
    seeds: int | None


def _open_pairs(result: Tests) -> list[_Pair]:
    """The best of a column with each other method of its tier."""
    known, names = METRICS[result.metric], result.names
    best = min(range(len(names)), key=lambda k: -result.values[k] if known.higher_is_better else result.values[k])
    tier = [k for k, rank in enumerate(result.ranks().values()) if rank.top and k != best]
    return [
        _Pair(best, k, result.items_needed(names[best], names[k]), result.seeds_needed(names[best], names[k]))
        for k in tier
    ]


def _about(count: int) -> str:
    """Two digits of a number that is an estimate."""
    return f"{float(f'{count:.2g}'):,.0f}"


def ordered(table: Table, metric: str) -> Table:
    """Rows by the printed number on the first data set, best first; what has no number is last."""
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0

    def key(i: int) -> tuple[bool, float]:
        cell = table.cells.get((metric, i, 0))
        value = float("nan") if cell is None else cell.mean
        return isnan(value), sign * value

    order = sorted(range(len(table.rows)), key=key)
    place = {old: new for new, old in enumerate(order)}
    cells = {(m, place[i], j): cell for (m, i, j), cell in table.cells.items()}
    cells = dict(sorted(cells.items(), key=lambda item: (table.metrics.index(item[0][0]), *item[0][1:])))
    auto = {place[i]: taken for i, taken in table.auto.items()}
    return replace(table, rows=[table.rows[i] for i in order], cells=cells, auto=auto)


def _change_of_mind(table: Table, tests: Mapping[int, Tests]) -> list[Block]:
    """For the best of each column and every method of its top tier: what would separate them."""
    rows = []
    for j, result in tests.items():
        known = METRICS[result.metric]
        for best, k, items, seeds in _open_pairs(result):
            pair = " and ".join(table.rows[int(result.names[place])][0] for place in (best, k))
            difference = f"{abs(result.difference[best, k]) * known.scale:.{known.decimals}f}"
            needed = [_about(items) if items else "no number", str(seeds) if seeds else "no number"]
            rows.append([titled_task(table.columns[j].name), pair, difference, *needed])
    header = ["Data set", "Pair that is not separated", "Shown difference", "Questions that would", "Seeds that would"]
    return [Grid(header, rows, CHANGE, "words", folded=True)] if rows else []


def _legend(view: View, table: Table, explained: set[str]) -> list[Block]:
    """What the abbreviations in a table stand for, each once on a page; metrics below the first table."""
    runs = [view.results.run(cell.runs[0]) for cell in table.cells.values()]
    pages = {run.method.partition(" (")[0]: about.pages().get(about.method_name(run)) for run in runs}
    words = {method: page.title for method, page in pages.items() if page}
    if not explained:
        meanings = {METRICS[m].label: METRICS[m].meaning.partition(":")[0] for m in SHOWN if m != "brier"}
        words |= {label: f"{text[:1].lower()}{text[1:]}" for label, text in meanings.items()}
    new = [f"{name} {text}" for name, text in words.items() if name not in explained]
    explained |= set(words)
    return [Text(f"Short for: {'; '.join(new)}.", "caption")] if new else []


def _headline(view: View, table: Table, fake: bool) -> list[Block]:
    if not table.columns:
        return []
    names = [column.name for column in table.columns]
    control, title = (
        ("figure_s", "Data set of the figure (synthetic)") if fake else ("figure", "Data set of the figure")
    )
    data = view.one(control, title, names, labels=titled_tasks(names)) if len(names) > 1 else names[0]
    runs = tuple(run for cell in table.cells.values() for run in cell.runs)
    key = ("headline", data, tuple(table.rows), runs)
    points = view.results.cached(key, lambda: headline.points(view.results, table, names.index(data)))
    if len(points.rows) < 2:
        return []
    caption = headline.caption(view.results, table, names.index(data), points)
    label = f"Difference from MLE on {titled_task(data)}"
    return [
        Text(f"{label} in NLL and ECE: left of the line is better", "heading"),
        Figure(charts.headline(points), f"headline{'-synthetic' * fake}", label),
        Text(caption, "caption"),
        Grid(*headline.as_rows(points), f"{label}, the figure as a table", folded=True),
    ]


def _flat(view: View, table: Table, name: str) -> list[Block]:
    """One row per method, N and data set, all metrics and costs as columns: to sort and to search."""
    header = ["Method", "N", "Data set", "Shift", "Trained on", "Seeds", *(METRICS[m].label for m in table.metrics)]
    header += [*EFFORT, *map(costs.title, costs.COSTS), "Hardware"]
    rows = []
    for i, (method, draws) in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            cells = [table.cells.get((m, i, j)) for m in table.metrics]
            if first := next(filter(None, cells), None):
                runs = [view.results.run(run_id) for run_id in first.runs]
                used = [(run, draws) for run in runs]
                about = [column.task, column.shift or "–", column.trained_on or "–", str(len(first.values) or "–")]
                values = [plain(cell, m) for cell, m in zip(cells, table.metrics, strict=True)]
                spent = [costs.formatted(costs.average(used, cost), cost) for cost in costs.COSTS]
                spent = [*costs.effort(runs), *spent, costs.hardware(used)]
                rows.append([method, shown_draws(draws, table.auto.get(i)), *about, *values, *spent])
    notes = [Text(line, "caption") for line in table.notes]
    return [Grid(header, rows, f"{name}one row per method, N and data set", sortable=True), *notes]


def plain(cell: Cell | None, metric: str) -> str:
    """A cell as plain text, with the marks that keep it from being ranked."""
    if cell is None:
        return "–"
    spread = "" if cell.std is None else f" ± {number(cell.std, metric)}"
    return f"{number(cell.mean, metric)}{'†' * cell.leaked}{'‡' * cell.suspect}{spread}"


def _effort(results: Results, table: Table) -> list[tuple[str, list[str]]]:
    """Columns beside the methods: equal recipes are not equal information."""
    runs: dict[int, dict[str, None]] = {i: {} for i in range(len(table.rows))}
    for (_, i, _), cell in table.cells.items():
        runs[i] |= dict.fromkeys(cell.runs)
    efforts = [costs.effort([results.run(run_id) for run_id in run_ids]) for run_ids in runs.values()]
    return [(title, [texts[k] for texts in efforts]) for k, title in enumerate(EFFORT)]


def _methods(view: View, table: Table) -> dict[int, tuple[str, str]]:
    """What each row's method is and who proposed it, with the address of its page."""
    results = view.results
    first = {i: results.run(cell.runs[0]) for (_, i, _), cell in table.cells.items() if cell.runs}
    row_texts = {}
    for i, (name, _) in enumerate(table.rows):
        run = first.get(i) or next(iter(results.board.select(method=name)), None)
        if run is None:  # a paper's, not measured here
            continue
        page = about.pages().get(about.method_name(run))
        parts = [name, page.title if page else "", about.paper(run)]
        row_texts[i] = "; ".join(filter(None, parts)), view.link("method", method=run.method)
    return row_texts


def _roles(results: Results, table: Table) -> dict[int, str]:
    """What the rows are that are shown for reference."""
    rows = {i: [results.run(run) for run in cell.runs] for (_, i, _), cell in table.cells.items() if cell.reference}
    roles = {i: by_plan(runs).partition(",")[0] or ROLES.get(runs[0].training, "") for i, runs in rows.items()}
    return {i: role for i, role in roles.items() if role}


def _guesses(results: Results, table: Table, metric: str) -> list[float]:
    """What every choice with the same probability would show on each data set."""
    runs = {j: cell.runs[0] for (_, _, j), cell in table.cells.items()}
    return [results.guess(runs[j], metric) for j in range(len(table.columns))]


def _synthetic(table: Table) -> bool:
    return all(column.synthetic for column in table.columns)


def _bases(results: Results, table: Table) -> str:
    runs = [results.run(cell.runs[0]) for cell in table.cells.values()]
    return ", ".join(dict.fromkeys(titled_task(run.base) for run in runs if run.recipe_hash))


def _base_of(results: Results, table: Table) -> str:
    return f" of {bases}" if (bases := _bases(results, table)) else ""


def _selected(view: View) -> list[str]:
    """Ids of the runs that the filters leave; an empty filter leaves all."""
    runs = view.results.runs
    for name, label in FILTERS.items():

        def of(run: RunSummary, name: str = name) -> str:
            value = run.protocol.get("name") if name == "protocol" else getattr(run, name)
            return str(value_of(value)) if value else "unknown"

        values = {of(run) for run in view.results.runs}
        options = [shift for shift in (*SHIFTS, "unknown") if shift in values] if name == "shift" else sorted(values)
        if len(options) > 1 and (chosen := view.several(name, label, options, labels=titled_tasks(options))):
            runs = [run for run in runs if of(run) in chosen]
    return [run.run_id for run in runs]


def _draws(view: View) -> list[int | None]:
    most = max((run.draws for run in view.results.runs), default=0)
    options = [ALL, *(str(n) for n in (0, 1, 2, 3, 5, 10, 20, 50, 100) if n <= most)]
    about = "0: the mean of the posterior; all: as many as a result holds"
    chosen = view.several("samples", "N, draws averaged", options, (ALL,), help=about)
    return [None if text == ALL else int(text) for text in chosen] or [None]


def _summary(results: Results) -> str:
    """How much there is, and which results these are."""

    def of(count: int, one: str) -> str:
        return f"{count:,} {one}{'s' * (count != 1)}"

    runs = results.runs
    tasks, bases = {run.task for run in runs}, {run.base for run in runs if run.recipe_hash}
    real = {run.base for run in runs if run.recipe_hash and not synthetic(run.task)}
    parts = [
        f"Measured here: {of(len(runs), 'run')}",
        of(len({run.method for run in runs}), "method"),
        of(len(tasks), "data set") + _kinds(sum(map(synthetic, tasks)), len(tasks), "real"),
        of(len(bases), "fine-tuned base model") + _kinds(len(bases - real), len(bases), "pretrained"),
        f"results {results.board.snapshot}",
    ]
    return " · ".join(parts)


def _kinds(synthetic: int, count: int, other: str) -> str:
    if synthetic in (0, count):
        return f" ({'synthetic' if synthetic else other})" if count else ""
    return f" ({count - synthetic} {other}, {synthetic} synthetic)"


def _labels() -> dict[Any, str]:
    return {**{name: known.label for name, known in METRICS.items()}, ALL: "All metrics"}
