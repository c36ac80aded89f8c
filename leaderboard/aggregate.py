"""All results as one `Board`: result files -> checked runs -> frames that the views read.

JSON stays the truth; a parquet of what was computed from it, keyed by the files' hashes, is only a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uqharness.errors import InputError
from uqharness.leaderboard import reported
from uqharness.leaderboard.ingest import NUMBERS, Found, content_of, parse, read_file
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
    _lookup: dict[str, dict[int, int]] = field(repr=False)  # run_id -> draws -> row of `values`
    _numbers: dict[str, np.ndarray] = field(repr=False)

    def record(self, run_id: str) -> Record:
        """The answers of every draw, read from the run's file."""
        run = self.run(run_id)
        path = Path(run["file"])
        data = parse(content_of(path))
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
        return float(self._numbers[metric][self._lookup[run_id][draws]])

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
    """The board of these result files and folders."""
    found = [read_file(path) for path in result_files(paths)]
    return assemble(found)


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


def assemble(found: Sequence[Found]) -> Board:
    """Frames from what the files hold."""
    rows = [{**row, "origin": "measured"} for each in found for row in each.runs]
    values = pd.DataFrame({
        "run_id": [row["run_id"] for row in rows for _ in row["n"]], "draws": [n for row in rows for n in row["n"]],
        **{name: np.array([v for row in rows for v in row[name]], dtype=np.float64) for name in NUMBERS},
    })  # fmt: skip
    problems = pd.DataFrame([row for each in found for row in each.problems], columns=list(PROBLEM_COLUMNS))
    runs = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"seed": "Int64", "finite": "Int64"})
    snapshot = hashlib.sha256(" ".join(sorted(each.sha256 for each in found)).encode()).hexdigest()[:16]
    lookup: dict[str, dict[int, int]] = {}
    for k, (run_id, draws) in enumerate(zip(values["run_id"], values["draws"], strict=True)):
        lookup.setdefault(run_id, {})[int(draws)] = k
    board = Board(runs, values, reported.load(), problems, snapshot, lookup, {n: values[n].to_numpy() for n in NUMBERS})
    names = labels(board.sources())
    runs["row"] = [names[source.row] for source in board.sources()]
    return board
