"""How well confidence separates right from wrong answers: AUROC and the risk-coverage curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from uqharness.errors import InputError
from uqharness.metrics.intervals import UNDEFINED, Interval, clopper_pearson, t_value, wilson, z_value
from uqharness.metrics.metric import Answers, Bools, Floats, Metric, once
from uqharness.metrics.points import confidence, correct, right, sure


def midranks(x: Floats) -> Floats:
    """Return 1-based ranks along the last axis, ties get their mean rank."""
    from scipy.stats import rankdata  # half a second, so not before it is needed

    return np.asarray(rankdata(x, axis=-1))


def auroc(scores: ArrayLike, positive: ArrayLike) -> Floats:
    """P(score+ > score-) + P(score+ = score-) / 2 (Mann-Whitney), […] from […, D]; NaN where a class is empty."""
    return auroc_of_ranks(midranks(np.asarray(scores, dtype=np.float64)), np.asarray(positive, dtype=bool))


def auroc_of_ranks(ranks: Floats, positive: Bools) -> Floats:
    hits = positive.sum(axis=-1)
    pairs = hits * (positive.shape[-1] - hits)
    wins = (ranks * positive).sum(axis=-1) - hits * (hits + 1) / 2
    return np.asarray(np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan))


def ood_auroc(scores_id: ArrayLike, scores_ood: ArrayLike) -> float:
    """P(score_ood > score_id), ties half: for an uncertainty score, larger out of distribution."""
    a, b = np.asarray(scores_id, dtype=np.float64), np.asarray(scores_ood, dtype=np.float64)
    return float(auroc(np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a)))


def risk_curve(conf: Floats, hits: Bools) -> Floats:
    """Risk among the k most confident items, k = 1 … D, its expectation over random orders of ties, […, D]."""
    return risk_of_ranks(midranks(conf), hits)


def risk_of_ranks(ranks: Floats, hits: Bools) -> Floats:
    n = ranks.shape[-1]
    rows = np.arange(ranks.size // n)[:, None] * (2 * n + 1)
    place = ((2 * (n + 1) - 2 * ranks).astype(np.int64).reshape(-1, n) + rows).ravel()  # the same within ties
    size = np.bincount(place)
    share = np.bincount(place, ~hits.ravel()) / np.maximum(size, 1)
    return np.asarray(np.repeat(share, size).reshape(ranks.shape).cumsum(axis=-1) / np.arange(1, n + 1))


def aurc(p: ArrayLike, gold: ArrayLike) -> Floats:
    """1/D sum_k risk(k most confident) (Geifman & El-Yaniv 2017), averaged over all orders of ties."""
    return np.asarray(risk_curve(confidence(p), correct(p, gold)).mean(axis=-1))


def accuracy_at_coverage(p: ArrayLike, gold: ArrayLike, coverage: float) -> float:
    """Accuracy of the ceil(coverage * D) most confident items, averaged where the cut splits ties."""
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be in (0, 1]: found {coverage}; 0.8 keeps the most confident 80 %")
    curve = risk_curve(confidence(p), correct(p, gold))
    return 1.0 - float(curve[max(1, int(np.ceil(coverage * len(curve) - 1e-9))) - 1])


def delong(conf: Floats, hits: Bools) -> tuple[float, float]:
    """(AUROC, standard error) from the placements of each item among the other class (DeLong et al. 1988)."""
    a, b = conf[hits], conf[~hits]
    if len(a) < 2 or len(b) < 2:
        return float(auroc(conf, hits)), float("nan")
    ranks = midranks(conf)
    above = (ranks[hits] - midranks(a)) / len(b)
    below = 1 - (ranks[~hits] - midranks(b)) / len(a)
    return float(above.mean()), float(np.sqrt(above.var(ddof=1) / len(a) + below.var(ddof=1) / len(b)))


def area_interval(scores: Floats, positive: Bools, level: float) -> Interval:
    """expit(logit A ± z se / (A (1 - A))); at A = 0 or 1, Clopper-Pearson with the smaller class as n."""
    area, se = delong(scores, positive)
    if np.isnan(se):
        return UNDEFINED if np.isnan(area) else (0.0, 1.0)
    if area in (0.0, 1.0):
        n = np.array([float(min(positive.sum(), (~positive).sum()))])
        low, high = clopper_pearson(area * n, n, (1 - level) / 2)
        return float(low[0]), float(high[0])
    centre, half = np.log(area / (1 - area)), z_value(level) * se / (area * (1 - area))
    return float(1 / (1 + np.exp(-(centre - half)))), float(1 / (1 + np.exp(-(centre + half))))


@once
def ranks(answers: Answers) -> Floats:
    return midranks(sure(answers))


@once
def risk(answers: Answers) -> Floats:
    return risk_of_ranks(ranks(answers), right(answers))


def aurc_influence(answers: Answers) -> Floats:
    """Influence of each item on A = E_t[R(t)], R(t) = P(wrong | conf >= t), [D]:

    IF_i = R(conf_i) - A + E_t[1[conf_i >= t] (wrong_i - R(t)) / P(conf >= t)], averaged within ties.
    """
    curve, n = risk(answers), len(answers.gold)
    k = np.arange(1, n + 1)
    # Items of equal confidence, the most confident group first: the group of each item, the size of each group.
    _, group, size = np.unique(-sure(answers), return_inverse=True, return_counts=True)
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    tail = np.cumsum((1 / k)[::-1])[::-1]  # sum_{j >= k} 1/j
    risk_tail = np.cumsum((curve / k)[::-1])[::-1]
    own, weight, loss = ((np.add.reduceat(v, start) / size)[group] for v in (curve, tail, risk_tail))
    return np.asarray(own - curve.mean() + (~right(answers)) * weight - loss)


def aurc_stderr(answers: Answers) -> float:
    """Standard deviation of `aurc_influence` / sqrt(n): the infinitesimal jackknife."""
    n = len(answers.gold)
    return float(aurc_influence(answers).std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def aurc_interval(answers: Answers, level: float) -> Interval:
    """exp(log A ± t se / A); without errors [0, p (1 - log p)], p Wilson's bound of the error rate."""
    n, area = len(answers.gold), float(risk(answers).mean())
    if n < 2:
        return UNDEFINED
    if area == 0.0:
        rate = 1 - wilson(n, n, level)[0]
        return 0.0, float(min(rate * (1 - np.log(rate)), 1.0))
    factor = float(np.exp(t_value(level, n) * aurc_stderr(answers) / area))
    return area / factor, min(area * factor, 1.0)


METRICS = (
    Metric(
        "auroc",
        "AUROC",
        "Area under the ROC curve: chance that a right answer is more confident than a wrong one; 50 % says nothing.",
        formula=lambda a: auroc_of_ranks(ranks(a), right(a)),
        higher_is_better=True,
        interval=lambda a, level: area_interval(sure(a), right(a), level),
        stderr=lambda a: delong(sure(a), right(a))[1],
        console=True,
        scale=100,
    ),
    Metric(
        "aurc",
        "AURC",
        "Area under the risk–coverage curve: error rate of the most confident answers, averaged over how many.",
        formula=lambda a: risk(a).mean(axis=-1),
        higher_is_better=False,
        interval=aurc_interval,
        stderr=aurc_stderr,
        scale=100,
    ),
)
