"""What the results of a table are about: method, seed and training, from the records of their adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from uqharness.errors import InputError
from uqharness.metrics.registry import METRICS, average, find
from uqharness.results.leakage import LIMIT
from uqharness.results.provenance import other_protocol
from uqharness.results.reading import Record, Run, metrics
from uqharness.settings import UNRECORDED, fields_of

# The run settings in `config.recipe_hash`; the data come on top.
RECIPE = fields_of("recipe")


@dataclass(frozen=True)
class Shared:
    """Questions of a result that the published training data hold as well, and its metrics without them."""

    count: int
    items: int
    without: Mapping[str, float]  # of all draws; empty where only the fact is known


@dataclass(frozen=True, eq=False)
class Source:
    """One result: what its adapter's record says about it, and where its numbers and answers come from."""

    file: str
    task: str
    protocol: Mapping[str, Any]
    protocol_hash: str
    items: int
    draws: int  # how many it holds
    has_mean: bool
    combine: str
    date: float | None
    method: str
    settings: Mapping[str, Any]
    seed: int | None
    trained_on: str | None
    recipe_hash: str | None
    setup: Mapping[str, Any]
    finite: int | None
    adapter_hash: str
    leaked: bool
    number: Callable[[str, int], float]  # metric, draws (0: the posterior's mean) -> value
    record: Callable[[], Record]
    mean_is_member: bool = False
    elsewhere: str | None = None  # trained under another protocol than evaluated: what is wrong with that
    suspect: tuple[str, ...] = ()  # why its numbers are not to be relied on
    inert: bool = False  # its draws do not move the answers: averaging them is the mean
    reference: bool = False  # shown beside others, not ranked with them
    run_id: str = ""
    mean_taken: float | None = None  # with samples=auto, where questions had enough before `draws`
    shared: Shared | None = None  # questions that stand in the published training data too

    @cached_property
    def row(self) -> tuple[str, str]:
        return self.method, json.dumps(dict(self.settings), sort_keys=True)

    @cached_property
    def setup_text(self) -> str:
        return json.dumps(dict(self.setup), sort_keys=True)

    @property
    def column(self) -> tuple[str, str | None]:
        return self.task, self.trained_on

    def used(self, asked: int | None) -> int | None:
        """How many draws a row of `asked` uses; None where this result does not hold them."""
        one = self.finite == 1 or (self.combine == "given" and asked != 0)
        if asked is None or (one and self.draws):  # a point is one row, whatever is asked; so is a combined answer
            return self.draws
        wanted = asked if self.finite is None else min(asked, self.finite)
        return None if wanted > self.draws or (wanted == 0 and not self.has_mean) else wanted


def describe(run: Run) -> Source:
    """Method, seed and training from the adapter's record; a model without one is a method of its own."""
    info = mapping(run.config, "uqharness")
    record = mapping(info, "record")
    method, trained = mapping(record, "method"), mapping(record, "run")
    posterior, recipe = mapping(record, "posterior"), mapping(record, "recipe") or trained
    setup = {key: recipe[key] for key in RECIPE if key in recipe and recipe[key] != UNRECORDED.get(key)}
    if setup.get("select", "last") == "last":  # then nothing was selected
        setup = {key: value for key, value in setup.items() if key not in ("select_split", "eval_every")}
    if isinstance(modules := setup.get("target_modules"), list):
        setup["target_modules"] = sorted(map(str, modules))
    if "base" in setup:
        setup["base"] = last(setup["base"])
    settings = dict(mapping(method, "settings"))
    if built_on := mapping(record, "source", "method"):  # the same method on another adapter: another row
        settings["on"] = built_on.get("label")
    held = run.record
    return Source(
        file=run.source,
        task=run.task,
        protocol=run.protocol,
        protocol_hash=run.protocol_hash,
        items=held.items,
        draws=held.draws,
        has_mean=held.has_mean,
        combine=held.combine,
        date=run.date,
        method=str(method.get("label") or method.get("name") or _unrecorded(run)),
        settings=settings,
        seed=posterior.get("train_seed", trained.get("seed")),
        trained_on=mapping(record, "data").get("task"),
        recipe_hash=record.get("recipe_hash"),
        setup=setup,
        finite=posterior.get("finite") if record else 1,
        adapter_hash=str(info.get("adapter_hash", "")),
        leaked=leaked(info, run.task),
        number=partial(value, held),
        record=lambda: held,
        mean_is_member=bool(info.get("mean_is_member")),
        inert=mapping(record, "activity").get("inert") is True,
        elsewhere=other_protocol(record, run.protocol.get("name")),
        mean_taken=mean_taken(held),
        shared=shared(info, run),
    )


def shown(metric: str, number: float) -> str:
    """A number with the digits and the scale that its metric has in tables."""
    return f"{number * METRICS[metric].scale:.{METRICS[metric].decimals}f}"


def mean_taken(record: Record) -> float | None:
    """Draws per question, where samples=auto stopped before the last for some."""
    mean = float(record.taken.mean())
    return mean if mean < record.draws else None


def value(record: Record, metric: str, draws: int) -> float:
    """One metric of the first `draws` draws (0: the posterior's mean), combined by the posterior's rule."""
    return float(find(metric).value(average(record.rows(draws), record.gold, record.combine)))


def mapping(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies at these keys, one inside the other; empty where there is nothing."""
    for key in keys:
        data = data.get(key) or {}
        if not isinstance(data, Mapping):
            raise InputError(f"{key} is a {type(data).__name__}, not an object; evaluate again")
    return data


def base_of(run: Run) -> str:
    """What the base's folder called itself where the results say so, else the last part of its name."""
    info = mapping(run.config, "uqharness")
    recipe = mapping(info, "record", "recipe") or mapping(info, "record", "run")
    named = recipe.get("base") or info.get("base") or run.model_args.get("pretrained") or run.model
    return str(run.config.get("base_label") or last(named))


def _unrecorded(run: Run) -> str:
    """A name for a model without our record: a plain adapter by its folder, a base alone as zero-shot."""
    given = run.model_args
    base = base_of(run)
    adapter = given.get("adapter") or given.get("peft")
    if adapter:
        return f"{last(adapter)} on {base}"
    return run.model if base == run.model else f"{base} (zero-shot)"


def last(path: Any, separator: str = "/") -> str:
    return str(path).rstrip(separator).rsplit(separator, 1)[-1]


def newest(sources: Sequence[Source], notes: list[str]) -> list[Source]:
    """One result per method, seed, column and protocol: the one with most draws, then the latest."""
    found: dict[Any, list[Source]] = {}
    for source in sources:
        key = (source.row, source.seed, source.column, source.protocol_hash, source.recipe_hash, source.setup_text)
        found.setdefault(key, []).append(source)
    kept = []
    for same in found.values():
        kept.append(max(same, key=lambda s: (s.draws, s.mean_taken is None, s.date or 0.0)))
        if len(same) > 1:
            adapters = len({s.adapter_hash for s in same})
            other = f" of {adapters} adapters" if adapters > 1 else ""
            notes.append(
                f"{len(same)} results{other} of {same[0].method}, seed {same[0].seed}, "
                f"on {same[0].task}: the one in {kept[-1].file} counts (most draws, then latest)"
            )
    return kept


def labels(sources: Iterable[Source]) -> dict[tuple[str, str], str]:
    """Row names; the settings that differ are named where one method comes with several."""
    by_method: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for source in sources:
        by_method.setdefault(source.method, {})[source.row] = source.settings
    found = {}
    for method, group in by_method.items():
        keys = sorted({key for settings in group.values() for key in settings})
        differ = [k for k in keys if len({json.dumps(settings.get(k)) for settings in group.values()}) > 1]
        for row, settings in group.items():
            values = {k: settings.get(k, UNRECORDED.get(k, "not recorded")) for k in differ}
            text = ", ".join(f"{k}={value}" for k, value in values.items())
            found[row] = f"{method} ({text})" if text else method
    return found


def leaked(info: Mapping[str, Any], task: str) -> bool:
    """Whether the model's adapter has seen questions of this task that no published training data hold."""
    found = _overlap(info, task)
    if isinstance(found, Mapping):
        count, natural, items = (_count(found, name) for name in ("leaked", "natural", "items"))
        return count > 0 or natural > LIMIT * items
    return any(_count(each, "shared") > 0 for each in found)  # of versions that did not tell the two apart


def shared(info: Mapping[str, Any], run: Run) -> Shared | None:
    """The questions in `natural_ids` that the result holds, and what its metrics are without them."""
    found = _overlap(info, run.task)
    ids = found.get("natural_ids") if isinstance(found, Mapping) else None
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise InputError("natural_ids is not a list of whole numbers; evaluate again")
    kept = ~np.isin(run.record.ids, np.array(ids, dtype=np.float64))
    count = int((~kept).sum())
    if not count:
        return None
    return Shared(count, run.record.items, metrics(run.record.only(kept)) if kept.any() else {})


def _overlap(info: Mapping[str, Any], task: str) -> Mapping[str, Any] | list[Any]:
    found = mapping(info, "leaks").get(task) or []
    if not isinstance(found, (Mapping, list)):
        raise InputError(f"leaks of {task} is a {type(found).__name__}, not an object; evaluate again")
    return found


def _count(found: object, name: str) -> int:
    number = found.get(name) if isinstance(found, Mapping) else None
    if type(number) is not int:
        raise InputError(f"leaks has no number {name!r}; evaluate again")
    return number
