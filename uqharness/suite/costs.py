"""Estimate the cost of a plan: forward passes with and without sharing, time and disk.

A forward is one question through the base, its choices included. A training question counts three (forward and
backward), a fit after training one training pass over the training split, an evaluation of N draws N + 1 per question
(the mean's row; 1 where the answer is one row, K for K members). Time comes from the cells that are done; else it is
computed from the base's size; in it the layers below the first LoRA have no backward pass, run once for all draws and,
with `cache_prefix`, once for all epochs. Numbers of items are those of the official splits.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uqharness.settings import Run, as_json, chosen_layers
from uqharness.suite.plan import Cell, Plan
from uqharness.suite.store import Store

DEFAULTS = as_json(Run())
BACKWARD = 3  # forwards that a forward with its backward costs
UNKNOWN = 1000  # items of a split that is not listed
# task: (training, evaluated); letters, cloze, _bp and _ll ask the same items, _test others.
ITEMS = {
    "winogrande_s": (640, 1267), "winogrande_m": (2558, 1267), "arc_challenge": (1119, 299), "arc_easy": (2251, 570),
    "openbookqa": (4957, 500), "boolq": (9427, 3270), "mmlu_college_chemistry": (0, 100),
    "mmlu_college_physics": (0, 102), "mmlu_college_mathematics": (0, 100), "toyworld": (1500, 6000),
    "arc_challenge_test": (1119, 1172), "arc_easy_test": (2251, 2376), "openbookqa_test": (4957, 500),
    "arc_easy_small": (636, 1188), "arc_easy_small_cloze_uq_tune": (636, 320), "arc_challenge_small": (0, 586),
    "boolq_test": (9427, 2180), "rte": (2490, 277), "mrpc": (3668, 408), "wic": (5428, 638), "cola": (8551, 1043),
    "wnli": (635, 71), "boolq_glue": (9427, 3270), "mrpc_small": (641, 408), "rte_small": (622, 277), "cb": (250, 56),
}  # fmt: skip
FLOPS = {"cpu": 4e10, "gpu": 1e14}  # a second; a core in float32, a recent card in bfloat16
ONE_ROW = ("mle", "map", "laplace", "tempscale")  # methods whose answer is one row, for the estimate alone


@functools.cache
def items(task: str) -> tuple[int, int]:
    """Return (training items, evaluated items) of a task."""
    name = re.sub(r"_(bp|ll)$", "", task)
    test = "_test" if name.endswith("_test") else ""
    name = re.sub(r"(_cloze)?_uq$", "", name.removesuffix("_test"))
    if name.startswith("toyworld"):
        name = "toyworld"
    return ITEMS.get(name + test, ITEMS.get(name, (UNKNOWN, UNKNOWN)))


def forwards(cell: Cell, plan: Plan, draws: int | None = None, alone: bool = False) -> float:
    """Return the forwards of a cell. draws: number of draws; alone: include the cells that it builds on."""
    spec = cell.spec
    if cell.kind == "evaluate":
        count = min(items(spec["task"])[1], spec["limit"] or 10**9)
        return count * _rows(cell, plan, spec.get("samples", 1) if draws is None else draws, alone)
    run = {**DEFAULTS, **spec["run"]}
    steps = run.get("stop_at") or run["steps"]
    once = BACKWARD * steps * run["batch_size"] * run["grad_accumulation"]
    if spec["method"] == "ens":
        return once * (int(spec["settings"]["members"]) - (cell.source is not None and not alone))
    if cell.source:
        own = float(BACKWARD * items(run["task"])[0])
        return own + (forwards(plan.cells[cell.source], plan, alone=True) if alone else 0)
    if cell.after and not alone:
        earlier = plan.cells[cell.after].spec["run"]
        return once * (1 - earlier["stop_at"] / steps)
    return once


def _rows(cell: Cell, plan: Plan, samples: int, alone: bool) -> int:
    """Return the forwards of a question with this many draws, including the mean's row."""
    if cell.source is None:
        return 1
    trained = plan.cells[cell.source].spec
    if trained["method"] in ONE_ROW:
        return 1
    count = min(samples, int(trained["settings"].get("members", samples)))
    return max(1, count) if alone or "members" in trained["settings"] else count + 1


def compare(plan: Plan, cells: Mapping[str, Cell]) -> tuple[float, float]:
    """Return the forwards of these cells, and of the same table without sharing."""
    together = sum(forwards(cell, plan) for cell in cells.values())
    apart, trained = 0.0, set()
    for entry in plan.entries:
        if entry.cell not in cells:
            continue
        place = (entry.base, entry.method, entry.train, entry.seed)
        if entry.adapter and place not in trained:
            trained.add(place)
            apart += forwards(plan.cells[entry.adapter], plan, alone=True)
        if entry.evaluate:
            cell = plan.cells[entry.cell]
            counts = {min(n, _rows(cell, plan, n, True)) if n else 0 for n in entry.draws if entry.adapter} or {1}
            one_row = entry.adapter and plan.cells[entry.adapter].spec["method"] in ONE_ROW
            counts = {1} if one_row else counts
            apart += sum(forwards(cell, plan, n, alone=True) for n in counts)
    return together, apart


def seconds(plan: Plan, store: Store, cells: Mapping[str, Cell], device: str) -> tuple[float | None, str]:
    """Return (seconds of these cells in sequence, basis of the estimate)."""
    total, unknown, computed = 0.0, 0, False
    speeds = _measured(plan, store)
    for cell in cells.values():
        base = _base(cell, plan)
        speed = speeds.get((cell.kind, base))
        if speed is None and (size := parameters(base)):
            task = str(cell.spec.get("task") or cell.spec["run"]["task"])
            speed, computed = 2 * size * _tokens(task) / FLOPS[device], True
        if speed is None:
            unknown += 1
            continue
        total += _passes(cell, plan) * speed + 3
    if unknown:
        return None, f"unknown: the size of {unknown} cells' base is not known before one is done"
    if cells and not computed:
        return total, "measured by the cells that are done"
    return total, f"computed from 2 x parameters x tokens at {FLOPS[device]:.0e} FLOP/s a {device}"


def _passes(cell: Cell, plan: Plan) -> float:
    """Return the forwards of a cell with layers below the first LoRA counted as often as they run."""
    whole, run = forwards(cell, plan), {**DEFAULTS, **_run(cell, plan)}
    if cell.kind == "evaluate":
        below = float(min(items(cell.spec["task"])[1], cell.spec["limit"] or 10**9))
    else:
        below = whole / BACKWARD
        below = min(below, items(run["task"])[0]) if run["cache_prefix"] else below
    upper = _upper(run["layers"], layers(run["base"]))
    return upper * whole + (1 - upper) * below


def _upper(chosen: str, count: int | None) -> float:
    """Return the share of a base's layers from the first chosen one on."""
    if count is None or not (numbers := chosen_layers(chosen, count)):
        return 1.0
    return 1 - numbers[0] / count


def _tokens(task: str) -> int:
    """Return the tokens of a question with its choices, roughly."""
    return 40 if task.startswith("toyworld") else 50 if "_cloze" in task else 150


def _measured(plan: Plan, store: Store) -> dict[tuple[str, str], float]:
    """Return seconds per pass of finished cells, by kind and base."""
    seconds: dict[tuple[str, str], list[float]] = {}
    done = [name for name, state in store.states().items() if state == "done" and name in plan.cells]
    for name in done[:200]:
        cell = plan.cells[name]
        pair = seconds.setdefault((cell.kind, _base(cell, plan)), [0.0, 0.0])
        pair[0] += float(store.record(name)["seconds"])
        pair[1] += _passes(cell, plan)
    return {key: spent / count for key, (spent, count) in seconds.items() if count}


def _run(cell: Cell, plan: Plan) -> Mapping[str, Any]:
    """Return the run settings of a cell, or of the training whose adapter it evaluates."""
    run: Mapping[str, Any] = cell.spec.get("run") or plan.cells[str(cell.source)].spec["run"]
    return run


def _base(cell: Cell, plan: Plan) -> str:
    return str(_run(cell, plan)["base"])


def _folder(base: str) -> Path:
    if base == "toyworld":
        from uqharness.toyworld import base_path

        return Path(base_path())
    return Path(base)


@functools.cache
def layers(base: str) -> int | None:
    """Return the number of layers of a base's folder."""
    try:
        config = json.loads((_folder(base) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    count = {**config, **(config.get("text_config") or {})}.get("num_hidden_layers")
    return count if type(count) is int else None


@functools.cache
def parameters(base: str) -> float | None:
    """Return the number of parameters of a base, from the size of its files, else from its name (Llama-2-7b)."""
    path = _folder(base)
    if path.is_dir() and (files := list(path.glob("*.safetensors"))):
        config = path / "config.json"
        given = json.loads(config.read_text()) if config.exists() else {}
        kind = str(given.get("dtype") or given.get("torch_dtype"))
        return sum(file.stat().st_size for file in files) / (2 if "16" in kind else 4)
    if match := re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", path.name.lower()):
        return float(match[1]) * (1e9 if match[2] == "b" else 1e6)
    known = {"roberta-base": 1.25e8, "roberta-large": 3.55e8}
    return known.get(path.name)


def disk(plan: Plan, cells: Mapping[str, Cell]) -> float:
    """Return bytes of adapters (rank x width x layers, from the base's size) and results, without checkpoints."""
    total = 0.0
    for cell in cells.values():
        if cell.kind == "evaluate":
            rows = int(cell.spec.get("samples", 1)) + 1
            total += 60_000 + 4 * 4 * 1.4 * rows * min(items(cell.spec["task"])[1], cell.spec["limit"] or 10**9)
            continue
        run = {**DEFAULTS, **cell.spec["run"]}
        size = parameters(run["base"]) or 1e9
        width = max(64.0, (size / 12 / 24) ** 0.5)
        layers = max(2.0, size / (12 * width**2))
        copies = int(cell.spec["settings"].get("members", 2))
        total += 50_000 + 4 * 2 * int(run["lora_r"]) * width * 2.2 * layers * copies
    return total
