"""The Table page without widgets: filters, order, flat layout, the papers' tables, export of the view."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from made_results import result

from uqharness.leaderboard import costs, export, picks, reported, reported_table, table, table_html, table_view
from uqharness.leaderboard.aggregate import Board, build

LINK = "http://localhost/?metric=acc,nll&snapshot=abc"


@pytest.fixture(scope="module")
def board(results: Path) -> Board:
    return build([results])


def tables(board: Board, *metrics: str) -> list[table.Table]:
    return table.build(board.sources(), metrics or ("acc", "nll"))


def test_filters_leave_what_has_one_of_the_values(board: Board) -> None:
    everything = {field.name: field.default for field in table_view.fields(board.runs, board.reported)}
    assert table_view.selected(board.runs, everything) == list(board.runs["run_id"])
    kept = set(table_view.selected(board.runs, {**everything, "method": ("MLE",), "shift": ("small", "id")}))
    wanted = board.runs[(board.runs["method"] == "MLE") & board.runs["shift"].isin(["small", "id"])]
    assert kept == set(wanted["run_id"]) and 0 < len(kept) < len(board.runs)
    assert table_view.preset_of(everything) == "Paper"
    assert table_view.preset_of({**everything, "metric": ("acc",)}) is None


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("metric", ["acc", "nll"])
def test_order_is_best_first_and_what_is_missing_last(board: Board, metric: str, worst: bool) -> None:
    (found,) = tables(board)
    task = next(c.task for c in found.columns if c.shift != "id")
    shown = table_view.ordered(found, metric, task, worst)
    j = next(j for j, c in enumerate(shown.columns) if c.task == task)
    cells = [shown.cells.get((metric, i, j)) for i in range(3)]
    assert cells[2] is None and cells[0] and cells[1]
    assert (cells[0].mean >= cells[1].mean) == ((metric == "acc") != worst)
    before = {(*found.rows[i], m, k): cell for (m, i, k), cell in found.cells.items()}
    assert {(*shown.rows[i], m, k): cell for (m, i, k), cell in shown.cells.items()} == before
    assert table_view.ordered(found, "brier", "") == found  # a metric that is not shown


def test_what_samples_auto_took_stays_with_its_row_and_is_shown_everywhere(tmp_path: Path) -> None:
    for k, method in enumerate(("MLE", "BLoB", "SWAG")):
        result(tmp_path, method, numbers=k, **({"enough": 2} if method == "SWAG" else {}))
    (found,) = table.build(build([tmp_path]).sources(), ("nll", "acc"))
    told = f"auto ({2.05:.1f})"  # 2 draws for all of 40 questions but one, which has 4
    orders = [table_view.ordered(found, "nll", "", worst) for worst in (False, True)]
    assert [each.rows for each in orders] == [orders[1].rows[::-1], orders[1].rows]
    for shown in orders:
        assert [shown.rows[i][0] for i in shown.auto] == ["SWAG"]
        lines = table_html.papers_view(shown, "", {}).split("<tr>")
        assert [("SWAG" in line, told in line) for line in lines] == [("SWAG" in line,) * 2 for line in lines]
        _, rows = table_view.flat([shown], {}, with_cost=False)
        assert {row[0]: row[1] for row in rows} == {"MLE": "4", "BLoB": "4", "SWAG": told}
        taken = json.loads(export.text("JSON", export.Shown("", [shown]), ""))["tables"][0]["rows"]
        assert {row["method"]: row["mean_taken"] for row in taken} == {"MLE": 4, "BLoB": 4, "SWAG": 2.05}


def test_flat_has_every_cell_once(board: Board) -> None:
    (found,) = tables(board)
    header, rows = table_view.flat([found], costs.of_runs(board.runs), with_cost=True)
    assert all(len(row) == len(header) for row in rows) and len(rows) == 5
    acc = header.index("ACC")
    told = {(row[0], row[2]): row[acc] for row in rows}
    for (metric, i, j), cell in found.cells.items():
        if metric == "acc":
            assert told[found.rows[i][0], found.columns[j].task] == table_view.told(cell, "acc")


def test_flat_has_the_forward_passes_of_the_draws_that_are_averaged(tmp_path: Path) -> None:
    result(tmp_path, "BLoB")
    runs = build([tmp_path]).runs.assign(passes=5.0)
    found = table.build(build([tmp_path]).sources(), ("nll",), [0, 1, None])
    header, rows = table_view.flat(found, costs.of_runs(runs), with_cost=True)
    told = {row[header.index("N")]: row[header.index("Forward passes")] for row in rows}
    assert told == {"0": "1", "1": "2", "4": "5"}


def test_export_is_the_view_with_caption_and_link(board: Board) -> None:
    (found,) = tables(board)
    shown = table_view.ordered(found, "acc", "")
    caption = "what it\nshows"
    rows = list(csv.DictReader(io.StringIO(export.text("CSV", export.Shown(caption, [shown]), LINK))))
    assert len(rows) == len(shown.cells) and {row["link"] for row in rows} == {LINK}
    for row, ((metric, i, j), cell) in zip(rows, shown.cells.items(), strict=True):
        assert (row["metric"], row["method"], row["task"]) == (metric, shown.rows[i][0], shown.columns[j].task)
        assert float(row["mean"]) == cell.mean
    told = json.loads(export.text("JSON", export.Shown(caption, [shown]), LINK))
    assert told["caption"] == caption and told["link"] == LINK and len(told["tables"][0]["cells"]) == len(rows)
    tex, md = (export.text(kind, export.Shown(caption, [shown]), LINK) for kind in ("LaTeX", "Markdown"))
    assert tex.startswith(f"% what it shows\n% {LINK}\n") and r"\toprule" in tex and r"\textbf{" in tex
    assert LINK in md and "**" in md
    md = export.text("Markdown", export.Shown("<img src=x>![a](http://b)", [shown]), LINK)
    assert md.startswith(r"&lt;img src=x&gt;!\[a](http://b)")


def test_a_papers_table_is_taken_away_without_what_papers_do_not_say() -> None:
    frame = reported.load()
    shown = export.Shown("", [reported_table.build(frame, reported_table.names(frame)[0])])
    md, text = export.text("Markdown", shown, LINK), export.text("JSON", shown, LINK)
    assert "- items" not in md and "debiased" not in md and "- ECE is not marked, as papers print no floor" in md
    (told,) = json.loads(text)["tables"]
    assert {column["items"] for column in told["columns"]} == {None}
    assert told["rows"][0] == {"method": "MLE", "samples": None, "mean_taken": None}
    first = next(csv.DictReader(io.StringIO(export.text("CSV", shown, LINK))))
    assert (first["method"], first["samples"], first["items"]) == ("MLE", "", "")


def test_a_figure_mixes_only_what_one_table_holds(board: Board) -> None:
    (group,) = picks.groups(board.sources())
    home, other = group.shifts
    assert group.shifts[home] == "id" and len(group.rows(other)) == 2 and group.rows(home)[:2] == ["MLE", "BLoB"]
    assert group.seeds(home) == ["0", "1"] and group.run(home, "MLE", "7") is None
    (found,) = tables(board)
    told = group.over_seeds(group.rows(home), "acc", None, group.near(home))
    for (metric, i, j), cell in found.cells.items():
        if metric == "acc":
            mean, std = told[found.rows[i][0]][found.columns[j].task]
            assert (mean, std) == (pytest.approx(cell.mean), pytest.approx(cell.std))


def test_costs_are_means_and_the_front_weighs_three_numbers() -> None:
    runs = [
        {"train_seconds": 1.0, "device": "cpu", "dtype": "float32"},
        {"train_seconds": None, "device": "cpu", "dtype": ""},
    ]
    assert costs.told(costs.average(runs, "train_seconds"), "train_seconds") == "1.0"
    assert costs.hardware(runs) == "cpu float32, cpu"
    assert costs.told(costs.average([], "train_seconds"), "train_seconds") == "–"
    title = costs.title("train_seconds")
    points = [
        {"acc": 0.5, "ece_debiased": 0.1, title: 10.0},
        {"acc": 0.4, "ece_debiased": 0.1, title: 10.0},
        {"acc": 0.4, "ece_debiased": 0.2, title: 5.0},
        {"acc": 0.9, "ece_debiased": 0.0, title: float("nan")},
    ]
    assert costs.pareto_front(points, "train_seconds") == [True, False, True, False]


# ---------------------------------------------------------------- papers


def test_a_papers_table_is_as_printed() -> None:
    frame = reported.load()
    names = reported_table.names(frame)
    assert "BLoB, table 1, Llama2-7B" in names and len(names) == len(set(names))
    found = reported_table.build(frame, "BLoB, table 1, Llama2-7B", ["acc", "brier"])
    assert found.metrics == ["acc"]
    i, j = found.rows.index(("BLoB", 10)), [c.task for c in found.columns].index("WG-S")
    assert table_view.told(found.cells["acc", i, j], "acc") == "69.07 ± 0.34"


@pytest.mark.parametrize("name", reported_table.names(reported.load()))
def test_failed_and_suspect_cells_are_shown_and_never_crowned(name: str) -> None:
    frame = reported.load()
    found = reported_table.build(frame, name)
    odd = [cell for cell in found.cells.values() if cell.suspect]
    assert all(cell.rank is None for cell in odd)
    assert all(cell.rank is None for (metric, _, _), cell in found.cells.items() if metric == "ece")
    page = table_html.papers_view(found, name, {}, measured=False)
    assert page.count("‡") == len(odd) and page.count("<td>") >= len(found.cells)
