"""What rank ranges promise and what they can show, on columns made from records: `python -m benchmarks.rank_ranges`.

World: the 12 trained methods of `leaderboard/published/toyworld.parquet` with three seeds each, on one of its three
tasks. A method's score of question d with seed j is

    mu_m + (mean over its recorded seeds, centred)[d] + sigma_m e_mj + (recorded deviation of a seed from that mean)[d]

with questions drawn with replacement from the 1,500 recorded ones, so that tails and correlations between methods are
those of the record; e_mj ~ N(0, 1); the deviation is that of a random recorded seed, anew for each question, scaled to
its unbiased size. sigma_m^2: the recorded variance between seeds less what the questions put into it, rooted mean
over the three tasks. The true means mu are set, methods being placed at random:

    tied     all equal                                   -> false separation
    tiers    0, step, 2 step, 3 step, a quarter each     -> coverage with ties, pairs one step apart separated
    record   as recorded                                 -> coverage

Per row: whether all ranges of the column hold every true rank, whether any pair without a difference is separated or
any pair in the wrong order, and which share of the pairs one step apart is separated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from uqharness.leaderboard import publish, ranking
from uqharness.leaderboard.board import build
from uqharness.metrics.averaging import average
from uqharness.metrics.registry import METRICS

Array = NDArray[np.float64]
TASKS = ("toyworld_uq", "toyworld_near_uq", "toyworld_far_uq")
# typical, methods, questions, seeds
DESIGNS = (
    (False, 12, 300, 3),
    (False, 12, 570, 3),
    (False, 4, 570, 3),
    (True, 12, 570, 3),
    (False, 12, 570, 5),
    (False, 12, 570, 1),
    (False, 12, 1500, 3),
)
STEP = {"nll": 0.1, "brier": 0.04, "acc": 0.05}


@dataclass(frozen=True)
class World:
    """One task of the record: `items` [M, D] centred, `deviations` [M, S, D], `sigma` [M], `means` [M], `names`."""

    names: list[str]
    items: Array
    deviations: Array
    sigma: Array
    means: Array


@lru_cache
def scores(metric: str) -> dict[str, dict[str, Array]]:
    """Every task's scores by method, [S, D]."""
    board = build([path for path in publish.shipped() if path.stem == "toyworld"])
    out: dict[str, dict[str, list[Array]]] = {task: {} for task in TASKS}
    for run in board.runs:
        record = board.record(run.run_id)
        answers = average(record.rows(record.draws), record.gold, record.combine)
        out[run.task].setdefault(board.label(run), []).append(METRICS[metric].per_item(answers))
    return {task: {m: np.stack(runs) for m, runs in rows.items() if len(runs) == 3} for task, rows in out.items()}


@lru_cache
def world(metric: str, task: str) -> World:
    every = scores(metric)
    names = list(every[task])
    variances = []
    for rows in every.values():
        stack = np.stack([rows[m] for m in names])  # [M, S, D]
        noise = stack - stack.mean(axis=1, keepdims=True)
        noise = noise - noise.mean(axis=2, keepdims=True)
        mixed = (noise**2).sum(axis=1).mean(axis=1) / (stack.shape[1] - 1)
        variances.append(np.maximum(stack.mean(axis=2).var(axis=1, ddof=1) - mixed / stack.shape[2], 0.0))
    x = np.stack([every[task][m] for m in names])
    centre = x.mean(axis=1)
    deviations = x - centre[:, None]
    deviations = (deviations - deviations.mean(axis=2, keepdims=True)) * np.sqrt(x.shape[1] / (x.shape[1] - 1))
    means = centre.mean(axis=1)
    return World(names, centre - means[:, None], deviations, np.sqrt(np.mean(variances, axis=0)), means)


def typical_world(metric: str, task: str, methods: int = 12) -> World:
    """Methods of equal variances: the record's median spread over questions of a pair's difference, and of seeds.

    Normal, as a median is no recorded row: shared difficulty as recorded, and each method's own part on top.
    """
    w = world(metric, task)
    differences = w.items[:, None] - w.items[None, :]
    pair = np.median(differences.std(axis=2)[np.triu_indices(len(w.names), 1)])
    rng = np.random.default_rng(0)
    questions = w.items.shape[1]
    own = rng.standard_normal((methods, questions)) * pair / np.sqrt(2)
    mixed = np.median(w.deviations.std(axis=(1, 2)))
    noise = rng.standard_normal((methods, w.deviations.shape[1], questions)) * mixed
    items = w.items.mean(axis=0) + own - own.mean(axis=1, keepdims=True)
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    names = [str(i) for i in range(methods)]
    return World(names, items, noise, np.full(methods, np.median(w.sigma)), np.full(methods, w.means.mean()))


def true_means(kind: str, w: World, step: float, rng: np.random.Generator) -> Array:
    """mu [M]."""
    if kind == "record":
        return w.means
    tiers = np.arange(len(w.names)) % 4 if kind == "tiers" else np.zeros(len(w.names))
    return w.means.mean() + step * rng.permutation(tiers)


def column(w: World, mu: Array, items: int, seeds: int, rng: np.random.Generator) -> Array:
    """Scores of every run, [M * seeds, items]."""
    methods, recorded, questions = w.deviations.shape
    drawn = rng.integers(0, questions, items)
    which = rng.integers(0, recorded, (methods, seeds, items))
    noise = w.deviations[np.arange(methods)[:, None, None], which, drawn]
    # One seed is tested as that one run: its own level is then part of the truth, and set to mu.
    main = w.sigma[:, None] * rng.standard_normal((methods, seeds)) * (seeds > 1)
    return np.asarray((mu[:, None] + main)[:, :, None] + w.items[:, None, drawn] + noise).reshape(-1, items)


def judge(tests: ranking.Tests, mu: Array, step: float) -> tuple[bool, bool, float, float]:
    """(all ranges hold all true ranks, any false separation, share of pairs one step apart separated, mean width)."""
    sign = 1.0 if METRICS[tests.metric].higher_is_better else -1.0
    truly = sign * (mu[:, None] - mu[None, :]) > 1e-9
    better = tests.better()
    apart = np.abs(np.abs(mu[:, None] - mu[None, :]) - step) < 1e-9
    ranks = list(tests.ranks().values())
    low, high = 1 + truly.sum(axis=0), len(mu) - truly.sum(axis=1)
    held = all(r.low <= a and b <= r.high for r, a, b in zip(ranks, low, high, strict=True))
    shown = float((better & truly)[apart & truly].mean()) if (apart & truly).any() else float("nan")
    return held, bool((better & ~truly).any()), shown, float(np.mean([r.high - r.low + 1 for r in ranks]))


def simulate(
    metric: str, kind: str, items: int, seeds: int, times: int, seed: int = 0, methods: int = 12, typical: bool = False
) -> Array:
    """Means over `times` columns of `judge`; last the smallest detectable difference. One of the tasks at a time."""
    rng, rows = np.random.default_rng(seed), []
    worlds = {task: typical_world(metric, task) if typical else world(metric, task) for task in TASKS}
    for k in range(times):
        w = worlds[TASKS[k % len(TASKS)]]
        some = np.sort(rng.permutation(len(w.names))[:methods])
        w = World([w.names[i] for i in some], w.items[some], w.deviations[some], w.sigma[some], w.means[some])
        mu = true_means(kind, w, STEP[metric], rng)
        tests = ranking.compare_items(metric, w.names, [seeds] * methods, column(w, mu, items, seeds, rng))
        rows.append((*judge(tests, mu, STEP[metric]), tests.smallest))
    return np.asarray(np.array(rows, dtype=float).mean(axis=0))  # NaN where a kind has no such pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000, help="columns per row")
    times = parser.parse_args().times
    heads = (
        "metric",
        "truth",
        "spread",
        "methods",
        "questions",
        "seeds",
        "all true ranks held",
        "falsely separated",
        "a step apart, separated",
        "mean width",
        "detectable",
    )
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for metric in STEP:
        for kind in ("tied", "tiers", "record"):
            for typical, methods, items, seeds in DESIGNS:
                if (typical and kind == "record") or (metric == "acc" and seeds == 1):  # McNemar wants right or wrong
                    continue
                held, false, shown, width, smallest = simulate(metric, kind, items, seeds, times, 0, methods, typical)
                cells = [metric, kind, "median" if typical else "recorded", methods, items, seeds, f"{held:.1%}"]
                cells += [f"{false:.1%}", "–" if np.isnan(shown) else f"{shown:.1%}", f"{width:.1f}", f"{smallest:.3f}"]
                print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
