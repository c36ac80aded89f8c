"""Point metrics of answers: acc = mean 1[argmax_c p_dc = gold_d], nll = -mean log p_d,gold, AURC, entropies.

`probs` is [D, C] with NaN where a question has no such choice (`pad`); per-draw arrays are [S, D, C].
Ties for the most probable choice go to the first index, as in np.argmax. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqharness.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# -log of it is 708.4: a choice that was given probability zero costs this much, large but finite.
PROB_FLOOR = float(np.finfo(np.float64).tiny)


def pad(rows: Sequence[ArrayLike]) -> Floats:
    """[D, Cmax] from D rows of different lengths, NaN on the right where a row has no such choice."""
    arrays = [np.asarray(row, dtype=np.float64).ravel() for row in rows]
    width = max((len(row) for row in arrays), default=0)
    out = np.full((len(arrays), width), np.nan)
    for i, row in enumerate(arrays):
        out[i, : len(row)] = row
    return out


def as_probs(probs: ArrayLike) -> Floats:
    """Checked float64 [D, C] (or [S, D, C], NaN in draws that were not taken); one line of error otherwise."""
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim not in (2, 3) or p.size == 0:
        raise InputError(f"probs must be [D, C] or [S, D, C], found shape {p.shape}; use pad() for rows")
    total = np.nansum(p, axis=-1)
    if p.ndim == 3:
        total[1:][np.isnan(p[1:]).all(axis=-1)] = 1.0
    if not np.allclose(total, 1.0, atol=1e-3) or np.nanmin(p) < 0:
        bad = total.ravel()[np.argmax(np.abs(total.ravel() - 1.0))]
        raise InputError(f"rows of probs must be distributions, found a sum of {bad:.6g}; apply a softmax")
    return p


def as_pair(probs: ArrayLike, gold: ArrayLike) -> tuple[Floats, Ints]:
    """Checked (probs [D, C], gold [D]); gold must name a choice that its question has."""
    p, raw = as_probs(probs), np.asarray(gold)
    g = raw.astype(np.int64)
    if p.ndim != 2 or g.shape != p.shape[:1]:
        raise InputError(f"need probs [D, C], gold [D], found {p.shape} and {g.shape}; pass one gold each")
    bad = (g != raw) | (g < 0) | (g >= p.shape[1])
    if bad.any() or np.isnan(p[np.arange(len(g)), g]).any():
        found = f"{raw[bad][0]} of {p.shape[1]}" if bad.any() else "one that its question lacks"
        raise InputError(f"gold must index a present choice, found {found}; check the labels")
    return p, g


def confidence(probs: ArrayLike) -> Floats:
    """max_c p_dc, [D]."""
    return np.asarray(np.nanmax(as_probs(probs), axis=-1))


def predicted(probs: ArrayLike) -> Ints:
    """argmax_c p_dc, first index among ties, [D]."""
    return np.asarray(np.nanargmax(as_probs(probs), axis=-1), dtype=np.int64)


def correct(probs: ArrayLike, gold: ArrayLike) -> Bools:
    """1[argmax_c p_dc = gold_d], [D]."""
    p, g = as_pair(probs, gold)
    return np.asarray(predicted(p) == g)


def accuracy(probs: ArrayLike, gold: ArrayLike) -> float:
    """mean of `correct`."""
    return float(correct(probs, gold).mean())


def nll_items(probs: ArrayLike, gold: ArrayLike) -> Floats:
    """-log p_d,gold in nats, [D]; p is floored at PROB_FLOOR, so a zero probability costs 708.4."""
    p, g = as_pair(probs, gold)
    return np.asarray(-np.log(np.maximum(p[np.arange(len(g)), g], PROB_FLOOR)))


def nll(probs: ArrayLike, gold: ArrayLike) -> float:
    """Mean over all items (not a mean of batch means) of -log p_d,gold."""
    return float(nll_items(probs, gold).mean())


def brier_items(probs: ArrayLike, gold: ArrayLike) -> Floats:
    """sum_c (p_dc - 1[c = gold_d])^2, [D], in [0, 2] (Brier 1950)."""
    p, g = as_pair(probs, gold)
    return np.asarray(np.nansum((p - (np.arange(p.shape[1]) == g[:, None])) ** 2, axis=1))


def brier(probs: ArrayLike, gold: ArrayLike) -> float:
    """Mean of `brier_items`."""
    return float(brier_items(probs, gold).mean())


def midranks(x: Floats) -> Floats:
    """1-based ranks, ties get their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """P(score+ > score-) + P(score+ = score-) / 2 (Mann-Whitney); NaN where one of the classes is empty."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    pos, neg = int(y.sum()), int((~y).sum())
    if pos == 0 or neg == 0:
        return float("nan")
    return float((midranks(s)[y].sum() - pos * (pos + 1) / 2) / (pos * neg))


def auroc_confidence(probs: ArrayLike, gold: ArrayLike) -> float:
    """AUROC of the confidence as a predictor of being right; NaN if all are right or all wrong."""
    return auroc(confidence(probs), correct(probs, gold))


def ood_auroc(scores_id: ArrayLike, scores_ood: ArrayLike) -> float:
    """P(score_ood > score_id), ties half: for an uncertainty score, larger out of distribution."""
    a, b = np.asarray(scores_id, dtype=np.float64), np.asarray(scores_ood, dtype=np.float64)
    return auroc(np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a))


def tie_groups(conf: Floats) -> tuple[Ints, Ints]:
    """(group of each item, size of each group): items of equal confidence, most confident group first."""
    _, inverse, counts = np.unique(-conf, return_inverse=True, return_counts=True)
    return np.asarray(inverse, dtype=np.int64), np.asarray(counts, dtype=np.int64)


def risk_curve(conf: Floats, right: Bools) -> Floats:
    """Risk among the k most confident items, k = 1 … D, its expectation over random orders of ties."""
    group, size = tie_groups(conf)
    errors = np.bincount(group, ~right, minlength=len(size))
    expected = np.repeat(errors / size, size)
    return np.asarray(np.cumsum(expected) / np.arange(1, len(conf) + 1))


def aurc(probs: ArrayLike, gold: ArrayLike) -> float:
    """AURC = 1/D sum_k risk(k most confident) (Geifman & El-Yaniv 2017), averaged over all orders of ties."""
    return float(risk_curve(confidence(probs), correct(probs, gold)).mean())


def risk_at_coverage(probs: ArrayLike, gold: ArrayLike, coverage: float) -> float:
    """Error rate of the ceil(coverage * D) most confident items, averaged where the cut splits ties."""
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be in (0, 1], found {coverage}; 0.8 keeps the most confident 80 %")
    curve = risk_curve(confidence(probs), correct(probs, gold))
    return float(curve[max(1, int(np.ceil(coverage * len(curve) - 1e-9))) - 1])


def accuracy_at_coverage(probs: ArrayLike, gold: ArrayLike, coverage: float) -> float:
    """1 - `risk_at_coverage`."""
    return 1.0 - risk_at_coverage(probs, gold, coverage)


def _entropy(p: Floats, normalised: bool) -> Floats:
    h = -np.nansum(p * np.log(np.maximum(p, PROB_FLOOR)), axis=-1)
    return np.asarray(np.maximum(_per_log_choices(h, p) if normalised else h, 0.0))


def _per_log_choices(values: Floats, p: Floats) -> Floats:
    # A question with a single choice has log C = 0 and no uncertainty to normalise: it stays 0.
    choices = np.maximum((~np.isnan(p)).sum(axis=-1), 2)
    return np.asarray(values / np.log(choices))


def predictive_entropy(probs: ArrayLike, normalised: bool = False) -> Floats:
    """-sum_c p_dc log p_dc in nats, [D]; normalised: divided by log C_d, so in [0, 1]."""
    return _entropy(as_probs(probs), normalised)


def over_draws(values: Floats) -> Floats:
    """The mean over the draws that were taken, [...] from [S, ...]; NaN stands for the others."""
    return np.asarray(np.where(np.isnan(values), 0.0, values).sum(0) / np.maximum((~np.isnan(values)).sum(0), 1))


def _mean_probs(p: Floats) -> Floats:
    """mean_s p_s, [D, C] from [S, D, C]; NaN where a question has no such choice."""
    return np.where(np.isnan(p[0]), np.nan, over_draws(p))


def expected_entropy(draw_probs: ArrayLike, normalised: bool = False) -> Floats:
    """Mean over draws of each draw's entropy, [D] from [S, D, C] (aleatoric part; Depeweg et al. 2018)."""
    p = _draws(draw_probs)
    return over_draws(np.where(np.isnan(p).all(-1), np.nan, _entropy(p, normalised)))


def mutual_information(draw_probs: ArrayLike, normalised: bool = False) -> Floats:
    """H[mean_s p_s] - mean_s H[p_s], [D] from [S, D, C], rounding clipped at 0 (Houlsby et al. 2011)."""
    p = _draws(draw_probs)
    gain = np.maximum(_entropy(_mean_probs(p), False) - expected_entropy(p), 0.0)
    gain = np.where((p == p[:1]).all(axis=(0,), where=~np.isnan(p)).all(axis=-1), 0.0, gain)
    return _per_log_choices(gain, p[0]) if normalised else np.asarray(gain)


def _draws(draw_probs: ArrayLike) -> Floats:
    p = as_probs(draw_probs)
    if p.ndim != 3:
        raise InputError(f"draw_probs must be [S, D, C], found shape {p.shape}; add an axis for one draw")
    return p


def log_softmax(logp: ArrayLike) -> Floats:
    """logp_c - log sum_c exp logp_c over the present (non-NaN) choices, [..., C]; NaN stays NaN."""
    x = np.asarray(logp, dtype=np.float64)
    present = np.where(np.isnan(x), -np.inf, x)
    top = present.max(axis=-1, keepdims=True)
    if x.size == 0 or not np.isfinite(top).all():
        raise InputError("each question needs a finite log-likelihood, found none or +inf; check the model")
    return np.asarray(x - top - np.log(np.exp(present - top).sum(axis=-1, keepdims=True)))


def softmax_draws(logp: ArrayLike) -> Floats:
    """Softmax over the choices of each draw, [S, D, C]; all draws that were taken must have the same choices."""
    return np.exp(_log_softmax_draws(logp))


def _log_softmax_draws(logp: ArrayLike) -> Floats:
    x = np.asarray(logp, dtype=np.float64)
    present: Bools = np.asarray(~np.isnan(x))
    taken: Bools = np.asarray(present.any(axis=-1))
    if x.ndim != 3 or not taken[:1].all() or (present != present[:1])[taken].any():
        raise InputError(f"logp must be [S, D, C], same choices per draw, found shape {x.shape}; use pad()")
    out = np.full(x.shape, np.nan)
    out[taken] = log_softmax(x[taken])
    return out


def combine_draws(logp: ArrayLike, rule: str = "probs") -> Floats:
    """probs [D, C] from log-likelihoods of the choices, logp [S, D, C].

    probs:  mean_s softmax_c(logp_s), the Bayesian model average.
    logits: softmax_c(mean_s log_softmax_c(logp_s)); a constant per draw cancels, so raw logits give the same.
    given:  softmax_c(logp_0), the posterior has already combined its draws into this one row.
    """
    draws = _log_softmax_draws(logp)
    if rule == "probs":
        return _mean_probs(np.exp(draws))
    if rule == "logits":
        return np.asarray(np.exp(log_softmax(_mean_probs(draws))))
    if rule == "given" and len(draws) == 1:
        return np.asarray(np.exp(draws[0]))
    found = f"rule {rule!r} with {len(draws)} draws"
    raise InputError(f"cannot combine, found {found}; use 'probs', 'logits', or 'given' with one row")


def jsonable(values: ArrayLike) -> list[Any]:
    """Python list with None for NaN, since JSON has no NaN."""
    return [None if v != v else v for v in np.asarray(values).tolist()]
