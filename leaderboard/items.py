"""Every question of a run: its answer, confidence and change against a plain LoRA. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from uqharness.leaderboard.curves import Answers, answers
from uqharness.leaderboard.texts import Text
from uqharness.metrics.points import confidence, correct, mutual_information, nll_items, predicted, predictive_entropy
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

SURE = 0.8  # from here on an answer counts as confident
MOST = 0.9  # quantile of mutual information above which it counts as high
NUMBERS = {"confidence": "Confidence", "nll": "NLL", "entropy": "Entropy", "mutual_information": "Mutual information"}
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
    """The questions of a run at `draws` draws; a `base` with other questions or choices is ignored."""
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


def select(questions: Items, filter_name: str = "all", sort: str = "id") -> pd.DataFrame:
    """Return the questions of a filter in an order; ties are sorted by number."""
    _, column, ascending = SORTS[sort]
    frame = questions.frame[FILTERS[filter_name][1](questions.frame)]
    return frame.sort_values([column, "id"], ascending=[ascending, True], na_position="last")


def baseline(runs: Sequence[RunSummary], target: RunSummary) -> RunSummary | None:
    """The run of MLE that fixed and broken are counted against: same questions and training, same seed first."""
    setup = (target.task, target.protocol_hash, target.recipe_hash)
    same = [
        r for r in runs if r.method == "MLE" and r is not target and (r.task, r.protocol_hash, r.recipe_hash) == setup
    ]
    return min(same, key=lambda run: run.seed != target.seed, default=None)


def rows(questions: Items, frame: pd.DataFrame, words: Sequence[Text | None]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a row per question of `items.select`; `words` are their texts, where there are any."""
    most = int(frame["choices"].max()) if len(frame) else 0
    header = ["Question", "Document", "Prompt", "Label", "Answer", "Right", *NUMBERS.values()]
    header += [f"p, choice {c + 1}" for c in range(most)] + ["p of the label in every draw"]
    out = []
    for row, text in zip(frame.to_dict("records"), words, strict=True):
        d, gold = int(row["at"]), int(row["gold"])
        probs = questions.shown.probs[d]
        known = text if text is not None and len(text.choices) == row["choices"] else None
        names = known.choices if known else [f"choice {c + 1}" for c in range(most)]
        draws = np.zeros(0) if questions.shown.draws is None else questions.shown.draws[:, d, gold]  # [S]
        out.append(
            [
                str(row["id"]),
                questions.record.doc_hashes[d],
                text.prompt if text else "–",
                names[gold],
                names[int(row["predicted"])],
                "yes" if row["right"] else "no",
                *(_shown(row[name]) for name in NUMBERS),
                *(_shown(p) for p in probs[:most]),
                " ".join(_shown(p) for p in draws if not np.isnan(p)) or "–",
            ]
        )
    return header, out


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"
