"""Ranks: the same variance and p-values by other routes (scipy), and size and power by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_results import result
from scipy import stats

from uqharness.errors import InputError
from uqharness.leaderboard import ranking, table
from uqharness.leaderboard.aggregate import build
from uqharness.metrics.registry import brier_items, combine_draws, correct, ece_debiased, nll_items


def world(rng: np.random.Generator, items: int = 200, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits [D, C] of the truth, and labels drawn from it."""
    logits = rng.normal(0, 1.5, (items, width))
    true = softmax(logits)
    return logits, (rng.random(items)[:, None] > true.cumsum(axis=1)).sum(axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits)
    return e / e.sum(axis=-1, keepdims=True)


def runs(
    rng: np.random.Generator, logits: np.ndarray, seeds: int, spread: float = 0.0, sharper: float = 1.0
) -> list[np.ndarray]:
    """One method: every seed sees the truth through its own noise, and is too sure or too unsure by its own factor."""
    return [
        softmax((logits + rng.normal(0, 0.7, logits.shape)) * sharper * np.exp(spread * rng.normal()))
        for _ in range(seeds)
    ]


@pytest.fixture
def column() -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    rng = np.random.default_rng(4)
    logits, gold = world(rng)
    return {"a": runs(rng, logits, 3, 0.2), "b": runs(rng, logits, 3, 0.2, 1.5), "c": runs(rng, logits, 1)}, gold


def test_single_runs_agree_with_the_paired_t_test_and_the_permutation_test_of_scipy() -> None:
    rng = np.random.default_rng(1)
    logits, gold = world(rng)
    a, b = softmax(logits), softmax(1.4 * logits + rng.normal(0, 0.4, logits.shape))
    for name, items in (("nll", nll_items), ("brier", brier_items)):
        found = ranking.compare(name, {"a": [a], "b": [b]}, gold)
        expected = stats.ttest_rel(items(a, gold), items(b, gold))
        flipped = stats.permutation_test(
            (items(a, gold), items(b, gold)), lambda x, y: np.mean(x - y), permutation_type="samples", rng=rng
        )
        assert 0.001 < expected.pvalue < 0.9
        assert found.p[0, 1] == pytest.approx(expected.pvalue, rel=0.25)  # 1,000 resamples: the variance to 5 %
        assert found.p[0, 1] == pytest.approx(flipped.pvalue, rel=0.35, abs=0.005)
        assert found.difference[0, 1] == pytest.approx((items(a, gold) - items(b, gold)).mean())
        low, high = expected.confidence_interval()
        assert found.half[0, 1] == pytest.approx((high - low) / 2, rel=0.1)


def test_mcnemar_is_the_binomial_test_on_what_one_run_alone_gets_right() -> None:
    rng = np.random.default_rng(2)
    logits, gold = world(rng, 60)
    a, b = (softmax(logits + rng.normal(0, s, logits.shape)) for s in (0.3, 1.5))
    x, y = correct(a, gold), correct(b, gold)
    alone = int((x & ~y).sum()), int((~x & y).sum())
    expected = stats.binomtest(alone[0], sum(alone), 0.5).pvalue
    assert sum(alone) > 3 and ranking.mcnemar(x, y) == pytest.approx(expected)
    assert ranking.compare("acc", {"a": [a], "b": [b]}, gold).p[0, 1] == pytest.approx(expected)
    assert ranking.mcnemar(x, x) == 1.0


def test_with_seeds_the_variance_is_that_of_questions_and_that_between_seeds(
    column: tuple[dict[str, list[np.ndarray]], np.ndarray],
) -> None:
    methods, gold = column
    found = ranking.compare("nll", methods, gold)
    scores = {name: np.stack([nll_items(p, gold) for p in probs]) for name, probs in methods.items()}  # [S, D]
    for i, one in enumerate(methods):
        for j, other in enumerate(methods):
            if i == j:
                continue
            paired = scores[one].mean(axis=0) - scores[other].mean(axis=0)
            parts = [(paired.var(ddof=1) / len(gold), len(gold) - 1)]
            parts += [
                (s.mean(axis=1).var(ddof=1) / len(s), len(s) - 1) for s in (scores[one], scores[other]) if len(s) > 1
            ]
            variance = sum(v for v, _ in parts)
            df = variance**2 / sum(v**2 / n for v, n in parts)
            assert found.p[i, j] == pytest.approx(2 * stats.t.sf(abs(paired.mean()) / variance**0.5, df), rel=0.3)


def test_ece_is_compared_by_its_debiased_value(column: tuple[dict[str, list[np.ndarray]], np.ndarray]) -> None:
    methods, gold = column
    found = ranking.compare("ece", methods, gold)
    expected = [np.mean([ece_debiased(p, gold, clip=False) for p in probs]) for probs in methods.values()]
    assert found.metric == "ece_debiased" and found.values == pytest.approx(np.array(expected))


def test_holm_by_hand() -> None:
    p = np.array([0.04, 0.01, 0.03, 0.5])
    # sorted .01 .03 .04 .5 -> x4 .04, x3 .09, x2 .08 (not below .09), x1 .5
    assert ranking.holm(p) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert ranking.holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert len(ranking.holm(np.array([]))) == 0


def test_rank_is_one_and_the_number_of_better_methods_so_ties_share_it() -> None:
    rng = np.random.default_rng(3)
    logits, gold = world(rng, 600)
    good = {name: runs(rng, logits, 3) for name in ("a", "b")}
    bad = {name: runs(rng, logits, 3, sharper=4) for name in ("c", "d")}
    assert ranking.compare("nll", {**good, **bad}, gold).ranks() == {"a": 1, "b": 1, "c": 3, "d": 3}
    noisy = {"e": [softmax(rng.normal(0, 1, logits.shape)) for _ in range(3)]}
    assert ranking.compare("acc", {**good, **noisy}, gold).ranks() == {"a": 1, "b": 1, "e": 3}
    assert ranking.compare("nll", {"a": good["a"]}, gold).ranks() == {"a": 1}


def test_the_same_twice_is_no_difference_and_the_result_does_not_depend_on_order(
    column: tuple[dict[str, list[np.ndarray]], np.ndarray],
) -> None:
    methods, gold = column
    same = ranking.compare("nll", {"a": methods["a"], "b": methods["a"]}, gold)
    assert abs(same.difference[0, 1]) < 1e-12 and same.p[0, 1] == 1
    forth = ranking.compare("brier", methods, gold)
    back = ranking.compare("brier", dict(reversed(methods.items())), gold)
    assert forth.p == pytest.approx(back.p[::-1, ::-1], rel=1e-4)
    assert forth.better().T.tolist() == back.better()[::-1, ::-1].T.tolist()


def rejected(metric: str, seeds: int, spread: float, sharper: float = 1.0, methods: int = 2, times: int = 150) -> float:
    """Share of simulated columns in which some pair differs; under the null all methods are drawn alike."""
    rng, count = np.random.default_rng(17), 0
    for _ in range(times):
        logits, gold = world(rng)
        made = {str(k): runs(rng, logits, seeds, spread, sharper if k else 1.0) for k in range(methods)}
        count += bool(ranking.compare(metric, made, gold).better().any())
    return count / times


# 150 columns at a true 5 %: more than 10 % would be seen once in 200 times.
@pytest.mark.parametrize("metric", ["acc", "nll", "brier", "ece"])
@pytest.mark.parametrize(("seeds", "spread", "methods"), [(1, 0.0, 2), (3, 0.0, 4), (3, 0.3, 4)])
def test_columns_without_a_difference_seldom_show_one(metric: str, seeds: int, spread: float, methods: int) -> None:
    assert rejected(metric, seeds, spread, methods=methods) <= 0.10


@pytest.mark.parametrize(("metric", "sharper"), [("nll", 2.0), ("brier", 3.0), ("ece", 2.0)])
def test_a_real_difference_is_found(metric: str, sharper: float) -> None:
    assert rejected(metric, 3, 0.05, sharper, times=40) >= 0.8


def test_what_cannot_be_compared_is_refused(column: tuple[dict[str, list[np.ndarray]], np.ndarray]) -> None:
    methods, gold = column
    with pytest.raises(InputError, match="no test for auroc"):
        ranking.compare("auroc", methods, gold)
    shorter: dict[str, Sequence[np.ndarray]] = {"a": [methods["a"][0][:-1]], "b": methods["b"]}
    with pytest.raises(InputError, match="199, 200"):
        ranking.compare("nll", shorter, gold)


def test_in_a_table_complete_rows_of_one_recipe_are_ranked_and_the_others_have_their_coverage(
    tmp_path: Path,
) -> None:
    for seed in range(2):
        for k, method in enumerate(("MLE", "BLoB", "ENS")):
            result(tmp_path, method, seed, task="arc_easy_uq", numbers=10 * k + seed)
            if method != "ENS":
                result(tmp_path, method, seed, task="boolq_uq", numbers=20 * k + seed + 5)
    board = build([tmp_path])
    shown = table.build(board.sources(), ["nll", "auroc"])[0]

    def answers(run_id: str, draws: int) -> tuple[np.ndarray, np.ndarray]:
        record = board.record(run_id)
        return combine_draws(record.rows(draws), record.combine), record.gold

    found = ranking.of_table(shown, "nll", answers)
    rows = {name: i for i, (name, _) in enumerate(shown.rows)}
    assert set(found) == {0, 1} and all(set(ranks) == {rows["MLE"], rows["BLoB"]} for ranks in found.values())
    held = {str(i): [answers(run, 4)[0] for run in shown.cells["nll", i, 0].runs] for i in (rows["MLE"], rows["BLoB"])}
    gold = board.record(shown.cells["nll", 0, 0].runs[0]).gold
    assert found[0] == {int(k): v for k, v in ranking.compare("nll", held, gold).ranks().items()}
    assert ranking.coverage(shown, "nll", rows["ENS"]) == (1, 2) and ranking.coverage(shown, "nll", 0) == (2, 2)
    assert ranking.of_table(shown, "auroc", answers) == {}
    assert ranking.of_table(table.build(board.sources(), ["nll"], across_recipes=True)[0], "nll", answers) == {}
