"""Point metrics against scikit-learn, scipy and brute-force Python loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from answers import questions, value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from uqharness.errors import InputError
from uqharness.metrics import averaging, selective
from uqharness.metrics import points as scores
from uqharness.metrics.metric import Answers
from uqharness.metrics.registry import METRICS


def brute_curve(conf: list[float], right: list[bool]) -> list[float]:
    """Risk at each coverage, averaged over every order that is sorted by confidence."""
    n, curves = len(conf), []
    for order in itertools.permutations(range(n)):
        if all(conf[a] >= conf[b] for a, b in itertools.pairwise(order)):
            wrong = [not right[i] for i in order]
            curves.append([sum(wrong[: k + 1]) / (k + 1) for k in range(n)])
    return [sum(column) / len(curves) for column in zip(*curves, strict=True)]


def test_pad_puts_nan_on_the_right() -> None:
    padded = scores.pad([[0.5, 0.5], [0.2, 0.3, 0.5]])
    np.testing.assert_array_equal(padded, [[0.5, 0.5, np.nan], [0.2, 0.3, 0.5]])


def test_per_item_values_equal_a_python_loop() -> None:
    probs, gold = questions(200, 0)
    for i, (row, g) in enumerate(zip(probs, gold, strict=True)):
        p = [float(x) for x in row if not math.isnan(x)]
        assert scores.confidence(probs)[i] == max(p)
        assert scores.correct(probs, gold)[i] == (p.index(max(p)) == g)  # the first index wins a tie
        squares = sum((x - (c == g)) ** 2 for c, x in enumerate(p))
        assert scores.brier_items(probs, gold)[i] == pytest.approx(squares)
        loss = -math.log(p[g]) if p[g] else 708.396418532264
        assert scores.nll_items(probs, gold)[i] == pytest.approx(loss)
        entropy = float(stats.entropy(p))
        assert scores.predictive_entropy(probs)[i] == pytest.approx(entropy, abs=1e-12)
        expected = entropy / math.log(len(p))
        assert scores.predictive_entropy(probs, normalised=True)[i] == pytest.approx(expected, abs=1e-12)


def test_means_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    probs, gold = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    assert value("acc", probs, gold) == sk.accuracy_score(gold, probs.argmax(1))
    assert value("nll", probs, gold) == pytest.approx(sk.log_loss(gold, probs, labels=range(4)), rel=1e-12)
    two = rng.random(300)
    binary = np.stack([1 - two, two], axis=1)
    expected = 2 * sk.brier_score_loss(gold % 2, two)
    assert value("brier", binary, gold % 2) == pytest.approx(expected, rel=1e-12)


def test_auroc_equals_scikit_learn_with_ties() -> None:
    probs, gold = questions(300, 2)
    right = scores.correct(probs, gold)
    expected = sk.roc_auc_score(right, scores.confidence(probs))
    assert value("auroc", probs, gold) == pytest.approx(expected, rel=1e-12)
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 50), rng.integers(3, 12, 70)
    expected = sk.roc_auc_score([0] * 50 + [1] * 70, np.concatenate([inside, outside]))
    assert selective.ood_auroc(inside, outside) == pytest.approx(expected, rel=1e-12)


def test_auroc_is_nan_where_every_answer_is_right() -> None:
    assert math.isnan(value("auroc", [[0.9, 0.1], [0.8, 0.2]], [0, 0]))


@pytest.mark.parametrize("seed", range(12))
def test_risk_coverage_is_the_average_over_orders_of_ties(seed: int) -> None:
    probs, gold = questions(7, seed, (2, 3))
    curve = brute_curve(scores.confidence(probs).tolist(), scores.correct(probs, gold).tolist())
    assert value("aurc", probs, gold) == pytest.approx(sum(curve) / 7)
    for coverage in (0.01, 0.3, 0.5, 5 / 7, 1.0):
        expected = curve[math.ceil(coverage * 7 - 1e-9) - 1]
        assert selective.accuracy_at_coverage(probs, gold, coverage) == pytest.approx(1 - expected)


def test_risk_at_full_coverage_is_the_error_rate() -> None:
    probs, gold = questions(101, 3)
    assert selective.accuracy_at_coverage(probs, gold, 1.0) == pytest.approx(value("acc", probs, gold))


def test_mutual_information_equals_a_loop_and_the_mean_kl() -> None:
    rng = np.random.default_rng(4)
    draws = rng.dirichlet(np.ones(3), (6, 20))
    kl = [np.mean([stats.entropy(draws[s, d], draws[:, d].mean(0)) for s in range(6)]) for d in range(20)]
    np.testing.assert_allclose(scores.mutual_information(draws), kl, rtol=1e-10)
    scaled = scores.mutual_information(draws, normalised=True)
    np.testing.assert_allclose(scaled, np.array(kl) / np.log(3), rtol=1e-10)
    mean = stats.entropy(draws, axis=-1).mean(0)
    np.testing.assert_allclose(scores.expected_entropy(draws), mean, rtol=1e-10)


def test_combination_rules_differ_as_documented() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (4, 30, 3))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(averaging.combine_draws(logits, "probs"), softmax.mean(0), rtol=1e-12)
    mean = np.exp(logits.mean(0))
    by_logits = mean / mean.sum(-1, keepdims=True)
    np.testing.assert_allclose(averaging.combine_draws(logits, "logits"), by_logits, rtol=1e-12)
    shifted = logits + rng.normal(0, 50, (4, 30, 1))  # a constant per draw and question
    np.testing.assert_allclose(averaging.combine_draws(shifted, "logits"), by_logits, rtol=1e-9)
    np.testing.assert_allclose(averaging.combine_draws(logits[:1], "given"), softmax[0], rtol=1e-12)
    assert np.abs(softmax.mean(0) - by_logits).max() > 0.05


def test_combination_is_stable_far_from_zero_and_with_impossible_choices() -> None:
    logp = np.array([[[-2000.0, -2001.0, np.nan], [0.0, -np.inf, -1.0]]])
    probs = averaging.combine_draws(logp, "probs")
    e = math.exp(-1)
    np.testing.assert_allclose(probs, [[1 / (1 + e), e / (1 + e), np.nan], [1 / (1 + e), 0, e / (1 + e)]])
    assert value("nll", probs, [0, 1]) < 400


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: value("acc", [[0.5, 0.6]], [0]), "sum of 1.1"),
    (lambda: value("acc", [[0.5, 0.5]], [2]), "found 2 of 2"),
    (lambda: value("acc", [[0.5, 0.5]], [-1]), "found -1"),
    (lambda: value("acc", [[0.5, 0.5]], [0, 1]), r"gold \[D\]: found"),
    (lambda: value("acc", scores.pad([[0.5, 0.5], [0.2, 0.2, 0.6]]), [2, 2]), "lacks"),
    (lambda: value("acc", np.empty((0, 4)), []), "found shape"),
    (lambda: selective.accuracy_at_coverage([[0.5, 0.5]], [0], 0.0), "coverage"),
    (lambda: averaging.combine_draws(np.zeros((2, 3, 4)), "given"), "2 draws"),
    (lambda: averaging.combine_draws(np.zeros((2, 3, 4)), "median"), "'median'"),
    (lambda: averaging.combine_draws([[[0.0, 1.0]], [[0.0, np.nan]]]), "same choices"),
    (lambda: averaging.combine_draws([[[-np.inf, -np.inf]]]), "finite"),
    (lambda: scores.mutual_information([[0.5, 0.5]]), r"draws must be \[..., S, D, C\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_one_line_that_names_what_was_found(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_ranges(n: int, seed: int) -> None:
    probs, gold = questions(n, seed)
    error = 1 - value("acc", probs, gold)
    # Errors last is the best order, errors first the worst.
    k = np.arange(1, n + 1)
    wrong = np.sort(~scores.correct(probs, gold))
    best, worst = (np.cumsum(w) / k for w in (wrong, wrong[::-1]))
    assert best.mean() - 1e-12 <= value("aurc", probs, gold) <= worst.mean() + 1e-12
    assert best[-1] == pytest.approx(error)
    assert 0 <= value("brier", probs, gold) <= 2 and value("nll", probs, gold) >= 0
    normalised = scores.predictive_entropy(probs, normalised=True)
    assert (normalised >= 0).all() and (normalised <= 1 + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 10**6))
def test_mutual_information_is_zero_for_equal_draws_only(s: int, n: int, seed: int) -> None:
    probs, _ = questions(n, seed)
    equal = np.repeat(probs[None], s, axis=0)
    assert (scores.mutual_information(equal) == 0).all()
    other = scores.pad([row[~np.isnan(row)][::-1] for row in probs])
    mixed = scores.mutual_information(np.stack([probs, other]))
    differs = ~np.isclose(probs, other, equal_nan=True).all(axis=1)
    assert (mixed[differs] > 1e-9).all() and (mixed[~differs] < 1e-9).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_mcc_equals_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    probs, gold = rng.dirichlet(np.ones(classes), (3, 90)), rng.integers(0, classes, 90) // 2
    expected = [sk.matthews_corrcoef(gold, p.argmax(1)) for p in probs]
    np.testing.assert_allclose(METRICS["mcc"](probs, gold), expected, atol=1e-12)  # three sets of answers at once
    constant = np.tile([0.9, *[0.1 / (classes - 1)] * (classes - 1)], (90, 1))
    assert value("mcc", constant, gold) == 0  # as scikit-learn has it


def test_the_error_of_mcc_is_the_jackknifes() -> None:
    rng = np.random.default_rng(0)
    runs = [Answers.of(rng.dirichlet(np.ones(3), 60), np.arange(60) % 3) for _ in range(2)]
    without = np.array(
        [[sk.matthews_corrcoef(np.delete(r.gold, i), np.delete(r.p, i, 0).argmax(1)) for i in range(60)] for r in runs]
    )
    covariance = np.cov(without) * 59**2 / 60  # of (n − 1) times what leaving one out changes, over n
    values, paired = scores.mcc_paired(runs)
    np.testing.assert_allclose(paired, covariance, rtol=1e-9)
    for run, point, variance in zip(runs, values, np.diag(covariance), strict=True):
        assert METRICS["mcc"].standard_error(run) == pytest.approx(variance**0.5)
        low, high = METRICS["mcc"].confidence_interval(run)
        assert -1 < low < point < high < 1


def test_the_interval_of_mcc_covers() -> None:
    """Of 400 sets of 150 uneven questions answered right with a known confusion."""
    rng, joint = np.random.default_rng(1), np.array([[0.15, 0.15], [0.1, 0.6]])  # guess, gold
    gold, guess = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    repeats = np.round(1000 * joint.T.ravel()).astype(int)
    truth = sk.matthews_corrcoef(np.repeat(gold, repeats), np.repeat(guess, repeats))
    hits = 0
    for _ in range(400):
        cell = rng.choice(4, 150, p=joint.T.ravel())
        run = Answers.of(np.eye(2)[guess[cell]], gold[cell])
        low, high = METRICS["mcc"].confidence_interval(run)
        hits += low <= truth <= high
    assert 0.92 < hits / 400 < 0.98
