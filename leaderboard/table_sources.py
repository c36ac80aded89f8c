"""What the results of a table are about: method, seed and training, from the records of their adapters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uqharness.leakage import LIMIT
from uqharness.results import Run

# The run settings in `config.recipe_hash`; the data come on top.
RECIPE = (
    "base", "dtype", "load_in_4bit", "load_in_8bit", "max_length", "target_modules", "lora_r", "lora_alpha",
    "lora_dropout", "steps", "batch_size", "grad_accumulation", "lr", "schedule", "warmup", "select",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One result and what its adapter's record says about it."""

    run: Run
    method: str
    settings: Mapping[str, Any]
    seed: int | None
    trained_on: str | None
    recipe: str | None
    setup: Mapping[str, Any]
    finite: int | None
    adapter: str
    leaked: bool
    reference: bool = False  # shown beside others, not ranked with them

    @property
    def row(self) -> tuple[str, str]:
        return self.method, json.dumps(dict(self.settings), sort_keys=True)

    @property
    def column(self) -> tuple[str, str | None]:
        return self.run.task, self.trained_on

    def draws(self, asked: int | None) -> int | None:
        """How many draws a row of `asked` uses; None where this result does not hold them."""
        have, record = self.run.record.draws, self.run.record
        one = self.finite == 1 or (record.combine == "given" and asked != 0)
        if asked is None or (one and have):  # a point is one row, whatever is asked; so is a combined answer
            return have
        wanted = asked if self.finite is None else min(asked, self.finite)
        return None if wanted > have or (wanted == 0 and not record.has_mean) else wanted


def describe(run: Run) -> Source:
    """Method, seed and training from the adapter's record; a model without one is a method of its own."""
    info = run.config.get("uqharness") or {}
    record = info.get("record") or {}
    method, trained = record.get("method") or {}, record.get("run") or {}
    data, posterior = record.get("data") or {}, record.get("posterior") or {}
    name = method.get("label") or method.get("name")
    if name is None:
        name = _unrecorded(run, info)
    recipe = record.get("recipe") or trained
    setup = {key: recipe[key] for key in RECIPE if key in recipe}
    if "target_modules" in setup:
        setup["target_modules"] = sorted(setup["target_modules"])
    if "base" in setup:
        setup["base"] = _last(setup["base"])
    settings = dict(method.get("settings") or {})
    if built_on := (record.get("source") or {}).get("method"):  # the same method on another adapter: another row
        settings["on"] = built_on.get("label")
    return Source(
        run, name, settings, posterior.get("train_seed", trained.get("seed")),
        data.get("task"), record.get("recipe_hash"), setup,
        posterior.get("finite") if record else 1, str(info.get("adapter_hash", "")), _leaked(info, run.task),
    )  # fmt: skip


def _unrecorded(run: Run, info: Mapping[str, Any]) -> str:
    """A name for a model without our record: a plain adapter by its folder, a base alone as zero-shot."""
    given = run.model_args
    base = _last(given.get("pretrained") or info.get("base") or run.model)
    adapter = given.get("adapter") or given.get("peft")
    if adapter:
        return f"{_last(adapter)} on {base}"
    return run.model if base == run.model else f"{base} (zero-shot)"


def _last(path: Any) -> str:
    return str(path).rstrip("/").rsplit("/", 1)[-1]


def newest(sources: Sequence[Source], notes: list[str]) -> list[Source]:
    """One result per method, seed, column and protocol: the one with most draws, then the latest."""
    found: dict[Any, list[Source]] = {}
    for source in sources:
        key = (source.row, source.seed, source.column, source.run.protocol_hash, source.recipe)
        found.setdefault(key, []).append(source)
    kept = []
    for same in found.values():
        kept.append(max(same, key=lambda s: (s.run.record.draws, s.run.date or 0.0)))
        if len(same) > 1:
            adapters = len({s.adapter for s in same})
            other = f" of {adapters} adapters" if adapters > 1 else ""
            notes.append(
                f"{len(same)} results{other} of {same[0].method}, seed {same[0].seed}, "
                f"on {same[0].run.task}: "
                f"the one in {kept[-1].run.source} counts (most draws, then latest)"
            )
    return kept


def labels(sources: Iterable[Source]) -> dict[tuple[str, str], str]:
    """Row names; the settings that differ are named where one method comes with several."""
    by_method: dict[str, list[Source]] = {}
    for source in sources:
        by_method.setdefault(source.method, []).append(source)
    found = {}
    for method, group in by_method.items():
        keys = sorted({key for s in group for key in s.settings})
        differ = [k for k in keys if len({json.dumps(s.settings.get(k)) for s in group}) > 1]
        for s in group:
            text = ", ".join(f"{k}={s.settings.get(k)}" for k in differ)
            found[s.row] = f"{method} ({text})" if text else method
    return found


def _leaked(info: Mapping[str, Any], task: str) -> bool:
    found = (info.get("leaks") or {}).get(task, ())
    return any(each["shared"] > LIMIT * each["items"] for each in found)
