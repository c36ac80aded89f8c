"""The folder of a suite: the plan, and done, failed and running cells.

    OUT/suite.json              the plan of the last command
    OUT/adapters/HASH/          the adapter of a training cell (HASH.checkpoints while it is trained)
    OUT/results/HASH/           lm-eval's files of an evaluation
    OUT/cells/HASH.json         the cell is done: its name, command, commit, host and seconds
    OUT/cells/HASH.failed.json  its error; HASH.lock: held by the process that runs it
    OUT/logs/HASH.txt           the output of the cell

Adapters and results are renamed into place when they are complete, then the marker is written. After a kill at any
moment a cell is either done, or it runs (or continues) again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.suite.plan import Cell, Entry, Plan

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DONE, FAILED, LOCK = ".json", ".failed.json", ".lock"


class Store:
    """The stored cells of a suite."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def adapter(self, name: str) -> Path:
        return self.out / "adapters" / name

    def results(self, name: str) -> Path:
        return self.out / "results" / name

    def log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.txt"

    def mark(self, name: str, kind: str) -> Path:
        return self.out / "cells" / f"{name}{kind}"

    # ------------------------------------------------------------ the plan

    def read(self) -> Plan:
        path = self.out / "suite.json"
        try:
            return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(
                f"{self.out} contains no suite: give the folder of `uqharness suite run … --out`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be read: {error}; `uqharness suite run` writes it again") from None

    def write(self, plan: Plan) -> list[str]:
        """Store a plan; return its differences from the previous one, as lines."""
        lines: list[str] = []
        if (self.out / "suite.json").exists():
            lines = differences(self.read(), plan)
        write_atomic(self.out / "suite.json", json.dumps(plan.as_json()))
        return lines

    # ------------------------------------------------------------ states

    def states(self) -> dict[str, str]:
        """Return {hash: done, failed or running}, from one listing of the folder; other cells have not started."""
        states: dict[str, str] = {}
        order = {FAILED: "failed", LOCK: "running", DONE: "done"}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.out / "cells") as entries:
            names = sorted(entry.name for entry in entries)
            for kind, state in order.items():  # later ones count more
                for name in names:
                    code, dot, rest = name.partition(".")
                    if dot + rest == kind and (kind != LOCK or self._is_held(code)):
                        states[code] = state
        return states

    def is_done(self, name: str) -> bool:
        return self.mark(name, DONE).exists()

    def error(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.mark(name, FAILED).read_text(encoding="utf-8")))
        return {"error": "its record cannot be read"}

    def record(self, name: str) -> dict[str, Any]:
        """Return the marker of a finished cell."""
        path = self.mark(name, DONE)
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error}; delete it, and the next run writes it again") from None

    def finish(self, cell: Cell, about: Mapping[str, Any]) -> None:
        write_atomic(self.mark(cell.hash, DONE), json.dumps({"name": cell.name, "kind": cell.kind, **about}) + "\n")
        self.mark(cell.hash, FAILED).unlink(missing_ok=True)

    def fail(self, cell: Cell, error: str) -> None:
        about = {"name": cell.name, "error": error, "log": str(self.log(cell.hash))}
        write_atomic(self.mark(cell.hash, FAILED), json.dumps(about) + "\n")

    def evaluated(self) -> Iterator[tuple[Entry, Path]]:
        """Return the entries of the grid whose evaluation is done, with their results folders."""
        made, states = self.read(), self.states()
        for entry in made.entries:
            if entry.evaluate and states.get(entry.cell) == "done":
                yield entry, self.results(entry.cell)

    def forget_failures(self, names: Iterable[str]) -> None:
        """Delete the records of failures before another attempt; keep the logs."""
        for name in names:
            self.mark(name, FAILED).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a cell while this process runs it; a killed process releases it."""
        path = self.mark(name, LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        path.unlink(missing_ok=True)

    def _is_held(self, name: str) -> bool:
        with contextlib.suppress(OSError), open(self.mark(name, LOCK)) as file:
            if not fcntl:
                return True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def differences(before: Plan, after: Plan) -> list[str]:
    """Return how a changed suite differs from the stored one: changed settings, added and removed entries."""
    old, new = ({entry.name: entry for entry in plan.entries} for plan in (before, after))
    if before.suite != after.suite:
        raise InputError(f"this folder contains the suite {before.suite}, not {after.suite}: give another --out")
    changed = [name for name in new if name in old and old[name].cell != new[name].cell]
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    if not (changed or added or gone):
        return []
    lines = [f"{after.file} has changed since the last run:"]
    why: dict[str, list[str]] = {}
    for name in changed:
        why.setdefault(_why(before, old[name].cell, after, new[name].cell), []).append(name)
    lines += [f"  {reason}: {_some(names)}" for reason, names in why.items()]
    lines += [f"  new: {_some(added)}"] if added else []
    lines += [f"  no longer in it (their files stay): {_some(gone)}"] if gone else []
    return [*lines, f"  unchanged: {len(new) - len(changed) - len(added)} of {len(new)}"]


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _why(before: Plan, old: str, after: Plan, new: str) -> str:
    """Return the settings in which two cells of one entry differ."""
    one, other = _all_settings(before, old), _all_settings(after, new)
    differ = [
        f"{key} was {one.get(key, 'not set')}, is {other.get(key, 'not set')}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]
    return "; ".join(differ) or "the contents of its base or task, or the version of uqharness"


def _all_settings(plan: Plan, name: str) -> dict[str, Any]:
    """Return the settings of a cell and, with a prefix, of the cells that it builds on."""
    flags: dict[str, Any] = {}
    cell: Cell | None = plan.cells[name]
    prefix = ""
    while cell is not None:
        spec = dict(cell.spec)
        flat = {**spec, **spec.pop("run", {}), **spec.pop("settings", {})}
        flags |= {prefix + key: value for key, value in flat.items() if key not in ("run", "settings", "batch_size")}
        prefix += "source's " if cell.kind == "train" else ""
        cell = plan.cells[cell.source] if cell.source else None
    return flags
