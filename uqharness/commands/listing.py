"""`uqharness methods` and `uqharness tasks`: list methods and tasks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uqharness.errors import InputError
from uqharness.toyworld import SIZES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    methods = args.argv[0] == "methods"
    rows = list_methods() if methods else list_tasks()
    if args.json:
        print(json.dumps(rows, indent=2))
    elif methods:
        shown = ("name", "label", "passes", "package", "paper", "summary")
        print(columns([{**row, "summary": row.get("error") or row["summary"]} for row in rows], shown))
        print("\npasses: cost of averaging over N draws; a method's settings: uqharness methods --json")
    else:
        shown = ("name", "trains_on", "evaluates", "items", "protocol", "shift")
        print(columns([{**row, "shift": "; ".join(row["shift"])} for row in rows], shown))
        print("\n_bp and _ll: prompts and labels of bayesian-peft and laplace-lora, for imported adapters")
        print("any other multiple-choice lm-eval task with a training split can also be trained on")
    return 0


def columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Format rows as left-aligned text columns."""
    grid = [
        list(names),
        *([str(row.get(name) if row.get(name) is not None else "-") for name in names] for row in rows),
    ]
    widths = [max(len(line[k]) for line in grid) for k in range(len(names))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in grid)


# ---------------------------------------------------------------- methods


def list_methods() -> list[dict[str, Any]]:
    """Return every installed method, with the reason for one that cannot be imported."""
    from uqharness import plugins, registry

    aliases = {target: alias for alias, target in registry.ALIASES.items()}
    return [
        {**_method(name), "alias": aliases.get(name), "package": plugins.distribution(point), "value": point.value}
        for name, point in registry.methods().items()
    ]


def _method(name: str) -> dict[str, Any]:
    import dataclasses

    from uqharness import registry
    from uqharness import settings as config

    try:
        cls = registry.get_method(name)
    except InputError as error:
        return {"name": name, **dict.fromkeys(("label", "paper", "summary", "passes")), "error": str(error)}
    settings = {
        spec.name: {"default": config.as_json(spec.default), "help": spec.metadata.get("help", "")}
        for spec in dataclasses.fields(cls)
    }
    about = {key: getattr(cls, key) for key in ("name", "label", "paper", "summary", "passes", "uses_source")}
    return {**about, "settings": settings, "suggests": config.as_json(dict(cls.suggests)), "error": None}


# ---------------------------------------------------------------- tasks


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAMLs without running their functions."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def list_tasks() -> list[dict[str, Any]]:
    """Return our tasks and groups from their YAMLs, without reading data sets."""
    folder = Path(str(files("uqharness.tasks").joinpath("shifts.yaml"))).parent
    configs = [read(path) for path in sorted(folder.rglob("*.yaml")) if path.name != "shifts.yaml"]
    empty = dict.fromkeys(("dataset", "subset", "trains_on", "items", "protocol"))
    groups = []
    for config in (config for config in configs if "group" in config):
        members = ", ".join(m if isinstance(m, str) else str(m.get("task")) for m in config["task"])
        groups.append({"name": config["group"], "kind": "group", **empty, "evaluates": members, "shift": []})
    return [_task(config) for config in configs if isinstance(config.get("task"), str)] + groups


def read(path: Path) -> dict[str, Any]:
    """Read a YAML, merged over its `include`s."""
    own = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    include = own.pop("include", None)
    return {**(read(path.parent / include) if include else {}), **own}


def _task(config: Mapping[str, Any]) -> dict[str, Any]:
    uq = (config.get("metadata") or {}).get("uq") or {}
    role = "test" if config.get("test_split") else "validation"
    items = None
    if config.get("dataset_path") == "uqharness.toyworld":  # the only one that is known without a download
        items = SIZES.get(str(config.get("dataset_name")), {}).get(str(config.get(f"{role}_split")))
    return {
        "name": config["task"],
        "kind": "task",
        "dataset": config.get("dataset_path"),
        "subset": config.get("dataset_name"),
        "trains_on": _part(config, "training", uq),
        "evaluates": _part(config, role, uq),
        "items": items,
        "protocol": uq.get("protocol"),
        "shift": shifts_to(config["task"]),
    }


def _part(config: Mapping[str, Any], role: str, uq: Mapping[str, Any]) -> str | None:
    split = config.get(f"{role}_split")
    part = (uq.get("slices") or {}).get(role)
    return f"{split}, rows {part[0]}/{part[2]} to {part[1]}/{part[2]}" if split and part else split


def shifts_to(task: str) -> list[str]:
    """Return the shifts that lead to a task, as in `small from openbookqa_uq`."""
    from uqharness.results.reading import shift, shifts

    by_source = [(source, shift(source, task)) for source in shifts()]
    return [f"{kind} from {source}" for source, kind in by_source if kind in ("small", "large")]
