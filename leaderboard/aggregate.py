"""All results as one `Board`: result files -> checked runs -> frames that the views read.

JSON stays the truth; a parquet of what was computed from it, keyed by the files' hashes, is only a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from uqharness.errors import InputError
from uqharness.leaderboard import reported
from uqharness.leaderboard.ingest import NUMBERS, content_of, parse, problem, shown_path
from uqharness.leaderboard.store import Store, refresh
from uqharness.leaderboard.table_sources import Source, labels
from uqharness.results import Record, packed_records, read_run

RUN_COLUMNS = (
    "run_id", "file", "task", "model", "base", "method", "row", "settings", "trained_on", "shift", "protocol",
    "protocol_hash", "protocol_name", "recipe_hash", "setup", "seed", "finite", "draws", "has_mean", "combine",
    "mean_is_member", "items", "origin", "flags", "date", "adapter", "adapter_hash", "train_seconds", "peak_memory",
    "trainable", "passes", "device", "dtype", "eval_seconds", "elsewhere", "record",
)  # fmt: skip
PROBLEM_COLUMNS = ("file", "task", "kind", "reason")
# Flags of runs that are shown and never ranked, with what a reader is told.
SUSPECT = {
    "mismatch": "its file says other numbers than its answers give",
    "range": "it holds probabilities above 1",
}


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
    _paths: dict[str, Path] = field(repr=False)

    def record(self, run_id: str) -> Record:
        """The answers of every draw, read from the run's file."""
        run = self.run(run_id)
        data = parse(content_of(self._paths[run_id]))
        for task, values, packed in packed_records(data):
            if task == run["task"]:
                return read_run(data, run["file"], task, values, packed).record
        raise InputError(f"{run['file']} holds no {run['task']} any more; build the board again")

    def run(self, run_id: str) -> dict[str, Any]:
        """The row of `runs`."""
        found = self.runs[self.runs["run_id"] == run_id]
        if found.empty:
            raise InputError(f"there is no run {run_id!r} among these results")
        return {
            key: None if value is None or value is pd.NA or value != value else value
            for key, value in found.iloc[0].items()
        }

    def sources(self, **filters: Any) -> list[Source]:
        """What `table.build` takes, of the runs whose columns have these values (a list: one of them)."""
        kept = self.runs
        for column, wanted in filters.items():
            kept = kept[kept[column].isin(wanted if isinstance(wanted, (list, tuple, set)) else [wanted])]
        return [self._source(row) for row in kept.to_dict("records")]

    def number(self, run_id: str, metric: str, draws: int) -> float:
        start, first = self._rows[run_id]
        return float(self._numbers[metric][start + draws - first])

    def _source(self, row: dict[str, Any]) -> Source:
        row = {key: None if value is None or value is pd.NA or value != value else value for key, value in row.items()}
        flags = _read(row["flags"])
        return Source(
            **{key: row[key] for key in ("file", "task", "protocol_hash", "items", "draws", "has_mean", "combine",
               "date", "method", "trained_on", "recipe_hash", "adapter_hash", "mean_is_member", "elsewhere", "run_id")},
            **{key: _read(row[key]) for key in ("protocol", "settings", "setup")},
            **{key: None if row[key] is None else int(row[key]) for key in ("seed", "finite")},
            leaked="leaked" in flags, suspect=tuple(text for flag, text in SUSPECT.items() if flag in flags),
            number=partial(self.number, row["run_id"]), record=partial(self.record, row["run_id"]),
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    return json.loads(text)


def build(paths: Sequence[Path], cache: Path | None = None) -> Board:
    """The board of these result files and folders; `cache` is a parquet that makes the next time quick."""
    listed = list(result_files(paths))
    store = refresh(listed, cache)
    order, copies = places(listed, store)
    found = store.problems
    problems = [*store.unread, *copies]
    problems += [{**row, "file": shown_path(path)} for sha, path in order.items() for row in found.get(sha, ())]
    return assemble(in_order(store.runs, order), order, problems)


def result_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given, and every results_*.json below a folder, once each; links to folders are not followed."""
    seen: set[str] = set()
    for given in paths:
        if not Path(given).exists():
            raise InputError(f"{given} does not exist; give a results_*.json of lm-eval or a folder of them")
        for path in _below(Path(given)):
            if (key := os.path.abspath(path)) not in seen:
                seen.add(key)
                yield path


def _below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, inner, names in os.walk(path):
        inner.sort()
        yield from (Path(folder, n) for n in sorted(names) if n.startswith("results_") and n.endswith(".json"))


def places(listed: Sequence[Path], store: Store) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Where each content is first found (by hash, in order), and the copies of it elsewhere as problems."""
    order: dict[str, Path] = {}
    copies = []
    for path in listed:
        if state := store.files.get(str(path)):
            first = order.setdefault(state[2], path)
            if first is not path:
                copies.append(problem(shown_path(path), "duplicate", f"the same content as {shown_path(first)}"))
    return order, copies


def in_order(runs: pa.Table, order: dict[str, Path]) -> pa.Table:
    position = {sha: k for k, sha in enumerate(order)}
    where = np.array([position[sha] for sha in runs["sha256"].to_pylist()], dtype=np.int64)
    return runs.take(pa.array(np.argsort(where, kind="stable")))


def assemble(table: pa.Table, order: dict[str, Path], problems: list[dict[str, Any]]) -> Board:
    """Frames from the rows of the store; runs that another one claims to be are set aside."""
    paths = [order[sha] for sha in table["sha256"].to_pylist()]
    runs = table.select([name for name in table.column_names if name not in ("n", *NUMBERS)]).to_pandas()
    runs["file"] = [shown_path(path) for path in paths]
    runs["origin"] = ["submitted" if "submitted" in path.parts else "measured" for path in paths]
    runs = runs.astype({"seed": "Int64", "finite": "Int64"})
    aside = claimed_twice(runs, problems)
    if aside:
        keep = ~runs.index.isin(aside)
        runs, table = runs[keep].reset_index(drop=True), table.filter(pa.array(keep))
        paths = [path for path, kept in zip(paths, keep, strict=True) if kept]
    numbers = {name: table[name].combine_chunks().flatten().to_numpy() for name in ("n", *NUMBERS)}
    sizes = pc.list_value_length(table["n"]).to_numpy()
    values = pd.DataFrame({"run_id": np.repeat(runs["run_id"].to_numpy(), sizes), "draws": numbers.pop("n"), **numbers})
    snapshot = hashlib.sha256(" ".join(sorted(order)).encode()).hexdigest()[:16]
    rows = {
        run_id: (int(start), int(first))
        for run_id, start, first in zip(
            runs["run_id"], np.cumsum(sizes) - sizes, values["draws"].to_numpy()[np.cumsum(sizes) - sizes], strict=True
        )
    }
    found = pd.DataFrame(problems, columns=list(PROBLEM_COLUMNS))
    board = Board(
        runs, values, reported.load(), found, snapshot, rows, numbers, dict(zip(runs["run_id"], paths, strict=True))
    )
    names = labels(sources := board.sources())
    runs["row"] = [names[source.row] for source in sources]
    return replace(board, runs=runs[list(RUN_COLUMNS)])


# What makes two results the same run: with the same start, of two answers at most one is what the model gave.
CLAIM = ["task", "date", "adapter_hash", "adapter", "model", "method", "settings", "setup", "recipe_hash", "seed",
         "protocol_hash", "draws", "has_mean"]  # fmt: skip


def claimed_twice(runs: pd.DataFrame, problems: list[dict[str, Any]]) -> list[int]:
    """Rows that say to be a run that another file has: the first that does not contradict itself counts."""
    aside = []
    dated = runs[runs["date"].notna()]
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
