"""The ECE family against textbook loops, torchmetrics and Monte Carlo."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from answers import calibrated, questions
from scipy import stats
from torchmetrics.classification import MulticlassCalibrationError

from uqharness.errors import InputError
from uqharness.metrics import calibration
from uqharness.metrics import points as scores


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
        assert calibration.ece(probs, gold, bins) == pytest.approx(ece, abs=1e-12)
        assert calibration.mce(probs, gold, bins) == pytest.approx(mce, abs=1e-12)


def test_confidence_one_is_in_the_last_bin_here_and_alone_in_torchmetrics() -> None:
    probs, gold = [[0.05, 0.95], [1.0, 0.0]], [1, 1]
    assert calibration.ece(probs, gold) == pytest.approx(0.475)
    assert calibration.ece_torchmetrics(probs, gold) == pytest.approx(0.525)


@pytest.mark.parametrize("bins", [7, 10, 15, 20])
def test_torchmetrics_value_is_the_one_of_torchmetrics(bins: int) -> None:
    for seed in range(30):
        probs, gold = questions(80, seed, (4,)) if seed % 2 else calibrated(200, seed)
        metric = MulticlassCalibrationError(num_classes=4, n_bins=bins, norm="l1")
        theirs = float(metric(torch.tensor(probs), torch.tensor(gold)))
        # Same bins and float32 sums; only the order of the last sum over bins is torch's own.
        assert calibration.ece_torchmetrics(probs, gold, bins) == pytest.approx(theirs, abs=1.2e-7)


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
    assert calibration.ece(probs, [0, 0]) == pytest.approx(0.25, abs=1e-6)
    assert calibration.ece_torchmetrics(probs, [0, 0]) == pytest.approx(0.25, abs=1e-6)


def test_equal_mass_bins_hold_equal_counts_and_never_split_ties() -> None:
    probs, gold = calibrated(150, 0)
    assert calibration.reliability_bins(probs, gold, 15, equal_mass=True)["count"] == [10] * 15
    tied, answers = questions(90, 1)
    b = calibration.bin_probs(tied, answers, 15, equal_mass=True)
    assert b.counts.sum() == 90
    for value in np.unique(b.confidence):
        assert len(set(b.index[b.confidence == value])) == 1
    assert calibration.ece([[0.5, 0.5]] * 4, [0, 0, 0, 1], equal_mass=True) == pytest.approx(0.25)


def test_classwise_ece_equals_a_loop_over_classes() -> None:
    probs, gold = questions(120, 5)
    values = []
    for c in range(5):
        has = [i for i in range(120) if not math.isnan(probs[i, c])]
        said = [float(probs[i, c]) for i in has]
        values.append(textbook_ece(said, [bool(gold[i] == c) for i in has], 15)[0])
    assert calibration.classwise_ece(probs, gold) == pytest.approx(float(np.mean(values)))


def test_reliability_bins_are_json_and_sum_to_the_ece() -> None:
    probs, gold = questions(80, 6)
    table = json.loads(json.dumps(calibration.reliability_bins(probs, gold), allow_nan=False))
    rows = zip(table["count"], table["confidence"], table["accuracy"], strict=True)
    ece = sum(n * abs(a - c) / 80 for n, c, a in rows if n)
    assert ece == pytest.approx(calibration.ece(probs, gold))
    assert sum(table["count"]) == 80 and table["lo"][0] == 0 and table["hi"][-1] == 1
    assert [c is None for c in table["confidence"]] == [n == 0 for n in table["count"]]


def test_floor_equals_a_loop_over_drawn_answers() -> None:
    probs, _ = questions(100, 7)
    rng = np.random.default_rng(0)
    eces = []
    for _ in range(1500):
        gold = (np.nan_to_num(probs).cumsum(1) < rng.random((100, 1)) - 1e-12).sum(1)
        eces.append(calibration.ece(probs, gold))
    floor = calibration.ece_floor(probs, draws=4000)
    assert floor["mean"] == pytest.approx(np.mean(eces), abs=4 * np.std(eces) / np.sqrt(1500))
    assert floor["q95"] == pytest.approx(np.quantile(eces, 0.95), abs=0.006)


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
    assert calibration.ece_floor_mean(probs) == pytest.approx(exact, rel=2e-3)
    drawn = calibration.ece_floor_draws(probs, draws=4000)
    assert drawn.mean() == pytest.approx(exact, abs=4 * drawn.std() / np.sqrt(4000))


def test_floor_depends_on_the_seed_alone_and_not_on_the_order_of_bins() -> None:
    probs, _ = calibrated(300, 1)
    assert calibration.ece_floor(probs, seed=3) == calibration.ece_floor(probs, seed=3)
    assert calibration.ece_floor(probs, seed=3) != calibration.ece_floor(probs, seed=4)
    chunked = calibration.ece_floor_draws(np.tile(probs, (20, 1)), draws=400)  # more than one chunk
    assert len(chunked) == 400 and chunked.std() > 0
    assert chunked.mean() == pytest.approx(calibration.ece_floor(probs)["mean"] / np.sqrt(20), rel=0.1)


@pytest.mark.parametrize(
    ("n", "quoted"), [(100, 0.112), (295, 0.063), (500, 0.049), (1267, 0.031), (2000, 0.025), (5000, 0.016)]
)
def test_floor_reproduces_the_quoted_values_for_uniform_probabilities(n: int, quoted: float) -> None:
    worlds = [calibrated(n, seed)[0] for seed in range(20)]
    means = [calibration.ece_floor(p, draws=100, seed=seed)["mean"] for seed, p in enumerate(worlds)]
    assert np.mean(means) == pytest.approx(quoted, rel=0.05)


def test_binomial_mean_absolute_deviation_equals_its_sum() -> None:
    for n in (1, 2, 7, 50):
        for p in (0.0, 0.03, 0.5, 0.77, 1.0):
            k = np.arange(n + 1)
            expected = (np.abs(k - n * p) * stats.binom.pmf(k, n, p)).sum()
            found = calibration.binomial_mad(np.array([float(n)]), np.array([p]))[0]
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [100, 500, 2000])
def test_debiased_ece_removes_most_of_the_bias_of_a_calibrated_model(n: int) -> None:
    samples = [calibrated(n, seed) for seed in range(200)]
    plain = np.mean([calibration.ece(*s) for s in samples])
    debiased = np.mean([calibration.ece_debiased(*s) for s in samples])
    unclipped = np.mean([calibration.ece_debiased(*s, clip=False) for s in samples])
    assert abs(debiased) < 0.25 * plain
    assert abs(unclipped) < 0.15 * plain  # unbiased in itself: it is not the clip that does the work


def test_debiased_ece_keeps_a_clear_miscalibration() -> None:
    # Right with chance 0.6 at confidence 0.9: the true ECE is 0.3 and the noise is small.
    rng = np.random.default_rng(0)
    probs = np.tile([0.9, 0.1], (1000, 1))
    values = [calibration.ece_debiased(probs, (rng.random(1000) > 0.6).astype(int)) for _ in range(50)]
    assert np.mean(values) == pytest.approx(0.3, abs=0.01)
    for seed in range(30):
        p, g = questions(40, seed)
        assert 0 <= calibration.ece_debiased(p, g) <= calibration.ece(p, g) + 1e-12


def test_bins_must_be_positive() -> None:
    with pytest.raises(InputError, match="bins must be at least 1, found 0"):
        calibration.ece([[0.5, 0.5]], [0], bins=0)
