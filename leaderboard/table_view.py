"""The Table page without its widgets: which runs, which tables, and in which order.

Everything goes through `table.build`, so a number here is the number of `uqharness table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import pandas as pd

from uqharness.leaderboard import costs
from uqharness.leaderboard.reported_table import names as paper_tables
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.table import Cell, Column, Table
from uqharness.leaderboard.table_formats import number, shown_draws
from uqharness.metrics.registry import METRICS

ALL_DRAWS = "all"
ROWS = (25, 100, 500)  # of a table that are shown
SHIFTS = ("id", "small", "large", "unknown")
# filter -> column of Board.runs
FILTERS = {
    "base": "base",
    "trained": "trained_on",
    "method": "method",
    "protocol": "protocol_name",
    "source": "origin",
    "shift": "shift",
}
FILTER_LABELS = {
    "base": "Base model",
    "shift": "Shift",
    "method": "Method",
    "trained": "Trained on",
    "protocol": "Protocol",
    "source": "Source",
}
PRESETS: dict[str, dict[str, Any]] = {
    "Paper": {"metric": ("nll", "brier", "acc", "ece"), "shift": (), "layout": "papers", "cost": False},
    "OOD": {
        "metric": ("nll", "brier", "acc", "ece_debiased", "auroc"),
        "shift": ("small", "large"),
        "layout": "papers",
        "cost": False,
    },
    "Cost": {"metric": ("nll", "acc", "ece_debiased"), "shift": ("id",), "layout": "flat", "cost": True},
}


def fields(runs: pd.DataFrame, reported: pd.DataFrame) -> list[Field]:
    """The page's parameters, with what can be chosen from these results."""

    def there(column: str) -> list[str]:
        return sorted({"unknown" if value is None or value != value else str(value) for value in runs[column]})

    most = int(runs["draws"].max()) if len(runs) else 0
    draws = [ALL_DRAWS, *(str(n) for n in (0, 1, 2, 3, 5, 10, 20, 50, 100) if n <= most)]
    tasks = sorted(set(runs["task"]))
    return [
        Field("metric", PRESETS["Paper"]["metric"], list(METRICS), "Metric"),
        Field("samples", (ALL_DRAWS,), draws, "N"),
        *(
            Field(name, (), SHIFTS if name == "shift" else there(column), name.capitalize())
            for name, column in FILTERS.items()
        ),
        Field("layout", "papers", ("papers", "flat"), "Layout"),
        Field("cost", False),
        Field("ranks", True),
        Field("recipes", False),
        Field("sort", "", ("", *METRICS), "Sort by"),
        Field("on", "", ("", *tasks), "Data set"),
        Field("worst", False),
        Field("page", 1),
        Field("rows", ROWS[0], ROWS, "Rows"),
        Field("paper", (papers := paper_tables(reported))[0], papers, "Table of a paper"),
    ]


def summary(runs: pd.DataFrame, problems: pd.DataFrame, snapshot: str) -> str:
    """One line: how much there is, and which results these are."""

    def of(count: int, one: str, more: str = "") -> str:
        return f"{count:,} {one if count == 1 else more or one + 's'}"

    parts = [
        of(len(runs), "run"),
        of(runs["method"].nunique(), "method"),
        of(runs["task"].nunique(), "data set"),
        of(runs["base"].nunique(), "base model"),
        *[of(len(problems), "remark on files", "remarks on files")] * bool(len(problems)),
        f"results {snapshot}",
    ]
    return " · ".join(parts)


def preset_of(view: Mapping[str, Any]) -> str | None:
    """The preset that this view is, if it is one."""
    return next((name for name, own in PRESETS.items() if all(view[k] == v for k, v in own.items())), None)


def selected(runs: pd.DataFrame, view: Mapping[str, Any]) -> list[str]:
    """Ids of the runs that the filters leave; an empty filter leaves all."""
    kept = runs
    for name, column in FILTERS.items():
        if view.get(name):
            kept = kept[kept[column].fillna("unknown").isin(view[name])]
    return list(kept["run_id"])


def asked(view: Mapping[str, Any]) -> list[int | None]:
    """What `table.build` calls samples."""
    return [None if text == ALL_DRAWS else int(text) for text in view["samples"]] or [None]


def ordered(table: Table, metric: str, task: str, worst: bool = False) -> Table:
    """Rows by a metric on a data set (the first one where none is named), best first; what has no number is last."""
    if metric not in table.metrics:
        return table
    known = METRICS[metric].higher_is_better
    j = next((j for j, column in enumerate(table.columns) if column.task == task), 0)

    def key(i: int) -> tuple[bool, float]:
        cell = table.cells.get((metric, i, j))
        value = float("nan") if cell is None else cell.mean if cell.compared is None else cell.compared
        return isnan(value), -value if bool(known) != worst else value

    order = sorted(range(len(table.rows)), key=key)
    place = {old: new for new, old in enumerate(order)}
    cells = {(m, place[i], j): cell for (m, i, j), cell in table.cells.items()}
    cells = dict(sorted(cells.items(), key=lambda item: (table.metrics.index(item[0][0]), *item[0][1:])))
    auto = {place[i]: taken for i, taken in table.auto.items()}
    return replace(table, rows=[table.rows[i] for i in order], cells=cells, auto=auto)


def flat(
    tables: Sequence[Table], recorded: Mapping[str, Mapping[str, Any]], with_cost: bool
) -> tuple[list[str], list[list[str]]]:
    """One row per method, N and data set, metrics as columns: (header, rows), all text; costs by run id."""
    metrics = list(dict.fromkeys(m for table in tables for m in table.metrics))
    header = ["Method", "N", "Data set", "Shift", "Trained on", "Seeds"]
    header += [METRICS[m].label for m in metrics] + [*map(costs.title, costs.COSTS)] * with_cost
    header += ["Hardware"] * with_cost + ["Table"] * (len(tables) > 1)
    rows = []
    for k, table in enumerate(tables, start=1):
        for i, (method, draws) in enumerate(table.rows):
            for j, column in enumerate(table.columns):
                cells = {m: table.cells[m, i, j] for m in metrics if (m, i, j) in table.cells}
                if cells:
                    row = _flat_row((method, draws), table.auto.get(i), column, cells, metrics)
                    row += _costs(next(iter(cells.values())), draws, recorded) if with_cost else []
                    rows.append(row + [str(k)] * (len(tables) > 1))
    return header, rows


def _flat_row(
    row: tuple[str, int], auto: float | None, column: Column, cells: Mapping[str, Cell], metrics: Sequence[str]
) -> list[str]:
    count = len(next(iter(cells.values())).values)
    known = [row[0], shown_draws(row[1], auto), column.task, column.shift or "–", column.trained_on or "–"]
    return [*known, str(count or "–"), *(told(cells.get(m), m) for m in metrics)]


def _costs(cell: Cell, draws: int, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of so many draws: a run's forward passes are those of all that it holds."""
    runs = [costs.needed(recorded[run], draws) for run in cell.runs if run in recorded]
    return [*(costs.told(costs.average(runs, cost), cost) for cost in costs.COSTS), costs.hardware(runs)]


def told(cell: Cell | None, metric: str) -> str:
    """A cell as plain text, with the marks that keep it from being ranked."""
    if cell is None:
        return "–"
    spread = "" if cell.std is None else f" ± {number(cell.std, metric)}"
    return f"{number(cell.mean, metric)}{'†' * cell.leaked}{'‡' * cell.suspect}{spread}"
