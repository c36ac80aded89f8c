"""All results as one `Board`: result files -> checked runs -> frames that the views read.

JSON stays the truth; a parquet of what was computed from it, keyed by the files' hashes, is only a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from uqharness.errors import InputError
from uqharness.leaderboard import publish, reported
from uqharness.leaderboard.ingest import NUMBERS, problem, record_in, shown_path, without_path
from uqharness.leaderboard.store import refresh, result_files
from uqharness.leaderboard.table_sources import Shared, Source, labels
from uqharness.results.reading import Record

RUN_COLUMNS = (
    "run_id",
    "file",
    "task",
    "model",
    "base",
    "method",
    "row",
    "settings",
    "trained_on",
    "shift",
    "protocol",
    "protocol_hash",
    "protocol_name",
    "recipe_hash",
    "setup",
    "seed",
    "finite",
    "draws",
    "has_mean",
    "combine",
    "mean_is_member",
    "items",
    "origin",
    "flags",
    "date",
    "adapter",
    "adapter_hash",
    "train_seconds",
    "peak_memory",
    "trainable",
    "passes",
    "device",
    "dtype",
    "eval_seconds",
    "elsewhere",
    "mean_taken",
    "record",
)
# Fields of `Source` that are columns of `runs`.
SOURCE_COLUMNS = (
    "file",
    "task",
    "protocol",
    "protocol_hash",
    "items",
    "draws",
    "has_mean",
    "combine",
    "date",
    "method",
    "settings",
    "seed",
    "trained_on",
    "recipe_hash",
    "setup",
    "finite",
    "adapter_hash",
    "mean_is_member",
    "elsewhere",
    "mean_taken",
    "run_id",
    "flags",
)
PROBLEM_COLUMNS = ("file", "task", "kind", "reason")
# Flags of runs that are shown and never ranked, with what a reader is told.
SUSPECT = {
    "mismatch": "its file says other numbers than its answers give",
    "range": "it holds probabilities above 1",
}

SHARED = Shared(0, 0, {})  # how many, and what they change, is among the problems


@dataclass(frozen=True)
class Board:
    """Everything a page shows; `values` has a row per run and number of draws, in the order of `runs`."""

    runs: pd.DataFrame
    values: pd.DataFrame
    reported: pd.DataFrame
    problems: pd.DataFrame
    snapshot: str
    _rows: dict[str, tuple[int, int]] = field(repr=False)  # run_id -> its first row of `values`, and its draws
    _numbers: dict[str, np.ndarray] = field(repr=False)
    _paths: dict[str, str] = field(repr=False)

    def record(self, run_id: str) -> Record:
        """The answers of every draw, read from the run's file."""
        run, path = self.run(run_id), self._paths[run_id]
        return publish.record(path, run_id) if run["origin"] == "published" else record_in(path, run["task"])

    def run(self, run_id: str) -> dict[str, Any]:
        """The row of `runs`."""
        if run_id not in self._places:
            raise InputError(f"there is no run {run_id!r} among these results")
        found = self.runs.iloc[self._places[run_id]]
        return {
            key: None if value is None or value is pd.NA or value != value else value for key, value in found.items()
        }

    @cached_property
    def _places(self) -> dict[str, int]:
        return {run_id: k for k, run_id in enumerate(self.runs["run_id"])}

    def sources(self, **filters: Any) -> list[Source]:
        """What `table.build` takes, of the runs whose columns have these values (a list: one of them)."""
        kept = self.runs
        for column, wanted in filters.items():
            kept = kept[kept[column].isin(wanted if isinstance(wanted, (list, tuple, set)) else [wanted])]
        columns = [kept[name].astype(object).where(kept[name].notna(), None).tolist() for name in SOURCE_COLUMNS]
        return [self._source(dict(zip(SOURCE_COLUMNS, row, strict=True))) for row in zip(*columns, strict=True)]

    def number(self, run_id: str, metric: str, draws: int) -> float:
        start, first = self._rows[run_id]
        return float(self._numbers[metric].item(start + draws - first))

    def _source(self, row: dict[str, Any]) -> Source:
        flags, run_id = _read(row.pop("flags")), row["run_id"]
        texts = {"row": (row["method"], row["settings"]), "setup_text": row["setup"]}
        row |= {key: _read(row[key]) for key in ("protocol", "settings", "setup")}
        suspect = tuple(text for flag, text in SUSPECT.items() if flag in flags)
        source = Source(
            **row,
            leaked="leaked" in flags,
            shared=SHARED if "shared" in flags else None,
            inert="inert" in flags,
            suspect=suspect,
            number=partial(self.number, run_id),
            record=partial(self.record, run_id),
        )
        vars(source).update(texts)  # its cached properties: known here, and slow to make again 10,000 times
        return source


@lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    return json.loads(text)


def build(paths: Sequence[Path], cache: Path | None = None) -> Board:
    """The board of these result files, folders and published files; of our own published ones where none is given.

    `cache` is a parquet that makes the next time quick.
    """
    shown = dict(result_files(paths or publish.shipped()))
    archives = [path for path in shown if path.endswith(publish.SUFFIX)]
    store = refresh([path for path in shown if path not in archives], cache)
    problems = [{**row, "file": shown_path(shown[row["file"]])} for row in store.unread]
    hashes = {path: sha for path, (_, _, sha) in store.files.items()}
    for path in archives:
        try:
            hashes[path] = publish.digest_of(path)
        except InputError as error:
            problems.append(problem(shown_path(shown[path]), "broken", without_path(error, path)))
    order: dict[str, str] = {}
    for path in filter(hashes.__contains__, shown):  # in the order of the files, not of their reading
        if order.setdefault(hashes[path], path) != path:
            reason = f"the same content as {shown_path(shown[order[hashes[path]]])}"
            problems.append(problem(shown_path(shown[path]), "duplicate", reason))
    for sha, path in order.items():
        problems += [{**row, "file": shown_path(shown[path])} for row in store.problems.get(sha, ())]
    tables = [publish.read(path, shown[path], problems) for path in archives if path in order.values()]
    snapshot = hashlib.sha256(" ".join(sorted(order)).encode()).hexdigest()[:16]
    return assemble(pa.concat_tables([measured(store.runs, order, shown), *tables]), problems, snapshot)


def measured(runs: pa.Table, order: Mapping[str, str], shown: Mapping[str, str]) -> pa.Table:
    """Rows of the store in the order of their files, with where they are from; a path is bytes, and may be no text."""
    position = {sha: k for k, sha in enumerate(order)}
    hashes = runs["sha256"].to_pylist()
    order_of_rows = np.argsort([position[sha] for sha in hashes], kind="stable").astype(np.int64)
    paths = [order[hashes[k]] for k in order_of_rows]
    origins = ["submitted" if "submitted" in path.split(os.sep) else "measured" for path in paths]
    files = [shown_path(shown[path]) for path in paths]
    runs = runs.take(pa.array(order_of_rows)).append_column("path", pa.array(map(os.fsencode, paths), pa.binary()))
    for name, column in {"file": files, "origin": origins}.items():
        runs = runs.append_column(name, pa.array(column, pa.string()))
    return runs


def assemble(table: pa.Table, problems: list[dict[str, Any]], snapshot: str) -> Board:
    """Frames from rows; runs that another one claims to be are set aside."""
    runs = table.drop_columns(["n", *NUMBERS]).to_pandas().astype({"seed": "Int64", "finite": "Int64"})
    aside = claimed_twice(runs, problems)
    if aside:
        keep = ~runs.index.isin(aside)
        runs, table = runs[keep].reset_index(drop=True), table.filter(pa.array(keep))
    numbers = {name: table[name].combine_chunks().flatten().to_numpy() for name in ("n", *NUMBERS)}
    sizes = pc.list_value_length(table["n"]).to_numpy().astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    ids = runs["run_id"].to_numpy()
    values = pd.DataFrame({"run_id": np.repeat(ids, sizes), "draws": numbers.pop("n").astype(np.int64), **numbers})
    first = values["draws"].to_numpy()[starts]
    rows = dict(zip(ids, zip(starts.tolist(), first.tolist(), strict=True), strict=True))
    found = pd.DataFrame(problems, columns=list(PROBLEM_COLUMNS))
    paths = dict(zip(ids, map(os.fsdecode, runs["path"]), strict=True))
    board = Board(runs, values, reported.load(), found, snapshot, rows, numbers, paths)
    kinds = runs.drop_duplicates(["method", "settings"])["run_id"].tolist()
    names = labels(board.sources(run_id=kinds))
    runs["row"] = [names[row] for row in zip(runs["method"], runs["settings"], strict=True)]
    runs = runs[list(RUN_COLUMNS)]
    texts = [name for name, kind in runs.dtypes.items() if kind == "str"]  # pandas 3: slow to walk and to filter
    return replace(board, runs=runs.astype(dict.fromkeys(texts, object)))


# What makes two results the same run: with the same start, of two answers at most one is what the model gave.
CLAIM = [
    "task",
    "date",
    "adapter_hash",
    "adapter",
    "model",
    "method",
    "settings",
    "setup",
    "recipe_hash",
    "seed",
    "protocol_hash",
    "draws",
    "has_mean",
]


def claimed_twice(runs: pd.DataFrame, problems: list[dict[str, Any]]) -> list[int]:
    """Rows that say to be a run that another file has: the first that does not contradict itself counts."""
    again = runs["run_id"].duplicated()  # a published run beside the file that it was made of, or an id that is copied
    aside = list(runs.index[again])
    for k in aside:
        first = runs.index[runs["run_id"] == runs.at[k, "run_id"]][0]
        reason = f"the run {runs.at[k, 'run_id']}, which {runs.at[first, 'file']} holds: that one counts"
        problems.append(problem(runs.at[k, "file"], "duplicate", reason, runs.at[k, "task"]))
    dated = runs[runs["date"].notna() & ~again]
    twins = dated[dated.duplicated(CLAIM, keep=False)]
    for _, group in twins.groupby(CLAIM, dropna=False, sort=False):
        sound = [k for k in group.index if not set(_read(runs.at[k, "flags"])) & set(SUSPECT)]
        first = (sound or list(group.index))[0]
        for k in group.index:
            if k != first:
                reason = f"claims to be the run of {runs.at[first, 'file']}, with other content"
                problems.append(problem(runs.at[k, "file"], "conflict", reason, runs.at[k, "task"]))
                aside.append(k)
    return aside
