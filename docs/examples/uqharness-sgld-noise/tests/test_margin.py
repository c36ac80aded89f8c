"""One N, all N at once and the registry, against a loop over questions."""

import numpy as np
from uqharness_margin import METRICS

from uqharness.metrics.averaging import softmax_draws
from uqharness.metrics.registry import METRICS as KNOWN
from uqharness.metrics.registry import every_n

LOGP = np.random.default_rng(0).normal(0, 2, (5, 20, 4))  # the mean's row and four draws
GOLD = np.zeros(20, dtype=int)


def test_margins_of_every_number_of_draws() -> None:
    margin, spread = METRICS
    rows = softmax_draws(LOGP)
    counts, values = every_n(LOGP, GOLD, names=["margin", "margin_spread"])
    for n, value, deviation in zip(counts, values["margin"], values["margin_spread"], strict=True):
        used = rows[1 : n + 1] if n else rows[:1]
        p = used.mean(0)
        expected = [sorted(q)[-1] - sorted(q)[-2] for q in p]
        assert np.isclose(value, np.mean(expected)) and np.isclose(margin(p, GOLD), value)
        leads = [[sorted(q)[-1] - sorted(q)[-2] for q in draw] for draw in used]
        assert np.isclose(deviation, np.std(leads, axis=0).mean()) and np.isclose(
            spread(p, GOLD, draws=used), deviation
        )


def test_they_are_registered() -> None:
    assert KNOWN["margin"] is METRICS[0] and KNOWN["margin_spread"] is METRICS[1]
