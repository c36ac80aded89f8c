"""Write results as one small file that can be committed: `published/*.parquet`, `uqharness publish`.

Its columns are those of `RunSummary`, exact; beside them, per run, the questions and two rows of answers to each: the
posterior's mean and the average over all draws. Within a budget the single draws come too, of at least one run per
method. A row is kept as log p_c - log p_0, c = 1 … C - 1, in steps of STEP, no choice more than LIMIT below the best
one: a probability is off by less than 0.25 STEP.

Published files are untrusted: a row that no results file could give is refused, and a run whose answers give other
numbers is shown with a remark and not ranked. Files carry a version; those of versions 1 and 2 are read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard.cache import refresh, result_files, state_of
from uqharness.leaderboard.columns import OPTIONAL, SCHEMA, to_runs, to_table
from uqharness.loose_json import check, flatten, nest, parse, text_of, value_of
from uqharness.metrics.averaging import combine_draws, log_softmax
from uqharness.metrics.metric import PROB_FLOOR
from uqharness.metrics.points import brier_items, correct, nll_items
from uqharness.results.files import Problem, problem, reason_of, record_in, shown_path, suspicions
from uqharness.results.reading import MAX_BYTES, content_of
from uqharness.results.record import MAX_VALUES, Record, digest
from uqharness.results.runs import (
    MAX_TEXT,
    REMARKS,
    AdapterRecord,
    RunSummary,
    chain,
    checked,
    labels_seen,
    texts,
    training_passes,
)

SUFFIX = ".parquet"
FIRST = ("real-small",)  # of the published files
VERSION, VERSION_KEY = 3, b"uqharness.published"
BUDGET = 4_000_000  # bytes of a file
MAX_ROWS = 100_000
STEP = 1 / 1024
LIMIT = 709.0  # nats; a probability below the smallest float is that (PROB_FLOOR of the metrics)
# Of steps: wide where a choice is far below another, as texts are. Up to version 2 all were narrow, and cut off there.
NARROW, WIDE = np.dtype("<i2"), np.dtype("<i4")
NARROW_LIMIT = 30.0  # nats
PACKED = {"gold": "<u2", "choices": "<u2", "ids": "<u4"}
APART = (*PACKED, "doc_hashes", "answers", "single_draws")
WHOLE_ROW = pa.schema([*SCHEMA, *((name, pa.binary()) for name in APART)])
# The folders of an absolute path. One with spaces has a known end only as the whole text or between quotes;
# in the middle of a text, "/home/my name/x" loses what is before the space: more would take words of that text with it.
SPACED = r"""[^\s/"'](?:(?! -| /|[,:;] )[^/"'\n])*"""
ABSOLUTE = re.compile(rf"""(?:\A|(?<=["']))/(?:{SPACED}/)+(?=(?:{SPACED})?(?:\Z|["']))|(?<![\w./-])/(?:[\w.+-]+/)+""")

Arrays = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Averaged(Record):
    """A record without single draws: only the mean (N = 0) and the average (N = S)."""

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
    """Return the shipped files: our own published results, a language model's first, and submitted results."""
    here = Path(__file__).parent
    files = sorted((here / "published").glob(f"*{SUFFIX}"), key=lambda file: (file.stem not in FIRST, file.stem))
    return [*files, *filter(Path.is_dir, [here / "submitted"])]


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Written:
    """The result of `create`: runs, how many of them with their single draws, and the size in bytes."""

    runs: int
    whole: int
    size: int


def create(results: Sequence[Path], out: Path, budget: int = BUDGET) -> Written:
    """Write all valid runs of these results to `out`; paths of this machine are cut to what is below the folder."""
    known, unread = refresh([path for path, _ in result_files(results)])
    wrong = [each for group in (*unread.values(), *known.problems.values()) for each in group]
    wrong = [each for each in wrong if each.kind != "foreign"]
    if wrong:
        first = f"{wrong[0].file}: {wrong[0].reason}"
        raise InputError(f"{len(wrong)} problems, nothing is published; the first: {first} (uqharness validate)")
    where = {sha: path for path, (_, _, sha) in reversed(known.files.items())}
    roots = [f"{Path(path).resolve().parent}{os.sep}" for path in results]
    runs = [
        replace(run, adapter_record={key: brief(text, roots) for key, text in run.adapter_record.items()})
        for group in known.runs.values()
        for run in group
    ]
    records = [record_in(where[run.sha256], run.task) for run in runs]
    for chosen in with_draws(runs):  # the most that the budget allows
        content = packed(runs, records, chosen)
        if len(content) <= budget:
            break
    write_atomic(out, content)
    return Written(len(runs), len(chosen), len(content))


def with_draws(runs: Sequence[RunSummary]) -> list[set[str]]:
    """Whose single draws to publish, the most first: all; a seed of each row and data set; a run of each row; none."""
    several = [run for run in runs if run.draws > 1 and run.combine != "given"]
    ordered = sorted(several, key=lambda run: (run.seed is None, run.seed, not run.shift == "id"))
    first_seed = {(run.row, run.task, run.trained_on): run.run_id for run in reversed(ordered)}
    one_run = {run.row: run.run_id for run in reversed(ordered)}
    return [{run.run_id for run in several}, set(first_seed.values()), set(one_run.values()), set()]


def packed(runs: Sequence[RunSummary], records: Sequence[Record], whole: set[str]) -> bytes:
    """Return the content of a published file."""
    columns: dict[str, list[bytes | None]] = {name: [] for name in APART}
    for run, record in zip(runs, records, strict=True):
        for name, kind in PACKED.items():
            columns[name].append(getattr(record, name).astype(kind).tobytes())
        columns["doc_hashes"].append(bytes.fromhex("".join(record.doc_hashes)))
        counts = ([0] if record.has_mean else []) + ([record.draws] if record.draws else [])
        columns["answers"].append(pack_rows(np.stack([averaged(record, n) for n in counts]), record.choices))
        draws = pack_rows(record.logp[1:].astype(np.float64), record.choices) if run.run_id in whole else None
        columns["single_draws"].append(draws)
    table = to_table(runs)
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column, pa.binary()))
    out = pa.BufferOutputStream()
    table = table.replace_schema_metadata({VERSION_KEY: str(VERSION)})
    pq.write_table(table, out, compression="zstd", compression_level=19, write_statistics=False)
    return bytes(out.getvalue().to_pybytes())


def pack_rows(logits: np.ndarray, choices: np.ndarray) -> bytes:
    """[R, D, C] as steps of the log-odds against the first choice, all low bytes before the high ones."""
    log_p = normalised(logits)
    log_p = np.maximum(log_p, np.nanmax(log_p, axis=2, keepdims=True, initial=-np.inf) - LIMIT)  # NaN stays
    odds = log_p[..., 1:] - log_p[..., :1]
    present = np.broadcast_to(np.arange(1, log_p.shape[2]) < choices[:, None], odds.shape)
    steps = np.round(odds[present] / STEP)
    kind = NARROW if np.abs(np.nan_to_num(steps)).max(initial=0) <= NARROW_LIMIT / STEP else WIDE
    steps = np.nan_to_num(steps, nan=not_taken(kind)).astype(kind)
    return bytes(steps.view(np.uint8).reshape(-1, kind.itemsize).T.tobytes())


def not_taken(kind: np.dtype[Any]) -> int:
    """The step that no answer has: samples=auto took no such draw."""
    return int(np.iinfo(kind).min)


def kind_of(content: bytes, count: int) -> np.dtype[Any]:
    return WIDE if len(content) == count * WIDE.itemsize else NARROW


def averaged(record: Record, draws: int) -> np.ndarray:
    probs = combine_draws(record.rows(draws), record.combine)
    return np.asarray(np.log(np.maximum(probs, PROB_FLOOR)))


def brief(text: str, roots: Sequence[str]) -> str:
    """A text of the adapter's record without this machine's folders, and its numbers with six digits."""

    def shorter(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shorter(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shorter(inner) for inner in value]
        if isinstance(value, str):
            for root in roots:
                value = value.replace(root, "")
            return ABSOLUTE.sub("", value)
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return text_of(shorter(value_of(text)))


# ---------------------------------------------------------------- reading


def read(path: str) -> tuple[str, list[RunSummary], list[Problem]]:
    """(hash, runs, problems) of a published file; what cannot be used becomes a problem, and nothing is raised."""
    file, runs, problems = shown_path(path), list[RunSummary](), list[Problem]()
    try:
        content = content_of(path)
        sha = hashlib.sha256(content).hexdigest()
    except InputError as error:
        return "", [], [problem(file, "broken", str(error).removeprefix(f"{path}: "))]
    try:
        rows = rows_of(table_of(content))
    except InputError as error:
        return sha, [], [problem(file, "broken", str(error))]
    for k, (run, arrays) in enumerate(rows):
        try:
            if isinstance(run, Exception):
                raise run
            if not run.run_id:
                raise InputError("it has no id of a run")
            good = compared(checked(run), arrays)
        except Exception as error:  # whatever a hostile row brings up
            task = "" if isinstance(run, Exception) or not isinstance(run.task, str) else run.task
            problems.append(problem(file, "broken", f"row {k + 1}: {reason_of(error)}", task))
            continue
        runs.append(good)
        problems += suspicions(good, file)
    return sha, runs, problems


def rows_of(table: pa.Table, run_id: str = "") -> list[tuple[RunSummary | Exception, Arrays]]:
    """The runs of a published file's table, or the one of this id, unchecked, with the arrays of their answers."""
    try:
        if run_id:
            table = table.filter(pc.equal(table["run_id"], run_id))
        arrays = [name for name in APART if name in table.column_names]
        answers = table.select(arrays).cast(pa.schema([(name, pa.binary()) for name in arrays])).to_pylist()
        runs = of_version_1(table) if version_of(table.schema) == 1 else to_runs(with_all_columns(table))
    except Exception as error:  # whatever a damaged file brings up
        raise InputError(f"not a published file of this version: {reason_of(error)}") from error
    return list(zip(runs, answers, strict=True))


def table_of(content: bytes) -> pa.Table:
    """A published file's table, if it is within the budget."""
    try:  # from the content, because Arrow opens no file whose name is not Unicode
        file = pq.ParquetFile(pa.BufferReader(content))
        size = sum(file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
        if file.metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
            raise InputError(f"{file.metadata.num_rows} rows, {size >> 20} MiB")
        version = version_of(file.schema_arrow)
        if not 1 <= version <= VERSION:
            raise InputError(f"version {version}: this uqharness reads up to {VERSION}; install a newer one")
        table = file.read()
        table.validate(full=True)  # that texts are Unicode: Arrow takes any bytes
    except Exception as error:  # whatever a damaged file brings up
        raise InputError(f"not a published file of this version: {reason_of(error)}") from error
    return table


def version_of(schema: pa.Schema) -> int:
    return int((schema.metadata or {}).get(VERSION_KEY, b"1"))


def with_all_columns(table: pa.Table) -> pa.Table:
    """A column that came later is empty in a file of before, if its field may be empty."""
    for name in OPTIONAL - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def of_version_1(table: pa.Table) -> list[RunSummary | Exception]:
    """Version 1 holds JSON texts for maps, a list of flags, and a column for each metric."""
    lists = [field.name for field in table.schema if pa.types.is_list(field.type) and field.name != "n"]
    runs: list[RunSummary | Exception] = []
    for row in table.drop_columns([name for name in APART if name in table.column_names]).to_pylist():
        try:
            record: AdapterRecord = check(parse(row["record"] or "", "record"), AdapterRecord, "record")
            maps = {name: parse(row[name] or "", name) for name in ("settings", "setup", "protocol")}
            flags = check(parse(row["flags"] or "", "flags"), list[str], "flags")
            remarks = {flag: REMARKS.get(flag, flag) for flag in flags}
            if row["elsewhere"]:
                remarks["elsewhere"] = row["elsewhere"]
            row |= {
                "settings": texts(check(maps["settings"], dict, "settings")),
                "recipe": texts(check(maps["setup"], dict, "setup")),
                "protocol": texts(check(maps["protocol"], dict, "protocol")),
                "adapter_record": flatten(record, MAX_TEXT, skip=("training",)),
                "labels_seen": labels_seen(links := list(chain(record))),
                "training_passes": training_passes(links),
                "metrics": {name: np.array(row[name] or (), dtype=np.float64) for name in lists},
                "without_shared": {},
                "remarks": remarks,
            }
            runs.append(RunSummary(**{name: row.get(name) for name in SCHEMA.names}))
        except Exception as error:  # whatever a hostile row brings up
            runs.append(error)
    return runs


def record(path: str, run_id: str) -> Record:
    """The answers of one run: every draw where they were published, else the mean and the average."""
    for run, arrays in rows_of(_table(path, state_of(path)), run_id):
        if isinstance(run, RunSummary):
            return unpacked(run, arrays)
    raise InputError(f"{shown_path(path)} holds no run {run_id} any more; build the board again")


@lru_cache(maxsize=4)  # of a few MB each: a page asks for most runs of a file, one after the other
def _table(path: str, state: tuple[int, int] | None) -> pa.Table:
    return table_of(content_of(path))


def unpacked(run: RunSummary, arrays: Arrays) -> Record:
    gold, choices, ids, hashes = questions(run, arrays)
    logp = unpack_rows(arrays["answers"] or b"", choices, held(run))
    mean = logp[:1] if run.has_mean else np.full_like(logp[:1], np.nan)
    single = arrays.get("single_draws")
    rows = logp[-1:] if single is None else unpack_rows(single, choices, run.draws)
    values = (np.concatenate([mean, rows]).astype(np.float32), gold, choices, ids, hashes)
    about = (run.has_mean, run.task, {k: value_of(v) for k, v in run.protocol.items()}, run.protocol_hash)
    if single is None:
        return Averaged(*values, "given", *about, averaged=run.draws)
    return Record(*values, run.combine, *about)


def questions(run: RunSummary, arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Label, number of choices and id of each question, [D] each, and the hashes of their documents.

    An `InputError` where they contradict each other or the run's answers.
    """
    gold, choices, ids = (np.frombuffer(arrays[name] or b"", kind).astype(np.int64) for name, kind in PACKED.items())
    hashes, items = (arrays["doc_hashes"] or b"").hex(), len(gold)
    if not items or {items, len(choices), len(ids), len(hashes) / 16} != {run.items}:
        raise InputError("its questions are not as many as it says")
    if (gold >= choices).any() or len(np.unique(ids)) != items:
        raise InputError("a label that is not a choice, or a question twice")
    odds = int((choices - 1).sum())
    for name, rows in (("answers", held(run)), ("single_draws", run.draws)):
        content = arrays.get(name)
        if (content is not None or name == "answers") and (
            len(content or b"") not in {rows * odds * kind.itemsize for kind in (NARROW, WIDE)}
            or rows * items * int(choices.max()) > MAX_VALUES
        ):
            raise InputError(f"{len(content or b'')} bytes of {name} for {rows * odds} odds")
    return gold, choices, ids, [hashes[k : k + 16] for k in range(0, len(hashes), 16)]


def held(run: RunSummary) -> int:
    """Rows of answers: the mean's and the draws' average."""
    return int(run.has_mean) + int(run.draws > 0)


def unpack_rows(content: bytes, choices: np.ndarray, rows: int) -> np.ndarray:
    """log p [rows, D, C], NaN beyond a question's own choices and where no draw was taken."""
    width = int(choices.max())
    odds = np.full((rows, len(choices), width), np.nan)
    odds[..., 0] = 0.0
    inside = np.broadcast_to(np.arange(1, width) < choices[:, None], (rows, len(choices), width - 1))
    kind = kind_of(content, int(inside.sum()))
    steps = np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(kind.itemsize, -1).T).view(kind).ravel()
    odds[..., 1:][inside] = np.where(steps == not_taken(kind), np.nan, steps * STEP)
    odds[np.isnan(odds[..., 1]) & (choices > 1), 0] = np.nan
    return normalised(odds)


def normalised(logits: np.ndarray) -> np.ndarray:
    """log p [R, D, C]; NaN stays, that of a draw that samples=auto did not take as well."""
    untaken = np.isnan(logits[..., :1])
    log_p: np.ndarray = log_softmax(np.where(untaken & (np.arange(logits.shape[2]) == 0), 0.0, logits))
    return np.where(untaken, np.nan, log_p)


def compared(run: RunSummary, arrays: Arrays) -> RunSummary:
    """The run, with a remark where it says other numbers than those of its answers, as far as their steps tell."""
    if run.protocol_hash != digest({key: value_of(text) for key, text in run.protocol.items()}):
        raise InputError("its protocol hash is not that of its protocol")
    check(nest(run.adapter_record), AdapterRecord, "adapter_record")  # pages read its objects
    gold, choices, _, _ = questions(run, arrays)
    log_p = unpack_rows(arrays["answers"] or b"", choices, held(run))  # [R, D, C], R = 1 or 2
    probs, golds = np.exp(log_p).reshape(-1, log_p.shape[2]), np.tile(gold, len(log_p))
    best = np.sort(np.nan_to_num(probs), axis=1)[:, -2:]
    close = best[:, -1] <= best[:, 0] * (1 + 2 * STEP)  # of these the better one is not known
    narrow = kind_of(arrays["answers"] or b"", len(log_p) * int((choices - 1).sum())) == NARROW
    # Such a probability can be any smaller one.
    cut = np.nanmin(log_p, axis=(1, 2)) < 1 - (NARROW_LIMIT if narrow else LIMIT)
    scores = {"nll": nll_items(probs, golds), "brier": brier_items(probs, golds), "acc": correct(probs, golds)}
    means = {name: values.reshape(len(log_p), -1).mean(axis=1) for name, values in scores.items()}  # [R]
    off = {"nll": 2 * STEP, "brier": 2 * STEP, "acc": close.reshape(len(log_p), -1).mean(axis=1).max() + 1e-9}
    wrong = []
    for r, draws in enumerate([0] * run.has_mean + [run.draws] * (run.draws > 0)):
        for name, values in means.items():
            said, value = run.number(name, draws), values[r]
            if said < value - off[name] or (said > value + off[name] and not (cut[r] and name == "nll")):
                wrong.append(f"it says {name} = {said:.6g} for N = {draws}, its answers give {value:.6g}")
    if arrays.get("single_draws") is not None:
        mixed = combine_draws(unpacked(run, arrays).rows(), run.combine)
        if not np.nanmax(np.abs(mixed - np.exp(log_p[-1]))) <= 2 * STEP:
            wrong.append("its single draws do not have the average that it says")
    return replace(run, remarks={**run.remarks, "mismatch": "; ".join(wrong)}) if wrong else run
