"""The numbers behind the figures against slow twins."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from made_results import record

from uqharness.leaderboard import costs, curve_rows, curves
from uqharness.metrics.calibration import bin_probs, ece, ece_debiased, ece_floor, reliability_bins
from uqharness.metrics.points import predictive_entropy


def test_answers_are_averaged_by_the_records_own_rule() -> None:
    for rule, draws in product(("probs", "logits"), (0, 2, None)):
        answered = record(rule)
        parsed = curves.answers(answered, "BLoB", draws)
        rows = answered.logp[:1] if draws == 0 else answered.logp[1 : (draws or 4) + 1]
        for d in range(answered.items):
            own = rows[:, d, : answered.choices[d]].astype(float)
            soft = np.exp(own) / np.exp(own).sum(1, keepdims=True)
            expected = soft.mean(0) if rule == "probs" else np.exp(np.log(soft).mean(0))
            np.testing.assert_allclose(parsed.probs[d, : answered.choices[d]], expected / expected.sum(), atol=1e-9)
        assert (parsed.draws is None) == (draws == 0)


def test_the_band_is_that_of_a_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(3), 300)
    gold = rng.integers(0, 3, 300)
    bins = reliability_bins(probs, gold, 5)
    low, high = curves.band(bins, 4000)
    shares = []
    for _ in range(4000):
        pick = rng.integers(0, 300, 300)
        shares.append([np.nan if a is None else a for a in reliability_bins(probs[pick], gold[pick], 5)["accuracy"]])
    some = np.array(bins["count"]) > 30
    expected = np.nanquantile(np.array(shares, dtype=float)[:, some], (0.025, 0.975), axis=0)
    np.testing.assert_allclose(np.stack([low, high])[:, some], expected, atol=0.02)
    assert np.isnan(low[np.array(bins["count"]) == 0]).all()


def test_decomposition_thins_and_adds_up() -> None:
    parsed = curves.answers(record(items=90), "BLoB")
    parts = curves.decomposition(parsed, 30)
    assert parts is not None and {len(v) for v in parts.values()} == {30}
    whole = curves.decomposition(parsed)
    assert whole is not None
    np.testing.assert_allclose(
        whole["aleatoric"] + whole["epistemic"], predictive_entropy(parsed.probs, normalised=True), atol=1e-9
    )


@pytest.mark.parametrize("metric", ["nll", "acc"])
def test_the_front_is_that_of_the_two_axes_of_the_figure(metric: str) -> None:
    rng, title = np.random.default_rng(0), costs.title("train_seconds")
    points = [{metric: float(a), title: float(b)} for a, b in rng.integers(0, 12, (40, 2))]
    sign = -1 if metric == "acc" else 1
    pairs = [(sign * p[metric], p[title]) for p in points]
    expected = [not any(x <= a and y <= b and (x < a or y < b) for x, y in pairs) for a, b in pairs]
    assert costs.pareto_front(points, "train_seconds", metric) == expected and 0 < sum(expected) < 40
    unknown = [{metric: 1.0, title: float("nan")}, {metric: 2.0, title: 2.0}]
    assert costs.pareto_front(unknown, "train_seconds", metric) == [False, True]
    assert costs.pareto_front([], "train_seconds", metric) == []


def test_the_table_of_calibration_has_the_values_of_the_metrics() -> None:
    rng = np.random.default_rng(34)  # whose sum of debiased gaps is negative
    probs = rng.dirichlet(np.full(4, 0.7), 200)
    calibrated = np.array([rng.choice(4, p=p) for p in probs])
    for gold, bins in product((calibrated, rng.integers(0, 4, 200)), (10, 15)):
        header, [row] = curve_rows.calibration_rows([curves.Answers("BLoB", probs, gold)], bins, False)
        by_column = dict(zip(header, row, strict=True))
        assert by_column["Debiased, %"] == f"{100 * ece_debiased(bin_probs(probs, gold, bins)):.2f}"
        assert by_column["Floor, %"] == f"{100 * ece_floor(bin_probs(probs, gold, bins)):.2f}"
        assert by_column["ECE, %"] == f"{100 * ece(bin_probs(probs, gold, bins)):.2f}"
        header, [row] = curve_rows.calibration_rows([curves.Answers("BLoB", probs, gold)], bins, True)
        by_column = dict(zip(header, row, strict=True))
        assert by_column["ECE, %"] == f"{100 * ece(bin_probs(probs, gold, bins, True)):.2f}"
        assert by_column["Debiased, %"] == by_column["Floor, %"] == "–"  # they are of bins of equal width
