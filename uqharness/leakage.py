"""Refuse to evaluate an adapter on items that were used to fit, tune or select it."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from uqharness.errors import InputError

log = logging.getLogger("lm_eval.uqharness")
# Real data sets repeat a few questions across splits; a split that was trained on overlaps entirely.
LIMIT = 0.5


def fingerprint(pairs: Iterable[tuple[str, str]]) -> str:
    """One item, by the texts of its contexts and answers, as 16 hex digits."""
    text = "\x1e".join(f"{context}\x1f{continuation}" for context, continuation in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class LeakCheck:
    """Compares the items of a run with those in the adapter's record (uq_splits.json)."""

    def __init__(self, splits: Sequence[dict[str, Any]], allow: bool) -> None:
        self.splits = [(split, set(split.get("fingerprints", ()))) for split in splits]
        self.allow = allow
        self.found: dict[str, list[dict[str, Any]]] = {}

    def check(self, requests: Sequence[Any]) -> None:
        """Raise where half of a task's items were used before; note smaller overlaps."""
        for task, items in _items(requests).items():
            self.found.pop(task, None)
            for split, seen in self.splits:
                shared = len(items & seen)
                if shared:
                    self._report(task, split, shared, len(items))

    def _report(self, task: str, split: dict[str, Any], shared: int, total: int) -> None:
        name, purpose = split.get("split", "?"), split.get("purpose", "fit")
        found = {"split": name, "purpose": purpose, "shared": shared, "items": total}
        self.found.setdefault(task, []).append(found)
        message = f"{shared} of {total} items of {task} were used to {purpose} this adapter (split {name})"
        if shared > LIMIT * total and not self.allow:
            raise InputError(f"{message}: evaluate on another split, or add allow_leak=True to have it marked")
        log.warning("%s", message)


def _items(requests: Sequence[Any]) -> dict[str, set[str]]:
    pairs: dict[str, dict[Any, dict[int, tuple[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for request in requests:
        pairs[str(request.task_name)][request.doc_id][request.idx] = request.args
    return {
        task: {fingerprint(found[k] for k in sorted(found)) for found in items.values()}
        for task, items in pairs.items()
    }
