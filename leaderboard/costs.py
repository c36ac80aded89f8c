"""What runs cost, per row of a table: means over training seeds, with the hardware they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

import pandas as pd

from uqharness.leaderboard.curves import front
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.table_formats import number, shown_range, titled
from uqharness.metrics.registry import METRICS

# column of Board.runs -> (title, factor, decimals)
COSTS = {
    "train_seconds": ("Training, s", 1.0, 1),
    "peak_memory": ("Peak memory, MiB", 2.0**-20, 0),
    "trainable": ("Trainable parameters", 1.0, 0),
    "passes": ("Forward passes", 1.0, 0),
}
QUALITY = ("nll", "brier", "acc", "ece_debiased")


def title(cost: str) -> str:
    return COSTS[cost][0]


def of_runs(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The recorded costs of every run, by id."""
    return {row["run_id"]: row for row in runs[["run_id", "draws", *COSTS, "device", "dtype"]].to_dict("records")}


def average(runs: Sequence[Mapping[str, Any]], cost: str) -> float:
    """In the unit shown; NaN where no run says it."""
    known = [float(run[cost]) for run in runs if run[cost] is not None and run[cost] == run[cost]]
    return fmean(known) * COSTS[cost][1] if known else float("nan")


def told(value: float, cost: str) -> str:
    """An average as text."""
    return "–" if isnan(value) else f"{value:,.{COSTS[cost][2]}f}"


def hardware(runs: Sequence[Mapping[str, Any]]) -> str:
    named = (" ".join(str(run[key]) for key in ("device", "dtype") if run[key]) for run in runs)
    return ", ".join(dict.fromkeys(name for name in named if name)) or "–"


def points(
    group: Group, data: str, rows: Sequence[str], costs: Mapping[str, Mapping[str, Any]], draws: int | None
) -> list[dict[str, Any]]:
    """One point per row: costs and quality under their titles, in the units shown; "runs" are its costs."""
    out = []
    for row in rows:
        found = [(run, run.used(draws)) for run in group.runs.get(data, {}).get(row, {}).values()]
        used = [(run, n) for run, n in found if n is not None]
        if used:
            mine = [needed(costs[run.run_id], n) for run, n in used if run.run_id in costs]
            point: dict[str, Any] = {"row": row, "draws": shown_range([n for _, n in used]), "runs": mine}
            point |= {title(cost): average(mine, cost) for cost in COSTS}
            for metric in QUALITY:
                value = fmean([run.number(metric, n) for run, n in used])
                point[metric], point[titled(metric)] = value, value * METRICS[metric].scale
            out.append(point)
    return out


def needed(recorded: Mapping[str, Any], draws: int) -> Mapping[str, Any]:
    """A run's costs without the forward passes of the draws that are left out; one there is always."""
    passes = recorded["passes"]
    known = passes is not None and passes == passes
    return {**recorded, "passes": max(passes - (recorded["draws"] - draws), 1.0)} if known else recorded


def pareto_front(points: Sequence[Mapping[str, Any]], cost: str) -> list[bool]:
    """Nothing is at least as good in accuracy, debiased ECE and this cost, and better in one: three numbers apart."""
    return front([[-point["acc"], point["ece_debiased"], point[title(cost)]] for point in points])


def rows(points: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """As a table: header and texts."""
    header = ["Method", "N", *(METRICS[metric].label for metric in QUALITY), *map(title, COSTS), "Hardware"]
    return header, [
        [p["row"], p["draws"], *(number(p[metric], metric) for metric in QUALITY)]
        + [*(told(p[title(cost)], cost) for cost in COSTS), hardware(p["runs"])]
        for p in points
    ]
