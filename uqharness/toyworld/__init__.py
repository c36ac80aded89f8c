"""The embedded world: a synthetic multiple-choice task whose label distribution is known, and its tiny base.

`python -m tools.toyworld --full` (in a checkout) generated everything here from one seed;
`data/MANIFEST.json` describes how.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

from uqharness.errors import InputError

__all__ = ["SIZES", "base_path", "data_path", "oracle", "questions", "questions_path"]


# questions per split of each data set
SIZES = {
    "toyworld": {"train": 400, "validation": 1000, "test": 6000},
    "near": {"validation": 1000, "test": 6000},
    "far": {"validation": 1000, "test": 6000},
    "cloze": {"train": 200, "validation": 200, "test": 500},
}


def data_path() -> Path:
    """Return the folder with base model, questions and manifest: the shipped one, or UQHARNESS_TOYWORLD."""
    other = os.environ.get("UQHARNESS_TOYWORLD")
    return Path(other) if other else Path(__file__).parent / "data"


def base_path() -> Path:
    """Return the path of the base model, for `from_pretrained` and `--model_args pretrained=`."""
    return data_path() / "base"


def questions_path(name: str, split: str) -> Path:
    """Return the path of one split's gzipped JSON lines, for `load_dataset("json", data_files=...)`."""
    if split not in SIZES.get(name, {}):
        known = ", ".join(f"{n}/{s}" for n, splits in SIZES.items() for s in splits)
        raise InputError(f"the toy world has no questions '{name}/{split}': take one of {known}")
    return data_path() / "questions" / f"{name}_{split}.jsonl.gz"


def questions(name: str, split: str) -> list[dict[str, Any]]:
    """Return the questions of one split, each a dict (see tools/toyworld/world.py)."""
    with gzip.open(questions_path(name, split), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def oracle(name: str, split: str) -> list[list[float]]:
    """Return log p(choice | question) of the optimal predictor for every question of a split."""
    return [row["oracle"] for row in questions(name, split)]
