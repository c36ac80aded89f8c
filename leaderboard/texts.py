"""Questions in words. A record holds ids and hashes of documents; the words are elsewhere, and may be nowhere.

They come from lm-eval's `samples_*.jsonl` beside a results file (`--log_samples`), or from the toy world's own
questions. A text counts only if the hash of its document is that of the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from uqharness import toyworld
from uqharness.results.record import Record, digest

MAX_BYTES = 512 * 2**20
ADD = "Evaluate with --log_samples to see the questions: lm-eval then writes them beside the results."


@dataclass(frozen=True)
class Text:
    prompt: str
    choices: tuple[str, ...]


def texts(record: Record, files: Sequence[str], wanted: Sequence[int]) -> tuple[list[Text | None], str]:
    """Texts of the questions at these positions of the record, and where they are from or what to do."""
    hashes = [record.doc_hashes[d] for d in wanted]
    for file in files:
        if samples := samples_file(file, record.task):
            known = read_samples(str(samples), samples.stat().st_mtime_ns)
            if any(key in known for key in record.doc_hashes):
                return [known.get(key) for key in hashes], f"Texts are from {samples.name}."
    own = [_toyworld(record, d) for d in wanted]
    return own, "Texts are the embedded world's own questions." if any(own) else ADD


def samples_file(results: str, task: str) -> Path | None:
    """results_DATE.json -> samples_TASK_DATE.jsonl, if it is there."""
    folder, name = os.path.split(results)  # and no Path: thousands of files are asked
    name = f"samples_{task}_{os.path.splitext(name)[0].removeprefix('results_')}.jsonl"
    if os.sep in name or "\0" in name:
        return None
    beside = os.path.join(folder, name)
    try:
        return Path(beside) if os.path.isfile(beside) and os.path.getsize(beside) <= MAX_BYTES else None
    except OSError:  # gone meanwhile
        return None


@lru_cache(maxsize=8)
def read_samples(path: str, changed: int) -> dict[str, Text]:
    """Every line that is what lm-eval writes; other lines are left out. `changed` is there for the cache."""
    by_hash = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                sample = json.loads(line)
                requests = list(sample["arguments"].values())
                text = _text(sample["doc"], str(requests[0]["arg_0"]), [str(one["arg_1"]) for one in requests])
                by_hash[doc_hash(sample["doc"])] = text
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                continue
    return by_hash


def doc_hash(doc: Mapping[str, Any]) -> str:
    """As in the record: of the document's content, wherever it stands in its split."""
    return digest({key: value for key, value in doc.items() if key != "uq_id"})


def _toyworld(record: Record, d: int) -> Text | None:
    name = "toyworld" if record.task == "toyworld_uq" else record.task.removeprefix("toyworld_").removesuffix("_uq")
    if not record.task.startswith("toyworld") or "test" not in toyworld.SIZES.get(name, ()):
        return None
    rows, place = _questions(name, str(toyworld.data_path())), int(record.ids[d])
    row = rows[place] if place < len(rows) else None
    return _text(row, row["prompt"], row["choices"]) if row and doc_hash(row) == record.doc_hashes[d] else None


def _text(doc: Mapping[str, Any], prompt: str, answers: Sequence[str]) -> Text:
    """Where a letter stands for a text and the document has it, both: `A. spade`."""
    words = doc.get("texts")
    if not isinstance(words, list) or len(words) != len(answers):
        words = answers
    shown = ((_writable(str(a).strip()), _writable(str(w).strip())) for a, w in zip(answers, words, strict=True))
    return Text(_writable(prompt), tuple(a if a == w else f"{a}. {w}" for a, w in shown))


def _writable(text: str) -> str:
    """JSON can hold half a character, which no page can."""
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=4)
def _questions(name: str, world: str) -> list[dict[str, Any]]:
    return toyworld.questions(name, "test")
