"""The numbers of the landing page's figure: differences from MLE in NLL and ECE. Pure functions.

A difference is that of the printed numbers; its 95 % interval is that of the paired tests, over questions and seeds
(for ECE: of the bootstrap that its comparison uses).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from uqharness.leaderboard import ranking
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.table import Cell, Table, titled_task
from uqharness.leaderboard.table_formats import number
from uqharness.metrics.metric import Floats
from uqharness.metrics.registry import METRICS

PANELS = ("nll", "ece")


@dataclass(frozen=True)
class Row:
    """One method: difference from MLE, and half its interval, at all draws and (None: no such row) at N = 0."""

    name: str
    draws: int
    full: Mapping[str, tuple[float, float]]  # metric -> (difference, half)
    mean: Mapping[str, tuple[float, float]] | None
    floor: float  # what a calibrated model with these confidences would show, less MLE's ECE


@dataclass(frozen=True)
class Points:
    rows: Sequence[Row]  # lowest NLL first
    items: int
    seeds: Sequence[int]


def points(results: Results, table: Table, j: int) -> Points:
    """The rows of a table on one data set, without what is not to be relied on and without the world's own answer."""
    metric = table.metrics[0]
    cells = {i: c for (m, i, k), c in table.cells.items() if m == metric and k == j}
    shown = {i: c for i, c in cells.items() if c.runs and not (c.leaked or c.suspect or _oracle(results, c))}
    bare = {i: "zero-shot" for i, c in shown.items() if results.run(c.runs[0]).training == "none"}
    methods = {(bare.get(i, table.rows[i][0]), table.rows[i][1]): c.runs for i, c in shown.items()}
    ranked = (table.rows[i] for i, c in shown.items() if not c.reference)
    plain = next((row for row in ranked if row[0].split(" (")[0] == "MLE"), None)
    if plain is None:
        return Points([], 0, [])
    answers: dict[tuple[str, int], list[Floats]] = {}
    gold = np.zeros(0)
    for (name, draws), runs in methods.items():
        for n in (draws, 0):
            sources = [results.run(run) for run in runs]
            if n or (draws > 1 and all(s.has_mean and s.combine != "given" and not s.mean_is_member for s in sources)):
                pairs = results.runs_of(runs, n)
                if pairs and (not len(gold) or all(np.array_equal(own, gold) for _, own in pairs)):
                    gold, answers[name, n] = pairs[0][1], [probs for probs, _ in pairs]
    if (plain[0], plain[1]) not in answers:
        return Points([], 0, [])
    keys = list(answers)
    differences = {metric: _differences(metric, answers, keys.index(plain), gold) for metric in PANELS}
    base = _mean("ece", answers[plain], gold)
    rows = [
        Row(
            name,
            draws,
            {metric: of[name, draws] for metric, of in differences.items()},
            {metric: of[name, 0] for metric, of in differences.items()} if draws and (name, 0) in answers else None,
            _mean("ece_floor", answers[name, draws], gold) - base,
        )
        for name, draws in keys
        if draws
    ]
    seeds = sorted({len(runs) for name, runs in methods.items() if name[1]})
    return Points(sorted(rows, key=lambda row: row.full["nll"][0]), len(gold), seeds)


def _mean(metric: str, runs: Sequence[Floats], gold: np.ndarray) -> float:
    """Return the printed number: the mean over seeds."""
    return fmean([float(METRICS[metric](probs, gold)) for probs in runs])


def _oracle(results: Results, cell: Cell) -> bool:
    """It would squeeze all methods into a corner."""
    return any(results.run(run).training == "oracle" for run in cell.runs)


def _differences(
    metric: str, answers: Mapping[Any, Sequence[Floats]], plain: int, gold: np.ndarray
) -> dict[Any, tuple[float, float]]:
    tests = ranking.compare(metric, {str(key): runs for key, runs in answers.items()}, gold)
    values = [_mean(metric, runs, gold) for runs in answers.values()]
    half = [float(tests.half[k, plain]) if k != plain else 0.0 for k in range(len(values))]  # MLE less itself is 0
    return {key: (values[k] - values[plain], half[k]) for k, key in enumerate(answers)}


def caption(results: Results, table: Table, j: int, shown: Points) -> str:
    column = table.columns[j]
    runs = [run for (_, _, k), cell in table.cells.items() if k == j for run in cell.runs]
    bases = dict.fromkeys(titled_task(results.run(run).base) for run in runs if results.run(run).recipe_hash)
    seeds = "–".join(map(str, dict.fromkeys((shown.seeds[0], shown.seeds[-1]))))
    trained = f"{seeds} training seed{'s' * (seeds != '1')}"
    return (
        f"Base {', '.join(bases)}, data set {titled_task(column.task)}, {shown.items:,} test questions, {trained}; "
        "rows by NLL, whatever the metric of the tables. Filled: all draws averaged, with the 95 % interval of its "
        "difference from MLE over seeds and questions. Hollow: N = 0, the posterior's mean; a method that answers with "
        "one function, or whose draws have no mean, has none. Triangle: the ECE that sampling alone would give this "
        "method if it were perfectly calibrated."
    )


def as_rows(shown: Points) -> tuple[list[str], list[list[str]]]:
    header = ["Method", "N"]
    for metric in PANELS:
        header += [f"Δ{METRICS[metric].label}", "95 % interval"]
    rows = []
    for row in shown.rows:
        for n, differences in ((row.draws, row.full), (0, row.mean)):
            if differences is not None:
                parts = [_signed(*differences[metric], metric) for metric in PANELS]
                rows.append([row.name, str(n), *(text for pair in parts for text in pair)])
    return header, rows


def _signed(value: float, half: float, metric: str) -> tuple[str, str]:
    low, high = number(value - half, metric), number(value + half, metric)
    return ("+" if value > 0 else "") + number(value, metric), f"{low} … {high}" if half else "–"
