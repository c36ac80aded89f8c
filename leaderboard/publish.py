"""A folder of results in one small file that can be committed: `published/*.parquet`, `uqharness publish`.

Every run's columns and its metrics for every N, exactly; of its answers two rows per question, not each draw: the
posterior's mean and the average over all draws.  A row is kept as log p_c - log p_0, c = 1 … C - 1, in steps of STEP,
no choice more than LIMIT below the best one: a probability is off by less than 0.25 STEP.
"""

from __future__ import annotations

import hashlib
import json
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
from uqharness.leaderboard.ingest import Row, error_line, problem, record_in, shown_path, without_path
from uqharness.leaderboard.published_rows import (
    KEPT,
    LIMIT,
    STEP,
    WHOLE_ROW,
    held,
    mismatches,
    questions,
    refuse_row,
    unpack_answers,
)
from uqharness.leaderboard.store import SCHEMA, refresh, result_files
from uqharness.metrics.registry import combine_draws, log_softmax
from uqharness.results.reading import MAX_BYTES, content_of
from uqharness.results.record import Record

SUFFIX = ".parquet"
MAX_ROWS = 100_000
OF_RECORD = ("run_id", "task", "items", "has_mean", "draws", "protocol", "protocol_hash")
# The folders of an absolute path. One with spaces has a known end only as the whole text or between quotes;
# in the middle of a text, "/home/my name/x" loses what is before the space: more would take words of that text with it.
SPACED = r"""[^\s/"'](?:(?! -| /|[,:;] )[^/"'\n])*"""
ABSOLUTE = re.compile(rf"""(?:\A|(?<=["']))/(?:{SPACED}/)+(?=(?:{SPACED})?(?:\Z|["']))|(?<![\w./-])/(?:[\w.+-]+/)+""")


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
    log_p = np.maximum(log_p, np.nanmax(log_p, axis=2, keepdims=True) - LIMIT)  # NaN stays
    odds = log_p[..., 1:] - log_p[..., :1]
    present = np.broadcast_to(np.arange(1, log_p.shape[2]) < record.choices[:, None], odds.shape)
    steps = np.round(odds[present] / STEP).astype("<i2")
    return steps.view(np.uint8).reshape(-1, 2).T.tobytes()


def averaged(record: Record, draws: int) -> np.ndarray:
    probs = combine_draws(record.rows(draws), record.combine)
    return np.log(np.maximum(probs, np.exp(-2 * LIMIT)))


# ---------------------------------------------------------------- out and in


def create(results: Sequence[Path], out: Path) -> int:
    """All sound runs of these results -> `out`; how many. Paths of this machine are cut to what is below the folder."""
    paths = [path for path, _ in result_files(results)]
    store = refresh(paths, None)
    wrong = [
        f"{row['file']}: {row['reason']}"
        for rows in (store.unread, *store.problems.values())
        for row in rows
        if row["kind"] not in ("trimmed", "foreign", "leaked", "shared")
    ]
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
    file, good = shown_path(shown), dict[int, str]()
    try:
        table = opened(path, WHOLE_ROW)
    except InputError as error:
        problems.append(problem(file, "broken", without_path(error, path)))
        table = WHOLE_ROW.empty_table()
    for k, row in enumerate(table.to_pylist()):
        try:
            refuse_row(row)
            gold, choices, _, _ = questions(row)
            wrong = list(mismatches(row, gold, choices))
            problems += [problem(file, "mismatch", reason, row["task"]) for reason in wrong]
            good[k] = json.dumps([*json.loads(row["flags"]), "mismatch"]) if wrong else row["flags"]
        except Exception as error:  # whatever a hostile row brings up
            problems.append(problem(file, "broken", f"row {k + 1}: {error_line(error)}", row["task"] or ""))
    table = table.select(SCHEMA.names).take(pa.array(list(good), pa.int64()))
    flags = pa.array(list(good.values()), pa.string())
    table = table.set_column(SCHEMA.names.index("flags"), "flags", flags)
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
        logp.astype(np.float32),
        gold,
        choices,
        ids,
        hashes,
        "given",
        row["has_mean"],
        row["task"],
        json.loads(row["protocol"]),
        row["protocol_hash"],
        averaged=row["draws"],
    )


def digest_of(path: str) -> str:
    return hashlib.sha256(content_of(path)).hexdigest()
