"""The bridge to lm-eval: all that we replace in it, each with the upstream change that ends it.

`hook.py` runs at every start of Python (`uqharness.pth`, `uqharness.start` from 3.15) and calls `find_and_watch` for
the modules of `PATCHES`; each patch is applied once its module has run. The entry points of every installed package
count, not only ours, as they will in the lm-eval that reads them itself. A failure costs one line on stderr.

Two more places touch private parts of lm-eval and transformers, and are listed in `TOUCHES`.
docs/decisions/lm-eval-0.5.md says what the next release changes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any


def find_and_watch(me: object, name: str, path: Any, target: Any) -> ModuleSpec | None:
    """Return what the other finders find, with `PATCHES[name].apply` called once that module has run."""
    others = [finder for finder in sys.meta_path if finder is not me and hasattr(finder, "find_spec")]
    spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
    if spec is not None:
        _guarded(_run_after, spec.loader, name, PATCHES[name].apply)
    return spec


def _run_after(loader: Any, name: str, then: Callable[[ModuleType], None]) -> None:
    """Wrap this one loader's exec_module; the loader stays what it is (`inspect`, `pkgutil` look at it)."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == name:  # a zip archive has one loader for all its modules
            _guarded(then, module)

    loader.exec_module = exec_module


def _register_models(models: ModuleType) -> None:
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins") or hasattr(registry, "import_plugins"):
        return  # lm-eval with #4013
    for entry in entry_points(group="lm_eval.models"):
        if entry.name not in registry.model_registry:  # built-ins win
            # A string: 0.4.13 upgrades a string to the class it names, and raises for an EntryPoint.
            _guarded(_register_model, registry.model_registry, entry)


def _register_model(models: Any, entry: Any) -> None:
    if not entry.attr:
        raise ValueError(f"entry point {entry.name} = {entry.value!r} should read 'module:Class'")
    models.register(entry.name, target=f"{entry.module}:{entry.attr}")


def _add_task_folders(manager: ModuleType) -> None:
    if hasattr(manager, "discover_plugin_task_paths"):
        return  # lm-eval with #4014
    init = manager.TaskManager.__init__
    if getattr(init, "_uqharness", False):
        return
    shape = signature(init)
    if "include_path" not in shape.parameters:
        raise TypeError("TaskManager has no argument include_path")

    @wraps(init)
    def with_plugins(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call = shape.bind(self, *args, **kwargs)
        except TypeError:
            init(self, *args, **kwargs)  # raises the caller's own mistake
            return
        given = call.arguments.get("include_path")
        if call.arguments.get("include_defaults", True):  # False: the caller's folders, no others
            manager.TaskManager._uqharness_include = given  # where the leak check finds a task by its name
            own = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
            folders: list[str] = []
            for entry in entry_points(group="lm_eval.tasks"):
                _guarded(_add_folder, folders, entry)
            # Later folders override earlier ones, so the user's come last.
            call.arguments["include_path"] = [*folders, *own] or None
        init(*call.args, **call.kwargs)
        self.include_path = given

    with_plugins._uqharness = True  # type: ignore[attr-defined]
    manager.TaskManager.__init__ = with_plugins


def _add_folder(folders: list[str], entry: Any) -> None:
    spec = find_spec(entry.value)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"entry point {entry.name} = {entry.value!r} names no package")
    folders += [folder for folder in spec.submodule_search_locations if folder not in folders]


def _save_whole(tracker: ModuleType) -> None:
    from uqharness.harness.saving import protect

    protect(tracker)


def _end_in_one_line(harness: ModuleType) -> None:
    execute = harness.HarnessCLI.execute
    if getattr(execute, "_uqharness", False):
        return

    @wraps(execute)
    def in_one_line(self: Any, args: Any) -> Any:
        from uqharness.errors import UQError
        from uqharness.harness.saving import collect, concerns_us
        from uqharness.interrupt import catch_sigterm, describe
        from uqharness.terminal import say

        try:
            with catch_sigterm(concerns_us), collect():
                return execute(self, args)
        except KeyboardInterrupt as stop:
            if not concerns_us():
                raise
            message, code = describe(stop)
        except UQError as error:
            if os.environ.get("UQHARNESS_DEBUG", "") not in ("", "0"):
                raise
            message, code = str(error), error.exit_code
        say(message)
        sys.exit(code)

    in_one_line._uqharness = True  # type: ignore[attr-defined]
    harness.HarnessCLI.execute = in_one_line


def _guarded(step: Callable[..., None], *args: Any) -> None:
    """Run a step; should it fail, say so once and go on: lm_eval must work without us."""
    global _warned
    try:
        step(*args)
    except Exception as error:
        if not _warned and sys.stderr is not None:
            what = f"{type(error).__name__}: {error}"
            print(f"uqharness: lm_eval may not see every plugin: {what}", file=sys.stderr)
        _warned = True


def run_parser() -> Any:
    """Return the argument parser of `lm_eval run`, which lm-eval has no public name for."""
    import argparse

    from lm_eval._cli.run import Run

    commands = argparse.ArgumentParser(prog="uqharness").add_subparsers()
    Run.create(commands)
    return commands.choices["run"]


@dataclass(frozen=True)
class Patch:
    """One replacement in lm-eval: what it does, and what makes it unnecessary."""

    apply: Callable[[ModuleType], None]
    replaces: str
    ends: str


PATCHES = {
    "lm_eval.models": Patch(
        _register_models,
        "adds the models of the entry-point group lm_eval.models to the registry",
        "pull request 4013, merged after 0.4.13 (registry.load_plugins): then it does nothing",
    ),
    "lm_eval.tasks.manager": Patch(
        _add_task_folders,
        "TaskManager.__init__ reads the folders of the group lm_eval.tasks before --include_path",
        "pull request 4014, merged after 0.4.13 (discover_plugin_task_paths): then it does nothing",
    ),
    "lm_eval.loggers.evaluation_tracker": Patch(
        _save_whole,
        "EvaluationTracker writes results whole or not at all (saving.py), for runs that use our model or tasks",
        "an EvaluationTracker that writes atomically and raises when it cannot; none is proposed",
    ),
    "lm_eval._cli.harness": Patch(
        _end_in_one_line,
        "HarnessCLI.execute ends our errors, Ctrl-C and SIGTERM in one line",
        "a command that lets an exception choose message and exit code; none is proposed",
    ),
}
# Private names that we read without replacing them, or replace for a moment.
TOUCHES = {
    "lm_eval._cli.run.Run": "the flags of `uqharness eval` (run_parser); ends with a public parser",
    "transformers.utils.chat_template_utils.datetime": "a fixed date in chat templates (training/prompts.py); ends "
    "with an argument for strftime_now",
}
TESTED = "0.4.13"  # the newest lm-eval that all of this was tested with
_warned = False
