"""What the start-up hook does once lm_eval is imported: register the entry points of every installed package.

    lm_eval.models          then: the models of group `lm_eval.models`
    lm_eval.tasks.manager   then: TaskManager reads the folders of group `lm_eval.tasks` before --include_path

and, for runs that use our model or tasks:

    lm_eval.loggers.evaluation_tracker   then: results are written whole or not at all, see saving.py
    lm_eval._cli.harness    then: our errors, Ctrl-C and SIGTERM end the command in one line

The entry points of every package count, not only ours, as they will in the lm-eval that reads them itself;
there (`load_plugins`, `discover_plugin_task_paths`) nothing is done. A failure costs one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any


def find_and_watch(me: object, name: str, path: Any, target: Any) -> ModuleSpec | None:
    """What the other finders find, with `AFTER[name]` called once that module has run."""
    spec = _ask_the_others(me, name, path, target)
    if spec is not None:
        _guarded(_run_after, spec.loader, name, AFTER[name])
    return spec


def _ask_the_others(me: object, name: str, path: Any, target: Any) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        if finder is not me and find_spec is not None:
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


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
        return
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
        return
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
            # Later folders override earlier ones, so the user's come last.
            call.arguments["include_path"] = [*_task_folders(), *own] or None
        init(*call.args, **call.kwargs)
        self.include_path = given

    with_plugins._uqharness = True  # type: ignore[attr-defined]
    manager.TaskManager.__init__ = with_plugins


def _task_folders() -> list[str]:
    folders: list[str] = []
    for entry in entry_points(group="lm_eval.tasks"):
        _guarded(_add_folder, folders, entry)
    return folders


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


AFTER = {
    "lm_eval.models": _register_models,
    "lm_eval.tasks.manager": _add_task_folders,
    "lm_eval.loggers.evaluation_tracker": _save_whole,
    "lm_eval._cli.harness": _end_in_one_line,
}
_warned = False
