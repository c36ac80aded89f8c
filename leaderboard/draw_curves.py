"""Metrics against the number of draws N, with their spread over random choices of N draws. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uqharness.metrics.metric import Floats
from uqharness.metrics.registry import METRICS, in_orders
from uqharness.results.reading import every_n
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

ALL = tuple(METRICS)


@dataclass(frozen=True)
class DrawCurve:
    """A metric of the first N draws, and its 5 % and 95 % quantiles over random choices of N of them."""

    row: str
    metric: str
    counts: list[int]  # N = 1 … S
    value: Floats  # [S]
    low: Floats  # [S], NaN where it is not known
    high: Floats  # [S]
    mean: float | None  # N = 0, the posterior's mean


def draw_curves(
    record: Record, row: str, metrics: Sequence[str] = ALL, orders: int = 30, seed: int = 0
) -> dict[str, DrawCurve]:
    """Return curves by metric; none without several recorded draws."""
    given = record.combine == "given" or len(record.logp) - 1 < max(record.draws, 2)
    if given or record.taken.min() < record.draws:
        return {}
    rng = np.random.Generator(np.random.Philox(seed))
    shuffled = [rng.permutation(record.draws) for _ in range(orders)]
    mixed = in_orders(record.logp[1:], record.gold, record.combine, shuffled, metrics)
    start, counts, out = int(record.has_mean), list(range(1, record.draws + 1)), {}
    for name, value in every_n(record, metrics)[1].items():
        low, high = np.quantile(mixed[name], (0.05, 0.95), axis=0)  # [S] each
        mean = float(value[0]) if record.has_mean and not METRICS[name].needs_draws else None
        out[name] = DrawCurve(row, name, counts, value[start:], low, high, mean)
    return out


def known_curves(source: RunSummary, row: str, metrics: Sequence[str] = ALL) -> dict[str, DrawCurve]:
    """The values without a spread, of results that were published without their single draws."""
    if source.draws < 2 or source.combine == "given":
        return {}
    counts, out = list(range(1, source.draws + 1)), {}
    unknown = np.full(len(counts), np.nan)
    for name in metrics:
        values = np.array([source.number(name, n) for n in counts])
        mean = source.number(name, 0) if source.has_mean and not METRICS[name].needs_draws else None
        out[name] = DrawCurve(row, name, counts, values, unknown, unknown, mean)
    return out
