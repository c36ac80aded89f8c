"""p(choice | question): softmax over the question's own choices, per draw, combined by the posterior's rule.

With the per-item metrics, and for all items at once: a metric costs about as much for one as for a thousand.
This module knows nothing of lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uqharness.errors import InputError, RunError
from uqharness.metrics.averaging import average
from uqharness.metrics.registry import METRICS
from uqharness.results.record import BMALogProb, item_rows

PER_ITEM = tuple(name for name, metric in METRICS.items() if metric.items)


class Answer(NamedTuple):
    """One item: its rows (the mean's first, or None), their rule, p over its choices, and its metrics."""

    rows: list[list[float] | None]
    rule: str
    probs: list[float]
    values: dict[str, float]


def score(scores: Sequence[Sequence[float]], gold: Sequence[int], names: Sequence[str]) -> list[Answer]:
    """Return answers to items from the log-likelihoods of their choices (`BMALogProb`, or floats: one draw)."""
    parsed = [item_rows(choices) for choices in scores]
    kinds = {(len(rows), rule) for rows, rule in parsed}
    if len(kinds) != 1:
        raise RunError(
            f"items were answered with different draws or rules {sorted(kinds)}: a cache of "
            "another run? Give another --use_cache, or none"
        )
    used = [rows[1:] or rows[:1] for rows, _ in parsed]
    logp = np.full((len(used[0]), len(used), max(map(len, scores))), np.nan)  # [S, D, C]
    for d, rows in enumerate(used):
        block = np.array([row for row in rows if row is not None])
        if not (block < np.inf).all() or np.isneginf(block).all(-1).any():
            raise RunError(
                f"{names[d]} was answered with the log-likelihoods {rows}; check the adapter and the base for NaN"
            )
        logp[: len(block), d, : block.shape[1]] = block
    rule = parsed[0][1]
    answers = average(logp, gold, rule)
    columns: dict[str, list[float]] = {}
    for name in PER_ITEM:
        metric = METRICS[name]
        if not (metric.needs_draws and rule == "given"):  # no draws are left to disagree
            columns[name] = metric.per_item(answers).tolist()
    return [
        Answer(rows, rule, answers.p[d, : len(scores[d])].tolist(), {key: columns[key][d] for key in columns})
        for d, (rows, _) in enumerate(parsed)
    ]


def per_byte(scores: Sequence[float], answers: Sequence[str]) -> list[float]:
    """Return log p(answer) / bytes for every draw: lm-eval's `acc_bytes`, as a distribution over the choices."""
    normalised: list[float] = []
    for score, answer in zip(scores, answers, strict=True):
        size = len(answer.encode())
        if not isinstance(score, BMALogProb):
            normalised.append(score / size)
            continue
        if score.combine == "given":
            raise InputError(
                "normalise=bytes divides the log-probabilities of draws, and this posterior answers by "
                "probabilities of the choices: remove normalise"
            )
        *draws, mean = (None if value is None else value / size for value in (*score.draws, score.mean))
        normalised.append(BMALogProb(score / size, draws, mean, score.combine))
    return normalised
