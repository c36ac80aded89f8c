"""`uqharness doctor`: check the installation. Each check is ok, a note or failed (exit code 1)."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from uqharness.plugins import version_of

OK, NOTE, FAILED = "ok", "note", "failed"
PACKAGES = ("lm-eval", "torch", "transformers", "peft", "datasets", "accelerate", "safetensors", "numpy")
Result = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    checks = [{"check": name, "status": status, "found": text} for name, status, text in results()]
    if args.json:
        print(json.dumps(checks, indent=2))
    else:
        for line in checks:
            print(f"{line['status']:<7} {line['check']:<14} {line['found']}")
    failed = [line["check"] for line in checks if line["status"] == FAILED]
    if failed and not args.json:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def results() -> Iterator[tuple[str, str, str]]:
    for name, check in CHECKS.items():
        try:
            yield (name, *check())
        except Exception as error:  # a check that breaks has found something
            yield name, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}"


def versions() -> Result:
    versions = {name: version_of(name) for name in ("uqharness", *PACKAGES)}
    text = f"python {sys.version.split()[0]}, " + ", ".join(f"{n} {v or 'not installed'}" for n, v in versions.items())
    return FAILED if None in versions.values() else OK, text


def hook() -> Result:
    """Check that plain `lm_eval` knows bayeslora and the tasks."""
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins") or hasattr(registry, "import_plugins"):
        return OK, "this lm-eval reads entry points itself"
    if any(type(finder).__module__ == "uqharness.harness.hook" for finder in sys.meta_path):
        return OK, "active: plain lm_eval has bayeslora and the _uq tasks"
    return FAILED, "not active: only `uqharness eval` has them; pip install uqharness (not python -S, not a zip)"


def entries() -> Result:
    """Check the models and tasks that pyproject.toml declares to lm-eval."""
    from uqharness.commands.evaluate import MODELS

    wanted = [("lm_eval.models", name) for name in MODELS] + [("lm_eval.tasks", "uqharness")]
    missing = [f"{group} {name}" for group, name in wanted if not metadata.entry_points(group=group, name=name)]
    if missing:
        return FAILED, f"no {', '.join(missing)}: pip install uqharness again"
    return OK, ", ".join(f"{group} {name}" for group, name in wanted)


def methods() -> Result:
    from uqharness.commands.listing import list_methods

    names = list_methods()
    broken = [f"{row['name']} ({row['error']})" for row in names if row["error"]]
    if broken or not names:
        return FAILED, "; ".join(broken) or "none installed"
    return OK, ", ".join(row["name"] for row in names)


def tasks() -> Result:
    from uqharness.commands.listing import list_tasks

    names = list_tasks()
    return (OK if names else FAILED), f"{len(names)} tasks and groups"


def device() -> Result:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
        return OK, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}; CUDA {torch.version.cuda}"
    return NOTE, f"no GPU: CPU with {torch.get_num_threads()} threads (enough for toyworld)"


def bitsandbytes() -> Result:
    if importlib.util.find_spec("bitsandbytes") is None:
        return NOTE, "not installed: no 4- and 8-bit bases"
    return OK, f"{version_of('bitsandbytes')}: 4- and 8-bit bases"


def hub() -> Result:
    """Send one request to the hub; being offline is not a failure."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return NOTE, "off by HF_HUB_OFFLINE: only what is on this machine"
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5):
            return OK, f"{constants.ENDPOINT} answers"
    except urllib.error.HTTPError as error:  # an answer, too
        return OK, f"{constants.ENDPOINT} answers ({error.code})"
    except (OSError, ValueError) as error:
        return NOTE, f"{constants.ENDPOINT} cannot be reached ({error}): toyworld and local folders still work"


def toyworld() -> Result:
    from safetensors import safe_open

    from uqharness import toyworld as world

    base = world.base_path()
    json.loads((base / "config.json").read_text())
    with safe_open(base / "model.safetensors", "pt") as tensors:
        count = len(list(tensors.keys()))
    splits = [(name, split) for name, sizes in world.SIZES.items() for split in sizes]
    missing = [str(p) for p in (world.questions_path(*part) for part in splits) if not p.is_file()]
    if missing:
        return FAILED, f"{missing[0]} is missing: install uqharness again"
    return OK, f"base of {count} tensors, {len(splits)} sets of questions"


def disk() -> Result:
    from huggingface_hub import constants

    here, cache = Path.cwd(), Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    free = {path: shutil.disk_usage(path).free / 2**30 for path in dict.fromkeys((here, cache))}
    text = ", ".join(f"{gib:.1f} GiB free in {path}" for path, gib in free.items())
    if not os.access(here, os.W_OK):
        return NOTE, f"{text}; {here} cannot be written: give another --out and --output_path"
    return (OK if min(free.values()) >= 1 else NOTE), text


CHECKS: dict[str, Callable[[], Result]] = {
    "versions": versions,
    "lm-eval hook": hook,
    "entry points": entries,
    "methods": methods,
    "tasks": tasks,
    "device": device,
    "bitsandbytes": bitsandbytes,
    "hub": hub,
    "toyworld": toyworld,
    "disk": disk,
}
