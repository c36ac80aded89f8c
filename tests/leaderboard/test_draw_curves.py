"""Metrics against N from one run, all at once, against one metric, one order and one N at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_results import record, result

from uqharness.leaderboard import curve_rows, curves, publish
from uqharness.leaderboard.board import build
from uqharness.leaderboard.draw_curves import DrawCurve, draw_curves, known_curves
from uqharness.metrics.averaging import average
from uqharness.metrics.registry import METRICS
from uqharness.results.record import Record


def slow(full: Record, metric: str, order: np.ndarray) -> list[float]:
    """The metric of the first 1 … S draws in this order."""
    mixed = replace(full, logp=np.concatenate([full.logp[:1], full.logp[1:][order]]))
    answers = (average(mixed.rows(n), full.gold, full.combine) for n in range(1, full.draws + 1))
    return [float(METRICS[metric].value(each)) for each in answers]


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_every_curve_is_its_metric_of_the_first_draws_and_its_spread(rule: str) -> None:
    answered = record(rule, items=90)
    drawn = draw_curves(answered, "BLoB", orders=12, seed=3)
    rng = np.random.Generator(np.random.Philox(3))
    orders = [rng.permutation(4) for _ in range(12)]
    assert set(drawn) == set(METRICS)
    for metric, curve in drawn.items():
        assert (curve.row, curve.metric, curve.counts) == ("BLoB", metric, [1, 2, 3, 4])
        np.testing.assert_allclose(curve.value, slow(answered, metric, np.arange(4)), atol=1e-6)
        ends = np.quantile([slow(answered, metric, order) for order in orders], (0.05, 0.95), axis=0)
        np.testing.assert_allclose(np.stack([curve.low, curve.high]), ends, atol=1e-6)
        mean = (
            None
            if METRICS[metric].needs_draws
            else METRICS[metric](curves.answers(answered, "", 0).probs, answered.gold)
        )
        assert curve.mean == (None if mean is None else pytest.approx(mean, abs=1e-6))


def test_asked_for_some_they_are_the_same() -> None:
    answered = record(items=90)
    wanted = ("ece_debiased", "mutual_information", "nll")
    some, every = draw_curves(answered, "BLoB", wanted), draw_curves(answered, "BLoB")
    assert tuple(some) == wanted
    for name, curve in some.items():
        for part in ("value", "low", "high"):
            np.testing.assert_array_equal(getattr(curve, part), getattr(every[name], part))
        assert curve.mean == every[name].mean


def test_a_choice_of_all_draws_has_no_spread_and_a_choice_of_one_has() -> None:
    curve = draw_curves(record(), "BLoB")["nll"]
    assert curve.low[3] == pytest.approx(curve.value[3]) == pytest.approx(curve.high[3])
    assert curve.high[0] > curve.low[0]


def test_averaged_logits_keep_probabilities_that_are_too_small_for_a_number() -> None:
    answered = record("logits")
    answered.logp[1, 1] = [-900.0, 0.0, 0.0]  # alone it is exp(-900) = 0 in float64; averaged with others it is not
    answered.gold[1] = 0
    curve = draw_curves(answered, "BLoB", orders=2)["nll"]
    np.testing.assert_allclose(curve.value, slow(answered, "nll", np.arange(4)))


def test_nothing_to_vary_gives_no_curve() -> None:
    assert draw_curves(record(draws=1), "MLE") == draw_curves(record("given"), "LAP") == {}
    auto = record()
    auto.logp[4, 0] = np.nan  # the first question needed no fourth draw
    assert draw_curves(auto, "BLoB") == {}
    without = draw_curves(record(has_mean=False), "ENS")["acc"]
    assert isinstance(without, DrawCurve) and without.mean is None


def test_values_that_were_published_without_single_draws_have_no_spread(tmp_path: Path) -> None:
    result(tmp_path, "BLoB")
    publish.create([tmp_path], tmp_path / "published.parquet", budget=0)
    board = build([tmp_path / "published.parquet"])
    (source,) = board.runs
    assert draw_curves(board.record(source.run_id), "BLoB") == {}
    curve = known_curves(source, "BLoB")["nll"]
    assert curve.value[-1] == source.number("nll", 4) and curve.mean == source.number("nll", 0)
    _, rows = curve_rows.draw_rows([curve])
    assert len(rows) == 5 and {end for row in rows for end in row[4:]} == {"–"}
