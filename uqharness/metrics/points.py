"""Metrics of single questions: accuracy, NLL, Brier score, entropies and what draws disagree on.

Functions of arrays take p […, D, C], with NaN or 0 where a question has no such choice. Ties for the most probable
choice go to the first index, as in np.argmax. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from uqharness.metrics.intervals import UNDEFINED, Interval, mcnemar, wilson, z_value
from uqharness.metrics.metric import PROB_FLOOR, Answers, Bools, Draws, Floats, Ints, Metric, Paired, once

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


def expected_entropy(draws: ArrayLike, normalised: bool = False) -> Floats:
    """Mean over draws […, S, D, C] of each draw's entropy, […, D] (aleatoric part; Depeweg et al. 2018)."""
    each = Draws.of(draws)
    mean = each.mean(entropy(each.p))
    return mean / log_choices(np.asarray(~np.isnan(draws).all(axis=0))) if normalised else mean


def mutual_information(draws: ArrayLike, normalised: bool = False) -> Floats:
    """H[mean_s p_s] - mean_s H[p_s], […, D], rounding set to 0 (Houlsby et al. 2011)."""
    each = Draws.of(draws)
    gain = without_rounding(entropy(each.average) - each.mean(entropy(each.p)))
    return gain / log_choices(np.asarray(~np.isnan(draws).all(axis=0))) if normalised else gain


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
    """Return whether each answer is right, […, D]."""
    return correct(answers.p, answers.gold)


@once
def total_uncertainty(answers: Answers) -> Floats:
    return entropy(answers.p)


@once
def epistemic_uncertainty(answers: Answers) -> Floats:
    draws = answers.draws
    assert draws is not None
    of_mean = total_uncertainty(answers) if draws.average is answers.p else entropy(draws.average)
    return without_rounding(of_mean - draws.mean(entropy(draws.p)))


@once
def confusion(answers: Answers) -> tuple[Ints, Floats, Floats]:
    """Predicted classes […, D]; how often each class is predicted […, C] and right [C]."""
    classes, guesses = np.arange(answers.p.shape[-1]), predicted(answers.p)
    counts = np.stack([(guesses == c).sum(axis=-1) for c in classes], axis=-1).astype(np.float64)
    return guesses, counts, (answers.gold[:, None] == classes).sum(axis=0).astype(np.float64)


def correlation(n: Floats, hits: Floats, guesses: Floats, golds: Floats) -> Floats:
    """(n·hits − Σ_c g_c t_c) / √((n² − Σ g²)(n² − Σ t²)) (Gorodkin 2004, Eq. 8); 0 where either is constant."""
    shared = n * hits - (guesses * golds).sum(axis=-1)
    spread = [np.maximum(n * n - (counts**2).sum(axis=-1), 0.0) for counts in (guesses, golds)]
    scale = np.sqrt(spread[0] * spread[1])
    return np.asarray(np.where(scale > 0, shared / np.where(scale > 0, scale, 1.0), 0.0))


@once
def mcc(answers: Answers) -> Floats:
    """Correlation of predicted and right classes, […]."""
    _, guesses, golds = confusion(answers)
    n, hits = np.float64(len(answers.gold)), right(answers).sum(axis=-1).astype(np.float64)
    return correlation(n, hits, guesses, golds)


@once
def mcc_influence(answers: Answers) -> Floats:
    """(n − 1) (mean of all but one's − all but item i's), [D]: the jackknife. Items of one cell share their value."""
    predictions, guesses, golds = confusion(answers)
    n, classes = np.float64(len(answers.gold)), np.eye(len(golds))
    same, hits = classes.astype(bool), np.float64(right(answers).sum())
    cells = correlation(n - 1, hits - same, guesses - classes[:, None], golds - classes[None, :])  # [C, C]
    without = cells[predictions, answers.gold]
    return np.asarray((n - 1) * (without.mean() - without))


def mcc_stderr(answers: Answers) -> float:
    n = len(answers.gold)
    return float(mcc_influence(answers).std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def mcc_interval(answers: Answers, level: float) -> Interval:
    """tanh(artanh M ± z se / (1 − M²)): Fisher's transform; undefined where all answers or all labels are one class."""
    value, se = float(mcc(answers)), mcc_stderr(answers)
    if not se > 0 or abs(value) == 1:
        return UNDEFINED
    centre, half = np.arctanh(value), z_value(level) * se / (1 - value**2)
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def mcc_paired(runs: Sequence[Answers]) -> Paired:
    influences = np.stack([mcc_influence(run) for run in runs])
    return np.array([float(mcc(run)) for run in runs]), np.atleast_2d(np.cov(influences)) / influences.shape[1]


METRICS = (
    Metric(
        "acc",
        "ACC",
        "Accuracy: share of questions whose most probable choice is the right one.",
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
        "Negative log-likelihood: mean of -log p(right choice) in nats; a confident error costs most.",
        items=lambda a: nll_items(a.p, a.gold),
        higher_is_better=False,
        console=True,
    ),
    Metric(
        "brier",
        "Brier",
        "Brier score: mean squared distance between the probabilities and the right answer, 0 to 2.",
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
    Metric(
        "mcc",
        "MCC",
        "Correlation of predicted and right classes: 0 for a guess, however uneven they are; the metric of CoLA.",
        formula=mcc,
        higher_is_better=True,
        interval=mcc_interval,
        stderr=mcc_stderr,
        paired=mcc_paired,
        decimals=3,
    ),
)
