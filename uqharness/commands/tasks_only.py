"""Task lookup without lm-eval's index: `TaskManager()` reads our folder and --include_path alone.

Used only if these contain every requested task; otherwise lm-eval's own index is used, with our folder added.
"""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uqharness.errors import InputError, did_you_mean
from uqharness.training.questions import adds_our_tasks, our_tasks

log = logging.getLogger("uqharness.eval")


@contextlib.contextmanager
def lean_tasks() -> Iterator[None]:
    """Make lm-eval's `EvaluatorConfig.process_tasks` use our TaskManager inside this context."""
    from lm_eval import tasks
    from lm_eval.config.evaluate_config import EvaluatorConfig

    original, process = tasks.TaskManager, EvaluatorConfig.process_tasks

    def process_tasks(self: Any, metadata: Any = None) -> Any:
        wanted = self.tasks.split(",") if isinstance(self.tasks, str) else [str(t) for t in self.tasks]
        names = [name for part in wanted for name in part.split(",") if name]

        def make(include_path: Any = None, metadata: Any = None) -> Any:
            return manager(original, names, include_path, metadata)

        tasks.TaskManager = make
        try:
            return process(self, metadata)
        finally:
            tasks.TaskManager = original

    EvaluatorConfig.process_tasks = process_tasks
    try:
        yield
    finally:
        EvaluatorConfig.process_tasks, tasks.TaskManager = process, original


def manager(original: Any, names: list[str], include_path: Any, metadata: Any) -> Any:
    """Return a TaskManager that knows all of `names`."""
    original._uqharness_include = include_path  # where the leak check finds a task by its name
    given = [include_path] if isinstance(include_path, (str, Path)) else list(include_path or ())
    lean = original(include_path=[our_tasks(), *given], include_defaults=False, metadata=metadata)
    if all(_is_file(name) or complete(name, lean.task_index) for name in names):
        lean.include_path = include_path
        return lean
    log.info("indexing lm-eval's own tasks: not all of %s are uqharness's", ", ".join(names))
    # Where the start-up hook or lm-eval itself adds our folder, adding it again would only warn.
    folders = given if adds_our_tasks(original) else [our_tasks(), *given]
    full = original(include_path=folders or None, metadata=metadata)
    for name in names:
        if not _is_file(name) and not Path(name).is_dir() and not full.match_tasks([name]):
            raise InputError(f"unknown task {name!r}{did_you_mean(name, full.all_tasks)}; see `uqharness tasks`")
    return full


def complete(name: str, index: Mapping[str, Any]) -> bool:
    """Return whether `name` means the same here as in the full index: a task, or a group of such all the way down.

    Patterns and tags reach across folders, so they never do.
    """
    entry = index.get(name)
    if entry is None or entry.kind.name == "TAG":
        return False
    if entry.kind.name != "GROUP":
        return True
    return _all_complete((entry.cfg or {}).get("task") or (), index)


def _all_complete(members: Any, index: Mapping[str, Any]) -> bool:
    """Return whether a group's members are complete: names, and inline groups with a name or with members."""
    if isinstance(members, str):
        return complete(members, index)
    if isinstance(members, Mapping):
        return _all_complete(members.get("group", members.get("task")) or (), index)
    return all(_all_complete(member, index) for member in members)


def _is_file(name: str) -> bool:
    """A YAML given by path is read as it is; one that makes a group may name any task."""
    if not name.endswith(".yaml"):
        return False
    paths = [Path(path) for path in glob.glob(name)]
    if not paths:
        raise InputError(f"--tasks {name}: no such file")
    return all("group:" not in path.read_text(encoding="utf-8") for path in paths)
