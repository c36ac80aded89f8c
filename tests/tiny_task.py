"""A multiple-choice task of the tiny world: YAML and JSON lines in a folder for --include_path."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LETTERS = "ABC"


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """The right letter follows from the first word, four times out of five."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.randrange(40) for _ in range(rng.randint(2, 5))]
        gold = words[0] % 3 if rng.random() < 0.8 else rng.randrange(3)
        text = " ".join(f"w{w}" for w in words)
        rows.append({"text": f"{text} Answer:", "choices": list(LETTERS), "gold": gold})
    return rows


def make_task(folder: Path, name: str = "tiny_uq", seed: int = 0, uq: bool = True, **config: Any) -> Path:
    """Writes `name`.yaml and its data; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for k, (split, count) in enumerate((("train", 24), ("validation", 12))):
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(q) + "\n" for q in questions(count, 100 * seed + k)))
        files[split] = str(path)
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [] if uq else [{"metric": "acc"}],
        "metadata": {"version": 1.0},
        **config,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items() if value is not None]
    lines += ["class: !function uqharness.harness.task.UQTask"] * uq
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder
