"""Write lm-eval's results files completely or not at all; refuse an unwritable location before the work starts.

lm-eval writes its files in place and only logs errors. Here its tracker writes to a temporary folder, from
where whole files are moved to --output_path. Where that fails, a copy is rescued and the command ends with exit code 1.
Knows the tracker's three methods, no model and no task.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from uqharness.atomic import write_atomic
from uqharness.errors import InputError, RunError, of_system
from uqharness.loose_json import read_object
from uqharness.settings import is_main_process

_OURS = re.compile(r"bayeslora|toyworld|(^|[_,=])uq(_|,|$)|_uq\b")  # in the words of a command line
_failures: list[str] | None = None  # those of the command that runs; None: no command, raise at once
_always = False


def concerns_us() -> bool:
    """Return whether this lm-eval run uses our model or tasks; other runs are not changed."""
    loaded = "uqharness.harness.model" in sys.modules or "uqharness.harness.task" in sys.modules
    return _always or loaded or any(_OURS.search(word) for word in sys.argv[1:])


@contextlib.contextmanager
def collect(always: bool = False) -> Iterator[None]:
    """Collect errors of saving inside this context and raise them at its end, after the table is printed."""
    global _failures, _always
    before = _failures, _always
    _failures, _always = [], always
    try:
        yield
        if _failures:
            raise RunError("; ".join(_failures))
    finally:
        _failures, _always = before


def check_place(output_path: str) -> None:
    """Refuse an --output_path that cannot be written, before anything is computed."""
    given = Path(output_path).expanduser()
    folder = given.parent if given.suffix == ".json" else given
    said = f"--output_path {output_path}"
    try:
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not nearest.is_dir():
            raise InputError(f"{said}: {nearest} is a file; choose another location")
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b" " * 4096)
    except (OSError, ValueError) as error:
        refused = of_system(error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        kind = type(refused) if refused else InputError
        raise kind(f"{said} cannot be written: {reason}; free some space or choose another location") from error


def protect(module: ModuleType) -> None:
    """Make the tracker in `lm_eval.loggers.evaluation_tracker` check, save and fail as above."""
    tracker = module.EvaluationTracker
    if getattr(tracker, "_uqharness", False):
        return
    init, aggregated, of_task = tracker.__init__, tracker.save_results_aggregated, tracker.save_results_samples

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _check(self)
        config = self.general_config_tracker
        log_experiment_args = config.log_experiment_args

        def once_the_model_is_known(*args: Any, **kwargs: Any) -> Any:
            _check(self)
            return log_experiment_args(*args, **kwargs)

        config.log_experiment_args = once_the_model_is_known

    @wraps(aggregated)
    def save_results_aggregated(self: Any, results: dict[str, Any], samples: Any = None) -> None:
        if not self.output_path or not concerns_us():
            return aggregated(self, results=results, samples=samples)
        if label := _base_label(results.get("config") or {}):
            results["config"]["base_label"] = label
        with _staged(self, module) as move:
            aggregated(self, results=results, samples=samples)
            again = {"indent": 2, "default": module.handle_non_serializable, "ensure_ascii": False}
            move(lambda: json.dumps(results, **again), _is_json)

    @wraps(of_task)
    def save_results_samples(self: Any, task_name: str, samples: Any) -> None:
        if not self.output_path or not concerns_us():
            return of_task(self, task_name=task_name, samples=samples)
        with _staged(self, module) as move:
            of_task(self, task_name=task_name, samples=samples)
            move(None, lambda data: data.count(b"\n") == len(samples))

    tracker.__init__, tracker._uqharness = checked, True
    tracker.save_results_aggregated, tracker.save_results_samples = save_results_aggregated, save_results_samples


def _base_label(config: dict[str, Any]) -> str | None:
    """Return the label in `provenance.json` of the base's folder, which can say more than the folder's name."""
    given = config.get("model_args")
    base = (config.get("uqharness") or {}).get("base") or (given.get("pretrained") if isinstance(given, dict) else None)
    with contextlib.suppress(InputError):  # a name of the hub, or a folder without such a file
        label = read_object(Path(str(base), "provenance.json"), limit=2**20).get("label")
        return label if isinstance(label, str) else None
    return None


def _check(tracker: Any) -> None:
    if tracker.output_path and is_main_process() and concerns_us():
        check_place(str(tracker.output_path))


Move = Callable[["Callable[[], str] | None", Callable[[bytes], bool]], None]


@contextlib.contextmanager
def _staged(tracker: Any, module: ModuleType) -> Iterator[Move]:
    """Within: the tracker writes to the roomiest temporary folder; `move` brings whole files to the real place."""
    given = Path(tracker.output_path)
    real = given.parent if given.suffix == ".json" else given
    nearest = next(path for path in (real.absolute(), *real.absolute().parents) if path.is_dir())
    places = [folder for folder in (tempfile.gettempdir(), str(nearest)) if os.access(folder, os.W_OK)]
    roomiest = max(places or [tempfile.gettempdir()], key=lambda folder: shutil.disk_usage(folder).free)
    staging = Path(tempfile.mkdtemp(dir=roomiest, prefix=".uqharness-"))
    logger: logging.Logger = module.eval_logger

    def name_the_real_place(record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).replace(str(staging), str(real))
        return True

    def move(again: Callable[[], str] | None, whole: Callable[[bytes], bool]) -> None:
        written = [path for path in staging.rglob("*") if path.is_file()]
        for path in written:
            data = path.read_bytes()
            if not whole(data) and again is not None:
                data = again().encode()
            if whole(data):
                _write(real / path.relative_to(staging), data)
            else:
                _fail(f"{path.name} cannot be written whole: no space left on device in {staging.parent}")
        if not written:
            name = f"results_{getattr(tracker, 'date_id', 'uqharness')}.json"
            if again is None:
                _fail(f"samples cannot be written to {real}: lm-eval's log says why")
            else:
                _write(real / name, again().encode())

    logger.addFilter(name_the_real_place)
    tracker.output_path = str(staging / given.name if given.suffix == ".json" else staging)
    try:
        yield move
    finally:
        tracker.output_path = str(given)
        logger.removeFilter(name_the_real_place)
        shutil.rmtree(staging, ignore_errors=True)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _write(place: Path, data: bytes) -> None:
    """Write a file completely, or else a copy in the current or the temporary folder, and report its path."""
    try:
        return write_atomic(place, data)
    except OSError as error:
        reason = error.strerror or str(error)
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        copy = folder / place.name
        with contextlib.suppress(OSError):
            write_atomic(copy, data)
            return _fail(f"{place} cannot be written: {reason}; a copy is in {copy}")
    _fail(f"{place} cannot be written: {reason}; nor can a copy in the current or the temporary folder")


def _fail(what: str) -> None:
    if _failures is None:
        raise RunError(what)
    _failures.append(what)
