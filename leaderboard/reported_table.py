"""A table of a paper as it is printed: by itself, never averaged or ranked with anything measured.

ECE is not marked here: papers print it without the value that sampling alone gives, so it cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from uqharness.leaderboard.reported import FOOTNOTES
from uqharness.leaderboard.table import Cell, Column, Table, rank
from uqharness.metrics.registry import METRICS

PRINTED = ("nll", "acc", "ece")


def names(reported: pd.DataFrame) -> list[str]:
    """The papers' tables that hold results, in the order of the papers."""
    return list(dict.fromkeys(_name(row) for row in _results(reported)))


def build(reported: pd.DataFrame, name: str, metrics: Sequence[str] = PRINTED) -> Table:
    """Methods x data sets; `‡`: it failed in its paper, or the paper contradicts itself: never marked as best."""
    rows = [row for row in _results(reported) if _name(row) == name]
    shown = [m for m in metrics if m in PRINTED] or list(PRINTED)
    columns = list(dict.fromkeys((row["dataset"], row["trained_on"]) for row in rows))
    methods = list(dict.fromkeys((row["method"], _draws(row)) for row in rows))
    cells, notes = {}, dict[str, list[str]]()
    for row in rows:
        i, j = methods.index((row["method"], _draws(row))), columns.index((row["dataset"], row["trained_on"]))
        odd = row["status"] != "ok"
        if row["metric"] in shown:
            std = None if row["std"] is None or row["std"] != row["std"] else float(row["std"])
            cells[row["metric"], i, j] = Cell({}, float(row["value"]), std, suspect=odd)
        if row["note"]:
            text = f"{'‡ ' if odd else ''}{row['method']} on {row['dataset']}: {row['note']}"
            notes.setdefault(text, []).append(METRICS[row["metric"]].label)
    papers, printed = {row["paper"] for row in rows}, {row["method"] for row in rows}
    about = [
        f"{method}: {text}" if method else text
        for paper, method, text in FOOTNOTES
        if paper in papers and (not method or method in printed)
    ]
    lines = about + [f"{text} ({', '.join(dict.fromkeys(which))})" for text, which in notes.items()]
    heads = [Column(data, trained, "id" if data == trained else None, 0, "", None) for data, trained in columns]
    table = Table(heads, methods, shown, cells, lines)
    rank(table)
    return table


def _results(reported: pd.DataFrame) -> list[dict[Any, Any]]:
    return list(reported[reported["metric"].isin(PRINTED)].to_dict("records"))


def _name(row: Mapping[Any, Any]) -> str:
    return f"{row['paper']}, table {row['table']}, {row['base']}"


def _draws(row: Mapping[Any, Any]) -> int:
    """-1 where the paper does not say."""
    return -1 if row["draws"] is None or row["draws"] != row["draws"] else int(row["draws"])
