"""All results as one `Board`: runs, problems of their files, and numbers that papers report.

board = build([Path("results")], cache)
board.select(task="arc_easy_uq", method=["MLE", "BLoB"])   # list[RunSummary]
board.run(run_id).number("nll", 10)
board.record(run_id)                                       # the answers of every draw, read from the run's file
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from uqharness.errors import InputError
from uqharness.leaderboard import publish, reported
from uqharness.leaderboard.cache import refresh, result_files
from uqharness.leaderboard.table_sources import labels, tuned_baselines
from uqharness.results.files import Problem, problem, record_in, shown_path
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

# What makes two results the same run: with the same start, of two answers at most one is what the model gave.
CLAIM = (
    *("task", "date", "adapter_hash", "adapter", "model", "row", "recipe_text", "recipe_hash", "seed"),
    *("protocol_hash", "draws", "has_mean"),
)


@dataclass(frozen=True)
class Board:
    """Everything that pages show, for one state of the files; `snapshot` identifies that state."""

    runs: list[RunSummary]
    problems: list[Problem]
    snapshot: str

    def run(self, run_id: str) -> RunSummary:
        if run_id not in self._by_id:
            raise InputError(f"there is no run {run_id!r} among these results")
        return self._by_id[run_id]

    def select(self, **wanted: Any) -> list[RunSummary]:
        """Return the runs whose attributes have these values (a collection: any of them)."""
        sets = {name: set(v) if isinstance(v, (list, tuple, set, frozenset)) else {v} for name, v in wanted.items()}
        return [run for run in self.runs if all(getattr(run, name) in values for name, values in sets.items())]

    def label(self, run: RunSummary) -> str:
        """Return the method, with the settings that distinguish its runs on this task."""
        return self._labels[run.task, run.row]

    def record(self, run_id: str) -> Record:
        """Return the answers of every draw, read from the run's file."""
        return record_of(self.run(run_id))

    @property
    def reported(self) -> pd.DataFrame:
        """Return the numbers that papers report (`leaderboard.reported`)."""
        return reported.load()

    @cached_property
    def _by_id(self) -> dict[str, RunSummary]:
        return {run.run_id: run for run in self.runs}

    @cached_property
    def _labels(self) -> dict[tuple[str, tuple[str, str]], str]:
        by_task: dict[str, list[RunSummary]] = defaultdict(list)
        for run in self.runs:
            by_task[run.task].append(run)
        return {(task, row): name for task, runs in by_task.items() for row, name in labels(runs).items()}


def record_of(run: RunSummary) -> Record:
    path = os.fsdecode(run.path)
    return publish.record(path, run.run_id) if run.origin == "published" else record_in(path, run.task)


def build(paths: Sequence[Path] = (), cache: Path | None = None) -> Board:
    """Return the board of these result files, folders and published files; default: our own published ones.

    `cache` is a parquet file that speeds up the next call.
    """
    shown = dict(result_files(paths or publish.shipped()))
    known, unread = refresh([path for path in shown if not path.endswith(publish.SUFFIX)], cache)
    contents = {path: (sha, known.runs[sha], known.problems[sha]) for path, (_, _, sha) in known.files.items()}
    for path in shown:
        if path.endswith(publish.SUFFIX):
            contents[path] = publish.read(path)
    runs: list[RunSummary] = []
    problems = [replace(each, file=shown_path(shown[path])) for path, group in unread.items() for each in group]
    first: dict[str, str] = {}
    for path in filter(contents.__contains__, shown):  # in the order of the files, not of their reading
        sha, file_runs, wrong = contents[path]
        file = shown_path(shown[path])
        if sha and first.setdefault(sha, path) != path:
            problems.append(problem(file, "duplicate", f"the same content as {shown_path(shown[first[sha]])}"))
            continue
        published = path.endswith(publish.SUFFIX)
        origin = "published" if published else "submitted" if "submitted" in path.split(os.sep) else "measured"
        name = shown_path(Path(shown[path]).name) if published else file
        runs += [replace(run, file=name, path=os.fsencode(path), origin=origin) for run in file_runs]
        problems += [replace(each, file=file) for each in wrong]
    unique = tuned_baselines(one_of_each(runs, problems))
    return Board(unique, problems, hashlib.sha256(" ".join(sorted(first)).encode()).hexdigest()[:16])


def one_of_each(runs: Sequence[RunSummary], problems: list[Problem]) -> list[RunSummary]:
    """Remove runs that another file has under the same id; the first one that is consistent counts."""
    aside: set[int] = set()
    by_id: dict[str, RunSummary] = {}
    claims: dict[Any, list[RunSummary]] = defaultdict(list)
    for run in runs:  # a published run beside the file that it was made of, or an id that is copied
        if (holder := by_id.setdefault(run.run_id, run)) is not run:
            reason = f"the run {run.run_id}, which {holder.file} holds: that one counts"
            problems.append(problem(run.file, "duplicate", reason, run.task))
            aside.add(id(run))
        elif run.date is not None:
            claims[tuple(getattr(run, name) for name in CLAIM)].append(run)
    for group in claims.values():
        first = next((run for run in group if not run.suspect), group[0])
        for run in group:
            if run is not first:
                reason = f"claims to be the run of {first.file}, with other content"
                problems.append(problem(run.file, "conflict", reason, run.task))
                aside.add(id(run))
    return [run for run in runs if id(run) not in aside]
