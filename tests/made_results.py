"""Result files as lm-eval writes them, with the parts that tables and the leaderboard read."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from uqharness.results.files import Contents, read_file
from uqharness.results.reading import RECORD
from uqharness.results.record import Record, pack

PROTOCOL = {"name": "test", "fewshot": None}
RUN = {"lr": 0.1, "steps": 5, "target_modules": ["q_proj"], "base": "/somewhere/tiny"}


def answers(seed: int, draws: int, items: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (draws + 1, items, 3))
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    gold = np.random.default_rng(items).integers(0, 3, items)  # the same questions whoever answers them
    return [
        {
            "id": i,
            "gold": int(gold[i]),
            "combine": "probs",
            "doc_hash": f"{i:016x}",
            "logp": logits[:, i].tolist(),
        }
        for i in range(items)
    ]


def result(
    path: Path, method: str = "BLoB", seed: int = 0, task: str = "arc_easy_uq", draws: int = 4, **changes: Any
) -> Path:
    """A results file as lm-eval writes it, with the parts that a table reads."""
    numbers = changes.get("numbers", zlib.crc32(f"{method} {seed} {task}".encode()))
    items = answers(numbers, draws)
    for item in items[1:] if "enough" in changes else ():  # samples=auto: no more draws were needed
        item["logp"][changes["enough"] + 1 :] = [None] * (draws - changes["enough"])
    packed = pack(items, task=task, protocol={**PROTOCOL, **changes.get("protocol", {})})
    run = {**RUN, "seed": seed, **changes.get("run", {})}
    trained = changes.get("trained_on", task)
    record = {
        "method": {"name": method.lower(), "label": method, "settings": changes.get("settings", {})},
        "run": run,
        "data": {"task": trained},
        "recipe_hash": changes.get("recipe_hash", f"{run['lr']}-{trained}"),
        "posterior": {"train_seed": seed, "finite": changes.get("finite")},
    }
    info = {"adapter_hash": f"{method}{seed}", "record": record, "leaks": changes.get("leaks", {})}
    config: dict[str, Any] = {"model": "bayeslora", "uqharness": info}
    if changes.get("plain"):
        config = {"model": "hf", "model_args": {"pretrained": "/somewhere/tiny"}}
    file = path / f"results_{len(list(path.glob('*')))}.json"
    data = {"results": {task: {f"{RECORD},none": packed}}, "config": config, "date": changes.get("date", 1.0)}
    file.write_text(json.dumps(data))
    return file


def record(rule: str = "probs", draws: int = 4, items: int = 60, seed: int = 0, has_mean: bool = True) -> Record:
    """A record of random answers, without a file."""
    rng = np.random.default_rng(seed)
    logp = rng.normal(0, 2, (draws + 1, items, 3)).astype(np.float32)
    if not has_mean:
        logp[0] = np.nan
    logp[:, ::5, 2] = np.nan  # every fifth question has two choices
    choices = np.where(np.arange(items) % 5 == 0, 2, 3)
    return Record(
        logp, rng.integers(0, 2, items), choices, np.arange(items), [f"{i:016x}" for i in range(items)], rule, has_mean
    )


def read_or_die(path: str) -> Contents:
    """What a process does whose memory is taken by a file."""
    if path == os.environ["DEADLY"]:
        os._exit(9)
    return read_file(path)
