"""Detection of shifted questions against scikit-learn, and intervals of what a shift changes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from tests.answers import calibrated, questions
from uqharness.errors import InputError
from uqharness.metrics import ood
from uqharness.metrics.metric import Answers
from uqharness.metrics.registry import METRICS


@pytest.mark.parametrize("digits", [0, 1, 12])  # 0: most scores tie
@pytest.mark.parametrize("sizes", [(50, 30), (300, 101), (20, 7), (7, 60)])
def test_detection_is_that_of_scikit_learn(digits: int, sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    inside, shifted = np.round(rng.normal(0, 1, sizes[0]), digits), np.round(rng.normal(0.7, 1, sizes[1]), digits)
    both, label = np.concatenate([inside, shifted]), np.repeat([0, 1], sizes)
    detection = ood.detect(inside, shifted)
    assert detection.auroc == pytest.approx(roc_auc_score(label, both), abs=1e-12)
    assert detection.aupr == pytest.approx(average_precision_score(label, both), abs=1e-12)
    fpr, tpr, _ = roc_curve(1 - label, -both, drop_intermediate=False)
    assert detection.fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)], abs=1e-12)
    assert detection.auroc_interval[0] < detection.auroc < detection.auroc_interval[1]


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="0 in distribution"):
        ood.detect([], [0.1])


def test_scores_grow_with_uncertainty_and_need_draws() -> None:
    draws = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]])
    both = Answers.of(draws.mean(0), [0, 0], draws=draws)
    scores = ood.scores(both)
    assert scores["mutual_information"][0] > 0.3 and scores["mutual_information"][1] == 0
    assert set(ood.scores(Answers.of(draws[0], [0, 0], draws=draws[:1]))) == {"confidence", "entropy"}
    sure = ood.scores(Answers.of([[0.99, 0.01], [0.6, 0.4]], [0, 0]))
    assert all(values[0] < values[1] for values in sure.values())


@pytest.mark.parametrize("name", ["acc", "nll", "ece"])
def test_interval_of_a_change_covers_no_change(name: str) -> None:
    """Two sets of one calibrated model: the interval holds 0 about as often as it says, and no more rarely."""
    inside = list[bool]()
    for seed in range(100):
        a, b = (Answers.of(*calibrated(n, 2 * seed + k)) for k, n in enumerate((150, 100)))
        change = ood.change(METRICS[name], a, b)
        low, high = change.interval
        assert low <= change.difference <= high and change.difference == pytest.approx(change.shifted - change.inside)
        inside.append(low <= 0 <= high)
    assert sum(inside) >= 90


def test_paired_change_is_zero_against_itself_and_narrower_than_unpaired() -> None:
    near, far = (Answers.of(*calibrated(n, k)) for k, n in enumerate((200, 150)))
    rng = np.random.default_rng(3)

    def nudged(a: Answers) -> Answers:
        p = a.p * np.exp(rng.normal(0, 0.05, a.p.shape))
        return Answers.of(p / p.sum(-1, keepdims=True), a.gold)

    for name in ("acc", "nll", "ece_debiased"):
        metric = METRICS[name]
        same, interval = ood.change_against(metric, (near, near), (far, far))
        assert same == 0 and interval == pytest.approx((0, 0), abs=1e-12)
    other = nudged(near), nudged(far)
    more, (low, high) = ood.change_against(METRICS["nll"], (near, other[0]), (far, other[1]))
    alone = ood.change(METRICS["nll"], near, far)
    assert more == pytest.approx(alone.difference - ood.change(METRICS["nll"], *other).difference)
    assert low < more < high and high - low < 0.3 * (alone.interval[1] - alone.interval[0])


def test_paired_change_needs_the_same_questions() -> None:
    one, other = (Answers.of(*questions(40, seed)) for seed in (0, 1))
    with pytest.raises(InputError, match="other questions"):
        ood.change_against(METRICS["acc"], (one, other), (one, one))
