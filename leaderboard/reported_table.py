"""A table of a paper, separate from measured results and never averaged or ranked with them.

Marks follow the printed numbers. Papers print no floor for ECE, so small differences in it may be sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from uqharness.leaderboard.page import Methods
from uqharness.leaderboard.reported import FOOTNOTES
from uqharness.leaderboard.table import Cell, Column, Table, rank
from uqharness.leaderboard.table_formats import number
from uqharness.metrics.registry import METRICS

PRINTED = ("nll", "acc", "ece")
# (paper, table) -> (paper, table) that corrects some of its cells
CORRECTED = {("BLoB", "1"): ("BLoB-NeurIPS2024-slides", "main")}
Key = tuple[Any, ...]


def names(reported: pd.DataFrame) -> list[str]:
    """The papers' tables that hold results, in the order of the papers."""
    return list(dict.fromkeys(_name(row) for row in _results(reported)))


def corrected(name: str) -> bool:
    """Return whether the authors corrected cells of this table."""
    return any(name.startswith(f"{paper}, table {table},") for paper, table in CORRECTED)


def build(reported: pd.DataFrame, name: str, metrics: Sequence[str] = PRINTED, as_printed: bool = False) -> Methods:
    """Methods x data sets, the corrected values where the authors gave some; every cell with a note has its number.

    `‡`: it failed in its paper, or the paper contradicts itself; such a cell is never marked as best.
    """
    everything = _results(reported)
    rows = [row for row in everything if _name(row) == name]
    shown = [m for m in metrics if m in PRINTED] or list(PRINTED)
    columns = list(dict.fromkeys((row["dataset"], row["trained_on"]) for row in rows))
    methods = list(dict.fromkeys((row["method"], _draws(row)) for row in rows))
    papers, named = {row["paper"] for row in rows}, {row["method"] for row in rows}
    source = CORRECTED.get((rows[0]["paper"], rows[0]["table"])) if rows else None
    better = {_key(row): row for row in everything if (row["paper"], row["table"]) == source}
    cells: dict[tuple[str, int, int], Cell] = {}
    marks, lines = dict[tuple[str, int, int], list[int]](), list[str]()

    def mark(at: tuple[str, int, int], text: str) -> None:
        if text not in lines:
            lines.append(text)
        marks.setdefault(at, []).append(lines.index(text) + 1)

    for row in rows:  # of every metric: a note has the same number wherever the table is shown
        at = (
            row["metric"],
            methods.index((row["method"], _draws(row))),
            columns.index((row["dataset"], row["trained_on"])),
        )
        which = f"{row['method']} on {row['dataset']}"
        odd, new = row["status"] != "ok", better.get(_key(row))
        cells[at] = replace(_cell(row), suspect=odd)
        if new is not None and _labelled(new) != _labelled(row):
            if as_printed:
                mark(at, f"corrected in {new['paper']}: {which} is {_labelled(new)} there")
            else:
                cells[at] = _cell(new)
                mark(
                    at,
                    f"corrected in {new['paper']}: the paper prints {_labelled(row)} for {which}",
                )
        elif row["note"]:
            mark(at, f"{'‡ ' * odd}{row['method']}: {row['note']}")
    cells = {at: cell for at, cell in cells.items() if at[0] in shown}
    marks = {at: numbers for at, numbers in marks.items() if at[0] in shown}
    used = {k for numbers in marks.values() for k in numbers}
    lines = [f"{k}: {line}" for k, line in enumerate(lines, start=1) if k in used]
    about = [
        f"{method}: {text}" if method else text
        for paper, method, text in FOOTNOTES
        if paper in papers and (not method or method in named)
    ]
    heads = [Column(data, trained, "id" if data == trained else None, 0, "", None) for data, trained in columns]
    table = Table(heads, methods, shown, cells, about + lines)
    rank(table)
    return Methods(table, name, marks=marks, measured=False)


def _cell(row: Mapping[Any, Any]) -> Cell:
    return Cell({}, float(row["value"]), None if row["std"] is None or row["std"] != row["std"] else float(row["std"]))


def printed(row: Mapping[Any, Any]) -> str:
    """The number and its spread, as the paper prints them."""
    spread = number(row["std"], row["metric"])
    return number(row["value"], row["metric"]) + ("" if spread == "–" else f" ± {spread}")


def _labelled(row: Mapping[Any, Any]) -> str:
    return f"{METRICS[row['metric']].label} {printed(row)}"


def _key(row: Mapping[Any, Any]) -> Key:
    return row["base"], row["dataset"], row["trained_on"], row["method"], _draws(row), row["metric"]


def _results(reported: pd.DataFrame) -> list[dict[Any, Any]]:
    return list(reported[reported["metric"].isin(PRINTED)].to_dict("records"))


def _name(row: Mapping[Any, Any]) -> str:
    return f"{row['paper']}, table {row['table']}, {row['base']}"


def _draws(row: Mapping[Any, Any]) -> int:
    """Return the number of draws; -1 if the paper does not say."""
    return -1 if row["draws"] is None or row["draws"] != row["draws"] else int(row["draws"])
