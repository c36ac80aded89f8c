"""Intervals against scipy and brute force, and their measured coverage (wider: benchmarks/coverage.py)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from answers import calibrated, draw_answers, interval, overconfident, questions, stderr, value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uqharness.errors import InputError
from uqharness.metrics import averaging, calibration, intervals, selective
from uqharness.metrics import points as scores
from uqharness.metrics.metric import Answers
from uqharness.metrics.registry import METRICS

WORLDS = {"calibrated": 1.0, "mild": 1.3, "heavy": 3.0}


def test_wilson_and_clopper_pearson_equal_scipy() -> None:
    for hits, n in ((0, 5), (3, 7), (7, 7), (180, 300)):
        test = stats.binomtest(hits, n)
        wilson, exact = (test.proportion_ci(0.9, method) for method in ("wilson", "exact"))
        assert intervals.wilson(hits, n, 0.9) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
        low, high = intervals.clopper_pearson(np.array([float(hits)]), np.array([float(n)]), 0.05)
        assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_interval_of_a_mean_equals_scipy() -> None:
    probs, gold = questions(50, 0)
    items = scores.brier_items(probs, gold)
    expected = stats.t.interval(0.95, 49, items.mean(), stats.sem(items))
    assert interval("brier", probs, gold) == pytest.approx(expected)
    assert stderr("brier", probs, gold) == pytest.approx(stats.sem(items))


def test_delong_equals_the_double_loop_over_pairs() -> None:
    probs, gold = questions(60, 1)
    conf, right = scores.confidence(probs), scores.correct(probs, gold)
    a, b = conf[right], conf[~right]
    wins = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in b] for x in a]
    rows, columns = np.mean(wins, axis=1), np.mean(wins, axis=0)
    expected = math.sqrt(np.var(rows, ddof=1) / len(a) + np.var(columns, ddof=1) / len(b))
    assert selective.delong(conf, right) == pytest.approx((np.mean(wins), expected))


@pytest.mark.parametrize("ties", [False, True])
def test_aurc_standard_error_is_the_jackknife(ties: bool) -> None:
    probs, gold = questions(400, 2) if ties else calibrated(400, 2)
    keep = [np.arange(400) != i for i in range(400)]
    left_out = [value("aurc", probs[k], gold[k]) for k in keep]
    jackknife = math.sqrt(399 / 400 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert stderr("aurc", probs, gold) == pytest.approx(jackknife, rel=0.03)


@cache
def true_gaps(factor: float) -> tuple[np.ndarray, np.ndarray]:
    """(|theta_b|, the same per item of the bin) of 15 bins; 0 where the model says the true chance."""
    probs, true = overconfident(400_000, factor, np.random.Generator(np.random.Philox(11)))
    chance = true[np.arange(len(true)), scores.predicted(probs)]
    b = calibration.bin_items(scores.confidence(probs), np.ones(len(probs), dtype=bool))
    total = np.abs(b.total(chance - b.confidence))
    return total / len(chance), total / np.maximum(b.counts, 1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [100, 300, 1000, 5000])
def test_ece_and_mce_intervals_cover_the_true_binned_values(world: str, n: int) -> None:
    rng = np.random.Generator(np.random.Philox([n, list(WORLDS).index(world)]))
    gaps, per_bin = true_gaps(WORLDS[world])
    inside = []
    for _ in range(200):
        p, q = overconfident(n, WORLDS[world], rng)
        gold = draw_answers(q, rng)
        occupied = calibration.bin_probs(p, gold).counts > 0
        low, high = interval("ece", p, gold)
        mce_low, mce_high = interval("mce", p, gold)
        inside.append((low <= gaps.sum() <= high, mce_low <= per_bin[occupied].max() <= mce_high))
    assert (np.mean(inside, axis=0) >= 0.93).all()


def test_ece_interval_is_narrower_than_one_by_simultaneous_bins() -> None:
    probs, gold = calibrated(1000, 3)
    b = calibration.bin_probs(probs, gold)
    used = b.counts > 0
    n, hits = b.counts[used], b.total(b.right.astype(float))[used]
    low, high = intervals.clopper_pearson(hits, n, 0.025 / used.sum())
    conf = b.total(b.confidence)[used] / n
    simple_high = (np.maximum(np.abs(low - conf), np.abs(high - conf)) * n / 1000).sum()
    assert interval("ece", probs, gold)[1] < 0.7 * simple_high


@pytest.mark.parametrize("name", ["acc", "nll", "brier", "entropy", "auroc", "aurc"])
def test_other_intervals_cover(name: str) -> None:
    rng = np.random.Generator(np.random.Philox(7))
    big, true = overconfident(400_000, 1.3, rng)
    gold = draw_answers(true, rng)
    target = value(name, big, gold)
    inside = []
    for _ in range(600):
        p, q = overconfident(300, 1.3, rng)
        low, high = interval(name, p, draw_answers(q, rng))
        inside.append(low <= target <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 60), st.integers(0, 10**6), st.sampled_from([name for name, m in METRICS.items() if m.has_interval])
)
def test_interval_is_ordered_and_holds_its_value(n: int, seed: int, name: str) -> None:
    probs, gold = questions(n, seed)
    draws = np.stack([probs, probs])
    mean = value(name, probs, gold, draws)
    low, high = interval(name, probs, gold, draws=draws)
    assert (math.isnan(mean) and math.isnan(low)) or low - 1e-6 <= mean <= high + 1e-6
    wide = interval(name, probs, gold, 0.99, draws=draws)
    assert math.isnan(low) or (wide[0] <= low + 1e-9 and high <= wide[1] + 1e-9)


@pytest.mark.parametrize("name", ["auroc", "aurc", "ece", "mce", "acc"])
def test_perfect_answers_still_leave_doubt(name: str) -> None:
    probs = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 20)
    gold = np.array([0] * 20 + ([1] * 20 if name == "auroc" else [0] * 20))
    low, high = interval(name, probs, gold)
    assert 0 <= low < high <= 1 and high - low > 0.02


def test_what_has_no_interval_says_so() -> None:
    assert np.isnan(interval("ece_floor", [[0.5, 0.5]], [0])).all() and not METRICS["ece_floor"].has_interval
    assert math.isnan(stderr("mutual_information", [[0.5, 0.5]], [0]))
    with pytest.raises(InputError, match="mutual_information needs draws"):
        METRICS["mutual_information"].per_item(Answers.of([[0.5, 0.5]], [0]))
    with pytest.raises(InputError, match="ece has no values of single questions"):
        METRICS["ece"].per_item(Answers.of([[0.5, 0.5]], [0]))
    with pytest.raises(InputError, match="level must be between 0 and 1: found 95"):
        interval("acc", [[0.5, 0.5]], [0], level=95)
    undefined = [stderr(name, [[0.9, 0.1]], [0]) for name in ("acc", "auroc", "aurc", "nll")]
    assert np.isnan(undefined).all()


@pytest.mark.parametrize("name", ["mutual_information", "mutual_information_norm", "entropy_norm"])
@pytest.mark.parametrize("n", [100, 1000])
def test_intervals_of_what_draws_disagree_on_cover(name: str, n: int) -> None:
    """Questions with 2 to 5 choices and 5 draws each, from a population whose mean is known."""
    rng, size, repeats = np.random.default_rng(0), 20_000, 300
    logits = rng.normal(0, 2, (size, 5)) + rng.normal(0, 1, (5, size, 5)) * rng.exponential(1, (size, 1))  # [S, D, C]
    logits[:, np.arange(5) >= rng.integers(2, 6, size)[:, None]] = np.nan
    draws = averaging.softmax_draws(logits)
    probs, gold = averaging.combine_draws(logits, "probs"), np.zeros(size, dtype=int)
    truth = METRICS[name].per_item(Answers.of(probs, gold, draws=draws)).mean()
    hits = 0
    for _ in range(repeats):
        pick = rng.choice(size, n, replace=False)
        low, high = interval(name, probs[pick], gold[pick], draws=draws[:, pick])
        hits += low <= truth <= high
    assert hits / repeats > 0.915  # 95 % less about three standard errors
