"""The ECE family against textbook loops, torchmetrics and Monte Carlo."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from answers import calibrated, questions, value
from scipy import stats
from torchmetrics.classification import MulticlassCalibrationError

from uqharness.errors import InputError
from uqharness.metrics import calibration
from uqharness.metrics import points as scores
from uqharness.metrics.metric import Answers
from uqharness.metrics.registry import METRICS


def torchmetrics_bins(probs: np.ndarray, gold: np.ndarray, bins: int) -> calibration.Binned:
    return calibration.bin_items_torchmetrics(scores.confidence(probs), scores.correct(probs, gold), bins)


def textbook_ece(conf: list[float], right: list[bool], bins: int) -> tuple[float, float]:
    """(ECE, MCE) by a loop over bins (lo, hi]."""
    edges = np.linspace(0, 1, bins + 1)
    ece, mce = 0.0, 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(conf) if (edges[b] < c or b == 0) and c <= edges[b + 1]]
        if inside:
            gap = abs(sum(right[i] for i in inside) - sum(conf[i] for i in inside)) / len(inside)
            ece, mce = ece + gap * len(inside) / len(conf), max(mce, gap)
    return ece, mce


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_ece_and_mce_equal_the_textbook_loop(bins: int) -> None:
    for seed in range(20):
        probs, gold = questions(60, seed)
        conf, right = scores.confidence(probs), scores.correct(probs, gold)
        ece, mce = textbook_ece(conf.tolist(), right.tolist(), bins)
        assert calibration.ece(calibration.bin_probs(probs, gold, bins)) == pytest.approx(ece, abs=1e-12)
        assert calibration.mce(calibration.bin_probs(probs, gold, bins)) == pytest.approx(mce, abs=1e-12)


def test_confidence_one_is_in_the_last_bin_here_and_alone_in_torchmetrics() -> None:
    probs, gold = [[0.05, 0.95], [1.0, 0.0]], [1, 1]
    assert value("ece", probs, gold) == pytest.approx(0.475)
    assert value("ece_torchmetrics", probs, gold) == pytest.approx(0.525)


@pytest.mark.parametrize("bins", [7, 10, 15, 20])
def test_torchmetrics_value_is_the_one_of_torchmetrics(bins: int) -> None:
    for seed in range(30):
        probs, gold = questions(80, seed, (4,)) if seed % 2 else calibrated(200, seed)
        metric = MulticlassCalibrationError(num_classes=4, n_bins=bins, norm="l1")
        theirs = float(metric(torch.tensor(probs), torch.tensor(gold)))
        # Same bins and float32 sums; only the order of the last sum over bins is torch's own.
        assert calibration.ece_torchmetrics(torchmetrics_bins(probs, gold, bins)) == pytest.approx(theirs, abs=1.2e-7)


@pytest.mark.parametrize("bins", [3, 7, 10, 15, 20, 50, 100])
def test_confidences_on_an_edge_fall_where_torch_puts_them(bins: int) -> None:
    edges = torch.linspace(0, 1, bins + 1)
    around = [edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1)]
    near = torch.cat(around).clamp(0, 1)
    theirs = torch.bucketize(near, edges, right=True) - 1
    ours = calibration.bin_items_torchmetrics(near.double().numpy(), np.ones(len(near), dtype=bool), bins)
    np.testing.assert_array_equal(ours.index, theirs.numpy())


def test_float32_probabilities_above_one_stay_in_the_last_bin() -> None:
    probs = np.array([[1.0 + 1e-7, 0.0], [0.5, 0.5]], dtype=np.float32)
    assert value("ece", probs, [0, 0]) == pytest.approx(0.25, abs=1e-6)
    assert value("ece_torchmetrics", probs, [0, 0]) == pytest.approx(0.25, abs=1e-6)


def test_equal_mass_bins_hold_equal_counts_and_never_split_ties() -> None:
    probs, gold = calibrated(150, 0)
    assert calibration.reliability_bins(probs, gold, 15, equal_mass=True)["count"] == [10] * 15
    tied, answers = questions(90, 1)
    b = calibration.bin_probs(tied, answers, 15, equal_mass=True)
    assert b.counts.sum() == 90
    for level in np.unique(b.confidence):
        assert len(set(b.index[b.confidence == level])) == 1
    assert calibration.ece(calibration.bin_probs([[0.5, 0.5]] * 4, [0, 0, 0, 1], equal_mass=True)) == pytest.approx(
        0.25
    )


def test_reliability_bins_are_json_and_sum_to_the_ece() -> None:
    probs, gold = questions(80, 6)
    table = json.loads(json.dumps(calibration.reliability_bins(probs, gold), allow_nan=False))
    rows = zip(table["count"], table["confidence"], table["accuracy"], strict=True)
    ece = sum(n * abs(a - c) / 80 for n, c, a in rows if n)
    assert ece == pytest.approx(value("ece", probs, gold))
    assert sum(table["count"]) == 80 and table["lo"][0] == 0 and table["hi"][-1] == 1
    assert [c is None for c in table["confidence"]] == [n == 0 for n in table["count"]]


def test_floor_equals_a_loop_over_drawn_answers() -> None:
    probs, _ = questions(100, 7)
    rng = np.random.default_rng(0)
    eces = []
    for _ in range(1500):
        gold = (np.nan_to_num(probs).cumsum(1) < rng.random((100, 1)) - 1e-12).sum(1)
        eces.append(value("ece", probs, gold))
    drawn = calibration.ece_floor_draws(scores.confidence(probs), draws=4000)
    floor = value("ece_floor", probs, gold)
    assert floor == pytest.approx(np.mean(eces), abs=4 * np.std(eces) / np.sqrt(1500))
    assert np.quantile(drawn, 0.95) == pytest.approx(np.quantile(eces, 0.95), abs=0.006)
    q95 = METRICS["ece_floor"].spread(Answers.of(probs, gold))["q95"]
    assert q95 == np.quantile(calibration.ece_floor_draws(scores.confidence(probs)), 0.95)


@pytest.mark.parametrize(("n", "sharpness"), [(20, 1.0), (20, 8.0), (100, 3.0), (500, 8.0)])
def test_mean_floor_is_the_exact_sum_over_the_counts_of_right_answers(n: int, sharpness: float) -> None:
    z = np.random.default_rng(n).normal(0, sharpness, (n, 4))
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    conf, exact = probs.max(axis=1), 0.0
    for b in range(15):
        inside = conf[(b / 15 < conf) & (conf <= (b + 1) / 15)]
        chances = np.ones(1)  # of 0, 1, … right answers in this bin
        for p in inside:
            chances = np.convolve(chances, [1 - p, p])
        exact += np.abs(np.arange(len(chances)) - inside.sum()) @ chances / n
    assert value("ece_floor", probs, np.zeros(n, int)) == pytest.approx(exact, rel=2e-3)
    drawn = calibration.ece_floor_draws(scores.confidence(probs), draws=4000)
    assert drawn.mean() == pytest.approx(exact, abs=4 * drawn.std() / np.sqrt(4000))


def test_floor_depends_on_the_seed_alone_and_not_on_the_order_of_bins() -> None:
    probs, gold = calibrated(300, 1)
    conf = scores.confidence(probs)
    one, same, other = (calibration.ece_floor_draws(conf, 50, seed=seed) for seed in (3, 3, 4))
    assert (one == same).all() and (one != other).any()
    chunked = calibration.ece_floor_draws(np.tile(conf, 20), draws=400)  # more than one chunk
    assert len(chunked) == 400 and chunked.std() > 0
    assert chunked.mean() == pytest.approx(value("ece_floor", probs, gold) / np.sqrt(20), rel=0.1)


@pytest.mark.parametrize(
    ("n", "quoted"), [(100, 0.112), (295, 0.063), (500, 0.049), (1267, 0.031), (2000, 0.025), (5000, 0.016)]
)
def test_floor_reproduces_the_quoted_values_for_uniform_probabilities(n: int, quoted: float) -> None:
    worlds = [calibrated(n, seed)[0] for seed in range(20)]
    means = [value("ece_floor", p, np.zeros(n, int)) for p in worlds]
    assert np.mean(means) == pytest.approx(quoted, rel=0.05)


def test_binomial_mean_absolute_deviation_equals_its_sum() -> None:
    for n in (1, 2, 7, 50):
        for p in (0.0, 0.03, 0.5, 0.77, 1.0):
            k = np.arange(n + 1)
            expected = (np.abs(k - n * p) * stats.binom.pmf(k, n, p)).sum()
            value = calibration.binomial_mad(np.array([float(n)]), np.array([p]))[0]
            assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [100, 500, 2000])
def test_debiased_ece_removes_most_of_the_bias_of_a_calibrated_model(n: int) -> None:
    samples = [calibrated(n, seed) for seed in range(200)]
    plain = np.mean([value("ece", *s) for s in samples])
    debiased = np.mean([value("ece_debiased", *s) for s in samples])
    unclipped = np.mean([calibration.ece_debiased(calibration.bin_probs(*s), clip=False) for s in samples])
    assert abs(debiased) < 0.25 * plain
    assert abs(unclipped) < 0.15 * plain  # unbiased in itself: it is not the clip that does the work


def test_debiased_ece_keeps_a_clear_miscalibration() -> None:
    # Right with chance 0.6 at confidence 0.9: the true ECE is 0.3 and the noise is small.
    rng = np.random.default_rng(0)
    probs = np.tile([0.9, 0.1], (1000, 1))
    values = [value("ece_debiased", probs, (rng.random(1000) > 0.6).astype(int)) for _ in range(50)]
    assert np.mean(values) == pytest.approx(0.3, abs=0.01)
    for seed in range(30):
        p, g = questions(40, seed)
        assert 0 <= value("ece_debiased", p, g) <= value("ece", p, g) + 1e-12


def test_bins_must_be_positive() -> None:
    with pytest.raises(InputError, match="bins must be at least 1: found 0"):
        calibration.bin_probs([[0.5, 0.5]], [0], bins=0)


def test_the_covariance_of_debiased_eces_is_that_of_resampled_questions_where_gaps_are_clear() -> None:
    rng = np.random.default_rng(12)
    n = 2000
    sure = 0.5 + 0.5 * rng.beta(2, 1, (2, n))
    right = rng.random((2, n)) < sure - np.array([[0.25], [0.15]])
    gold = (rng.random(n) < 0.5).astype(int)
    predicted = np.where(right, gold, 1 - gold)
    probs = np.stack([np.where(predicted == c, sure, 1 - sure) for c in (0, 1)], axis=-1)
    values, covariance = calibration.paired_debiased([Answers.of(p, gold) for p in probs])
    assert values == pytest.approx([ece_unclipped(p, gold) for p in probs])
    resampled = []
    for _ in range(400):
        taken = rng.integers(0, n, n)
        resampled.append([ece_unclipped(p[taken], gold[taken]) for p in probs])
    expected = np.cov(np.array(resampled).T)
    assert np.diag(covariance) == pytest.approx(np.diag(expected), rel=0.25)  # 400 resamples: to 14 %
    difference = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference == pytest.approx(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1], rel=0.25)


def test_the_slopes_of_debiased_terms_are_their_derivatives() -> None:
    rng = np.random.default_rng(13)
    sure = 0.5 + 0.5 * rng.random(150)
    b = calibration.bin_items(sure, rng.random(150) < sure - 0.1)
    used, step = b.counts > 0, 1e-7
    terms = [calibration.debias(b.gaps + s, *calibration.gap_noise(b)) for s in (step, -step)]
    expected = (terms[0] - terms[1])[used] / (2 * step)
    assert calibration.debiased_slopes(b)[used] == pytest.approx(expected, rel=1e-4)


def ece_unclipped(probs: np.ndarray, gold: np.ndarray) -> float:
    return float(calibration.ece_debiased(calibration.bin_probs(probs, gold), clip=False))
