"""The items that a method may use: to fit, to tune and to select on, never those of the evaluated split.

The record lists their fingerprints, so that evaluating on them can be refused.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uqharness.errors import InputError
from uqharness.results import leakage
from uqharness.settings import PROMPTS, Run, digest
from uqharness.training.pairs import PairReader, classes_of, pair_of
from uqharness.training.prompts import Prompting
from uqharness.training.questions import (
    Encode,
    PairEncoder,
    Question,
    check_trainable,
    read_questions,
    without_shared_start,
)

if TYPE_CHECKING:
    from uqharness.training.checkpoints import Course

log = logging.getLogger(__name__)


_kept: dict[tuple[Any, ...], ChoiceData] | None = None  # questions that the trainings of a suite share


def keep_questions() -> None:
    """Cache the tokenised questions of this process from now on, for the next training on them."""
    global _kept
    _kept = {} if _kept is None else _kept


def prepare(task: Any, tokenizer: Any, run: Run, uses_tune: bool) -> ChoiceData:
    """Return the data of a training run, by the run's flags and the method's `uses_tune`."""
    splits: dict[str, Any] = {"tune": uses_tune, "tune_fraction": run.tune_fraction}
    splits["select_split"] = run.select_split if run.eval_every else None
    key = (run.task, run.base, run.max_length, *splits.values(), *(getattr(run, name) for name in PROMPTS))
    data = (_kept or {}).get(key)
    if data is None:
        pair, prompting = pair_of(task), Prompting.of(task, tokenizer, run)
        reader = PairReader(tokenizer, pair, classes_of(task), run.max_length) if pair else PairEncoder(tokenizer)
        data = ChoiceData.from_task(task, reader, run.max_length, **splits, prompting=prompting)
    if _kept is None:
        return data
    _kept[key] = data
    return dataclasses.replace(data, record=copy.deepcopy(data.record), courses=[])


@dataclass
class ChoiceData:
    """Questions that a method is fitted on (`train`), may tune on (`tune`), and that `--select` uses (`select`)."""

    train: list[Question]
    tune: list[Question]
    select: list[Question]
    max_length: int
    pad: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    courses: list[Course] = field(default_factory=list)  # the trainings on it; their checkpoints go at the end

    @classmethod
    def from_task(
        cls,
        task: Any,
        encode: Encode,
        max_length: int,
        *,
        tune: bool = False,
        tune_fraction: float = 0.1,
        select_split: str | None = None,
        seed: int = 0,
        limit: int | None = None,
        prompting: Prompting | None = None,
    ) -> ChoiceData:
        """`tune`: the method uses `data.tune`. What `tune` and `select` take from `train` is held out of it.

        Which items are held out depends on `seed` and the items, not on their order: keep it the same for
        an adapter and what is built on it. `limit`: the first items of each split, for a trial run.
        """
        check_trainable(task)
        prompting = prompting or Prompting()
        read = functools.partial(read_questions, encode=encode, limit=limit, prompting=prompting)
        parts = divide(task, read, tune or select_split == "tune", tune_fraction, select_split, seed)
        fit, spare, select = parts["fit"], parts["tune"], parts["select"]
        if not tune:  # read for select_split=tune alone
            parts["tune"] = Part("", [])
        used = {purpose: part for purpose, part in parts.items() if part.items}
        path = str(task.config.dataset_path or "")
        record = {
            "task": task.config.task,
            "form": prompting.form,
            # The data set as lm-eval names it; a folder of this machine has no name.
            "dataset": None if not path or os.path.isabs(path) else path,
            "subset": task.config.dataset_name,
            "dropped": getattr(task, "train_dropped", None),
            # Items that lose tokens: on the left as in HFLM (the last token is no input), or in a classifier.
            "truncated": {
                purpose: sum(q.cut or q.tokens - 1 > max_length for q in part.items) for purpose, part in used.items()
            },
            # Not counting the tokens that all choices of a question begin with (a chat's line break).
            "multi_token_choices": sum(len(rest) > 1 for q in fit.items for rest in without_shared_start(q.pairs)),
            **({"classes": list(classes)} if (classes := classes_of(task)) else {}),
            "splits": [part.record(purpose) for purpose, part in used.items()],
        }
        _say(record)
        return cls(fit.items, spare.items, select.items, max_length, record=record)


@dataclass(frozen=True)
class Part:
    """Items and their names."""

    name: str
    items: list[Question]

    def record(self, purpose: str) -> dict[str, Any]:
        """`prompts` are what items are held out by and what the recipe's hash is made of, as ever."""
        prompts, documents = [q.fingerprint for q in self.items], [q.document for q in self.items]
        entry = {"purpose": purpose, "split": self.name, "items": len(prompts), "hash": digest(prompts)}
        return {**entry, "fingerprint_version": leakage.VERSION, "fingerprints": documents, "prompts": prompts}


def divide(
    task: Any, read: Callable[..., list[Question]], tune: bool, fraction: float, select: str | None, seed: int
) -> dict[str, Part]:
    """Return fit, tune, select. To tune: a validation split that the task does not evaluate, else a part of train."""
    name, rest = _split_name(task, "training"), read(task, "train", task.training_docs())
    parts = {"tune": Part("", []), "select": Part("", [])}
    if tune and task.has_validation_docs() and task.has_test_docs():  # lm-eval evaluates on test then
        items = read(task, "validation", task.validation_docs())
        parts["tune"] = Part(_split_name(task, "validation"), items)
    elif tune:
        rest, held = hold_out(rest, max(1, round(len(rest) * fraction)), f"tune{seed}")
        parts["tune"] = Part(f"{name}[{len(held)} items, seed {seed}]", held)
    if select == "tune":
        parts["select"] = parts["tune"]
    elif select:
        rest, held = hold_out(rest, held_items(select, len(rest)), f"select{seed}")
        parts["select"] = Part(f"{name}[{len(held)} items, seed {seed}]", held)
    if not rest:
        raise InputError(f"nothing is left to train on: {task.config.task} has too few items for these splits")
    taken = "" if not (parts["tune"].name + parts["select"].name).count(f"{name}[") else f"[{len(rest)} left]"
    return {"fit": Part(name + taken, rest), **parts}


def hold_out(items: list[Question], count: int, key: str) -> tuple[list[Question], list[Question]]:
    """Return (rest, held out): the `count` items whose hashed fingerprint comes first; equal items stay together."""
    sizes, held, total = Counter(q.fingerprint for q in items), set(), 0
    for name in sorted(sizes, key=lambda f: hashlib.sha256(f"{key}:{f}".encode()).digest()):
        if total >= count:
            break
        held.add(name)
        total += sizes[name]
    return [q for q in items if q.fingerprint not in held], [q for q in items if q.fingerprint in held]


def held_items(split: str, total: int) -> int:
    """Return how many items `train[-20%]` or `train[-500]` holds out."""
    match = re.fullmatch(r"train\[-(\d+(?:\.\d+)?)(%?)\]", split.replace(" ", ""))
    if match is None:
        raise InputError(f"select_split is {split!r}: write train[-20%], train[-500] or tune (never what is evaluated)")
    count = round(total * float(match[1]) / 100) if match[2] else int(float(match[1]))
    if not 0 < count < total:
        raise InputError(f"select_split {split} is {count} of {total} training items: both parts need at least one")
    return count


def _split_name(task: Any, role: str) -> str:
    if hasattr(task, "split_record"):
        return str(task.split_record(role)["split"])
    return str(getattr(task.config, f"{role}_split"))


def _say(record: Mapping[str, Any]) -> None:
    for purpose, count in record["truncated"].items():
        if count:
            where = "" if record.get("classes") else " on the left"
            log.warning("%d items to %s are longer than max_length and lose tokens%s", count, purpose, where)
    if record["dropped"]:
        log.info("training removes items by their number of choices, or for a repeated answer: %s", record["dropped"])
    if count := record["multi_token_choices"]:
        log.info("%d answer choices are several tokens: their log-probabilities are summed", count)
