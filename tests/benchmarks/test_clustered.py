"""Intervals over worlds: against scipy, against the cluster-robust sum over all pairs of runs, and by coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from benchmarks import clustered


def runs(seed: int, worlds: int = 3, seeds: int = 3) -> dict[tuple[str, int], float]:
    rng = np.random.default_rng(seed)
    own = rng.normal(size=worlds)
    return {(f"w{w}", s): float(own[w] + 0.3 * rng.normal()) for w in range(worlds) for s in range(seeds)}


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_students(level: float) -> None:
    values = [1.0, 4.0, 2.5]
    mean, low, high = clustered.t_interval(values, level)
    scale = stats.sem(values)
    assert (low, high) == pytest.approx(stats.t.interval(level, 2, loc=np.mean(values), scale=scale))
    assert mean == pytest.approx(2.5)
    assert clustered.t_interval([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.302653 / math.sqrt(3))


@pytest.mark.parametrize(("worlds", "seeds"), [(3, 3), (2, 5), (6, 1)])
def test_the_interval_is_the_cluster_robust_one(worlds: int, seeds: int) -> None:
    """CR1: G / (G - 1) / n² · the sum of e_i e_j over all pairs of runs of the same world."""
    values = runs(1, worlds, seeds)
    mean = np.mean(list(values.values()))
    pairs = product(values.items(), values.items())
    total = sum((x - mean) * (y - mean) for ((w, _), x), ((v, _), y) in pairs if w == v)
    half = stats.t.ppf(0.975, worlds - 1) * math.sqrt(worlds / (worlds - 1) * total) / len(values)
    assert clustered.clustered(values) == pytest.approx((mean, mean - half, mean + half))


def test_the_interval_covers_what_new_worlds_would_show() -> None:
    """The truth is 0; 2,000 times three worlds. An interval over the nine runs as if independent fails here."""
    answers = [runs(seed) for seed in range(2000)]
    intervals = [clustered.clustered(values) for values in answers]
    naive = [clustered.t_interval(list(values.values())) for values in answers]

    def coverage(intervals: list[tuple[float, float, float]]) -> float:
        return float(np.mean([low <= 0 <= high for _, low, high in intervals]))

    assert 0.935 < coverage(intervals) < 0.965  # three standard errors of 0.005
    assert coverage(naive) < 0.8


def test_one_world_has_no_interval() -> None:
    mean, low, high = clustered.clustered({("w1", 0): 1.0, ("w1", 1): 3.0})
    assert mean == 2.0 and math.isnan(low) and math.isnan(high)


def test_worlds_count_the_same_whatever_their_seeds() -> None:
    assert clustered.world_means({("a", 0): 1.0, ("b", 0): 3.0, ("a", 1): 2.0}) == {"a": 1.5, "b": 3.0}


def test_pairs_are_of_the_same_world_and_seed() -> None:
    theirs = runs(2)
    ours = {run: theirs[run] + i for i, run in enumerate(reversed(list(theirs)))}  # in another order
    assert clustered.paired(ours, theirs) == pytest.approx({run: i for i, run in enumerate(reversed(list(theirs)))})
    del ours["w1", 2]
    with pytest.raises(ValueError, match=r"'w1', 2"):
        clustered.paired(ours, theirs)


@pytest.mark.parametrize(
    ("differences", "agree"),
    [([-1.0, -2.0, -3.0, 1.0], 3), ([5.0, -1.0, -1.0, 0.0], 1), ([2.0, 1.0, 0.0, 3.0], 3), ([0.0, 0.0, 0.0, 0.0], 0)],
)
def test_pairs_that_agree_have_the_sign_of_the_mean(differences: list[float], agree: int) -> None:
    places = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert clustered.agreeing(dict(zip(places, differences, strict=True))) == agree
