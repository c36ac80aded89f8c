"""Random questions for the tests of metrics: probabilities over ragged choices, and answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqharness.metrics import averaging, metric, points
from uqharness.metrics.registry import METRICS

Array = NDArray[np.float64]
Answers = NDArray[np.int64]


def questions(n: int, seed: int, choices: tuple[int, ...] = (2, 3, 4, 5)) -> tuple[Array, Answers]:
    """Ragged random probabilities, rounded to two digits so that confidences tie, and answers."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in rng.choice(choices, n):
        cuts = np.sort(rng.integers(0, 21, size - 1))
        rows.append(np.diff([0, *cuts, 20]) / 20)
    return points.pad(rows), np.array([rng.integers(0, len(row)) for row in rows])


def value(name: str, probs: ArrayLike, gold: ArrayLike, draws: ArrayLike | None = None) -> float:
    """A metric of one set of answers."""
    return float(METRICS[name](probs, gold, draws=draws))


def stderr(name: str, probs: ArrayLike, gold: ArrayLike, draws: ArrayLike | None = None) -> float:
    return METRICS[name].standard_error(metric.Answers.of(probs, gold, draws=draws))


def interval(
    name: str, probs: ArrayLike, gold: ArrayLike, level: float = 0.95, draws: ArrayLike | None = None
) -> tuple[float, float]:
    return METRICS[name].confidence_interval(metric.Answers.of(probs, gold, draws=draws), level)


def calibrated(n: int, seed: int) -> tuple[Array, Answers]:
    """Uniform random 4-way distributions and answers drawn from them."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(4), n)
    return probs, np.minimum((probs.cumsum(1) < rng.random((n, 1))).sum(1), 3)


def overconfident(n: int, factor: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """(model's, true) 4-way probabilities: the model multiplies the true logits by `factor`."""
    z = rng.normal(0.0, 2.0, (n, 4))
    return averaging.combine_draws(factor * z[None], "given"), averaging.combine_draws(z[None], "given")


def draw_answers(true: Array, rng: np.random.Generator) -> Answers:
    """gold ~ true, [D]."""
    return np.minimum((true.cumsum(1) < rng.random((len(true), 1))).sum(1), true.shape[1] - 1)
