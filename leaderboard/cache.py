"""Cache of the content of result files in one parquet: the columns of `RunSummary`, by file hash.

A file is read again when its time or size has changed, and all are
when our own code has. Many files are read by several processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard.columns import SCHEMA, to_runs, to_table
from uqharness.metrics.registry import METRICS
from uqharness.results.files import Contents, Problem, read_file
from uqharness.results.runs import RunSummary

# The numbers depend on this code: another version of it, and everything is read again.
CODE = (("results", None), ("metrics", None), ("leaderboard", ("cache.py", "columns.py")), ("", ("loose_json.py",)))
FEW = 150  # new files are read here, as a process takes a second to start
AT_ONCE = 16


@dataclass
class Known:
    """`files`: path -> (mtime_ns, size, sha256); the contents of each file by its hash."""

    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    runs: dict[str, list[RunSummary]] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)


def refresh(paths: Sequence[str], cache: Path | None = None) -> tuple[Known, dict[str, list[Problem]]]:
    """Return the content of these files, cached if unchanged, and the problems of files without content."""
    old, new = load(cache) if cache else Known(), Known()
    unread: dict[str, list[Problem]] = {}
    states = {path: state_of(path) for path in paths}
    changed = [path for path, state in states.items() if not state or old.files.get(path, ())[:2] != state]
    fresh: dict[str, Contents] = {}
    for path, contents in read_all(changed):
        state = states[path]
        if state and contents.sha256:
            new.files[path] = (*state, contents.sha256)
            fresh[contents.sha256] = contents
        else:
            unread[path] = contents.problems
    new.files |= {path: old.files[path] for path in paths if path not in new.files and path not in unread}
    for _, _, sha in new.files.values():
        contents = fresh.get(sha) or Contents(sha, old.runs.get(sha, []), old.problems.get(sha, []))
        new.runs[sha], new.problems[sha] = contents.runs, contents.problems
    if cache and (changed or new.files.keys() != old.files.keys()):
        with contextlib.suppress(OSError):  # nowhere to keep it: only the next time is not quick
            save(new, cache)
    return new, unread


def state_of(path: str) -> tuple[int, int] | None:
    """Return (mtime_ns, size) of a regular file, or None."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None


def result_files(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(absolute path, path as given) of files, and of every results_*.json below a folder; no links to folders."""
    for given in paths:
        if not Path(given).exists():
            raise InputError(f"{given} does not exist; give a results_*.json of lm-eval or a folder of them")
        top, absolute = str(given), os.path.abspath(given)
        if not os.path.isdir(top):
            yield absolute, top
            continue
        for folder, inner, names in os.walk(absolute):
            inner.sort()
            for name in sorted(names):
                if name.startswith("results_") and name.endswith(".json"):
                    path = os.path.join(folder, name)
                    yield path, top + path[len(absolute) :]


# ---------------------------------------------------------------- the parquet


def version() -> str:
    """Return the hash of the code that makes the rows."""
    digest = hashlib.sha256()
    for package, names in CODE:
        folder = files(f"uqharness.{package}" if package else "uqharness")
        modules = names or sorted(path.name for path in folder.iterdir() if path.name.endswith(".py"))
        for name in modules:
            digest.update((folder / name).read_bytes())
    digest.update(" ".join(METRICS).encode())  # metrics of other packages too
    return digest.hexdigest()[:16]


def save(known: Known, cache: Path) -> None:
    problems = {sha: [asdict(each) for each in group] for sha, group in known.problems.items() if group}
    about = {"version": version(), "files": known.files, "problems": problems}
    table = to_table([run for runs in known.runs.values() for run in runs])
    out = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"uqharness": json.dumps(about)}), out, write_statistics=False)
    write_atomic(cache, out.getvalue().to_pybytes())


def load(cache: Path) -> Known:
    """Load the cache; empty if it is missing, damaged or of another version."""
    try:
        table = pq.read_table(cache)
        about = json.loads((table.schema.metadata or {})[b"uqharness"])
        if about["version"] != version():
            return Known()
        known = Known({path: (int(m), int(size), str(sha)) for path, (m, size, sha) in about["files"].items()})
        known.problems = {sha: [Problem(**each) for each in group] for sha, group in about["problems"].items()}
        for run in to_runs(table.select(SCHEMA.names).cast(SCHEMA)):
            known.runs.setdefault(run.sha256, []).append(run)
        return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return Known()


# ---------------------------------------------------------------- reading


def read_all(paths: Sequence[str]) -> Iterator[tuple[str, Contents]]:
    """Yield every file with its content; use several processes for many files."""
    workers = min(os.cpu_count() or 1, len(paths) // FEW)
    if workers < 2:
        yield from ((path, read_file(path)) for path in paths)
        return
    left = list(paths)
    while left:
        try:
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                with _without_main():  # submits everything, and so starts the processes
                    made = pool.map(read_file, tuple(left), chunksize=AT_ONCE if workers > 1 else 1)
                for contents in made:
                    yield left.pop(0), contents
        except BrokenProcessPool:  # a file took its process down: which one it was is seen with one process
            if workers == 1:
                reason = "the process that read it ended: not read; is there enough memory?"
                yield (path := left.pop(0)), Contents(problems=[Problem(path, "broken", reason)])
            workers = 1


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A process that starts now does not run the main module again, as it would a script of Streamlit or a user's."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
