"""Standard errors and confidence intervals over items, for questions sampled from a population of questions.

What several metrics share: means (Student's t), proportions (Wilson 1927; Clopper & Pearson 1934), and resampled
questions for paired tests. The interval of a single metric stands beside its formula.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, ndtri, stdtrit

Floats = NDArray[np.float64]
Interval = tuple[float, float]
UNDEFINED = (float("nan"), float("nan"))


def z_value(level: float) -> float:
    return float(ndtri(0.5 + level / 2))


def t_value(level: float, n: int) -> float:
    return float(stdtrit(n - 1, 0.5 + level / 2))


def mean_stderr(items: Floats) -> float:
    """s / sqrt(n); NaN for a single item."""
    return float(items.std(ddof=1) / np.sqrt(len(items))) if len(items) > 1 else float("nan")


def mean_interval(items: Floats, level: float) -> Interval:
    """mean ± t_{n-1} s / sqrt(n), not below 0: every metric that uses it is non-negative."""
    if len(items) < 2:
        return UNDEFINED
    half = t_value(level, len(items)) * mean_stderr(items)
    return max(float(items.mean()) - half, 0.0), float(items.mean()) + half


def wilson(hits: int, n: int, level: float) -> Interval:
    """Score interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest  # half a second, so not before it is needed

    ends = binomtest(hits, n).proportion_ci(level, method="wilson")
    return float(ends.low), float(ends.high)


def clopper_pearson(hits: Floats, n: Floats, tail: float) -> tuple[Floats, Floats]:
    """Exact bounds of proportions, each end missed with at most `tail` (Clopper & Pearson 1934)."""
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1e-9), n - hits + 1, tail), 0.0)
    high = np.where(hits < n, betaincinv(hits + 1, np.maximum(n - hits, 1e-9), 1 - tail), 1.0)
    return np.asarray(low), np.asarray(high)


def mcnemar(right: ArrayLike) -> Floats:
    """Exact two-sided p-value [M, M] of runs that were right or not [M, D].

    Among questions that one run alone gets right, each is as likely to be that of the one as of the other.
    """
    x = np.asarray(right, dtype=np.float64)
    alone = x @ (1 - x).T
    fewer, both = np.minimum(alone, alone.T), alone + alone.T
    return np.asarray(np.where(both > 0, np.minimum(2 * bdtr(fewer, both.astype(int), 0.5), 1.0), 1.0))
