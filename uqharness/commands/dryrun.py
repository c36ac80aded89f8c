"""`uqharness train … --dry-run`: show the plan and estimate its cost from two real steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uqharness import settings as config
from uqharness.commands.fitting import costs, prepare
from uqharness.commands.settings import Plan
from uqharness.settings import Run

STEPS = 2


def show(plan: Plan, states: Mapping[str, str], task: Any) -> int:
    """Print settings, cells and estimates; write nothing."""
    cls, cells = type(plan.method), plan.cells()
    print(f"method {cls.name}: {cls.label}, {cls.paper}")
    for name, value in config.as_json(plan.method).items():
        print(f"  {name}: {value}")
    if plan.source:
        print(f"builds on {plan.source.name}: {plan.source.predictive.posterior.kind} posterior")
    print("run")
    for name, value in config.as_json(plan.run).items():
        print(f"  {name}: {_text(value)}{_origin(name, plan)}")
    print(f"cells: {len(cells)}")
    for cell in cells:
        print(f"  {cell.out or '(no --out)'}  {cls.name} on {cell.task}, seed {cell.seed}: {states[cell.out]}")
    costs = estimate(plan, cells[0], task)
    left = sum(states[cell.out] != "complete" for cell in cells)
    seconds, disk = costs["seconds"], costs["adapter_bytes"] + costs["checkpoint_bytes"]
    print(f"data: {costs['items']} items to fit, of {costs['splits']}")
    print(f"trainable parameters: {costs['trainable_parameters']:,}")
    # What is built on a trained adapter takes no steps: it was done once, whole.
    how = f"{costs['steps']} real steps of {costs['step_seconds']:.3f} s" if costs["steps"] else "doing it once"
    print(
        f"time: {duration(seconds)} a cell, {duration(left * seconds)} for {left}; "
        f"from {how} on this machine's {costs['device']}{costs['note']}"
    )
    print(f"memory: {size(costs['peak_memory_bytes'])} at the peak of those steps")
    checkpoints = f", {size(costs['checkpoint_bytes'])} of it checkpoints" if costs["checkpoint_bytes"] else ""
    print(f"disk: {size(disk)} a cell{checkpoints}, {size(left * disk)} for {left}; from the tensors of those steps")
    return 0


def estimate(plan: Plan, cell: Run, task: Any) -> dict[str, Any]:
    """Fit for two steps, save nothing, and scale the costs to all steps."""
    steps = min(STEPS, cell.steps)
    off: dict[str, Any] = dict.fromkeys(("stop_at", "eval_every", "save_every", "record_every"), 0)
    off |= {"select": "last", "resume": False, "report_to": ()}
    model, data = prepare(plan, cell, task)
    splits = [f"{split['split']} ({split['items']} items to {split['purpose']})" for split in data.record["splits"]]
    from uqharness.engine.predictive import as_predictive

    source = plan.source.predictive if plan.source else None
    started = time.perf_counter()
    made = plan.method.fit(model, data, dataclasses.replace(cell, steps=steps, **off), source)
    posterior = as_predictive(made).posterior
    wall = time.perf_counter() - started
    spent = costs(data.record.get("training", []), model, wall)
    loops = sum(course["seconds"] for course in data.record.get("training", []))
    adapter = sum(t.numel() * t.element_size() for t in [*posterior.mean.values(), *posterior.state().values()])
    # A checkpoint: the weights, AdamW's two moments, perhaps the best weights; two are kept of each run.
    checkpoint = 4 * spent["trainable_parameters"] * 4
    members = len(data.record.get("training", []))
    return {
        **spent,
        "items": len(data.train),
        "splits": "; ".join(splits),
        "step_seconds": loops / max(1, spent["steps"]),
        "seconds": wall - loops + loops * cell.last_step / steps,
        "adapter_bytes": adapter,
        "checkpoint_bytes": 2 * members * checkpoint if cell.save_every else 0,
        "note": f"; without the scoring every {cell.eval_every} steps" if cell.eval_every else "",
    }


def duration(seconds: float) -> str:
    """Format a duration with at most two units: 1 h 12 min, 3 min 20 s, 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _origin(name: str, plan: Plan) -> str:
    if name == "target_modules" and plan.architecture:
        return f"  (auto, for {plan.architecture})"
    if name in plan.overridden:
        return f"  (the method suggests {_text(plan.overridden[name]['suggested'])})"
    if name in plan.inherited:
        return "  (from the adapter)"
    return "  (suggested by the method)" if name in plan.suggested else "  (given)" if name in plan.given else ""


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return str(Path(value)) if isinstance(value, str) and value else "-" if value == "" else str(value)
