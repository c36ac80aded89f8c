"""Read a results file for the leaderboard: its runs and its problems. A bad file never raises.

A task whose record cannot be used, or a file that is none of ours, becomes a problem with its reason; the other tasks
of that file stay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from uqharness.errors import InputError
from uqharness.results.reading import content_of, packed_records, parse, read_run
from uqharness.results.record import Record
from uqharness.results.runs import MAX_LINE, SUSPECT, RunSummary, plain_text, summarise


@dataclass(frozen=True)
class Problem:
    """A reason why a file, or one of its tasks, is not on the leaderboard or has unreliable numbers."""

    file: str
    kind: str  # broken, foreign, mismatch, range, duplicate, conflict
    reason: str
    task: str = ""


@dataclass
class Contents:
    """The content of a file; without a hash it could not be read."""

    sha256: str = ""
    runs: list[RunSummary] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_file(path: str) -> Contents:
    """Return the content of `path`; never raise for its content."""
    contents, name = Contents(), shown_path(path)
    try:
        content = content_of(path)
        contents.sha256 = hashlib.sha256(content).hexdigest()
        data = parse(content, path)
        packed = list(packed_records(data))
    except InputError as error:
        contents.problems.append(problem(name, "broken", str(error).removeprefix(f"{path}: ")))
        return contents
    if not packed:
        contents.problems.append(problem(name, "foreign", "no record of draws in it: not a result of a _uq task"))
    for task, values, record in packed:
        try:
            run = summarise(read_run(data, name, task, values, record), contents.sha256)
            if run.run_id in {other.run_id for other in contents.runs}:
                raise InputError("the file contains this task twice: the first one counts")
        except Exception as error:  # whatever a hostile file brings up
            contents.problems.append(problem(name, "broken", reason_of(error).removeprefix(f"{name}: {task}: "), task))
            continue
        contents.runs.append(run)
        contents.problems += suspicions(run, name)
    return contents


def suspicions(run: RunSummary, file: str) -> list[Problem]:
    """Return problems of a run that is shown nevertheless."""
    return [problem(file, kind, run.remarks[kind], run.task) for kind in SUSPECT if kind in run.remarks]


def record_in(path: str, task: str) -> Record:
    """Return the answers of every draw to one task of a file."""
    data = parse(content_of(path), path)
    for name, values, packed in packed_records(data):
        if name == task:
            return read_run(data, path, name, values, packed).record
    raise InputError(f"{shown_path(path)} holds no {task} any more; build the board again")


def problem(file: str, kind: str, reason: str, task: str = "") -> Problem:
    return Problem(file, kind, plain_text(reason, MAX_LINE), plain_text(task))


def reason_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def shown_path(path: str) -> str:
    return plain_text(path, MAX_LINE)
