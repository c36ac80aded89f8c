"""Rows of the hub as the papers' own code prints them: bayesian-peft (bc6a4a7) and laplace-lora (c59665d).

Facts of their code, one function each; `docs.py` has the shape and the rows of uq-v1. Texts are as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from uqharness.tasks.docs import LETTERS, Row, each, index


def _item(
    key: Any,
    question: str,
    labels: Sequence[str],
    texts: Sequence[str],
    gold: int,
    choices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`labels`: what the prompt calls the choices; `choices`: the answers that are scored."""
    return {
        "id": str(key),
        "question": question,
        "labels": list(labels),
        "texts": list(texts),
        "gold": gold,
        "choices": list(LETTERS[: len(texts)] if choices is None else choices),
    }


def _lettered(row: Row) -> tuple[str, str, Sequence[str], Sequence[str], int]:
    text = row["question"] if "question" in row else row["question_stem"]
    given: Mapping[str, Sequence[str]] = row["choices"]
    return row["id"], text, given["label"], given["text"], index(given["label"], row["answerKey"])


def _winogrande(row: Row) -> dict[str, Any]:
    return _item("", row["sentence"], "AB", [row["option1"], row["option2"]], index(("1", "2"), row["answer"]))


def winogrande(rows: Dataset) -> Dataset:
    return each(_winogrande, rows)


def mmlu(rows: Dataset) -> Dataset:
    return each(lambda row: _item("", row["question"], "ABCD", row["choices"], row["answer"]), rows)


# ---------------------------------------------------------------- bayesian-peft


def bp_lettered(rows: Dataset) -> Dataset:
    """OpenBookQA. The prompt prints a row's own labels."""
    return each(lambda row: _item(*_lettered(row)), rows)


def bp_arc(rows: Dataset) -> Dataset:
    """ARC: every item is scored over A … E, whatever it has; numbered labels (1 …) stand in the prompt as they are."""
    return each(lambda row: _item(*_lettered(row), choices="ABCDE"), rows)


def _bp_boolq(row: Row) -> dict[str, Any]:
    """Label 1 (true) is read as index 1 of ("True", "False"): inverted. The passage is cut at 1,024 characters."""
    return {
        "id": str(row["idx"]),
        "question": row["question"],
        "passage": row["passage"][:1024],
        "choices": ["True", "False"],
        "gold": row["label"] if row["label"] in (0, 1) else -1,
    }


def bp_boolq(rows: Dataset) -> Dataset:
    return each(_bp_boolq, rows)


# ---------------------------------------------------------------- laplace-lora


def _sentence(text: str) -> str:
    """First letter upper case, and a full stop at the end where there is none."""
    text = text if text.endswith(".") else f"{text}."
    return text[0].upper() + text[1:]


def _ll_lettered(row: Row) -> dict[str, Any]:
    key, text, _, texts, gold = _lettered(row)
    return _item(key, text, LETTERS[: len(texts)], [_sentence(each_text) for each_text in texts], gold)


def ll_lettered(rows: Dataset) -> Dataset:
    """ARC and OpenBookQA; numbered labels become letters."""
    return each(_ll_lettered, rows)


def _ll_boolq(row: Row) -> dict[str, Any]:
    return {
        "id": str(row["idx"]),
        "question": row["question"],
        "passage": row["passage"],
        "choices": ["False", "True"],
        "gold": row["label"] if row["label"] in (0, 1) else -1,
    }


def ll_boolq(rows: Dataset) -> Dataset:
    return each(_ll_boolq, rows)
