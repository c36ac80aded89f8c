"""Refuse to evaluate an adapter on items that were used to fit, tune or select it.

An item is its document: the question and the meaning of its choices, independent of the prompt. Splits that
were published with a few questions in common are told apart from a leak by reading them
(docs/decisions/no-hidden-leaks.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from uqharness.errors import InputError, UQError
from uqharness.loose_json import check, read_object

log = logging.getLogger("lm_eval.uqharness")
SPLITS = "uq_splits.json"
VERSION = 2  # of `document_fingerprint`; version 1 is `fingerprint`
# A training split that holds more of the evaluated items than this is no other split than theirs.
LIMIT = 0.5
QUESTIONS = ("question", "question_stem", "sentence")
OPTIONS = (("option1", "option2"), ("sol1", "sol2"))
NO_TEXT = ({"true", "false"}, {"yes", "no"})  # choices that say nothing about their question


# ---------------------------------------------------------------- what an item is


def fingerprint(pairs: Iterable[tuple[str, str]]) -> str:
    """Return fingerprint version 1: a hash of an item's contexts and answers, as 16 hex digits."""
    text = "\x1e".join(f"{context}\x1f{continuation}" for context, continuation in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def document_fingerprint(doc: Mapping[str, Any]) -> str:
    """Return fingerprint version 2: a hash of question and choices, independent of the prompt format.

    Where the fields of the question are not known, all texts of the document, ids apart.
    """
    question = next((doc[name] for name in QUESTIONS if isinstance(doc.get(name), str)), None)
    choices = choice_texts(doc)
    if question is None or not (choices or isinstance(doc.get("passage"), str)):
        return _hash(sorted(map(normalise, _texts(doc))) or json.dumps(doc, sort_keys=True, default=str))
    return _hash([normalise(question), sorted(normalise(text).removesuffix(".") for text in choices)])


def normalise(text: str) -> str:
    """Normalise a text: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def choice_texts(doc: Mapping[str, Any]) -> list[str]:
    """Return the texts of a document's choices; none if they are only letters, or true and false."""
    texts = doc.get("texts", doc.get("choices", doc.get("options")))
    if isinstance(texts, Mapping):  # as in ARC: {"text": [...], "label": [...]}
        texts = texts.get("text")
    if texts is None:
        names = next((names for names in OPTIONS if all(name in doc for name in names)), ())
        texts = [doc[name] for name in names]
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        return []
    said = [normalise(text) for text in texts]
    letters = [chr(ord("a") + k) for k in range(len(said))]
    return [] if said == letters or set(said) in NO_TEXT else list(texts)


def _texts(value: Any, name: str = "") -> Iterator[str]:
    """Return every text of a document except its ids."""
    if isinstance(value, str) and not name.lower().endswith("id") and name.lower() != "idx":
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# ---------------------------------------------------------------- what an adapter's folder says


class Seen(TypedDict):
    purpose: str
    split: str
    fingerprints: list[str]


class Split(Seen, total=False):
    """One split of `uq_splits.json`. Without a version its fingerprints are of version 1."""

    fingerprint_version: int
    items: int
    hash: str
    of: str


def read_splits(folder: Path) -> list[dict[str, Any]]:
    """Return the splits used to fit, tune or select, with their items' fingerprints; none for a plain adapter."""
    path = folder / SPLITS
    if not path.exists():
        return []
    splits: list[dict[str, Any]] = check(read_object(path).get("splits"), list[Split], f"{path}: splits")
    for split in splits:
        if split.get("fingerprint_version", 1) not in (1, VERSION):
            raise InputError(
                f"{path}: fingerprints of version {split['fingerprint_version']}, this uqharness reads up to "
                f"{VERSION}: install the newer one"
            )
    return splits


def seen_splits(folder: Path, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return `read_splits`; refuse if a split that the adapter's record names is missing."""
    if record is not None and not (folder / SPLITS).exists():
        raise InputError(f"{folder}: {SPLITS} is missing, so what this adapter has seen is not known: copy it again")
    splits = read_splits(folder)
    sizes = {(split["purpose"], split.get("hash")): len(split["fingerprints"]) for split in splits}
    for link in chain(record):
        for named in link["data"].get("splits") or ():
            if sizes.get((named.get("purpose"), named.get("hash"))) != named.get("items"):
                raise InputError(
                    f"{folder / SPLITS}: not the {named.get('items')} items to {named.get('purpose')} that the record "
                    "names: copy the folder again"
                )
    return splits


def stored(split: Mapping[str, Any]) -> dict[str, Any]:
    """Return a split as it is stored, without the hashes of prompts, which only training needs (`data.Part`)."""
    return {key: value for key, value in split.items() if key != "prompts"}


def count_seen(own: Iterable[Mapping[str, Any]], seen: Iterable[Mapping[str, Any]]) -> int:
    """Return how many items of `own`, which has both versions, are in `seen`, which has either."""
    known: dict[int, set[str]] = defaultdict(set)
    for split in seen:
        known[split.get("fingerprint_version", 1)].update(split["fingerprints"])
    pairs = {pair for split in own for pair in zip(split["prompts"], split["fingerprints"], strict=True)}
    return len({document for prompt, document in pairs if prompt in known[1] or document in known[VERSION]})


def chain(record: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Return the adapter's record and those of the adapters that it was built on, each with `data`."""
    while record:
        data = record.get("data")
        yield {**record, "data": data if isinstance(data, Mapping) else {}}
        source = record.get("source")
        record = source if isinstance(source, Mapping) else None


# ---------------------------------------------------------------- the check


@dataclass(frozen=True)
class Item:
    """A question of a run: its id in the evaluated split and its fingerprints by version."""

    id: int
    prints: Mapping[int, str]


class LeakCheck:
    """Compare the items of a run with those that the adapter has seen.

    `load` loads a task by name, to read the training data of the task that the adapter was trained on.
    `whole`: this process is asked a part of the items, so all of the evaluated split count.
    """

    def __init__(
        self, folder: Path, record: Mapping[str, Any] | None, allow: bool, load: Callable[[str], Any], whole: bool
    ) -> None:
        self.record, self.allow, self.load, self.whole = record, allow, load, whole
        self.found: dict[str, dict[str, Any]] = {}
        try:
            self.splits = seen_splits(folder, record)
        except InputError as error:
            if not allow:
                raise InputError(f"{error}, or add allow_leak=True to evaluate without the check") from error
            log.warning("bayeslora: no leak check: %s", error)
            self.splits = []
        self.seen = [(s, s.get("fingerprint_version", 1), set(s["fingerprints"])) for s in self.splits]
        if not self.splits:
            log.info("bayeslora: %s does not record its training items: leaks cannot be detected", folder)

    def check(self, requests: Sequence[Any]) -> None:
        """Refuse items that were used before, unless the published splits share them; count shared items."""
        groups: dict[str, list[Any]] = defaultdict(list)
        for request in requests if self.seen else ():
            groups[str(request.task_name)].append(request)
        for name, group in groups.items():
            self.found.pop(name, None)
            task = getattr(group[0], "uq_task", None)
            items = asked_items(group)
            if self.whole and task is not None:
                items = list({item.id: item for item in (*split_items(task), *items)}.values())
            if report := self._compare(name, task, items):
                self.found[name] = report

    def _compare(self, name: str, task: Any, items: Sequence[Item]) -> dict[str, Any] | None:
        used: set[int] = set()
        parts = []
        for split, version, seen in self.seen:
            shared = {k for k, item in enumerate(items) if item.prints.get(version) in seen}
            if shared:
                parts.append({"purpose": split["purpose"], "split": split["split"], "shared": len(shared)})
            used |= shared
        if not used:
            return None
        try:
            published, reason = self._published(name, task), ""
        except UQError as error:
            published, reason = set(), str(error)
        ids = sorted(items[k].id for k in used if items[k].prints[VERSION] in published)
        leaked, natural, total = len(used) - len(ids), len(ids), len(items)
        if leaked:
            self._refuse(f"{leaked} of {total} items of {name}", parts, natural, reason)
        else:
            what = f"{natural} of {total} items of {name} are also in the published training data"
            log.warning("bayeslora: %s: counted, and the metrics without them are in `uqharness table`", what)
        return {"items": total, "leaked": leaked, "natural": natural, "natural_ids": ids, "used": parts}

    def _refuse(self, what: str, parts: Sequence[Mapping[str, Any]], natural: int, reason: str) -> None:
        purposes = " and ".join(dict.fromkeys(part["purpose"] for part in parts))
        names = ", ".join(dict.fromkeys(part["split"] for part in parts))
        message = f"{what} were used to {purposes} this adapter (split {names})"
        if natural:
            message += f", in addition to {natural} that are also in the published training data"
        if reason:
            message += f"; whether they were published in its training data is unknown: {reason}"
        if not self.allow:
            raise InputError(f"{message}: evaluate on another split, or add allow_leak=True to evaluate and mark it")
        log.warning("bayeslora: %s: marked as a leak", message)

    def _published(self, name: str, task: Any) -> set[str]:
        """Fingerprints of what the tasks of the record were published with to train and to tune on.

        Read from the data, and never where it is the evaluated split itself.
        """
        names = dict.fromkeys(str(link["data"]["task"]) for link in chain(self.record) if link["data"].get("task"))
        if not names:
            raise InputError("its record does not name the task that it was trained on")
        evaluated = self.load(name) if task is None else task
        items = {item.prints[VERSION] for item in split_items(evaluated)}
        shared: set[str] = set()
        for each in names:
            trained = evaluated if each == name else self.load(each)
            for role in ("training", "validation"):
                has_role = getattr(trained, f"has_{role}_docs")()
                if not has_role or (role == "validation" and evaluated_role(trained) != "test"):
                    continue
                one, other = rows(trained, role), rows(evaluated, evaluated_role(evaluated))
                if one[0] == other[0] and max(one[1], other[1]) < min(one[2], other[2]):  # rows in common
                    continue
                prints = {document_fingerprint(doc) for doc in docs(trained, role)}
                # A copy of the evaluated split under another name is no training split.
                shared |= prints if len(prints & items) <= LIMIT * len(items) else set()
        return shared


def asked_items(requests: Sequence[Any]) -> list[Item]:
    """Return the questions of these requests."""
    by_doc: dict[Any, dict[int, Any]] = defaultdict(dict)
    for request in requests:
        by_doc[request.doc_id][request.idx] = request
    items = []
    for doc_id, entries in by_doc.items():
        choices = [entries[k] for k in sorted(entries)]
        doc, prompt = choices[0].doc, fingerprint(request.args[:2] for request in choices)
        items.append(Item(int(doc.get("uq_id", doc_id)), {1: prompt, VERSION: document_fingerprint(doc)}))
    return items


def split_items(task: Any) -> list[Item]:
    """Return all documents of the split that a task evaluates."""
    numbered = enumerate(docs(task, evaluated_role(task)))
    return [Item(int(doc.get("uq_id", k)), {VERSION: document_fingerprint(doc)}) for k, doc in numbered]


# ---------------------------------------------------------------- the splits of an lm-eval task


def evaluated_role(task: Any) -> str:
    return "test" if task.has_test_docs() else "validation"


def docs(task: Any, role: str) -> Iterable[Mapping[str, Any]]:
    documents: Iterable[Mapping[str, Any]] = getattr(task, f"{role}_docs")()
    return documents


def rows(task: Any, role: str) -> tuple[Any, float, float]:
    """Return the split of a role, its first row and the row after its last."""
    config = task.config
    where = (config.dataset_path, config.dataset_name, config.dataset_kwargs, getattr(config, f"{role}_split"))
    return (where, *(task.bounds(role) if hasattr(task, "bounds") else (0, float("inf"))))
