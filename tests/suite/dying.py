"""Processes that kill themselves at a chosen point, apart so that a worker imports this quickly."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uqharness.suite.store import Store

POINTS = {  # what a kill interrupts: the function, and after how many of its calls
    "training": ("uqharness.training.checkpoints:Course.end_step", 2),
    "checkpoint": ("uqharness.training.checkpoints:write_atomic", 3),
    "checkpoint's rename": ("uqharness.training.checkpoints:os.rename", 1),
    "fit": ("uqharness.adapters.laplace:collect", 0),
    "adapter": ("uqharness.adapter_io.folder:place_folder", 0),
    "evaluation": ("uqharness.engine.engine:Engine.score", 1),
    "results": ("uqharness.commands.cell:place_folder", 0),
    "marker": ("uqharness.suite.store:write_atomic", 0),
}


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_group() -> None:
    """Kill this process, the command that started it and everything beside it."""
    os.killpg(0, signal.SIGKILL)


def kill_at(place: str, after: int, kill: Callable[[], None] = kill_process) -> None:
    """From now on in this process: the call after so many others kills it."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, count = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if count[0] == after:
            kill()
        count[0] += 1
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def die_once(out: str, name: str) -> None:
    """The first cell kills its process; the others are marked done."""
    flag = Path(out) / "died"
    if not flag.exists():
        flag.touch()
        kill_process()
    store = Store(out)
    store.finish(store.read().cells[name], {})
