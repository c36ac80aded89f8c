"""Resolve the settings of `uqharness train`: flags, then --set, --config and the method's suggestions.

Every field of `Run` is a flag; the method's own fields are reached by --set and --config.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness import plugins, registry
from uqharness import settings as config
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import Run

if TYPE_CHECKING:
    from uqharness.commands.source import Source
    from uqharness.method import Method


@dataclass(frozen=True)
class Plan:
    """A `train` command with resolved settings."""

    method: Method
    run: Run
    given: frozenset[str]  # run settings that the user chose
    suggested: frozenset[str]  # run settings that the method suggested and nobody overrode
    overridden: Mapping[str, Mapping[str, Any]]
    package: str
    seeds: int | None = None
    source: Source | None = None  # the trained adapter that the method builds on
    inherited: frozenset[str] = frozenset()  # run settings that come from it
    architecture: str = ""  # of the base, where it chose the target modules

    def cells(self) -> list[Run]:
        """Return one run per seed; with --seeds N they write to OUT/seed0 … ."""
        if self.seeds is None:
            return [self.run]
        numbers = range(self.run.seed, self.run.seed + self.seeds)
        folder = self.run.out.rstrip("/")
        return [dataclasses.replace(self.run, seed=s, out=f"{folder}/seed{s}" if folder else "") for s in numbers]

    def recipe(self, cell: Run) -> Run:
        """Return the run's recipe; a dropout that the method suggests (MC dropout) is the method's."""
        own = "lora_dropout" in self.suggested
        return dataclasses.replace(cell, lora_dropout=Run.lora_dropout) if own else cell

    def identity(self) -> dict[str, Any]:
        """Return the settings that must be equal for two adapters that differ only in their seed."""
        run = {k: v for k, v in config.as_json(self.run).items() if k not in config.FREE and k != "seed"}
        source = {} if self.source is None else {"adapter": self.source.hash}
        return {"method": self.method.name, "settings": config.as_json(self.method), **source, **run}


def resolve(args: argparse.Namespace) -> Plan:
    """Return flags, --set and --config as one plan; refuse unknown settings with a suggestion."""
    cls = registry.get_method(args.method)
    point = registry.get_point(args.method)
    own, shared = split(config.read_file(args.config) if args.config else {}, cls, args.config)
    for name, value in config.parse_set(args.set or []).items():
        _choose(name, cls, own, shared)[name] = value
    shared.update(config.from_flags(args, Run))
    base = str(shared.get("base") or "")
    if base and base != "toyworld" and Path(base).expanduser().exists():
        shared["base"] = str(Path(base).expanduser().resolve())  # the adapter is found from anywhere
    method = config.build(cls, own)
    source, inherited = None, {}
    if adapter := getattr(args, "adapter", None):
        from uqharness.commands import source as sources

        source = sources.read(adapter, cls)
        inherited = sources.inherit(source, shared)
    suggests = {key: value for key, value in cls.suggests.items() if key not in inherited}
    run, overridden = config.resolve_run(suggests, {**shared, **inherited})
    given, package = frozenset(shared), plugins.distribution(point)
    chosen = frozenset(suggests) - given
    return Plan(method, run, given, chosen, overridden, package, args.seeds, source, frozenset(inherited))


def split(values: Mapping[str, Any], cls: type[Method], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a settings file, which may list the method's own settings under `settings:`."""
    nested = values.get("settings") or {}
    if not isinstance(nested, Mapping):
        raise InputError(f"settings is {nested!r} in {source}: it must hold the method's own as `name: value`")
    own: dict[str, Any] = dict(nested)
    shared: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key == "method" and value not in (cls.name, None):
            raise InputError(f"{source} is for method {value!r}, the command says {cls.name}: use one of them")
        if key not in ("settings", "method"):
            _choose(key, cls, own, shared)[key] = value
    return own, shared


def _choose(name: str, cls: type[Method], own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Return `own` for a setting of the method and `shared` for one of the run."""
    known, of_run = config.field_types(cls), config.field_types(Run)
    if name not in known and name not in of_run:
        raise InputError(
            f"unknown setting {name!r}{did_you_mean(name, [*known, *of_run])}; {cls.name} has "
            f"{', '.join(known) or 'none'}; the settings of every run are the flags in `uqharness train --help`"
        )
    return own if name in known else shared
