"""Thousands of result files: how long the leaderboard's data take to build, and what is new to come in, and a table.

    python -m benchmarks.leaderboard FOLDER [--files 2000]     writes synthetic results there, once, and times them

500 questions, 10 draws and the mean's row per file, as compact records; 12 methods, 7 tasks, settings and seeds vary.
CPU time of all processes over the cores they had: what the wall clock shows on a machine with nothing else to do.
Memory: the peak of each process, added up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Row, figure
from uqharness.leaderboard import table
from uqharness.leaderboard.board import Board, build
from uqharness.results.reading import RECORD
from uqharness.results.record import Record, digest, encode

METHODS = ("MLE", "MAP", "MCD", "ENS", "BBB", "LAP", "BLoB", "Me-LoRA", "TS", "TFB", "SWAG", "ScalaBL")
TASKS = (
    "winogrande_s_uq",
    "arc_challenge_uq",
    "arc_easy_uq",
    "openbookqa_uq",
    "winogrande_m_uq",
    "boolq_uq",
    "mmlu_college_physics_uq",
)
ITEMS, DRAWS, CHOICES = 500, 10, 4


def record_of(task: str, rng: np.random.Generator, items: int = ITEMS, draws: int = DRAWS) -> Record:
    """Answers of a model that knows something: the right choice is likelier, and draws scatter about their mean."""
    gold = np.random.default_rng(len(task)).integers(0, CHOICES, items)
    centre = rng.normal(0, 1.5, (items, CHOICES)) + 1.5 * (np.arange(CHOICES) == gold[:, None])
    logits = centre + rng.normal(0, 0.7, (draws + 1, items, CHOICES)) * (np.arange(draws + 1) > 0)[:, None, None]
    logp = (logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))).astype(np.float32)
    hashes = [f"{i:016x}" for i in range(items)]
    protocol = {"name": "uq-v1", "subset": task, "rows": [0, items], "items": items, "documents": digest(hashes)}
    return Record(
        logp, gold, np.full(items, CHOICES), np.arange(items), hashes, "probs", True, task, protocol, digest(protocol)
    )


def content(number: int, items: int = ITEMS, draws: int = DRAWS) -> dict[str, Any]:
    """Results file `number`: method, task, seed and one setting follow from the number."""
    rest, method = divmod(number, len(METHODS))
    rest, task = divmod(rest, len(TASKS))
    setting, seed = divmod(rest, 3)
    name, label = TASKS[task], METHODS[method]
    run = {
        "base": "org/base-7b",
        "lr": 1e-4,
        "steps": 5000,
        "seed": seed,
        "lora_r": 8,
        "lora_alpha": 16.0,
        "target_modules": ["q_proj", "v_proj"],
        "batch_size": 4,
        "schedule": "linear",
        "warmup": 0.06,
    }
    adapter = {
        "method": {"label": label, "name": label.lower(), "settings": {"kl": setting, "prior_std": 0.2}},
        "run": run,
        "recipe": run,
        "recipe_hash": digest([name, 1]),
        "data": {"task": name},
        "posterior": {"train_seed": seed, "finite": None},
        "costs": {"seconds": 100.0 + number, "peak_memory_bytes": 10**9, "trainable_parameters": 4_000_000},
        "training": [{"loss": [[step, 1.0 / (1 + step)] for step in range(0, 5000, 50)]}],
    }
    info = {"adapter": f"adapters/{number}", "adapter_hash": digest(number), "functions": draws + 1, "record": adapter}
    packed = encode(record_of(name, np.random.default_rng(number), items, draws))
    return {
        "results": {name: {f"{RECORD},none": packed}},
        "config": {"model": "bayeslora", "uqharness": info},
        "n-samples": {name: {"original": items, "effective": items}},
        "date": 1.7e9 + number,
    }


def write(folder: Path, numbers: range, items: int = ITEMS, draws: int = DRAWS) -> None:
    for number in numbers:
        path = folder / f"{number // 100:03d}" / f"results_{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content(number, items, draws)))


def measure(folder: Path, files: int, cache: Path) -> dict[str, float]:
    """CPU seconds of a first build (a core), with nothing new, of a filter, with ten new files; the peak in GiB.

    Seconds on the wall stand beside them, under names of their own: other work on the machine is in these.
    """
    cores, boards, wall = os.cpu_count() or 1, dict[str, Board](), dict[str, float]()

    def timed(name: str, run: Callable[[], object]) -> float:
        start, clock = _used(), time.monotonic()
        run()
        wall[f"{name}, wall"] = time.monotonic() - clock
        return _used() - start

    def build_of(count: int) -> None:
        boards["board"] = board = build([folder], cache)
        if len(board.runs) != count:
            raise SystemExit(f"{len(board.runs)} runs of {count} files: {board.problems[:5]}")

    seconds = {"first": timed("first", lambda: build_of(files)) / cores}
    seconds["again"] = timed("again", lambda: build_of(files))
    seconds["filter"] = timed(
        "filter", lambda: table.build(boards["board"].select(task=list(TASKS[:6])), samples=[0, 5, None])
    )
    write(folder, range(files, files + 10))
    seconds["ten more"] = timed("ten more", lambda: build_of(files + 10))
    own, of_one = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {**seconds, **wall, "memory": (own + cores * of_one) / 2**20}


def _used() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rows(quick: bool) -> Iterator[Row]:
    """For `python -m benchmarks.run`; in a process of its own, whose memory is that of the leaderboard alone."""
    files = 100 if quick else 2_000
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.leaderboard", place, "--files", str(files)]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    what = f"{files} result files of {ITEMS} questions, N = {DRAWS}"
    yield figure(f"leaderboard: {what}, every metric for every N, CPU s a core", "–", 20.0, [figures["first"]])
    yield figure("leaderboard: the same with nothing new, CPU s", "–", 1.0, [figures["again"]])
    yield figure("leaderboard: a table of six of seven tasks of them, CPU s", "–", 1.0, [figures["filter"]])
    yield figure("leaderboard: the same with 10 new files, CPU s", "–", 1.0, [figures["ten more"]])
    yield figure("leaderboard: peak memory of all processes, GiB", "–", 1.0, [figures["memory"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2_000)
    args = parser.parse_args()
    if not (args.folder / "results").exists():
        write(args.folder / "results", range(args.files))
    cache = args.folder / "board.parquet"
    cache.unlink(missing_ok=True)
    print(json.dumps(measure(args.folder / "results", args.files, cache)))


if __name__ == "__main__":
    main()
