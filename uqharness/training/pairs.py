"""Tasks that a sequence classifier answers: a document's fields are its input, the choices are its classes.

A YAML's `metadata.uq.pair: [premise, hypothesis]` names the fields, one or two. lm-eval's requests carry strings alone,
so the fields are read from `request.doc`, and the tokenizer pairs them: special tokens, token types, what is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from uqharness.engine.readers import with_types
from uqharness.engine.rows import Pair
from uqharness.errors import InputError


def pair_of(task: Any) -> tuple[str, ...]:
    """Return the document fields that a classifier reads; () for a task with prompts."""
    fields = ((getattr(task.config, "metadata", None) or {}).get("uq") or {}).get("pair")
    if fields is None:
        return ()
    if not (isinstance(fields, list) and 1 <= len(fields) <= 2 and all(isinstance(field, str) for field in fields)):
        raise InputError(f"task {task.config.task}: metadata.uq.pair is {fields!r:.80}: name one or two fields")
    return tuple(fields)


def classes_of(task: Any) -> tuple[str, ...]:
    """Return the classes of a task for classifiers; () for a task with prompts."""
    if not pair_of(task):
        return ()
    classes = task.config.doc_to_choice
    if not isinstance(classes, list) or len({*map(str, classes)}) < max(2, len(classes)):
        raise InputError(f"task {task.config.task}: doc_to_choice is {classes!r:.80}: list the names of its classes")
    return tuple(map(str, classes))


class PairReader:
    """Requests as (input, class): the tokenizer's ids of the fields, and the class that the choice names.

    Args:
        tokenizer: of the encoder.
        pair: the document's fields.
        classes: their names, in the order of the model's logits.
        max_length: tokens of an input; the tokenizer cuts longer ones, first the longer field.

    Attributes:
        cut: the inputs that were longer.
    """

    def __init__(self, tokenizer: Any, pair: Sequence[str], classes: Sequence[str], max_length: int) -> None:
        self.tokenizer, self.pair, self.classes, self.max_length = tokenizer, pair, list(classes), max_length
        self.cut: set[tuple[int, ...]] = set()
        self._last: tuple[tuple[str, ...], tuple[int, ...]] = (), ()

    def __call__(self, requests: Sequence[Instance]) -> list[Pair]:
        pairs: list[Pair] = []
        for request in requests:
            texts = tuple(self._field(request, name) for name in self.pair)
            if texts != self._last[0]:  # the choices of a question come one after the other
                self._last = texts, self._encode(texts)
            pairs.append((self._last[1], [self.classes.index(str(request.args[1]).strip())]))
        return pairs

    def _field(self, request: Instance, name: str) -> str:
        if not isinstance(text := request.doc.get(name), str):
            raise InputError(
                f"task {request.task_name}: metadata.uq.pair names {name!r:.60}, which is no text of its documents; "
                f"they have {', '.join(map(str, request.doc))[:200]}"
            )
        return text

    def _encode(self, texts: Sequence[str]) -> tuple[int, ...]:
        made = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        ids = with_types(made["input_ids"], made.get("token_type_ids") or [0] * len(made["input_ids"]))
        whole = {"truncation": False, "verbose": False}
        if len(ids) >= self.max_length and len(self.tokenizer(*texts, **whole)["input_ids"]) > self.max_length:
            self.cut.add(ids)
        return ids
