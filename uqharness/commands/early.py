"""Check a command line without torch and lm-eval: a mistyped name is reported in under a second.

These checks refuse only what the command itself would refuse later, after seconds of imports.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uqharness import registry
from uqharness import settings as config
from uqharness.commands.folders import nameable, writable
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import Run

WANTED = {
    "base": "a folder, a hub id or toyworld",
    "task": "one of `uqharness tasks`, or any multiple-choice lm-eval task with a training split",
    "out": "the folder to write",
}
_NAME = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
_OURS = re.compile(r"toyworld|(^|_)uq(_|$)")  # lm-eval has no such names


def check_train(args: argparse.Namespace) -> None:
    """Refuse a wrong method, a missing --base, --task or --out, settings out of range and an unknown task."""
    registry.get_point(args.method)
    if args.include_path and not Path(args.include_path).is_dir():
        raise InputError(f"--include-path {args.include_path} is not a folder: give one that contains task YAMLs")
    values: dict[str, Any] = config.read_file(args.config) if args.config else {}
    values = {**{str(k).replace("-", "_"): v for k, v in values.items()}, **config.parse_set(args.set or [])}
    given = {**values, **config.from_flags(args, Run)}
    # Of --set and --config a name may be the method's own.
    config.check_values(Run, config.from_flags(args, Run))
    # An adapter that is built on says which base and task it had.
    needed = {"base": not args.adapter, "task": not args.adapter, "out": not args.dry_run}
    for name, is_needed in needed.items():
        if is_needed and not given.get(name):
            raise InputError(f"no {name}: give --{name} ({WANTED[name]})")
    if given.get("out"):
        writable(Path(str(given["out"])), f"--out {given['out']}")
    if given.get("base"):
        nameable(str(given["base"]), "--base")
    if given.get("task"):
        check_tasks([str(given["task"])], [args.include_path] if args.include_path else [])


def check_tasks(names: Iterable[str], include: Sequence[str | Path] = ()) -> None:
    """Refuse a task name that occurs in no task file.

    Our own names and those of `include` come first. Where the name is not close to one of ours, the texts of
    lm-eval's 14,000 YAMLs are searched for it, unparsed: only what occurs in one of them is worth indexing them.
    """
    texts = _yamls([_folder("uqharness.tasks"), *include])
    own = {name.decode() for text in texts for name in _NAME.findall(text)}  # as far as a pattern can tell
    for name in names:
        nameable(name, "task")
        if name in own or os.path.exists(name) or re.search(r"[*?\[\]]", name):
            continue
        if name.endswith((".yaml", ".yml")):
            raise InputError(f"task {name}: no such file; give a name from `uqharness tasks` or the path of a YAML")
        hint = did_you_mean(name, own)
        elsewhere: set[str] = set()
        if (not hint or not _OURS.search(name)) and _mentioned(name, elsewhere):
            continue
        hint = did_you_mean(name, own.union(each for each in elsewhere if each[0] == name[0]))
        raise InputError(f"unknown task {name!r}{hint}; see `uqharness tasks`")


def _mentioned(name: str, others: set[str]) -> bool:
    """Return whether a YAML of lm-eval holds this text; if none does, `others` gets the names that they define."""
    wanted, texts = name.encode(), []
    for text in _yamls([_folder("lm_eval", "tasks")]):
        if wanted in text:
            return True
        texts.append(text)
    others.update(mentioned.decode() for text in texts for mentioned in _NAME.findall(text))
    return False


def _folder(module: str, *below: str) -> str:
    spec: Any = find_spec(module)
    return os.path.join(os.path.dirname(spec.origin), *below)


def _yamls(folders: Iterable[str | Path]) -> Iterator[bytes]:
    for top in folders:
        for folder, _, names in os.walk(top):
            for name in names:
                if name.endswith((".yaml", ".yml")):
                    with open(os.path.join(folder, name), "rb", buffering=0) as file:
                        yield file.read()
