"""Ranks that admit ties: 1 + the number of methods that are significantly better in the same column.

Two methods differ by m_a - m_b, means over questions and training seeds, tested by

    t = (m_a - m_b) / sqrt(V_items + V_a + V_b)

V_items: variance of the difference when questions are resampled. A question is one cluster: every method and seed
         gets the same weights, so that what is hard for all of them cancels (a paired bootstrap).
V_a, V_b: s^2 / S of a method's S seeds, which are nested in it. What questions and seeds have in common is counted in
         both (two-way clustering would take it off once; Cameron, Gelbach & Miller 2011): with three seeds that
         estimate is so noisy that 11 % instead of 5 % of columns without a difference showed one.
Degrees of freedom: Satterthwaite 1946. p-values: Holm 1979 within a column. Two single runs are compared in
accuracy by McNemar's exact test. A method with one seed is tested as that one run: its V is not known.
ECE is compared as its debiased value only: plain ECE rewards luck in sampling (see `calibration.ece_debiased`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

from uqharness.errors import InputError
from uqharness.leaderboard.table import ANY_RECIPE, Table
from uqharness.metrics.registry import METRICS, Floats, bin_probs, correct, debias, gap_noise

# What a column of this metric is ranked by; the others have no test and no rank.
TESTED = {"acc": "acc", "nll": "nll", "brier": "brier", "ece": "ece_debiased", "ece_debiased": "ece_debiased"}
REPLICATES = 1000
ALPHA = 0.05


@dataclass(frozen=True)
class Tests:
    """Every pair of a column, in the order of `names`; `difference[a, b]` is the value of a less that of b."""

    metric: str
    names: list[str]
    values: Floats  # [M], means over seeds
    difference: Floats  # [M, M]
    half: Floats  # [M, M], half the width of the difference's 95 % interval
    p: Floats  # [M, M]
    adjusted: Floats  # [M, M], Holm over the pairs

    def better(self) -> np.ndarray:
        """[M, M], whether a is significantly better than b."""
        sign = 1.0 if METRICS[self.metric].higher_is_better else -1.0
        return np.asarray((self.adjusted <= ALPHA) & (sign * self.difference > 0))

    def ranks(self) -> dict[str, int]:
        """1 + the number of methods that are significantly better."""
        return {name: 1 + int(n) for name, n in zip(self.names, self.better().sum(axis=0), strict=True)}


Answers = Callable[[str, int], tuple[Floats, np.ndarray]]  # run id, draws -> probs [D, C], gold [D]


def of_table(table: Table, metric: str, answers: Answers) -> dict[int, dict[int, int]]:
    """Ranks by column and row, of the rows that have every cell of the table and no cell that may not be ranked."""
    columns = range(len(table.columns))
    if metric not in TESTED or any(c.recipe_hash in (None, ANY_RECIPE) for c in table.columns):
        return {}
    cells = {i: [table.cells.get((metric, i, j)) for j in columns] for i in range(len(table.rows))}
    full = [i for i, row in cells.items() if all(c and not (c.leaked or c.reference or c.suspect) for c in row)]
    found: dict[int, dict[int, int]] = {}
    for j in columns if len(full) > 1 else ():
        told = {i: [answers(run, table.rows[i][1]) for run in table.cells[metric, i, j].runs] for i in full}
        gold = told[full[0]][0][1]
        if any(not np.array_equal(own, gold) for runs in told.values() for _, own in runs):
            continue  # other labels for the same questions: nothing to compare
        tests = compare(metric, {str(i): [probs for probs, _ in runs] for i, runs in told.items()}, gold)
        found[j] = {int(name): rank for name, rank in tests.ranks().items()}
    return found


def coverage(table: Table, metric: str, row: int) -> tuple[int, int]:
    """How many cells of the table a row has, and how many there are."""
    return sum((metric, row, j) in table.cells for j in range(len(table.columns))), len(table.columns)


def compare(metric: str, methods: Mapping[str, Sequence[Floats]], gold: Floats) -> Tests:
    """All pairs of methods; each comes as its runs' probs [D, C], one per seed, on the same questions."""
    if metric not in TESTED:
        raise InputError(f"there is no test for {metric}; ranks need one of {', '.join(TESTED)}")
    tested, names = TESTED[metric], list(methods)
    runs = [probs for name in names for probs in methods[name]]
    if any(len(probs) != len(gold) for probs in runs):
        raise InputError(f"{metric}: runs with {sorted({len(p) for p in runs})} questions cannot be paired")
    means, replicates = resample_ece(runs, gold) if tested == "ece_debiased" else resample_mean(tested, runs, gold)
    owner = np.repeat(np.arange(len(names)), [len(methods[name]) for name in names])
    values, difference, variance, df = contrasts(means, replicates, owner, len(gold))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(difference) < 1e-12, 0.0, np.abs(difference) / np.sqrt(variance))
    p = 2 * stdtr(df, -t)
    if tested == "acc":
        p = _mcnemar_of_single_runs(p, [correct(methods[n][0], gold) for n in names], np.bincount(owner))
    upper = np.triu_indices(len(names), 1)
    adjusted = np.ones_like(p)
    adjusted[upper] = holm(p[upper])
    half = stdtrit(df, 0.975) * np.sqrt(variance)
    return Tests(tested, names, values, difference, half, p, np.minimum(adjusted, adjusted.T))


def contrasts(
    means: Floats, replicates: Floats, owner: np.ndarray, items: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Values [M], and of every pair the difference, its variance and degrees of freedom, [M, M] each.

    means [R] of the runs, replicates [B, R] over resampled questions, owner [R] the method of each run.
    """
    seeds = np.bincount(owner).astype(np.float64)  # [M]
    average = (owner == np.arange(len(seeds))[:, None]) / seeds[:, None]  # [M, R]
    values = average @ means
    covariance = np.atleast_2d(np.cov(replicates @ average.T, rowvar=False)) * items / max(items - 1, 1)
    own = np.diag(covariance)
    by_items = np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0.0)
    more = np.maximum(seeds - 1, 1)
    spread = np.bincount(owner, (means - values[owner]) ** 2) / more  # s^2, [M]
    by_seeds = spread / seeds
    variance = by_items + by_seeds[:, None] + by_seeds[None, :]
    weight = by_seeds**2 / more
    parts = by_items**2 / max(items - 1, 1) + weight[:, None] + weight[None, :]
    df = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1.0), max(items - 1, 1))
    return values, values[:, None] - values[None, :], variance, df


def resample_mean(metric: str, runs: Sequence[Floats], gold: Floats) -> tuple[Floats, Floats]:
    """A per-question mean of each run [R], and on resampled questions [B, R]: one matrix product."""
    per_item = METRICS[metric].per_item
    assert per_item is not None
    scores = np.stack([per_item(probs, gold) for probs in runs], axis=1)  # [D, R]
    centre = scores.mean(axis=0)
    return centre, centre + _weighted(scores - centre) / len(gold)


def resample_ece(runs: Sequence[Floats], gold: Floats) -> tuple[Floats, Floats]:
    """`ece_debiased`, not clipped, of each run; resampling moves the gaps, and what noise does to them stays."""
    binned = [bin_probs(probs, gold) for probs in runs]
    noise = [gap_noise(b) for b in binned]
    used = [np.flatnonzero(b.counts) for b in binned]
    columns = [(b.index[:, None] == u) * (b.right - b.confidence)[:, None] for b, u in zip(binned, used, strict=True)]
    gaps = _weighted(np.concatenate(columns, axis=1)) / len(gold)  # [B, sum of used bins]
    parts = np.split(gaps, np.cumsum([len(u) for u in used])[:-1], axis=1)
    resampled = [debias(g, size[u], var[u]).sum(axis=1) for g, u, (size, var) in zip(parts, used, noise, strict=True)]
    means = [debias(b.gaps, *n).sum() for b, n in zip(binned, noise, strict=True)]
    return np.array(means), np.stack(resampled, axis=1)


@lru_cache(maxsize=8)
def weights(items: int) -> np.ndarray:
    """How often each question is in each resample, [B, D]: the same for whoever has as many questions."""
    rng = np.random.Generator(np.random.Philox(items))
    picked = rng.integers(0, items, (REPLICATES, items)) + np.arange(REPLICATES)[:, None] * items
    return np.bincount(picked.ravel(), minlength=REPLICATES * items).reshape(REPLICATES, items).astype(np.float32)


def _weighted(columns: Floats) -> Floats:
    """Weights [B, D] @ columns [D, k]."""
    return np.asarray(weights(len(columns)) @ columns.astype(np.float32), dtype=np.float64)


def holm(p: Floats) -> Floats:
    """Adjusted p_(k) = max_{j <= k} min(1, (n - j + 1) p_(j)) of the sorted p-values (Holm 1979)."""
    order = np.argsort(p)
    steps = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    out = np.empty_like(p)
    out[order] = np.maximum.accumulate(steps)
    return out


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p-value: among questions that one run alone gets right, each is as likely as the other."""
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5))) if only_a + only_b else 1.0


def _mcnemar_of_single_runs(p: Floats, right: Sequence[np.ndarray], seeds: np.ndarray) -> Floats:
    out = p.copy()
    for i in range(len(right)):
        for j in range(len(right)):
            if i != j and seeds[i] == seeds[j] == 1:
                out[i, j] = mcnemar(right[i], right[j])
    return out
