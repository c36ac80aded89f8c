"""A folder of results in one small file that can be committed: `published/*.parquet`, `uqharness publish`.

Every run's columns and its metrics for every N, exactly; of its answers two rows per question, not each draw: the
posterior's mean and the average over all draws.  A row is kept as log p_c - log p_0, c = 1 … C - 1, in steps of STEP
(at most ±LIMIT): a probability is off by less than 0.25 STEP.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard.checks import (
    MAX_NAME,
    loads,
    name_of,
    number_of,
    optional_name,
    plain_text,
    refuse_record,
    whole_of,
)
from uqharness.leaderboard.ingest import MAX_BYTES, NUMBERS, Row, content_of, error_line, problem, record_in, shown_path
from uqharness.leaderboard.store import REAL, SCHEMA, TEXTS, refresh, result_files
from uqharness.metrics import combine_draws
from uqharness.record import MAX_VALUES, RULES, Record, digest
from uqharness.scores import log_softmax

SUFFIX = ".parquet"
STEP = 1 / 1024
LIMIT = 30.0  # a probability below 1e-13 is one
KEPT = ("gold", "choices", "ids", "doc_hashes", "answers")
MAX_ROWS = 100_000
RUN_ID = re.compile(r"[0-9a-f]{16}")
PACKED = {"gold": "<u2", "choices": "<u2", "ids": "<u4"}
JSON = {"settings": dict, "setup": dict, "protocol": dict, "record": dict, "flags": list}
NULLABLE = ("trained_on", "shift", "protocol_name", "recipe_hash")
NAMES = tuple(name for name in TEXTS if name not in {"run_id", "elsewhere", *NULLABLE, *JSON})
UNDEFINED = ("auroc", "mutual_information", "mutual_information_norm")  # of a model that is always right, or one draw
OF_RECORD = ("run_id", "task", "items", "has_mean", "draws", "protocol", "protocol_hash")
WHOLE_ROW = pa.schema([*SCHEMA, *((name, pa.binary()) for name in KEPT)])
# The folders of an absolute path. One with spaces has a known end only as the whole text or between quotes;
# in the middle of a text, "/home/my name/x" loses what is before the space: more would take words of that text with it.
SPACED = r"""[^\s/"'](?:(?! -| /|[,:;] )[^/"'\n])*"""
ABSOLUTE = re.compile(
    rf"""(?:\A|(?<=["']))/(?:{SPACED}/)+(?=(?:{SPACED})?(?:\Z|["']))|(?<![\w./-])/(?:[\w.+-]+/)+"""
)


@dataclass(frozen=True)
class Averaged(Record):
    """A record of which the draws are gone and their average is left: N = 0 and N = S."""

    averaged: int = field(default=0, kw_only=True)

    @property
    def draws(self) -> int:
        return self.averaged

    def rows(self, draws: int | None = None) -> np.ndarray:
        if draws not in (None, self.averaged, 0):
            raise InputError(f"{self.task} was published without its single draws: N = 0 and {self.averaged} are there")
        wanted = 0 if draws == 0 else 1
        if wanted == 0 and not self.has_mean:
            raise InputError(f"{self.task} holds no row for the posterior mean")
        return self.logp[wanted : wanted + 1].astype(np.float64)


def shipped() -> list[Path]:
    """What comes with the package: our own published results, and results that were sent in."""
    here = Path(__file__).parent
    return [*sorted((here / "published").glob(f"*{SUFFIX}")), *filter(Path.is_dir, [here / "submitted"])]


def write(table: pa.Table, records: Sequence[Record], out: Path) -> None:
    """Rows of the store with their records -> one parquet, whole or not at all."""
    columns = [dict(zip(KEPT, pack(record), strict=True)) for record in records]
    for name in KEPT:
        table = table.append_column(name, pa.array([row[name] for row in columns], pa.binary()))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=19, write_statistics=False)
    write_atomic(out, sink.getvalue().to_pybytes())


def pack(record: Record) -> tuple[bytes, ...]:
    arrays = (record.gold.astype("<u2"), record.choices.astype("<u2"), record.ids.astype("<u4"))
    hashes = bytes.fromhex("".join(record.doc_hashes))
    return (*(array.tobytes() for array in arrays), hashes, pack_answers(record))


def pack_answers(record: Record) -> bytes:
    """Steps of the log-odds against the first choice, the low bytes of all of them before the high ones."""
    rows = [averaged(record, n) for n in ([0] if record.has_mean else []) + ([record.draws] if record.draws else [])]
    log_p = log_softmax(np.stack(rows))  # [1 or 2, D, C]
    odds = np.clip(log_p[..., 1:] - log_p[..., :1], -LIMIT, LIMIT)
    present = np.broadcast_to(np.arange(1, log_p.shape[2]) < record.choices[:, None], odds.shape)
    steps = np.round(odds[present] / STEP).astype("<i2")
    return steps.view(np.uint8).reshape(-1, 2).T.tobytes()


def averaged(record: Record, draws: int) -> np.ndarray:
    probs = combine_draws(record.rows(draws), record.combine)
    return np.log(np.maximum(probs, np.exp(-2 * LIMIT)))


def unpack_answers(content: bytes, choices: np.ndarray, rows: int) -> np.ndarray:
    """log p [rows, D, C], NaN beyond a question's own choices."""
    steps = np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(2, -1).T).view("<i2").ravel()
    width = int(choices.max())
    odds = np.full((rows, len(choices), width), np.nan)
    odds[..., 0] = 0.0
    inside = np.broadcast_to(np.arange(1, width) < choices[:, None], (rows, len(choices), width - 1))
    odds[..., 1:][inside] = steps * STEP
    return log_softmax(odds)


# ---------------------------------------------------------------- out and in


def create(results: Sequence[Path], out: Path) -> int:
    """All sound runs of these results -> `out`; how many. Paths of this machine are cut to what is below the folder."""
    paths = [path for path, _ in result_files(results)]
    store = refresh(paths, None)
    wrong = [f"{row['file']}: {row['reason']}" for rows in (store.unread, *store.problems.values()) for row in rows
             if row["kind"] not in ("trimmed", "foreign", "leaked")]  # fmt: skip
    if wrong:
        raise InputError(f"{len(wrong)} problems, nothing is published; the first: {wrong[0]} (uqharness validate)")
    where = {sha: path for path, (_, _, sha) in reversed(store.files.items())}
    rows = store.runs.to_pylist()
    roots = [f"{Path(path).resolve().parent}{os.sep}" for path in results]
    for row in rows:
        row["record"] = json.dumps(brief(json.loads(row["record"]), roots))
    records = [record_in(where[row["sha256"]], row["task"]) for row in rows]
    write(pa.Table.from_pylist(rows, SCHEMA), records, out)
    return len(rows)


def brief(value: Any, roots: Sequence[str]) -> Any:
    """The adapter's record without this machine's folders, and its numbers with six digits."""
    if isinstance(value, dict):
        return {key: brief(inner, roots) for key, inner in value.items()}
    if isinstance(value, list):
        return [brief(inner, roots) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        for root in roots:
            value = value.replace(root, "")
        return ABSOLUTE.sub("", value)
    return value


def opened(path: str, schema: pa.Schema) -> pa.Table:
    """These columns; from the content, because Arrow opens no file whose name is not Unicode."""
    content = content_of(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        size = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
        if file.metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
            raise InputError(f"{file.metadata.num_rows} rows, {size >> 20} MiB")
        table = file.read(columns=schema.names).select(schema.names).cast(schema)
        table.validate(full=True)  # that texts are Unicode: Arrow takes any bytes
    except Exception as error:  # whatever a damaged file brings up
        raise InputError(f"not a published file of this version: {error_line(error)}") from error
    return table


def read(path: str, shown: str, problems: list[Row]) -> pa.Table:
    """The runs of a published file, as rows with where they are from; what cannot be used becomes a problem."""
    file, good = shown_path(shown), []
    try:
        table = opened(path, WHOLE_ROW)
    except InputError as error:
        problems.append(problem(file, "broken", error))
        table = WHOLE_ROW.empty_table()
    for k, row in enumerate(table.to_pylist()):
        try:
            refuse_row(row)
            good.append(k)
        except Exception as error:  # whatever a hostile row brings up
            problems.append(problem(file, "broken", f"row {k + 1}: {error_line(error)}", row["task"] or ""))
    table = table.select(SCHEMA.names).take(pa.array(good, pa.int64()))
    table = table.append_column("path", pa.array([os.fsencode(path)] * len(table), pa.binary()))
    for name, text in {"file": shown_path(Path(shown).name), "origin": "published"}.items():
        table = table.append_column(name, pa.array([text] * len(table), pa.string()))
    return table


def record(path: str, run_id: str) -> Averaged:
    """The two rows per question of one run."""
    table = opened(path, pa.schema([field for field in WHOLE_ROW if field.name in (*OF_RECORD, *KEPT)]))
    found = table.filter(pc.equal(table["run_id"], run_id)).to_pylist()
    if not found:
        raise InputError(f"{shown_path(path)} holds no run {run_id} any more; build the board again")
    row = found[0]
    gold, choices, ids, hashes = questions(row)
    answers = unpack_answers(row["answers"], choices, held(row))
    logp = answers if row["has_mean"] else np.concatenate([np.full_like(answers[:1], np.nan), answers])
    return Averaged(
        logp.astype(np.float32), gold, choices, ids, hashes, "given", row["has_mean"], row["task"],
        json.loads(row["protocol"]), row["protocol_hash"], averaged=row["draws"],
    )  # fmt: skip


def digest_of(path: str) -> str:
    return hashlib.sha256(content_of(path)).hexdigest()


# ---------------------------------------------------------------- anyone can write a parquet


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
    questions(row)


def refuse_objects(row: Row) -> None:
    told = {}
    for name, kind in JSON.items():
        try:
            told[name] = loads(row[name] or "")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} is not JSON: {type(error).__name__}") from error
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
    """Label, number of choices and id of each question, [D] each, and the hashes of their documents."""
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
