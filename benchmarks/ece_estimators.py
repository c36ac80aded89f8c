"""Which ECE estimator serves paired comparisons: `python -m benchmarks.ece_estimators`. Design fixed before the run.

Truth of a model: E|P(right | confidence) - confidence|, without bins. Two models answer the same n questions.

Confidences of (a sharp, a soft) model, drawn with replacement, a question's two together:
    toyworld   4 choices: MLE and BLoB, seed 0, of `leaderboard/published/toyworld.parquet` (2 to 5 choices, 3.8 on
               average); 2 choices: the same records, the best two choices renormalised
    smollm2    4 choices: quantiles of SmolLM2-135M (MLE) on ARC-Easy; soft: the odds' square root, over chance
    beta       1/K + (1 - 1/K) Beta: (2, 0.6) and (1, 1.3)
The last two have a Gaussian copula with correlation 0.9 between the models.
P(right | confidence c): `over` is c (1 - a); `cross` is c + b (m - c), too sure above m and not sure enough below, m
the mean confidence; where b = 1 is not enough, P is constant at a lower m. a, b or m is solved for the truth.
Right or wrong: one standard normal per question and model, correlation 0.9 between the models (in the record answers of
MLE and BLoB have a correlation of 0.7, which is that).
Pairs: `alike`, both sharp and over; `mixed`, sharp and over against soft and cross. Truth t of 0, 3, 8, 15, 23 points
for both, or t + 2 for one of them: the second if alike, each in turn if mixed. n: 100, 200, 500, 1000, 2000, 5000.

Estimators of a model's error; g_b = 1/n sum_{i in b} (right_i - c_i) over 15 equal bins:
    raw        sum_b |g_b|
    debiased   `metrics.ece_debiased` without its clip at 0
    cross-validated   sum_f sum_b sign(g_b - g_fb) g_fb over 5 folds f: the sign is that of the other folds, so that its
               mean is 0 if calibrated, and never above the binned truth
    smooth     smECE (Blasiok & Nakkiran 2024): the mean absolute residual smoothed by a reflected Gaussian kernel of
               the bandwidth that equals it. It estimates another quantity, between half and twice the square root of
               the distance to calibration; its coverage of its own population value is in a column of its own.
The 95 % interval of the difference: difference ± t_{n-1} times the standard deviation over 100 paired resamples of the
questions. `debiased, closed form`, beside it: the same estimate with the standard deviation of the estimate's
derivative by the weight of each question, which needs no resamples.

Judged in this order (closed forms apart: they are variants):
1. Coverage of the true difference, by n, choices and kind of pair. An estimator with at least 93 % in every group
   passes; if none does, those whose lowest group is within 1 point of the best one's lowest pass.
2. Wrong orders at a true difference of 2 points: the estimates' order is not the true one. Mean over all such cells;
   within 1 point of the lowest pass.
3. Root mean square error of the difference, mean over all cells. The lowest serves.

First run (seed 0): cross-validated passed step 1 alone; debiased missed it by 0.1 points in one group of 24, and passed
with the closed form. Second run (`--seed 1 --times 50`), fixed after the first and before it was run: the same rule,
with `debiased, closed form` as an estimator of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit
from scipy.stats import beta

from uqharness.leaderboard import publish
from uqharness.leaderboard.board import build
from uqharness.metrics.averaging import combine_draws
from uqharness.metrics.calibration import binomial_mad, debias

Array = NDArray[np.float64]
SIZES = (100, 200, 500, 1000, 2000, 5000)
TRUTHS = (0.0, 0.03, 0.08, 0.15, 0.23)
APART = 0.02
BINS, FOLDS, CELLS, RESAMPLES, CORRELATION = 15, 5, 120, 100, 0.9
WORLDS = (("toyworld", 4), ("smollm2", 4), ("beta", 4), ("toyworld", 2), ("beta", 2))
ESTIMATORS = ("raw", "debiased", "cross-validated", "smooth", "debiased, closed form")
# SmolLM2-135M, cloze, MLE, 570 questions of ARC-Easy's validation split, at 0, 5 … 100 %.
SMOLLM2 = (
    0.326, 0.435, 0.497, 0.548, 0.597, 0.631, 0.672, 0.722, 0.771, 0.81, 0.839,
    0.881, 0.906, 0.936, 0.954, 0.972, 0.982, 0.994, 0.998, 0.9999, 1.0,
)  # fmt: skip


# ---------------------------------------------------------------- the world


def confidences(name: str, choices: int, rng: np.random.Generator) -> Array:
    """Of the population, [2, Q]: a sharp and a soft model."""
    if name == "toyworld":
        board, pair = build([path for path in publish.shipped() if path.stem == "toyworld"]), {}
        for run in board.runs:
            if run.task == "toyworld_uq" and run.seed == 0 and board.label(run) in ("MLE", "BLoB"):
                record = board.record(run.run_id)
                probs = combine_draws(record.rows(record.draws), record.combine)
                best = np.sort(np.nan_to_num(probs), axis=1)[:, ::-1]
                pair[board.label(run)] = best[:, 0] / (best[:, :2].sum(axis=1) if choices == 2 else 1.0)
        return np.stack([pair["MLE"], pair["BLoB"]])
    z = rng.standard_normal((2, 20_000))
    z[1] = CORRELATION * z[0] + np.sqrt(1 - CORRELATION**2) * z[1]
    # Ranks as quantiles: the marginals are then exact.
    u = (np.argsort(np.argsort(z, axis=1), axis=1) + 0.5) / z.shape[1]
    if name == "smollm2":
        sharp, soft = (np.interp(each, np.linspace(0, 1, len(SMOLLM2)), SMOLLM2) for each in u)
        odds = np.sqrt(np.maximum(soft, 1 / choices) / np.maximum(1 - soft, 1e-4) * (choices - 1)) / (choices - 1)
        return np.stack([sharp, odds / (1 + odds)])
    chance = 1 / choices
    return np.stack(
        [chance + (1 - chance) * beta.ppf(each, *ab) for each, ab in zip(u, ((2, 0.6), (1, 1.3)), strict=True)]
    )


def chances(conf: Array, kind: str, truth: float) -> Array:
    """P(right | confidence) of the population [Q], such that the mean |P - confidence| is `truth`."""
    mean = conf.mean()
    if kind == "over":
        return np.asarray(conf * (1 - truth / mean))
    spread = np.abs(conf - mean).mean()
    if truth <= spread:
        return np.asarray(conf + truth / spread * (mean - conf))
    level = brentq(lambda m: np.abs(conf - m).mean() - truth, 0.0, mean)
    return np.full_like(conf, level)


# ---------------------------------------------------------------- estimators


def sums(conf: Array, right: Array, weights: Array) -> Array:
    """Of right - confidence, in folds and cells of confidence, [B, FOLDS, CELLS] from weights [B, n]."""
    cell = np.clip(np.ceil(conf * CELLS).astype(np.int64) - 1, 0, CELLS - 1)  # right-closed, as the bins are
    key = (np.arange(len(conf)) % FOLDS) * CELLS + cell
    order = np.argsort(key, kind="stable")
    used, starts = np.unique(key[order], return_index=True)
    values = weights[:, order] * (right - conf)[order].astype(np.float32)
    out = np.zeros((len(weights), FOLDS * CELLS), dtype=np.float32)
    out[:, used] = np.add.reduceat(values, starts, axis=1)
    return np.asarray(out.reshape(len(weights), FOLDS, CELLS) / len(conf), dtype=np.float64)


def noise(conf: Array) -> tuple[Array, Array]:
    """`calibration.gap_noise` of the bins."""
    index = np.clip(np.ceil(conf * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS).astype(float)
    p = np.clip(np.bincount(index, conf, BINS) / np.maximum(counts, 1), 0.0, 1.0)
    return binomial_mad(counts, p) / len(conf), counts * p * (1 - p) / len(conf) ** 2


def cross_validated(by_fold: Array) -> Array:
    """[B] from gaps [B, FOLDS, BINS]."""
    others = by_fold.sum(axis=1, keepdims=True) - by_fold
    return np.asarray((np.sign(others) * by_fold).sum(axis=(1, 2)))


FREQUENCY = np.arange(CELLS)
COSINES = np.cos(np.pi * np.outer((np.arange(CELLS) + 0.5) / CELLS, FREQUENCY)).astype(np.float32)  # [cells, frequency]
WEIGHT = (np.where(FREQUENCY == 0, 1.0, 2.0) / CELLS).astype(np.float32)
DECAY = (-((np.pi * FREQUENCY) ** 2) / 2).astype(np.float32)


def smooth(cells: Array, steps: int = 6) -> Array:
    """smECE [B] from sums of residuals in cells [B, CELLS]; within 2 % of the authors' `relplot` 1.0.3.

    A reflected Gaussian of width s multiplies the k-th cosine by exp(-(pi k s)^2 / 2); s moves halfway to smECE_s.
    """
    spectrum = cells.astype(np.float32) @ COSINES * WEIGHT
    s = np.abs(cells.reshape(len(cells), BINS, -1).sum(axis=2)).sum(axis=1)
    for _ in range(steps):
        damped = spectrum * np.exp(np.maximum(DECAY * (s**2).astype(np.float32)[:, None], -30))  # no slow denormals
        value = np.abs(damped @ COSINES.T).sum(axis=1)
        s = (s + value) / 2
    return np.asarray(value, dtype=np.float64)


def estimates(conf: Array, right: Array, weights: Array) -> tuple[Array, Array]:
    """The first four estimators, first row unweighted, [1 + B, 4]; and the debiased one's derivative, [n]."""
    every = sums(conf, right, np.concatenate([np.ones((1, len(conf)), np.float32), weights]))
    by_fold = every.reshape(len(every), FOLDS, BINS, CELLS // BINS).sum(axis=3)
    gaps, (size, variance) = by_fold.sum(axis=1), noise(conf)
    debiased = debias(gaps, size, variance).sum(axis=1)
    values = [np.abs(gaps).sum(axis=1), debiased, cross_validated(by_fold), smooth(every.sum(axis=1))]
    g, v = gaps[0], np.maximum(variance, 1e-300)
    slope = np.sign(g) + np.sqrt(2) * size * g / v * np.exp(-(g**2) / (2 * v))
    index = np.clip(np.ceil(conf * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack(values, axis=1), slope[index] * (right - conf)


# ---------------------------------------------------------------- the simulation


def cells() -> list[tuple[str, float, int]]:
    """(kind of pair, truth, which model is APART worse: -1 none)."""
    alike = [("alike", t, worse) for t in TRUTHS for worse in (-1, 1)]
    return alike + [("mixed", t, worse) for t in TRUTHS for worse in (-1, 0, 1)]


def population_smooth(conf: Array, chance: Array) -> float:
    """smECE of the population: the residuals' expectation in place of drawn ones."""
    cell = np.clip(np.ceil(conf * CELLS).astype(np.int64) - 1, 0, CELLS - 1)
    return float(smooth(np.bincount(cell, chance - conf, CELLS)[None] / len(conf), steps=20)[0])


def simulate(name: str, choices: int, n: int, times: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """One row per cell and estimator: how often the interval covers, wrong orders, squared error."""
    both = confidences(name, choices, np.random.default_rng(1))
    drawn = rng.integers(0, n, (RESAMPLES, n)) + np.arange(RESAMPLES)[:, None] * n
    weights = np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float32)
    t, grow, rows = stdtrit(n - 1, 0.975), np.sqrt(n / (n - 1)), []
    for pair, truth, worse in cells():
        conf = np.stack([both[0], another(both[0])]) if pair == "alike" else both
        true = np.array([truth + APART * (worse == k) for k in (0, 1)])
        kinds = ("over", "over" if pair == "alike" else "cross")
        chance = np.stack([chances(c, kind, value) for c, kind, value in zip(conf, kinds, true, strict=True)])
        own = population_smooth(conf[0], chance[0]) - population_smooth(conf[1], chance[1])
        difference, sd = np.empty((times, 5)), np.empty((times, 5))
        for k in range(times):
            q = rng.integers(0, conf.shape[1], n)
            z = rng.standard_normal((2, n))
            z[1] = CORRELATION * z[0] + np.sqrt(1 - CORRELATION**2) * z[1]
            right = (z < ndtri(chance[:, q])).astype(float)
            (one, slope), (other, slope_other) = (estimates(conf[m, q], right[m], weights) for m in (0, 1))
            between = one - other
            difference[k] = between[0, [0, 1, 2, 3, 1]]
            sd[k] = [*between[1:].std(axis=0, ddof=1) * grow, (slope - slope_other).std(ddof=1) / np.sqrt(n)]
        target = true[0] - true[1]
        for e, estimator in enumerate(ESTIMATORS):
            off = np.abs(difference[:, e] - target)
            rows.append(
                {
                    "world": name, "choices": choices, "n": n, "pair": pair, "truth": truth, "worse": worse,
                    "estimator": estimator, "covered": float((off <= t * sd[:, e]).mean()),
                    "own": float((np.abs(difference[:, e] - own) <= t * sd[:, e]).mean()),
                    "wrong": float((np.sign(difference[:, e]) != np.sign(target)).mean()) if worse >= 0 else None,
                    "square": float((off**2).mean()), "width": float((2 * t * sd[:, e]).mean()),
                    "shown wrong": float((-np.sign(target) * difference[:, e] > t * sd[:, e]).mean())
                    if worse >= 0 else float((off > t * sd[:, e]).mean()),
                }
            )  # fmt: skip
    return rows


def another(conf: Array) -> Array:
    """The same confidences on other questions: ranks moved by a tenth of their number (correlation 0.94)."""
    moved = np.argsort(np.argsort(conf)) + np.random.default_rng(2).normal(0, 0.1 * len(conf), len(conf))
    return np.asarray(np.sort(conf)[np.argsort(np.argsort(moved))])


def table(rows: list[dict[str, object]]) -> str:
    """The judged numbers, and the groups behind the first of them."""
    lines = ["| estimator | coverage, lowest group | mean | wrong orders at 2 points | RMSE, points | width, points |"]
    lines = [lines[0], "|---|---|---|---|---|---|"]
    for estimator in ESTIMATORS:
        own = [row for row in rows if row["estimator"] == estimator]
        groups = grouped(own)
        lines.append(
            f"| {estimator} | {min(groups.values()):.1%} | {mean(own, 'covered'):.1%} | {mean(own, 'wrong'):.1%} "
            f"| {100 * np.mean([np.sqrt(float(str(r['square']))) for r in own]):.2f} "
            f"| {100 * mean(own, 'width'):.2f} |"
        )
    lines += ["", "Coverage, %:", "", "| choices | pair | n | " + " | ".join(ESTIMATORS) + " | smooth, of its own |"]
    lines.append("|---|---|---|" + "---|" * (len(ESTIMATORS) + 1))
    for key in grouped(rows):
        here = [row for row in rows if (row["choices"], row["pair"], row["n"]) == key]
        by = [[row for row in here if row["estimator"] == estimator] for estimator in ESTIMATORS]
        values = [mean(each, "covered") for each in by] + [mean(by[3], "own")]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")
    for title, column in (("Wrong orders at a true difference of 2 points, %", "wrong"), ("RMSE, points", "square")):
        lines += ["", f"{title}:", "", "| pair | n | " + " | ".join(ESTIMATORS[:4]) + " |", "|---|---|---|---|---|---|"]
        for pair in ("alike", "mixed"):
            for n in SIZES:
                here = [row for row in rows if row["pair"] == pair and row["n"] == n]
                by = [[row for row in here if row["estimator"] == e] for e in ESTIMATORS[:4]]
                if here:
                    scale = [np.sqrt(mean(each, column)) if column == "square" else mean(each, column) for each in by]
                    lines.append(f"| {pair} | {n} | " + " | ".join(f"{100 * v:.1f}" for v in scale) + " |")
    return "\n".join(lines)


def mean(rows: list[dict[str, object]], column: str) -> float:
    return float(np.mean([float(str(row[column])) for row in rows if row[column] is not None]))


def grouped(rows: list[dict[str, object]]) -> dict[tuple[object, ...], float]:
    keys = sorted({(row["choices"], row["pair"], row["n"]) for row in rows}, key=str)
    keys.sort(key=lambda key: (int(str(key[0])), str(key[1]), int(str(key[2]))))
    return {k: mean([r for r in rows if (r["choices"], r["pair"], r["n"]) == k], "covered") for k in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=80, help="pairs of models per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, help="also write every cell here")
    args, start = parser.parse_args(), time.process_time()
    rng, rows = np.random.default_rng(args.seed), []
    for n in args.sizes:
        for name, choices in WORLDS:
            rows += simulate(name, choices, n, args.times, rng)
            print(f"{n} {name} {choices}: {time.process_time() - start:.0f} s", flush=True)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
