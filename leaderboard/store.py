"""What was computed from result files, in one parquet: a row per run, keyed by its file's hash.

JSON is the truth and this a cache: a file is read again when its time or size has changed, everything is when our
own code has.  Many files are read by several processes; one that takes its process down becomes a problem itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from queue import SimpleQueue

import pyarrow as pa
import pyarrow.parquet as pq

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard.ingest import NUMBERS, Found, Row, problem, read_file, shown_path

TEXTS = (
    "sha256",
    "run_id",
    "task",
    "model",
    "base",
    "method",
    "settings",
    "trained_on",
    "shift",
    "protocol",
    "protocol_hash",
    "protocol_name",
    "recipe_hash",
    "setup",
    "combine",
    "flags",
    "adapter",
    "adapter_hash",
    "device",
    "dtype",
    "elsewhere",
    "record",
)
WHOLE = ("seed", "finite", "draws", "items")
FLAGS = ("has_mean", "mean_is_member")
REAL = ("date", "train_seconds", "peak_memory", "trainable", "passes", "eval_seconds", "mean_taken")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in TEXTS),
        *((name, pa.int64()) for name in WHOLE),
        *((name, pa.bool_()) for name in FLAGS),
        *((name, pa.float64()) for name in REAL),
        ("n", pa.list_(pa.int32())),
        *((name, pa.list_(pa.float64())) for name in NUMBERS),
    ]
)
# The numbers depend on these files of ours: another version of them, and everything is computed again.
CODE = (
    ("leaderboard", ("checks", "ingest", "store", "table_sources")),
    ("", ("loose_json",)),
    ("metrics", ("averaging", "calibration", "intervals", "metric", "points", "registry", "selective")),
    ("results", ("leakage", "provenance", "reading", "record")),
)
PER_PROCESS = 150  # fewer new files than this are read here: a process takes a second to start
BATCH = 256
# For glibc: arrays of a file are not handed back to the system and asked for again by the next.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**28)}


@dataclass
class Store:
    """`files`: path -> (mtime_ns, size, sha256); `problems`: sha256 -> what is wrong with that file."""

    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    problems: dict[str, list[Row]] = field(default_factory=dict)
    unread: list[Row] = field(default_factory=list)
    runs: pa.Table = field(default_factory=SCHEMA.empty_table)


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


def refresh(paths: Sequence[str], cache: Path | None) -> Store:
    """What these files hold: from the cache where they are unchanged, and then back into it."""
    old = load(cache) if cache else Store()
    new, states, changed = Store(), {}, []
    for path in paths:
        states[path] = state = state_of(path)
        known = old.files.get(path)
        if state and known and known[:2] == state:
            new.files[path] = known
        else:
            changed.append(path)
    batches, rows = [old.runs], list[Row]()
    fresh: set[str] = set()
    for path, found in read_all(changed):
        state = states[path]
        if not found.sha256 or state is None:
            new.unread += [{**row, "file": path} for row in found.problems]
            continue
        new.files[path] = (*state, found.sha256)
        if found.sha256 not in fresh:  # a copy of another file that is new as well
            fresh.add(found.sha256)
            rows += [{**row, "sha256": found.sha256} for row in found.runs]
            new.problems[found.sha256] = found.problems
        if len(rows) >= BATCH:
            batches.append(pa.Table.from_pylist(rows, SCHEMA))
            rows = []
    batches[0] = _without(old.runs, fresh, {sha for _, _, sha in new.files.values()})
    new.runs = pa.concat_tables([*batches, pa.Table.from_pylist(rows, SCHEMA)])
    new.problems |= {sha: old.problems.get(sha, []) for _, _, sha in new.files.values() if sha not in fresh}
    if cache and (changed or new.files.keys() != old.files.keys()):
        with contextlib.suppress(OSError):  # nowhere to keep it: only the next time is not quick
            save(new, cache)
    return new


def _without(runs: pa.Table, read_again: set[str], wanted: set[str]) -> pa.Table:
    keep = [sha in wanted and sha not in read_again for sha in runs["sha256"].to_pylist()]
    return runs if all(keep) else runs.filter(pa.array(keep, pa.bool_()))


def state_of(path: str) -> tuple[int, int] | None:
    """(mtime_ns, size) of a regular file, or None."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


# ---------------------------------------------------------------- the parquet


def version() -> str:
    """Of the code that computes the rows, as text: no need to remember to count it up."""
    found = hashlib.sha256()
    for package, names in CODE:
        folder = files(f"uqharness.{package}" if package else "uqharness")
        for name in names:
            found.update((folder / f"{name}.py").read_bytes())
    found.update(" ".join(NUMBERS).encode())  # metrics of other packages too
    return found.hexdigest()[:16]


def save(store: Store, cache: Path) -> None:
    about = {"version": version(), "files": store.files, "problems": {k: v for k, v in store.problems.items() if v}}
    out = pa.BufferOutputStream()
    table = store.runs.replace_schema_metadata({"uqharness": json.dumps(about)})
    pq.write_table(table, out, use_dictionary=list(TEXTS), write_statistics=False)
    write_atomic(cache, out.getvalue().to_pybytes())


def load(cache: Path) -> Store:
    """Empty where there is none, where it is another version's, and where it is damaged."""
    try:
        table = pq.read_table(cache)
        about = json.loads((table.schema.metadata or {})[b"uqharness"])
        if about["version"] != version() or table.schema.names != SCHEMA.names:
            return Store()
        found = {path: (int(m), int(size), str(sha)) for path, (m, size, sha) in about["files"].items()}
        return Store(found, dict(about["problems"]), [], table.cast(SCHEMA))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return Store()


# ---------------------------------------------------------------- reading


def read_all(paths: Sequence[str]) -> Iterator[tuple[str, Found]]:
    """Every file with what it holds; in several processes where there are many."""
    workers = min(os.cpu_count() or 1, len(paths) // PER_PROCESS)
    if workers < 2:
        yield from ((path, read_file(path)) for path in paths)
        return
    found: SimpleQueue[tuple[str, Found] | None] = SimpleQueue()

    def feed(part: Sequence[str]) -> None:
        try:
            for item in _by_process(part):
                found.put(item)
        finally:
            found.put(None)

    with ThreadPoolExecutor(workers) as pool:
        feeding = [pool.submit(feed, paths[k::workers]) for k in range(workers)]
        for _ in feeding:
            yield from iter(found.get, None)
        for one in feeding:
            one.result()


def _by_process(paths: Sequence[str]) -> Iterator[tuple[str, Found]]:
    """One process after another until all files are read: each that dies leaves out the file it died of."""
    left = list(paths)
    command = [sys.executable, "-m", "uqharness.leaderboard.ingest"]
    environment = {**os.environ, **KEEP_MEMORY, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while left:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(left).encode())
            process.stdin.close()
            for line in process.stdout:
                if line.endswith(b"\n"):
                    yield left.pop(0), Found(**json.loads(line))
        if left:
            dead = left.pop(0)
            reason = f"the process that read it ended with code {process.returncode}: not read"
            yield dead, Found(problems=[problem(shown_path(dead), "broken", reason)])
