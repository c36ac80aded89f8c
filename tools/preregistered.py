#!/usr/bin/env python
"""Compare rows of a suite in NLL as real-small.prereg.md fixed it before any run: paired differences, three verdicts.

    python tools/preregistered.py runs/real-small
    python tools/preregistered.py runs/real-small --task arc_challenge_small_cloze_uq

A difference is row less reference, per question, averaged over training seeds. Its 95 % interval is that of 10,000
resamples of seeds and questions together; p is two-sided from the same resamples, Holm's correction over the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uqharness.leaderboard.ranking import holm
from uqharness.metrics.averaging import combine_draws
from uqharness.metrics.points import nll_items
from uqharness.results.reading import Run, read_results

Floats = NDArray[np.float64]
RESAMPLES, MARGIN, LEVEL = 10_000, 0.05, 0.05
STRONG = ("tempscale", "mle-tuned")  # what a Bayesian row must beat as well


def runs_of(folder: Path, task: str) -> dict[str, dict[str, Run]]:
    """Return the runs on one task by row and seed, from the suite's finished cells: "base/row/train/seed0 on task"."""
    rows: dict[str, dict[str, Run]] = {}
    for path in sorted(folder.glob("cells/*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        origin, _, evaluated = str(cell.get("name", "")).partition(" on ")
        if cell.get("kind") == "evaluate" and evaluated == task:
            _, row, *_, seed = [*origin.split("/"), ""] if origin.count("/") == 1 else origin.split("/")
            (rows.setdefault(row, {})[seed],) = read_results(folder / "results" / path.stem)
    return rows


def losses(runs: Mapping[str, Run], seeds: Sequence[str]) -> Floats:
    """NLL of every question with all draws, [seeds, questions]."""
    records = [runs[seed].record for seed in seeds]
    return np.array([nll_items(combine_draws(record.rows(), record.combine), record.gold) for record in records])


def compare(difference: Floats, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float, float]:
    """Mean, interval and two-sided p of differences [seeds, questions], both resampled with replacement."""
    generator = np.random.default_rng(seed)
    seeds, items = difference.shape
    means = np.empty(resamples)
    for k in range(resamples):
        some = generator.integers(seeds, size=seeds)
        means[k] = difference[some].mean(0)[generator.integers(items, size=items)].mean()
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    tail = min((means >= 0).sum(), (means <= 0).sum())
    return float(difference.mean()), float(low), float(high), min(1.0, 2 * (tail + 1) / (resamples + 1))


def verdict(low: float, high: float, adjusted: float) -> str:
    if high < 0:
        return "better" if adjusted <= LEVEL else "better, not after Holm's correction"
    if low > 0:
        return "worse"
    return "equivalent" if max(-low, high) <= MARGIN else "cannot be told"


def table(folder: Path, task: str, reference: str, resamples: int) -> str:
    rows = runs_of(folder, task)
    if reference not in rows:
        sys.exit(f"no finished cell of {reference} on {task} in {folder}; rows there: {', '.join(rows) or 'none'}")
    seeds = sorted(rows[reference])
    whole = [row for row in rows if row != reference and sorted(rows[row]) == seeds]
    base, own = losses(rows[reference], seeds), {row: losses(rows[row], seeds) for row in whole}
    results = {row: compare(own[row] - base, resamples) for row in whole}
    adjusted = holm(np.array([p for *_, p in results.values()]))
    lines = [f"| row | seeds | NLL | less {reference} | 95 % | p (Holm) | |", "|---|---|---|---|---|---|---|"]
    lines.append(f"| {reference} | {len(seeds)} | {base.mean():.3f} | | | | |")
    for (row, (mean, low, high, _)), p in zip(results.items(), adjusted, strict=True):
        nll, words = own[row].mean(), verdict(low, high, p)
        lines.append(
            f"| {row} | {len(seeds)} | {nll:.3f} | {mean:+.3f} | {low:+.3f} … {high:+.3f} | {p:.4f} | {words} |"
        )
    few = {row: runs for row, runs in rows.items() if row not in (*whole, reference)}
    lines += [
        f"| {row} | {len(runs)} | {losses(runs, sorted(runs)).mean():.3f} | | | | not compared |"
        for row, runs in few.items()
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of `uqharness suite run --out`")
    parser.add_argument("--task", default="arc_easy_small_cloze_uq")
    parser.add_argument("--against", nargs="+", default=["mle", *STRONG], help="reference rows, a table each")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    args = parser.parse_args(words)
    for reference in args.against:
        print(table(args.folder, args.task, reference, args.resamples), end="\n\n")


if __name__ == "__main__":
    main()
