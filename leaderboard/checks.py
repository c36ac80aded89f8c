"""Is a result what it says to be?  What contradicts itself is refused, what can be used but not relied on is flagged.

Names, numbers and counts come from files that anyone can send: nothing in them is taken for what it should be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from uqharness.errors import InputError
from uqharness.leaderboard.table_sources import mapping
from uqharness.results.reading import Run, digest

MAX_NAME = 300
# Metrics that have one definition everywhere: a file made by another version of ours must agree in these.
STABLE = (
    "acc",
    "nll",
    "brier",
    "ece",
    "ece10",
    "auroc",
    "aurc",
    "entropy",
    "entropy_norm",
    "mutual_information",
    "mutual_information_norm",
)
TOLERANCE = 1e-6
ABOVE_ONE = 0.01  # on a log-likelihood, and on a sum of probabilities: half precision rounds
PARTS = ("method", "run", "recipe", "posterior", "data", "costs")
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates


def refuse(run: Run) -> None:
    """An `InputError` where the record contradicts itself: then it is not what a model answered."""
    record, said = run.record, run.record.protocol
    if np.nanmax(record.logp) > ABOVE_ONE:
        raise InputError(f"a log-likelihood of {np.nanmax(record.logp):.6g}: no probability is above 1")
    if record.task not in ("", run.task):
        raise InputError(f"the record is of the task {plain_text(record.task, 60)}")
    rule = mapping(run.config, "uqharness").get("combine", record.combine)
    if rule != record.combine:
        raise InputError(f"the model combines draws by {plain_text(repr(rule), 20)}, the record by {record.combine}")
    if said.get("items", record.items) != record.items:
        raise InputError(f"its protocol has {plain_text(repr(said['items']), 20)} questions, its record {record.items}")
    if "documents" in said and said["documents"] != digest(record.doc_hashes):
        raise InputError("its questions are not those that its protocol was made of")
    if (rows := rows_of(run)) is not None and record.ids.max() >= rows:
        raise InputError(f"a question number {record.ids.max()} of a split of {rows}")


def suspicions(run: Run, data: Mapping[str, Any], computed: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(flag, reason): numbers other than those of the answers, sums above 1, questions left out."""
    for name in STABLE:
        told, value = run.reported.get(name), computed[name]
        if told is not None and not math.isnan(value) and not abs(told - value) <= TOLERANCE * max(1.0, abs(value)):
            yield "mismatch", f"the file says {name} = {told:.6g}, its answers give {value:.6g}"
    total = np.nansum(np.exp(run.record.logp), axis=-1).max()
    if total > 1 + ABOVE_ONE:
        yield "range", f"the choices of a question have a probability of {total:.4g} together"
    samples = data.get("n-samples")
    counts = samples.get(run.task) if isinstance(samples, Mapping) else None
    full, used = (counts.get("original"), counts.get("effective")) if isinstance(counts, Mapping) else (None, None)
    if used is not None and used != run.record.items:
        yield "mismatch", f"the file says {plain_text(repr(used), 20)} questions, its record holds {run.record.items}"
    known = [n for n in (full, None if "keep" in run.record.protocol else rows_of(run)) if isinstance(n, int)]
    if known and max(known) > run.record.items:
        yield "trimmed", f"{run.record.items} of {max(known)} questions"


def refuse_record(record: Mapping[str, Any]) -> None:
    """Pages read these parts of an adapter's record, and of those that it was built on, as objects."""
    while record:
        for name in PARTS:
            mapping(record, name)
        mapping(record, "method", "settings")
        record = mapping(record, "source")


def rows_of(run: Run) -> int | None:
    """The rows of the evaluated split, before a rule leaves some out."""
    rows = run.record.protocol.get("rows")
    if isinstance(rows, list) and len(rows) == 2 and all(type(n) is int for n in rows):
        return int(rows[1] - rows[0])
    return None


# ---------------------------------------------------------------- text and numbers of others


def plain_text(text: str, limit: int = MAX_NAME) -> str:
    """What any file format and terminal can take: no lone surrogates, no control characters, not endless."""
    cut = text[:limit]
    clean = cut if cut.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)
    return clean if len(text) <= limit else f"{clean}…"


def name_of(value: object, what: str) -> str:
    """A name is shown as it is: it must be text, short, on one line, and Unicode that can be written."""
    if not isinstance(value, str) or len(value) > MAX_NAME or UNWRITABLE.search(value):
        raise InputError(f"{what} is not a short text: {plain_text(repr(value), 60)}")
    return value


def optional_name(value: object, what: str) -> str | None:
    return None if value is None else name_of(value, what)


def number_of(value: object, what: str) -> float | None:
    """lm-eval writes some numbers as text."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{what} is not a number: {plain_text(repr(value), 60)}")
    return number


def whole_of(value: object, what: str, least: int | None = None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise InputError(f"{what} is not a whole number: {plain_text(repr(value), 60)}")
    if least is not None and value < least:
        raise InputError(f"{what} is {value}, less than {least}")
    return value
