"""Intervals over runs that share worlds: a world is a cluster, its training seeds are not independent of each other.

The mean of each world is one observation. With G worlds of the same number of runs,

    interval = mean ± t(G - 1) · s / sqrt(G),   s: standard deviation of the G world means

which is the cluster-robust (CR1) standard error of the mean over all runs with G - 1 degrees of freedom. It covers what
a new world of the same generator would show on average: worlds, training seeds and drawn questions all differ between
world means. With three worlds t is 4.30, so it is wide; it holds if world means are roughly normal, which three of them
cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit

World = Hashable
Run = tuple[World, int]  # world, training seed


class Estimate(NamedTuple):
    """A mean over worlds with its interval; the ends are NaN where one world is all there is."""

    mean: float
    low: float
    high: float


def world_means(runs: Mapping[Run, float]) -> dict[World, float]:
    """{world: mean over its training seeds}."""
    seeds: dict[World, list[float]] = {}
    for (world, _), value in runs.items():
        seeds.setdefault(world, []).append(value)
    return {world: fmean(values) for world, values in seeds.items()}


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """mean ± t_{n-1} s / sqrt(n)."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def clustered(runs: Mapping[Run, float], level: float = 0.95) -> Estimate:
    """The mean of the world means, with `t_interval` over them."""
    return t_interval(list(world_means(runs).values()), level)


def paired(ours: Mapping[Run, float], theirs: Mapping[Run, float]) -> dict[Run, float]:
    """ours - theirs for every world and training seed; both must have the same runs."""
    if alone := sorted(map(str, ours.keys() ^ theirs.keys())):
        raise ValueError(f"not every run has a partner: {', '.join(alone)}; run the missing cells first")
    return {run: value - theirs[run] for run, value in ours.items()}


def agreeing(differences: Mapping[Run, float]) -> int:
    """How many pairs have the sign of the mean over worlds; a pair without difference has none."""
    mean = fmean(world_means(differences).values())
    return sum(value * mean > 0 for value in differences.values())
