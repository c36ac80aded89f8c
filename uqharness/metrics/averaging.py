"""Turn log-likelihoods of choices under each draw into `Answers`: softmax over a question's choices, then a mean.

One set of draws, the first 1, 2 … N draws, and N draws in other orders differ only in the mean that is passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from uqharness.errors import InputError
from uqharness.metrics.metric import Answers, Bools, Draws, Floats, mean_of_taken

Mean = Callable[[Floats], Floats]  # [S, D, …] -> […, D, …]


def log_softmax(logp: ArrayLike) -> Floats:
    """logp_c - log sum_c exp logp_c over the present (non-NaN) choices, [..., C]; NaN stays NaN."""
    x = np.asarray(logp, dtype=np.float64)
    present = np.where(np.isnan(x), -np.inf, x)
    top = present.max(axis=-1, keepdims=True)
    if x.size == 0 or not np.isfinite(top).all():
        raise InputError("each question needs a finite log-likelihood: found none or +inf; check the model")
    return np.asarray(x - top - np.log(np.exp(present - top).sum(axis=-1, keepdims=True)))


def log_probabilities(logp: ArrayLike) -> tuple[Floats, Bools]:
    """(log-softmax of each draw [S, D, C], -inf where a question has no such choice, NaN in a draw not taken; mask).

    Choices come first in memory: sums over a few of them are quick then, whatever the order of the axes says.
    """
    given = np.asarray(logp, dtype=np.float64)
    if given.ndim != 3 or given.size == 0:
        raise InputError(f"logp must be [S, D, C]: found shape {given.shape}; add a leading axis for one draw")
    x = np.moveaxis(given, -1, 0).copy()  # [C, S, D]
    absent = np.isnan(x)
    not_taken = absent.all(axis=0)  # [S, D]
    if not_taken[0].any() or ((absent != absent[:, :1]) & ~not_taken).any():
        raise InputError("logp must have the same choices in every draw, and every question the first draw; use pad()")
    np.copyto(x, -np.inf, where=absent)
    top = x.max(axis=0)
    if not (np.isfinite(top) | not_taken).all():
        raise InputError("each question needs a finite log-likelihood: found none or +inf; check the model")
    x -= np.where(not_taken, 0.0, top)
    with np.errstate(divide="ignore", invalid="ignore"):  # draws that were not taken give NaN, as they should
        x -= np.log(np.exp(x).sum(axis=0))
    return np.moveaxis(x, 0, -1), ~absent[:, 0].T


def softmax_draws(logp: ArrayLike) -> Floats:
    """Softmax each draw over its choices, [S, D, C]; all draws that were taken must have the same choices."""
    log_p, mask = log_probabilities(logp)
    return np.where(mask, np.exp(log_p), np.nan)


def average(logp: ArrayLike, gold: ArrayLike, rule: str = "probs", mean: Mean = mean_of_taken) -> Answers:
    """Return answers from the log-likelihoods of the choices, logp [S, D, C], NaN where there is none.

    probs:  mean_s softmax_c(logp_s), the Bayesian model average.
    logits: softmax_c(mean_s log_softmax_c(logp_s)); a constant per draw cancels, so raw logits give the same.
    given:  softmax_c(logp_0), the predictive has already combined its draws into this one row.

    `mean` defines which draws each entry of the answers' leading axes averages; without it all of them.
    """
    log_p, mask = log_probabilities(logp)
    draws = Draws(np.exp(log_p), mean)
    if rule == "logits":
        log_mean = mean(log_p)
        log_mean -= log_mean.max(axis=-1, keepdims=True)
        mixed = np.exp(log_mean - np.log(np.exp(log_mean).sum(axis=-1, keepdims=True)))
    elif rule == "probs" or (rule == "given" and (mean is not mean_of_taken or len(log_p) == 1)):
        mixed = draws.average
    else:
        given = f"rule {rule!r} with {len(log_p)} draws"
        raise InputError(f"cannot combine: found {given}; use 'probs', 'logits', or 'given' with one row")
    return Answers(mixed, np.asarray(gold, dtype=np.int64), mask, None if rule == "given" else draws)


def combine_draws(logp: ArrayLike, rule: str = "probs") -> Floats:
    """Return the averaged probabilities [D, C] of `average`, NaN where a question has no such choice."""
    answers = average(logp, np.zeros(np.shape(logp)[1:2]), rule)
    return np.where(answers.mask, answers.p, np.nan)


def first_draws(has_mean: bool) -> Mean:
    """Return means over the first 1 … S draws, [S, D, …]; the posterior mean's own row may stand before them."""
    return partial(_first, start=int(has_mean))


def first_in_orders(orders: Sequence[np.ndarray]) -> Mean:
    """Return means over the first 1 … S draws in each of these orders, [O, S, D, …]."""
    return lambda values: np.stack([_first(values[order], 0) for order in orders])


def _first(values: Floats, start: int) -> Floats:
    out = values.copy(order="K")
    taken = ~np.isnan(values if values.ndim == 2 else values[..., 0])  # [S, D]
    if not taken.all():
        out[~taken] = 0.0
    for n in range(start + 1, len(values)):
        out[n] += out[n - 1]
    out[start:] /= np.cumsum(taken[start:], axis=0).reshape(-1, *values.shape[1:2], *[1] * (values.ndim - 2))
    return out
