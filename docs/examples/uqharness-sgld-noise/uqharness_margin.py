"""Two metrics as a plugin: how far the first choice is ahead of the second, and how much draws disagree about it."""

from __future__ import annotations

import numpy as np

from uqharness.metrics.metric import Answers, Floats, Metric


def lead(p: Floats) -> Floats:
    """The largest probability less the second largest, […, D] from […, D, C]."""
    ordered = np.sort(p, axis=-1)
    return np.asarray(ordered[..., -1] - ordered[..., -2])


def spread(answers: Answers) -> Floats:
    """Standard deviation over draws of each draw's lead, […, D]; `draws.mean` is over the draws of each entry."""
    assert answers.draws is not None
    each = lead(answers.draws.p)  # [S, D]
    return np.sqrt(np.maximum(answers.draws.mean(each**2) - answers.draws.mean(each) ** 2, 0.0))


METRICS = (
    Metric(
        "margin",
        "Margin",
        "How far the most probable choice is ahead of the second.",
        items=lambda answers: lead(answers.p),
        scale=100,
    ),
    Metric(
        "margin_spread",
        "Spread of the margin",
        "Standard deviation over draws of the margin.",
        items=spread,
        needs_draws=True,
        scale=100,
    ),
)
