"""Rank ranges of the methods of one column, from paired tests of all pairs.

A method's rank is given as a range low–high: low is 1 + the number of methods that are significantly better, high is
the number of methods less those that are significantly worse. With the family-wise error of the column's tests at
ALPHA, all ranges of a column hold the true ranks together with probability 1 - ALPHA (Mogstad et al. 2024; of tied
methods, every rank of the tie is true). Columns are not corrected for each other.

Two methods differ by m_a - m_b, means over questions and training seeds, tested by

    t = (m_a - m_b) / sqrt(V_items + V_a + V_b)

V_items: variance of the difference when questions are resampled. A question is one cluster: every method and seed
         gets the same weights, so that what is hard for all of them cancels. In closed form: the covariance over
         questions of the runs' scores, or for ECE of what each question moves.
V_a, V_b: s^2 / S of a method's S seeds, which are nested in it; s^2 is the larger of its own and of the mean over the
         methods of the column, with the degrees of freedom of all of them: of three seeds alone it is too often close
         to zero by chance. What questions and seeds have in common is counted in V_items and in V: taken off once, as
         in two-way clustering (Cameron, Gelbach & Miller 2011), too many columns without a difference show one.
Degrees of freedom: Satterthwaite 1946. p-values: Holm 1979 over the pairs of a column. Two single runs are compared in
accuracy by McNemar's exact test. A method with one seed is tested as that one run: its V is not known.
What is assumed and measured, and what the tests can show: docs/decisions/rank-ranges.md, benchmarks/rank_ranges.py.
ECE is compared as its debiased value only (docs/decisions/ece-estimator.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import stdtr, stdtrit

from uqharness.errors import InputError
from uqharness.leaderboard.table import ANY_RECIPE, Table
from uqharness.metrics.metric import Answers, Floats
from uqharness.metrics.registry import METRICS, tested

ALPHA = 0.05
POWER = 0.8
MOST_ITEMS, MOST_SEEDS = 1_000_000, 1_000  # an answer above these is no advice


@dataclass(frozen=True)
class Rank:
    """The ranks that a method may have in its column, as far as the data can tell."""

    low: int
    high: int

    @property
    def top(self) -> bool:
        """Return whether no method is significantly better."""
        return self.low == 1

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


@dataclass(frozen=True)
class Spread:
    """Variance of the differences of M methods, split by what would make it smaller.

    From the covariance over questions of the runs' values: `mixed` is what a method's seeds do not share of it, which
    both more questions and more seeds average out; `seed` is their spread beyond that, which only seeds average out.
    """

    items: int
    seeds: Floats  # [M]
    shared: Floats  # [M, M], shrinks with questions alone
    mixed: Floats  # [M], of one seed; 0 of a method with one
    seed: Floats  # [M], of one seed; 0 of a method with one

    def of(self, items: int, seeds: Floats) -> tuple[Floats, Floats]:
        """Variance of the differences [M, M] and its degrees of freedom, with so many questions and seeds [M]."""
        fewer = self.items / items
        mixed = fewer * self.mixed / seeds
        # An estimate of a variance that is close to zero may come out below it.
        by_items = np.maximum(fewer * self.shared + mixed[:, None] + mixed[None, :], 0.0)
        by_seeds = np.where(seeds > 1, (self.seed + fewer * self.mixed) / seeds, 0.0)
        variance = by_items + by_seeds[:, None] + by_seeds[None, :]
        weight = by_seeds**2 / max((seeds - 1).sum(), 1)
        parts = by_items**2 / max(items - 1, 1) + weight[:, None] + weight[None, :]
        df = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1.0), max(items - 1, 1))
        return variance, df


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
    spread: Spread

    def better(self) -> np.ndarray:
        """[M, M], whether a is significantly better than b."""
        sign = 1.0 if METRICS[self.metric].higher_is_better else -1.0
        return np.asarray((self.adjusted <= ALPHA) & (sign * self.difference > 0))

    def ranks(self) -> dict[str, Rank]:
        """The range of ranks of each method."""
        better = self.better()
        low, high = 1 + better.sum(axis=0), len(self.names) - better.sum(axis=1)
        return {name: Rank(int(a), int(b)) for name, a, b in zip(self.names, low, high, strict=True)}

    @cached_property
    def detectable(self) -> Floats:
        """[M, M], the smallest true difference of each pair that is shown with probability POWER at least."""
        return self._detectable(self.spread.items, self.spread.seeds)

    @property
    def smallest(self) -> float:
        """`detectable` of the median pair: what this column could have shown; NaN without a pair."""
        pairs = self.detectable[np.triu_indices(len(self.names), 1)]
        return float(np.median(pairs)) if len(pairs) else float("nan")

    def items_needed(self, a: str, b: str) -> int | None:
        """Return how many questions would separate a and b with probability POWER if they differ by what is shown.

        None: no number up to MOST_ITEMS, as the spread between the seeds stays.
        """
        seeds = self.spread.seeds
        return self._fewest(a, b, MOST_ITEMS, lambda items: self._detectable(items, seeds))

    def seeds_needed(self, a: str, b: str) -> int | None:
        """The same of training seeds for each of them.

        None: no number up to MOST_SEEDS, as the questions stay the same, or the spread between seeds is unknown.
        """
        items, seeds = self.spread.items, self.spread.seeds
        if min(seeds[self.names.index(a)], seeds[self.names.index(b)]) < 2:
            return None
        return self._fewest(a, b, MOST_SEEDS, lambda count: self._detectable(items, np.full_like(seeds, count)))

    def _detectable(self, items: int, seeds: Floats) -> Floats:
        """At Holm's first and strictest step, so that what other pairs show does not matter."""
        pairs = max(len(self.names) * (len(self.names) - 1) // 2, 1)
        variance, df = self.spread.of(items, seeds)
        return np.asarray((stdtrit(df, 1 - ALPHA / (2 * pairs)) + stdtrit(df, POWER)) * np.sqrt(variance))

    def _fewest(self, a: str, b: str, most: int, detectable: Callable[[int], Floats]) -> int | None:
        i, j = self.names.index(a), self.names.index(b)
        low, high = 1, most  # `low` is not enough, `high` is
        if abs(self.difference[i, j]) < max(detectable(most)[i, j], 1e-12):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if detectable(middle)[i, j] <= abs(self.difference[i, j]) else (middle, high)
        return high


ReadAnswers = Callable[[str, int], tuple[Floats, np.ndarray]]  # run id, draws -> probs [D, C], gold [D]
Ranks = dict[int, dict[int, Rank]]  # by column and row


def of_table(table: Table, metric: str, answers: ReadAnswers) -> dict[int, Tests]:
    """Tests by column, named by row ("3"): rows with every cell of the table and no cell that may not be ranked."""
    columns = range(len(table.columns))
    if tested(metric) is None or any(c.recipe_hash in (None, ANY_RECIPE) for c in table.columns):
        return {}
    cells = {i: [table.cells.get((metric, i, j)) for j in columns] for i in range(len(table.rows))}
    full = [i for i, row in cells.items() if all(c and not (c.leaked or c.reference or c.suspect) for c in row)]
    tests: dict[int, Tests] = {}
    for j in columns if len(full) > 1 else ():
        runs = {i: [answers(run, table.rows[i][1]) for run in table.cells[metric, i, j].runs] for i in full}
        gold = runs[full[0]][0][1]
        if any(not np.array_equal(own, gold) for pairs in runs.values() for _, own in pairs):
            continue  # other labels for the same questions: nothing to compare
        tests[j] = compare(metric, {str(i): [probs for probs, _ in pairs] for i, pairs in runs.items()}, gold)
    return tests


def ranks_of(tests: Mapping[int, Tests]) -> Ranks:
    """The ranks in each column of `of_table`."""
    return {j: {int(name): rank for name, rank in each.ranks().items()} for j, each in tests.items()}


def compare(metric: str, methods: Mapping[str, Sequence[Floats]], gold: Floats) -> Tests:
    """All pairs of methods; each comes as its runs' probs [D, C], one per seed, on the same questions."""
    ranked_by = tested(metric)
    if ranked_by is None:
        named = [name for name in METRICS if tested(name)]
        raise InputError(f"there is no test for {metric}; ranks need one of {', '.join(named)}")
    runs = [probs for group in methods.values() for probs in group]
    if any(len(probs) != len(gold) for probs in runs):
        raise InputError(f"{metric}: runs with {sorted({len(p) for p in runs})} questions cannot be paired")
    seeds, given = [len(group) for group in methods.values()], [Answers.of(probs, gold) for probs in runs]
    if ranked_by.paired is not None:
        return pairs_of(ranked_by.name, list(methods), seeds, *ranked_by.paired(given), len(gold))
    scores = np.stack([ranked_by.per_item(answers) for answers in given])
    return compare_items(ranked_by.name, list(methods), seeds, scores)


def compare_items(metric: str, names: Sequence[str], seeds: Sequence[int], scores: Floats) -> Tests:
    """All pairs of methods by their runs' score of every question [R, D], the seeds of a method one after the other."""
    items = scores.shape[1]
    centred = scores - scores.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T / (max(items - 1, 1) * items)
    return pairs_of(metric, names, seeds, scores.mean(axis=1), covariance, items, scores)


def pairs_of(
    metric: str,
    names: Sequence[str],
    seeds: Sequence[int],
    means: Floats,
    covariance: Floats,
    items: int,
    scores: Floats | None = None,
) -> Tests:
    """Tests from the runs' values [R], their covariance over questions [R, R] and, for an exact test, scores [R, D]."""
    count = np.asarray(seeds, dtype=np.float64)
    owner = np.repeat(np.arange(len(count)), seeds)
    values = np.bincount(owner, means, len(count)) / count
    difference = values[:, None] - values[None, :]
    spread = spread_of(means - values[owner], covariance, owner, count, items)
    variance, df = spread.of(items, count)
    t = np.where(np.abs(difference) < 1e-12, 0.0, np.abs(difference) / np.sqrt(np.maximum(variance, 1e-300)))
    p = 2 * stdtr(df, -t)
    exact_test = METRICS[metric].exact_test
    if scores is not None and exact_test is not None:
        first = np.searchsorted(owner, np.arange(len(count)))
        single = (count[:, None] == 1) & (count[None, :] == 1) & ~np.eye(len(count), dtype=bool)
        p = np.where(single, exact_test(scores[first]), p)
    upper = np.triu_indices(len(count), 1)
    adjusted = np.ones_like(p)
    adjusted[upper] = holm(p[upper])
    half = stdtrit(df, 0.975) * np.sqrt(variance)
    return Tests(metric, list(names), values, difference, half, p, np.minimum(adjusted, adjusted.T), spread)


def spread_of(deviations: Floats, covariance: Floats, owner: np.ndarray, seeds: Floats, items: int) -> Spread:
    """Split the variance of differences; `deviations` [R] of the runs from their method's value."""
    average = (owner == np.arange(len(seeds))[:, None]) / seeds[:, None]  # [M, R]
    between = average @ covariance @ average.T
    own = np.diag(between)
    by_items = np.maximum(own[:, None] + own[None, :] - 2 * between, 0.0)
    more = np.maximum(seeds - 1, 1)
    # mean(diag) - mean(off diagonal) of a method's own block, from the mean of all of it.
    mixed = np.where(seeds > 1, np.maximum(average @ np.diag(covariance) - own, 0.0) * seeds / more, 0.0)
    pooled = (deviations**2).sum() / max((seeds - 1).sum(), 1)
    observed = np.where(seeds > 1, np.maximum(np.bincount(owner, deviations**2, len(seeds)) / more, pooled), 0.0)
    mixed = np.minimum(mixed, observed)
    shared = by_items - (mixed / seeds)[:, None] - (mixed / seeds)[None, :]
    np.fill_diagonal(shared, 0.0)
    return Spread(items, seeds, shared, mixed, observed - mixed)


def holm(p: Floats) -> Floats:
    """Adjusted p_(k) = max_{j <= k} min(1, (n - j + 1) p_(j)) of the sorted p-values (Holm 1979)."""
    order = np.argsort(p)
    steps = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    out = np.empty_like(p)
    out[order] = np.maximum.accumulate(steps)
    return out
