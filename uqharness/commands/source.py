"""`--adapter DIR`: the trained adapter that a method builds on. Its settings come from its own files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness import settings as config
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io import hub
from uqharness.errors import InputError
from uqharness.results import leakage
from uqharness.settings import Run

if TYPE_CHECKING:
    from peft import LoraConfig

    from uqharness.engine.predictive import Predictive
    from uqharness.method import Method

# What our record of it suggests: the same questions, seen through the same base.
INHERITED = ("task", "seed", "dtype", "load_in_4bit", "load_in_8bit", "max_length", "tune_fraction", *config.PROMPTS)
log = logging.getLogger("uqharness.train")


@dataclass(frozen=True)
class Source:
    """A trained adapter: its predictive, our record of it (None: a plain PEFT LoRA) and PEFT's configuration."""

    name: str
    folder: Path
    predictive: Predictive
    record: dict[str, Any] | None
    peft: LoraConfig

    @property
    def hash(self) -> str:
        return adapter_io.content_hash(self.folder)

    def entry(self) -> dict[str, Any]:
        """Return its entry in the record of a method that builds on it: its own record."""
        plain = {"method": {"name": "peft", "label": "PEFT LoRA"}}
        revision = {"adapter_revision": commit} if (commit := hub.commit_of(self.folder)) else {}
        return {"adapter": self.name, "content_hash": self.hash, **revision, **(self.record or plain)}

    def recipe(self) -> dict[str, Any]:
        """Return the recipe of the source, so that it and adapters built on it are comparable."""
        known = self.record or {}
        return {"recipe": known.get("recipe"), "recipe_hash": known.get("recipe_hash")}

    def check_same(self, run: Run, data: Mapping[str, Any], method: str) -> None:
        """Refuse an adapter that this run itself would not have trained: other settings, questions or seed."""
        known = self.record or {}
        if config.recipe_hash(run, data) == known.get("recipe_hash") and run.seed == known["run"]["seed"]:
            return
        before, now = known.get("recipe") or {}, config.as_json(run)
        names = [n for n in config.fields_of("recipe", "data", "seed") if n in before and before[n] != now[n]]
        differ = [f"{n}={_plain(before[n])}, here {_plain(now[n])}" for n in names]
        raise InputError(
            f"{method} continues from {self.name}, which was trained in another way"
            f" ({'; '.join(differ) or 'its record has another recipe'}): give the same settings, or remove --adapter"
        )

    def splits(self, own: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the new adapter's splits and those that the source has seen."""
        splits = [leakage.stored(split) for split in own]
        known = {(split.get("purpose"), split.get("hash")) for split in splits}
        older = [s for s in adapter_io.read_splits(self.folder) if (s.get("purpose"), s.get("hash")) not in known]
        return splits + [{**split, "of": split.get("of", "source")} for split in older]

    def tuned_on_fitted(self, own: Iterable[Mapping[str, Any]]) -> int:
        """Warn about items for tuning or selection that the source was fitted on."""
        seen = [split for split in adapter_io.read_splits(self.folder) if split["purpose"] == "fit"]
        shared = leakage.count_seen((split for split in own if split["purpose"] != "fit"), seen)
        if shared:
            log.warning(
                "%d of the items to tune or select on were used to fit %s, which is surer of them than of others: "
                "train it with the same held-out items, or take a task with a validation split to spare",
                shared,
                self.name,
            )
        return shared


def read(name: str, cls: type[Method]) -> Source:
    """Read a folder or `hub:user/name`; refuse one that the method cannot use."""
    if not cls.uses_source:
        raise InputError(f"{cls.name} trains an adapter of its own and cannot build on one: remove --adapter")
    folder = adapter_io.fetch(name)
    predictive, record = adapter_io.load_predictive(folder)
    return Source(name, folder, predictive, record, adapter_io.read_config(folder))


def fixed(source: Source) -> dict[str, Any]:
    """Return the run settings that PEFT's configuration of the adapter determines.

    An adapter of ours in some of the layers has its modules by their full names there, and what was asked for here.
    """
    run: Mapping[str, Any] = (source.record or {}).get("run") or {}
    some = run.get("layers", Run.layers) != Run.layers
    return {
        "lora_r": source.peft.r,
        "lora_alpha": float(source.peft.lora_alpha),
        "lora_dropout": float(source.peft.lora_dropout),
        "target_modules": config.convert(
            config.field_types(Run)["target_modules"],
            run.get("target_modules") if some else sorted(source.peft.target_modules or ()),
            "target_modules",
        ),
        "layers": str(run["layers"]) if some else Run.layers,
    }


def inherit(source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run settings that come from the adapter; refuse given ones that contradict it."""
    theirs, kinds = fixed(source), config.field_types(Run)
    for key in config.OF_ADAPTER:
        if key not in given:
            continue
        value = config.convert(kinds[key], given[key], key)
        if value == config.AUTO:
            continue
        same = set(value) == set(theirs[key]) if isinstance(value, tuple) else value == theirs[key]
        if not same:
            raise InputError(
                f"{key} is {_plain(value)} in the command and {_plain(theirs[key])} in the adapter {source.name}, "
                f"which is fixed: remove --{key.replace('_', '-')}"
            )
    run: Mapping[str, Any] = (source.record or {}).get("run") or {}
    bits = {"load_in_4bit", "load_in_8bit"}
    own = set(given) | (bits if bits & set(given) else set())
    suggested = {key: run[key] for key in INHERITED if key not in own and run.get(key) not in (None, "")}
    if not given.get("base"):
        from uqharness.harness.arguments import recorded_base  # imports lm-eval

        suggested["base"] = recorded_base(source.folder, source.record)
    return {**theirs, **suggested}


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
