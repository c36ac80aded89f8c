"""All numbers of draws at once against the metrics of one number of draws at a time."""

from __future__ import annotations

import numpy as np
import pytest

from uqharness.errors import InputError
from uqharness.metrics.registry import METRICS, compute_all
from uqharness.results.reading import every_n
from uqharness.results.record import Record


def made(seed: int, draws: int, combine: str = "probs", has_mean: bool = True, sharp: float = 2.0) -> Record:
    """60 questions of 2 to 5 choices; with ties, sure answers, and draws that agree on some of the questions."""
    rng = np.random.default_rng(seed)
    choices = rng.integers(2, 6, 60)
    logp = rng.normal(-3, sharp, (draws + 1, 60, 5)).astype(np.float32)
    logp[:, :5] = -1.0  # nothing but ties
    logp[:, 5:15] = logp[:1, 5:15]  # all draws agree
    logp[:, 15:20, 0] = 90.0  # sure to the last digit
    logp[:, 20:25, 1] = -np.inf
    logp = np.where(np.arange(5) < choices[:, None], logp, np.float32(np.nan))
    if not has_mean:
        logp[0] = np.nan
    return Record(logp, rng.integers(0, choices), choices, np.arange(60), ["0" * 16] * 60, combine, has_mean)


@pytest.mark.parametrize(
    ("draws", "combine", "has_mean"),
    [(4, "probs", True), (4, "probs", False), (3, "logits", True), (1, "given", True), (0, "probs", True)],
)
@pytest.mark.parametrize("sharp", [0.5, 6.0])
def test_it_equals_compute_all(draws: int, combine: str, has_mean: bool, sharp: float) -> None:
    record = made(3, draws, combine, has_mean, sharp)
    counts, columns = every_n(record)
    assert counts == list(range(0 if has_mean else 1, draws + 1)) and list(columns) == list(METRICS)
    for k, n in enumerate(counts):
        slow = compute_all(record.rows(n), record.gold, combine)
        for name, values in columns.items():
            assert values[k] == pytest.approx(slow[name], abs=1e-12, nan_ok=True), (name, n)


def test_all_right_has_no_auroc() -> None:
    record = made(1, 2)
    sure = np.where(np.arange(5) == record.gold[:, None], 500.0, record.logp)
    _, columns = every_n(Record(**{**vars(record), "logp": np.where(np.isnan(record.logp), np.nan, sure)}))
    assert np.isnan(columns["auroc"]).all() and (columns["acc"] == 1).all()


def test_several_rows_that_are_called_combined_are_refused() -> None:
    with pytest.raises(InputError, match="2 draws under the rule 'given'"):
        every_n(made(1, 2, "given"))
