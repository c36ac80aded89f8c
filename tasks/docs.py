"""Rows as the hub has them -> one shape for all: {id, question, choices, texts, gold} (BoolQ: and passage).

`choices` are the answers that are scored: letters, whatever the row calls its own (ARC has 1-4 too); `texts`
is what they stand for; `gold` is an index, -1 where the row's label is none of its choices (UQTask names the
item and refuses it). White space around a text goes, the text itself and every row stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, load_dataset

from uqharness import toyworld as world

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = Mapping[str, Any]


def each(one: Callable[[Row], dict[str, Any]], rows: Dataset) -> Dataset:
    return Dataset.from_list([one(row) for row in rows])


def question(key: Any, text: str, texts: Sequence[str], gold: int) -> dict[str, Any]:
    return {
        "id": str(key),
        "question": text.strip(),
        "choices": list(LETTERS[: len(texts)]),
        "texts": [text.strip() for text in texts],
        "gold": gold,
    }


def index(labels: Sequence[str], answer: str) -> int:
    """-1, which UQTask refuses, where the answer is none of the labels (or hidden, as in test splits)."""
    return list(labels).index(answer.strip()) if answer.strip() in labels else -1


def _winogrande(row: Row) -> dict[str, Any]:
    return question("", row["sentence"], [row["option1"], row["option2"]], index(("1", "2"), row["answer"]))


def _lettered(row: Row) -> dict[str, Any]:
    text = row["question"] if "question" in row else row["question_stem"]
    return question(row["id"], text, row["choices"]["text"], index(row["choices"]["label"], row["answerKey"]))


def _boolq(row: Row) -> dict[str, Any]:
    answers = ["True", "False"]
    return {
        "id": str(row["idx"]),
        "question": row["question"].strip(),
        "passage": row["passage"].strip(),
        "choices": answers,
        "texts": answers,
        "gold": {1: 0, 0: 1}.get(row["label"], -1),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return question("", row["question"], row["choices"], row["answer"])


def winogrande(rows: Dataset) -> Dataset:
    """The sentence keeps its gap "_"."""
    return each(_winogrande, rows)


def lettered(rows: Dataset) -> Dataset:
    """ARC and OpenBookQA."""
    return each(_lettered, rows)


def boolq(rows: Dataset) -> Dataset:
    """SuperGLUE's form of BoolQ, where label 1 is true."""
    return each(_boolq, rows)


def mmlu(rows: Dataset) -> Dataset:
    return each(_mmlu, rows)


def _cloze(row: Row) -> dict[str, Any]:
    text = row["question"] if "question" in row else row["question_stem"]
    if "answerKey" not in row:
        return {"id": "", "question": text.strip(), "choices": row["choices"], "gold": row["answer"]}
    choices = row["choices"]
    return {
        "id": str(row["id"]),
        "question": text,
        "choices": choices["text"],
        "gold": index(choices["label"], row["answerKey"]),
    }


def cloze(rows: Dataset) -> Dataset:
    """ARC, OpenBookQA and MMLU with texts as answers, to the letter as lm-eval's own tasks have them."""
    return each(_cloze, rows)


def parts(path: str, name: str, **wanted: str) -> dict[str, Dataset]:
    """Fixed parts of splits, ordered by the hash of a row's id: `fit="train 0 640"` has the first 640 rows of train."""
    whole = load_dataset(path, name)
    parts = {}
    for part, which in wanted.items():
        split, start, stop = which.split()
        hashes = [hashlib.sha256(key.encode()).digest() for key in whole[split]["id"]]
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        parts[part] = whole[split].select(order[int(start) : int(stop)])
    return parts


def toyworld(name: str) -> dict[str, Dataset]:
    """The embedded world's questions, which have our shape already (and `prompt`, `oracle`, `entity`)."""
    return {split: Dataset.from_list(world.questions(name, split)) for split in world.SIZES[name]}
