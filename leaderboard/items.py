"""Every question of a run: what was answered, how sure it was, and what changed against a plain LoRA. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from uqharness.leaderboard.curves import Answers, answers
from uqharness.metrics.registry import confidence, correct, mutual_information, nll_items, predicted, predictive_entropy
from uqharness.results.reading import Record

SURE = 0.8  # from here on an answer counts as confident
MOST = 0.9  # quantile of mutual information above which it counts as high
# name -> (what a person reads, which questions)
FILTERS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "all": ("all questions", lambda f: f["confidence"] >= 0),
    "wrong": ("wrong", lambda f: ~f["right"]),
    "sure-wrong": (f"confident ({SURE:.0%} or more) and wrong", lambda f: ~f["right"] & (f["confidence"] >= SURE)),
    "fixed": ("fixed: MLE has it wrong, this has it right", lambda f: f["right"] & f["base_wrong"]),
    "broken": ("broken: MLE has it right, this has it wrong", lambda f: ~f["right"] & f["base_right"]),
    "information": (
        "draws disagree (top 10 % in mutual information)",
        lambda f: (f["mutual_information"] > 0) & (f["mutual_information"] >= f["mutual_information"].quantile(MOST)),
    ),
}
# name -> (what a person reads, column, ascending)
SORTS = {
    "id": ("number", "id", True),
    "confidence": ("most confident first", "confidence", False),
    "nll": ("highest NLL first", "nll", False),
    "information": ("highest mutual information first", "mutual_information", False),
    "entropy": ("highest entropy first", "entropy", False),
}


@dataclass(frozen=True)
class Items:
    """`frame` has a row per question, `at` its position in the arrays; `base` is the plain LoRA to compare with."""

    record: Record
    shown: Answers
    mean: Answers | None
    base: Answers | None
    frame: pd.DataFrame


def items(record: Record, row: str, draws: int | None = None, base: Record | None = None) -> Items:
    """The questions of a run at `draws` draws; a `base` that holds other questions or choices is left out."""
    shown = answers(record, row, draws)
    mean = answers(record, row, 0) if record.has_mean and record.draws else None
    plain = answers(base, "MLE") if base is not None and _alike(base, record) else None
    right = correct(shown.probs, shown.gold)
    before = None if plain is None else correct(plain.probs, shown.gold)
    nothing = np.zeros(len(right), dtype=bool)
    frame = pd.DataFrame(
        {
            "at": np.arange(record.items),
            "id": record.ids,
            "gold": record.gold,
            "choices": record.choices,
            "predicted": predicted(shown.probs),
            "confidence": confidence(shown.probs),
            "p_gold": shown.probs[np.arange(record.items), record.gold],
            "right": right,
            "nll": nll_items(shown.probs, shown.gold),
            "entropy": predictive_entropy(shown.probs),
            "mutual_information": np.nan if shown.draws is None else mutual_information(shown.draws),
            "base_right": nothing if before is None else before,
            "base_wrong": nothing if before is None else ~before,
        }
    )
    return Items(record, shown, mean, plain, frame)


def _alike(one: Record, other: Record) -> bool:
    return one.doc_hashes == other.doc_hashes and np.array_equal(one.choices, other.choices)


def select(found: Items, kept: str = "all", sort: str = "id") -> pd.DataFrame:
    """The questions of a filter in an order; ties by their number."""
    _, column, ascending = SORTS[sort]
    frame = found.frame[FILTERS[kept][1](found.frame)]
    return frame.sort_values([column, "id"], ascending=[ascending, True], na_position="last")


def baseline(runs: pd.DataFrame, run_id: str) -> str | None:
    """The run of MLE that fixed and broken are counted against: same questions and training, same seed first."""
    runs = runs[["run_id", "method", "task", "protocol_hash", "recipe_hash", "seed"]]
    mine = runs[runs["run_id"] == run_id].iloc[0]
    same = runs[(runs["method"] == "MLE") & (runs["run_id"] != run_id)]
    for column in ("task", "protocol_hash", "recipe_hash"):
        same = same[same[column] == mine[column]]
    if same.empty:
        return None
    order = (same["seed"] != mine["seed"]).fillna(True)
    return str(same.loc[order.astype(bool).sort_values(kind="stable").index[0], "run_id"])


def paged(count: int, page: int, size: int) -> tuple[int, int, int]:
    """(page that there is, first, last + 1) of `count` rows; pages count from 1."""
    pages = max(1, -(-count // size))
    page = min(max(1, page), pages)
    return page, (page - 1) * size, min(page * size, count)
