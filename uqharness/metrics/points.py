"""Metrics of single questions: accuracy, NLL, Brier score, entropies and what draws disagree on.

Functions of arrays take p […, D, C], with NaN or 0 where a question has no such choice. Ties for the most probable
choice go to the first index, as in np.argmax. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from uqharness.metrics.intervals import mcnemar, wilson
from uqharness.metrics.metric import PROB_FLOOR, Answers, Bools, Draws, Floats, Ints, Metric, once

# Of the rounding of draws that say the same, in nats; float32 log-likelihoods tell no smaller gain from 0.
ROUNDING = 1e-13


def pad(rows: Sequence[ArrayLike]) -> Floats:
    """[D, Cmax] from D rows of different lengths, NaN on the right where a row has no such choice."""
    arrays = [np.asarray(row, dtype=np.float64).ravel() for row in rows]
    width = max((len(row) for row in arrays), default=0)
    out = np.full((len(arrays), width), np.nan)
    for i, row in enumerate(arrays):
        out[i, : len(row)] = row
    return out


def jsonable(values: ArrayLike) -> list[Any]:
    """Python list with None for NaN, since JSON has no NaN."""
    return [None if v != v else v for v in np.asarray(values).tolist()]


def confidence(p: ArrayLike) -> Floats:
    """max_c p_dc, […, D]."""
    return np.asarray(np.fmax.reduce(np.asarray(p, dtype=np.float64), axis=-1))


def predicted(p: ArrayLike) -> Ints:
    """argmax_c p_dc, first index among ties, […, D]."""
    return np.asarray(np.nan_to_num(p).argmax(axis=-1), dtype=np.int64)


def correct(p: ArrayLike, gold: ArrayLike) -> Bools:
    """1[argmax_c p_dc = gold_d], […, D]."""
    return np.asarray(predicted(p) == gold)


def nll_items(p: ArrayLike, gold: ArrayLike) -> Floats:
    """-log p_d,gold in nats, […, D]; p is floored at PROB_FLOOR, so a zero probability costs 708.4."""
    values, g = np.asarray(p, dtype=np.float64), np.asarray(gold)
    return np.asarray(-np.log(np.maximum(values[..., np.arange(len(g)), g], PROB_FLOOR)))


def brier_items(p: ArrayLike, gold: ArrayLike) -> Floats:
    """sum_c (p_dc - 1[c = gold_d])^2, […, D], in [0, 2] (Brier 1950)."""
    values, g = np.asarray(p, dtype=np.float64), np.asarray(gold)
    return np.asarray(np.nansum((values - (np.arange(values.shape[-1]) == g[:, None])) ** 2, axis=-1))


def entropy(p: Floats) -> Floats:
    """-sum_c p_dc log p_dc in nats, […, D], of p with 0 where a question has no such choice."""
    return np.asarray(np.maximum(-(p * np.log(np.maximum(p, PROB_FLOOR))).sum(axis=-1), 0.0))


def predictive_entropy(p: ArrayLike, normalised: bool = False) -> Floats:
    """`entropy` of p that has NaN where a question has no such choice; normalised: divided by log C_d, so in [0, 1]."""
    h = entropy(np.nan_to_num(p))
    return h / log_choices(~np.isnan(p)) if normalised else h


def expected_entropy(draws: ArrayLike | Draws, normalised: bool = False) -> Floats:
    """Mean over draws of each draw's entropy, […, D] (aleatoric part; Depeweg et al. 2018)."""
    each = Draws.of(draws)
    mean = each.mean(entropy(each.p))
    return mean / log_choices(~np.isnan(draws).all(0)) if normalised else mean


def mutual_information(draws: ArrayLike | Draws, normalised: bool = False) -> Floats:
    """H[mean_s p_s] - mean_s H[p_s], […, D], rounding set to 0 (Houlsby et al. 2011)."""
    each = Draws.of(draws)
    gain = without_rounding(entropy(each.average) - expected_entropy(each))
    return gain / log_choices(~np.isnan(draws).all(0)) if normalised else gain


def without_rounding(gain: Floats) -> Floats:
    return np.where(gain < ROUNDING, 0.0, gain)


def log_choices(mask: Bools) -> Floats:
    """log C_d, […, D]; a question with a single choice has no uncertainty: it is divided by log 2."""
    return np.asarray(np.log(np.maximum(mask.sum(axis=-1), 2)))


@once
def sure(answers: Answers) -> Floats:
    """The confidence of each answer, […, D]."""
    return confidence(answers.p)


@once
def right(answers: Answers) -> Bools:
    """Whether each answer is right, […, D]."""
    return correct(answers.p, answers.gold)


@once
def total_uncertainty(answers: Answers) -> Floats:
    return entropy(answers.p)


@once
def epistemic_uncertainty(answers: Answers) -> Floats:
    assert answers.draws is not None
    of_mean = total_uncertainty(answers) if answers.draws.average is answers.p else entropy(answers.draws.average)
    return without_rounding(of_mean - expected_entropy(answers.draws))


METRICS = (
    Metric(
        "acc",
        "ACC",
        "Share of questions whose most probable choice is the right one.",
        items=right,
        higher_is_better=True,
        interval=lambda a, level: wilson(int(right(a).sum()), len(a.gold), level),
        exact_test=mcnemar,
        console=True,
        scale=100,
    ),
    Metric(
        "nll",
        "NLL",
        "Mean of -log p(right choice) in nats: what a confident error costs most.",
        items=lambda a: nll_items(a.p, a.gold),
        higher_is_better=False,
        console=True,
    ),
    Metric(
        "brier",
        "Brier",
        "Mean squared distance between the probabilities and the right answer, 0 to 2.",
        items=lambda a: brier_items(a.p, a.gold),
        higher_is_better=False,
        console=True,
        decimals=3,
    ),
    Metric(
        "entropy",
        "Entropy",
        "Mean entropy of the averaged probabilities in nats: all uncertainty together.",
        items=total_uncertainty,
        decimals=3,
    ),
    Metric(
        "entropy_norm",
        "Entropy / log C",
        "Entropy as a share of the largest that so many choices allow.",
        items=lambda a: total_uncertainty(a) / log_choices(a.mask),
        decimals=3,
    ),
    Metric(
        "mutual_information",
        "Mutual information",
        "How much the draws disagree, in nats: the epistemic part of the entropy.",
        items=epistemic_uncertainty,
        needs_draws=True,
        decimals=3,
    ),
    Metric(
        "mutual_information_norm",
        "Mutual information / log C",
        "Mutual information as a share of the largest that so many choices allow.",
        items=lambda a: epistemic_uncertainty(a) / log_choices(a.mask),
        needs_draws=True,
        decimals=3,
    ),
)
