"""One row of a published file: what it must hold, and whether its numbers are those of its answers.

Anyone can write a parquet: a row that no results file gives is refused, and one whose answers give other numbers is
flagged as the same results file would be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from uqharness import loose_json
from uqharness.errors import InputError
from uqharness.leaderboard.checks import (
    MAX_NAME,
    name_of,
    number_of,
    optional_name,
    plain_text,
    refuse_record,
    whole_of,
)
from uqharness.leaderboard.ingest import NUMBERS, Row
from uqharness.leaderboard.store import REAL, SCHEMA, TEXTS
from uqharness.metrics.registry import brier_items, correct, log_softmax, nll_items
from uqharness.results.record import MAX_VALUES, RULES, digest

STEP = 1 / 1024
LIMIT = 30.0  # a probability below 1e-13 is one
KEPT = ("gold", "choices", "ids", "doc_hashes", "answers")
RUN_ID = re.compile(r"[0-9a-f]{16}")
PACKED = {"gold": "<u2", "choices": "<u2", "ids": "<u4"}
JSON = {"settings": dict, "setup": dict, "protocol": dict, "record": dict, "flags": list}
NULLABLE = ("trained_on", "shift", "protocol_name", "recipe_hash")
NAMES = tuple(name for name in TEXTS if name not in {"run_id", "elsewhere", *NULLABLE, *JSON})
UNDEFINED = ("auroc", "mutual_information", "mutual_information_norm")  # of a model that is always right, or one draw
WHOLE_ROW = pa.schema([*SCHEMA, *((name, pa.binary()) for name in KEPT)])


def refuse_row(row: Row) -> None:
    """An `InputError` where no results file gives such a row."""
    if not RUN_ID.fullmatch(row["run_id"] or ""):  # it is part of a file's name on the site
        raise InputError(f"{plain_text(repr(row['run_id']), 60)} is no id of a run")
    for name in NAMES:
        name_of(row[name], name)
    for name in NULLABLE:
        optional_name(row[name], name)
    for name in REAL:
        number_of(row[name], name)
    if row["elsewhere"] != (row["elsewhere"] and plain_text(row["elsewhere"], 4 * MAX_NAME)):
        raise InputError("elsewhere is not a line of text")
    if row["combine"] not in RULES or row["mean_is_member"] is None:
        raise InputError("it does not say how its draws are combined")
    whole_of(row["finite"], "finite", 1)
    refuse_objects(row)
    refuse_numbers(row)


def refuse_objects(row: Row) -> None:
    told = {}
    for name, kind in JSON.items():
        told[name] = loose_json.parse(row[name] or "", name)
        if not isinstance(told[name], kind):
            raise InputError(f"{name} is a {type(told[name]).__name__}, not a {kind.__name__}")
    for flag in told["flags"]:
        name_of(flag, "a flag")
    refuse_record(told["record"])
    if row["protocol_hash"] != digest(told["protocol"]):
        raise InputError("its protocol hash is not that of its protocol")


def refuse_numbers(row: Row) -> None:
    """N = 0 (where it has the mean) or 1, … S, and a number of each metric for each of them."""
    n, first = row["n"] or [], int(not row["has_mean"])
    if row["has_mean"] is None or n != list(range(first, first + len(n))) or n[-1:] != [row["draws"]]:
        raise InputError(f"its numbers of draws are not those up to {row['draws']}")
    for name in NUMBERS:
        values = row[name] or []
        if len(values) != len(n):
            raise InputError(f"{len(values)} numbers of {name} for {len(n)} numbers of draws")
        if any(v is None or not (math.isfinite(v) or (v != v and name in UNDEFINED)) for v in values):
            raise InputError(f"{name} is not a number")


def questions(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Label, number of choices and id of each question, [D] each, and the hashes of their documents.

    An `InputError` where they contradict each other or the row's answers.
    """
    gold, choices, ids = (np.frombuffer(row[name] or b"", kind).astype(np.int64) for name, kind in PACKED.items())
    hashes, items = (row["doc_hashes"] or b"").hex(), len(gold)
    if not items or {items, len(choices), len(ids), len(hashes) / 16} != {row["items"]}:
        raise InputError("its questions are not as many as it says")
    if (gold >= choices).any() or len(np.unique(ids)) != items:
        raise InputError("a label that is no choice, or a question twice")
    size = held(row) * int((choices - 1).sum())
    if len(row["answers"] or b"") != 2 * size or held(row) * items * int(choices.max()) > MAX_VALUES:
        raise InputError(f"{len(row['answers'] or b'')} bytes of answers for {size} odds")
    return gold, choices, ids, [hashes[k : k + 16] for k in range(0, len(hashes), 16)]


def held(row: Row) -> int:
    """Rows of answers: the mean's and the draws' average."""
    return int(row["has_mean"]) + int(row["draws"] > 0)


def mismatches(row: Row, gold: np.ndarray, choices: np.ndarray) -> Iterator[str]:
    """Numbers other than those of its answers to these `questions`, as far as their steps tell."""
    log_p = unpack_answers(row["answers"], choices, held(row))  # [R, D, C], R = 1 or 2
    probs, golds = np.exp(log_p).reshape(-1, log_p.shape[2]), np.tile(gold, len(log_p))
    best = np.sort(np.nan_to_num(probs), axis=1)[:, -2:]
    close = best[:, -1] <= best[:, 0] * (1 + 2 * STEP)  # of these the better one is not known
    cut = np.nanmin(log_p, axis=(1, 2)) < 1 - LIMIT  # such a probability can be any smaller one
    found = {"nll": nll_items(probs, golds), "brier": brier_items(probs, golds), "acc": correct(probs, golds)}
    means = {name: values.reshape(len(log_p), -1).mean(axis=1) for name, values in found.items()}  # [R]
    off = {"nll": 2 * STEP, "brier": 2 * STEP, "acc": close.reshape(len(log_p), -1).mean(axis=1).max() + 1e-9}
    for r, place in enumerate([0] * row["has_mean"] + [-1] * (row["draws"] > 0)):  # N = 0 and N = S of the lists
        for name, values in means.items():
            told, value = row[name][place], values[r]
            if told < value - off[name] or (told > value + off[name] and not (cut[r] and name == "nll")):
                yield f"it says {name} = {told:.6g} for N = {row['n'][place]}, its answers give {value:.6g}"


def unpack_answers(content: bytes, choices: np.ndarray, rows: int) -> np.ndarray:
    """log p [rows, D, C], NaN beyond a question's own choices."""
    steps = np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(2, -1).T).view("<i2").ravel()
    width = int(choices.max())
    odds = np.full((rows, len(choices), width), np.nan)
    odds[..., 0] = 0.0
    inside = np.broadcast_to(np.arange(1, width) < choices[:, None], (rows, len(choices), width - 1))
    odds[..., 1:][inside] = steps * STEP
    return log_softmax(odds)
