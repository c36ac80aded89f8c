"""lm-eval Task -> training questions. Prompts, choices and labels come from the task object itself.

So training asks exactly what evaluation asks, and any multiple-choice lm-eval task with a training split will
do. Tokenisation is lm-eval's own too (`PairEncoder`). Knows nothing of models or methods.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from uqharness.bma import Pair
from uqharness.config import did_you_mean, digest
from uqharness.errors import InputError, UQError
from uqharness.leakage import fingerprint

log = logging.getLogger(__name__)
Encode = Callable[[Sequence[Instance]], list[Pair]]


def load_task(name: str, include_path: str | Path | Sequence[str | Path] | None = None) -> Any:
    """One task by name or YAML file. lm-eval's own 14,000 YAMLs are indexed only if the name is not ours."""
    from lm_eval.tasks import TaskManager

    extra = [include_path] if isinstance(include_path, (str, Path)) else list(include_path or ())
    paths = [str(path) for path in (_our_tasks(), *extra) if path]
    manager = TaskManager(include_defaults=False, include_path=paths)
    if name not in manager.task_index and not Path(name).is_file():
        log.info("%s is none of our tasks: indexing lm-eval's", name)
        manager = TaskManager(include_path=paths)
        if name not in manager.task_index:
            raise InputError(
                f"unknown task {name!r}{did_you_mean(name, manager.all_tasks)}; see `uqharness tasks`"
            )
    try:
        tasks = manager.load(name)["tasks"]
    except UQError:
        raise
    except Exception as error:  # the data set: no network, no such file, a broken YAML
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"task {name} cannot be loaded: {reason}") from error
    if len(tasks) != 1:
        raise InputError(
            f"{name} is a group of {len(tasks)} tasks: name one of {', '.join(sorted(tasks)[:8])}"
        )
    return next(iter(tasks.values()))


def _our_tasks() -> Path | None:
    module = importlib.import_module("uqharness.tasks")
    return Path(module.__file__).parent if module.__file__ else None


class PairEncoder(HFLM):
    """lm-eval's tokenisation of (context, continuation), without a model: BOS, moved spaces, empty contexts."""

    def __init__(self, tokenizer: Any, add_bos_token: bool | None = None) -> None:
        # HFLM's own __init__ would load a model; these are all that its encoding reads.
        self.tokenizer, self.add_bos_token = tokenizer, add_bos_token
        self.backend, self.custom_prefix_token_id, self.enable_thinking = "causal", None, None

    def __call__(self, requests: Sequence[Instance]) -> list[Pair]:
        return self.loglikelihood(list(requests), disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        return [(context, continuation) for _, context, continuation in requests]


@dataclass(frozen=True)
class Question:
    """A question: one (context, continuation) of token ids per choice, and which choice is right."""

    pairs: list[Pair]
    gold: int
    fingerprint: str


@dataclass
class ChoiceData:
    """What a method is fitted on (`train`), may tune on (`tune`), and what `--select` looks at (`select`)."""

    train: list[Question]
    tune: list[Question]
    select: list[Question]
    max_length: int
    pad: int = 0
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_task(
        cls,
        task: Any,
        encode: Encode,
        max_length: int,
        *,
        pad: int = 0,
        tune: bool = False,
        tune_fraction: float = 0.1,
        select_split: str | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> ChoiceData:
        """`tune`: the method uses `data.tune`. It and `select` are held out of `train` where they come from it.

        Which items are held out depends on `seed` and the items, not on their order: keep it the same for
        an adapter and what is built on it.
        """
        check_trainable(task)
        train = read_questions(task, "train", task.training_docs(), encode, limit)
        used: dict[str, list[Question]] = {"tune": [], "select": []}
        names = {"fit": _split_name(task, "training"), "tune": "", "select": ""}
        spare = task.has_validation_docs() and task.has_test_docs()  # lm-eval evaluates on test then
        wants_tune = tune or select_split == "tune"
        if wants_tune and spare:
            used["tune"] = read_questions(task, "validation", task.validation_docs(), encode, limit)
            names["tune"] = _split_name(task, "validation")
        elif wants_tune:
            train, used["tune"] = hold_out(train, max(1, round(len(train) * tune_fraction)), f"tune{seed}")
            names["tune"] = f"{names['fit']}[{len(used['tune'])} items, seed {seed}]"
        if select_split == "tune":
            used["select"], names["select"] = used["tune"], names["tune"]
        elif select_split:
            train, used["select"] = hold_out(train, held_items(select_split, len(train)), f"select{seed}")
            names["select"] = f"{names['fit']}[{len(used['select'])} items, seed {seed}]"
        if not train:
            raise InputError(
                f"nothing is left to train on: {task.config.task} has too few items for these splits"
            )
        parts = {"fit": train, "tune": used["tune"] if tune else [], "select": used["select"]}
        record = {
            "task": task.config.task,
            "dropped": _plain(getattr(task, "train_dropped", None)),
            "truncated": {purpose: count_long(part, max_length) for purpose, part in parts.items() if part},
            "multi_token_choices": sum(len(c) > 1 for q in train for _, c in q.pairs),
            "splits": [
                _split_record(purpose, names[purpose], part) for purpose, part in parts.items() if part
            ],
        }
        _say(record)
        return cls(train, used["tune"], used["select"], max_length, pad, record)


def check_trainable(task: Any) -> None:
    name = task.config.task
    if task.OUTPUT_TYPE != "multiple_choice":
        raise InputError(
            f"task {name} has output_type {task.OUTPUT_TYPE}: training needs one with answer choices"
        )
    if not task.has_training_docs():
        raise InputError(f"task {name} has no training split: choose a task whose YAML gives training_split")


def read_questions(
    task: Any, split: str, docs: Iterable[Mapping[str, Any]], encode: Encode, limit: int | None = None
) -> list[Question]:
    """Every document of a split as lm-eval would ask it at zero shots."""
    found, requests, sizes = [], [], []
    for index, doc in enumerate(docs):
        if limit is not None and index >= limit:
            break
        where = f"{task.config.task}, {split} item {index}"
        context = task.fewshot_context(doc, num_fewshot=0)
        count = len(task.doc_to_choice(doc))
        # Mutual-information metrics append requests with empty contexts: the choices come first.
        asked = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, index, 1))[:count]
        found.append((where, gold_choice(task, doc, count, where)))
        requests.extend(asked)
        sizes.append(len(asked))
    if not found:
        raise InputError(f"{task.config.task}: its {split} split is empty")
    pairs = encode(_non_empty(requests))
    questions, start = [], 0
    for (where, gold), size in zip(found, sizes, strict=True):
        chunk = slice(start, start := start + size)
        check_choices(pairs[chunk], requests[chunk], where)
        questions.append(Question(pairs[chunk], gold, fingerprint([r.args[:2] for r in requests[chunk]])))
    return questions


def gold_choice(task: Any, doc: Mapping[str, Any], count: int, where: str) -> int:
    """Index of the right choice: doc_to_text for tasks with several inputs (WinoGrande), else doc_to_target."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = list(task.doc_to_choice(doc))
        gold = choices.index(gold) if gold in choices else gold
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < count:
        raise InputError(
            f"{where}: label {gold!r} is none of its {count} choices: mend the label or drop the item"
        )
    return gold


def check_choices(pairs: Sequence[Pair], requests: Sequence[Instance], where: str) -> None:
    """Choices must be something, and different things, to the model."""
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
    for (context, continuation), request in zip(pairs, requests, strict=True):
        text = request.args[1]
        if not continuation:
            raise InputError(
                f"{where}: choice {text!r} tokenises to nothing: give it text the tokenizer knows"
            )
        key = (tuple(context), tuple(continuation))
        if key in seen:
            raise InputError(
                f"{where}: choices {seen[key]!r} and {text!r} are the same tokens: tell them apart"
            )
        seen[key] = text


def _non_empty(requests: Sequence[Instance]) -> Sequence[Instance]:
    for request in requests:
        if request.args[1] == "":
            raise InputError(
                f"{request.task_name}: an answer choice is empty and tokenises to nothing: give it text"
            )
    return requests


def hold_out(items: list[Question], count: int, key: str) -> tuple[list[Question], list[Question]]:
    """(rest, held out): the `count` items whose hashed fingerprint comes first; equal items stay together."""
    ranked = sorted(
        {q.fingerprint for q in items}, key=lambda f: hashlib.sha256(f"{key}:{f}".encode()).digest()
    )
    sizes: dict[str, int] = {}
    for question in items:
        sizes[question.fingerprint] = sizes.get(question.fingerprint, 0) + 1
    held, total = set(), 0
    for name in ranked:
        if total >= count:
            break
        held.add(name)
        total += sizes[name]
    return [q for q in items if q.fingerprint not in held], [q for q in items if q.fingerprint in held]


def held_items(split: str, total: int) -> int:
    """How many items `train[-20%]` or `train[-500]` holds out."""
    match = re.fullmatch(r"train\[-(\d+(?:\.\d+)?)(%?)\]", split.replace(" ", ""))
    if match is None:
        raise InputError(
            f"select_split is {split!r}: write train[-20%], train[-500] or tune (never what is evaluated)"
        )
    count = round(total * float(match[1]) / 100) if match[2] else int(float(match[1]))
    if not 0 < count < total:
        raise InputError(
            f"select_split {split} is {count} of {total} training items: both parts need at least one"
        )
    return count


def count_long(items: Sequence[Question], max_length: int) -> int:
    """Items that lose tokens on the left, as in HFLM: the model sees all but the last token."""
    return sum(any(len(context) + len(answer) - 1 > max_length for context, answer in q.pairs) for q in items)


def _split_name(task: Any, role: str) -> str:
    if hasattr(task, "split_record"):
        return str(task.split_record(role)["split"])
    return str(getattr(task.config, f"{role}_split"))


def _split_record(purpose: str, name: str, items: Sequence[Question]) -> dict[str, Any]:
    prints = [q.fingerprint for q in items]
    return {
        "purpose": purpose,
        "split": name,
        "items": len(items),
        "hash": digest(prints),
        "fingerprints": prints,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (int, str, type(None))) else len(value)


def _say(record: Mapping[str, Any]) -> None:
    for purpose, count in record["truncated"].items():
        if count:
            log.warning(
                "%d items to %s are longer than max_length and lose tokens on the left", count, purpose
            )
    if record["dropped"]:
        log.info("training leaves out items by their number of choices: %s", record["dropped"])
    if record["multi_token_choices"]:
        log.info(
            "%d answer choices are several tokens: their log-probabilities are summed",
            record["multi_token_choices"],
        )
