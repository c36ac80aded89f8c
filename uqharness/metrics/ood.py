"""Detect shifted questions by uncertainty, and compute how a shift changes metrics.

A score is larger where a model is less confident. Shifted questions are the positives of AUROC and AUPR; FPR95 is the
share of them that is accepted where 95 % of the in-distribution questions are (Liang et al. 2018, arXiv:1706.02690).
All three equal scikit-learn's values on the same scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from uqharness.errors import InputError
from uqharness.metrics.intervals import UNDEFINED, Interval, z_value
from uqharness.metrics.metric import Answers, Floats, Metric
from uqharness.metrics.points import epistemic_uncertainty, sure, total_uncertainty
from uqharness.metrics.selective import area_interval, auroc

SCORES = ("confidence", "entropy", "mutual_information")


@dataclass(frozen=True)
class Detection:
    """Detection of shifted questions by one score."""

    auroc: float
    auroc_interval: Interval
    aupr: float  # average precision; chance: the share of shifted questions
    fpr95: float


@dataclass(frozen=True)
class Change:
    """A metric in distribution, under shift, and the difference with its interval."""

    inside: float
    shifted: float
    difference: float  # shifted - inside
    interval: Interval


def scores(answers: Answers) -> dict[str, Floats]:
    """Return the uncertainty of each answer, [D], by the names of `SCORES`.

    Mutual information needs at least two draws.
    """
    scores = {"confidence": -sure(answers), "entropy": total_uncertainty(answers)}
    if answers.draws is not None and len(answers.draws.p) > 1:
        scores["mutual_information"] = epistemic_uncertainty(answers)
    return scores


def detect(inside: ArrayLike, shifted: ArrayLike, level: float = 0.95) -> Detection:
    """Return how well scores separate [D] in-distribution and [D'] shifted questions."""
    a, b = np.asarray(inside, dtype=np.float64), np.asarray(shifted, dtype=np.float64)
    if not len(a) or not len(b):
        raise InputError(f"need scores of both sets: found {len(a)} in distribution and {len(b)} shifted")
    both, positive = np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a)
    area = float(auroc(both, positive))
    return Detection(area, area_interval(both, positive, level), average_precision(a, b), fpr95(a, b))


def average_precision(inside: Floats, shifted: Floats) -> float:
    """sum_k (R_k - R_{k-1}) P_k over the thresholds, shifted questions being positive."""
    both = np.concatenate([inside, shifted])
    positive = np.arange(len(both)) >= len(inside)
    order = np.argsort(-both, kind="stable")
    last = np.append(np.flatnonzero(np.diff(both[order])), len(both) - 1)  # the last of each group of ties
    hits = positive[order].cumsum()[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / len(shifted))


def fpr95(inside: Floats, shifted: Floats) -> float:
    """Return the share of shifted questions whose score is no larger than that of 95 % of the in-distribution ones."""
    threshold = np.sort(inside)[int(np.ceil(0.95 * len(inside) - 1e-9)) - 1]
    return float((shifted <= threshold).mean())


def change(metric: Metric, inside: Answers, shifted: Answers, level: float = 0.95) -> Change:
    """Return the change of a metric under a shift, from two sets of different questions.

    The interval is made of those of the two values: d - sqrt((b - l_b)^2 + (u_a - a)^2) and the like (MOVER; Newcombe
    1998), so that skewed intervals (a proportion's, ECE's) are used as they are.
    """
    a, b = float(metric.value(inside)), float(metric.value(shifted))
    (la, ua), (lb, ub) = (metric.confidence_interval(answers, level) for answers in (inside, shifted))
    d = b - a
    ends = (d - np.hypot(b - lb, ua - a), d + np.hypot(ub - b, a - la))
    return Change(a, b, d, (float(ends[0]), float(ends[1])))


def change_against(
    metric: Metric, inside: tuple[Answers, Answers], shifted: tuple[Answers, Answers], level: float = 0.95
) -> tuple[float, Interval]:
    """Return how much more a shift changes a metric of the first model than of the second, paired by question."""
    means, variances = zip(*(_paired_difference(metric, *pair) for pair in (inside, shifted)), strict=True)
    difference, half = means[1] - means[0], z_value(level) * float(np.sqrt(sum(variances)))
    return difference, UNDEFINED if np.isnan(half) else (difference - half, difference + half)


def _paired_difference(metric: Metric, one: Answers, other: Answers) -> tuple[float, float]:
    """(first - second, variance of it over questions) of two models' answers to the same questions."""
    if len(one.gold) != len(other.gold) or (one.gold != other.gold).any():
        raise InputError("two models answered other questions: paired intervals need the same ones in the same order")
    if metric.paired is not None:
        values, covariance = metric.paired([one, other])
        contrast = np.array([1.0, -1.0])
        return float(contrast @ values), float(contrast @ covariance @ contrast)
    d = metric.per_item(one).astype(np.float64) - metric.per_item(other)
    return float(d.mean()), float(d.var(ddof=1) / len(d)) if len(d) > 1 else float("nan")
