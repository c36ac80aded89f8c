"""Costs of runs, per row of a table: means over training seeds, with the hardware of the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.table_formats import number, shown_range, titled
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import RunSummary

# attribute of a run -> (title, factor, decimals)
COSTS = {
    "train_seconds": ("Training, s", 1.0, 1),
    "peak_memory": ("Peak memory, MiB", 2.0**-20, 0),
    "trainable": ("Trainable parameters", 1.0, 0),
    "passes": ("Forward passes", 1.0, 0),
}
QUALITY = ("nll", "brier", "acc", "ece_debiased")
Used = tuple[RunSummary, int]  # a run and how many of its draws are averaged


def title(cost: str) -> str:
    return COSTS[cost][0]


def average(runs: Sequence[Used], cost: str) -> float:
    """Return the average cost in the displayed unit; NaN if no run records it."""
    known = [value for run, draws in runs if (value := _cost(run, cost, draws)) is not None]
    return fmean(known) * COSTS[cost][1] if known else float("nan")


def _cost(run: RunSummary, cost: str, draws: int) -> float | None:
    """Return the forward passes without those of skipped draws; at least one."""
    value: float | None = getattr(run, cost)
    return max(value - (run.draws - draws), 1.0) if cost == "passes" and value is not None else value


def formatted(value: float, cost: str) -> str:
    """Format an average."""
    return "–" if isnan(value) else f"{value:,.{COSTS[cost][2]}f}"


def hardware(runs: Sequence[Used]) -> str:
    named = (" ".join(text for text in (run.device, run.dtype) if text) for run, _ in runs)
    return ", ".join(dict.fromkeys(name for name in named if name)) or "–"


def effort(runs: Sequence[RunSummary]) -> tuple[str, str]:
    """Return labels seen and LoRAs trained, as texts."""
    given = (
        [n for run in runs if (n := getattr(run, name)) is not None] for name in ("labels_seen", "training_passes")
    )
    labels, passes = ("–".join(f"{n:,}" for n in dict.fromkeys((min(of), max(of)))) if of else "–" for of in given)
    return labels, passes


def points(group: Group, data: str, rows: Sequence[str], draws: int | None) -> list[dict[str, Any]]:
    """One point per row: costs and quality under their titles, in the units shown."""
    out = []
    for row in rows:
        runs = group.runs.get(data, {}).get(row, {}).values()
        if used := [(run, n) for run in runs if (n := run.used(draws)) is not None]:
            point: dict[str, Any] = {"row": row, "draws": shown_range([n for _, n in used]), "hardware": hardware(used)}
            point |= {title(cost): average(used, cost) for cost in COSTS}
            for metric in QUALITY:
                value = fmean([run.number(metric, n) for run, n in used])
                point[metric], point[titled(metric)] = value, value * METRICS[metric].scale
            out.append(point)
    return out


def pareto_front(points: Sequence[Mapping[str, Any]], cost: str, metric: str) -> list[bool]:
    """Whether no other point is at least as good in both numbers of the figure and better in one; NaN keeps out."""
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    pairs = [(sign * point[metric], point[title(cost)]) for point in points]
    return [
        not (isnan(a) or isnan(b)) and not any(x <= a and y <= b and (x, y) != (a, b) for x, y in pairs)
        for a, b in pairs
    ]


def rows(points: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the costs as a table: header and texts."""
    header = ["Method", "N", *(METRICS[metric].label for metric in QUALITY), *map(title, COSTS), "Hardware"]
    return header, [
        [p["row"], p["draws"], *(number(p[metric], metric) for metric in QUALITY)]
        + [*(formatted(p[title(cost)], cost) for cost in COSTS), p["hardware"]]
        for p in points
    ]
