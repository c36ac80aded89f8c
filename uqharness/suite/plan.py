"""Turn a suite into a graph of cells: trainings, evaluations and their dependencies.

A cell's hash covers all that determines its numbers: the settings whose role is recipe, data or seed, the method's own
settings with their defaults, the contents of base and task, the cell that it builds on, and `NUMERICS`. So two rows
that need the same training share it, and a finished cell never runs again. No method is imported: a plan of 10,000
cells takes about a second.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uqharness import registry
from uqharness import settings as config
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import Run, digest
from uqharness.suite.schema import SAME, Lines, Point, Row, Suite

NUMERICS = 1  # raise it when equal settings give other numbers than before: cells are then made again
NOT_SETTINGS = ("base", "task", "out", "seed", "resume")  # the grid's, or the engine's
OF_SUITE = ("base", "seeds", "draws", "limit")  # what --set changes of the suite itself


@dataclass(frozen=True)
class Cell:
    """One training or one evaluation. `spec` contains everything that is needed to run it."""

    hash: str
    kind: str  # "train" or "evaluate"
    name: str  # for people: where in the grid it occurs first
    spec: Mapping[str, Any]
    source: str | None = None  # the training cell whose adapter it builds on or evaluates
    after: str | None = None  # the training cell whose last checkpoint it goes on from (`at`)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.source, self.after) if name)


@dataclass(frozen=True)
class Entry:
    """An entry of the grid and its cells."""

    base: str
    method: str  # the row's name
    train: str
    evaluate: str | None  # None: a row that is not evaluated
    seed: int | None  # None: nothing is trained
    cell: str  # the evaluation; of a row that is not evaluated, the training
    adapter: str | None
    draws: tuple[int, ...]

    @property
    def name(self) -> str:
        seed = "" if self.seed is None else f"/seed{self.seed}"
        return f"{self.base}/{self.method}/{self.train}{seed}" + (f" on {self.evaluate}" if self.evaluate else "")


@dataclass(frozen=True)
class Plan:
    """All cells, each after those that it needs, and the entries of the grid."""

    suite: str
    file: str
    text: str
    settings: Mapping[str, Any]  # what --set changed
    cells: Mapping[str, Cell]
    entries: Sequence[Entry]

    def as_json(self) -> dict[str, Any]:
        cells = [asdict(cell) for cell in self.cells.values()]
        return {**vars(self), "cells": cells, "entries": [asdict(entry) for entry in self.entries]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        cells = {cell["hash"]: Cell(**cell) for cell in values["cells"]}
        entries = [Entry(**{**entry, "draws": tuple(entry["draws"])}) for entry in values["entries"]]
        return cls(**{**values, "cells": cells, "entries": entries})

    def chosen(self, only: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
        """The cells of the entries that match, and those that they need; an axis or a value that is not there is
        refused."""
        for axis, values in only.items():
            known = {str(value) for entry in self.entries if (value := getattr(entry, axis)) is not None}
            for value in values:
                if value not in known:
                    hint = did_you_mean(value, known)
                    raise InputError(
                        f"--only {axis}={value}: not in the suite{hint}; it has {', '.join(sorted(known))}"
                    )
        chosen: set[str] = set()
        for entry in self.entries:
            if all(str(getattr(entry, axis)) in values for axis, values in only.items()):
                self._add(entry.cell, chosen)
        return {name: cell for name, cell in self.cells.items() if name in chosen}

    def _add(self, name: str, chosen: set[str]) -> None:
        if name not in chosen:
            chosen.add(name)
            for needed in self.cells[name].needs:
                self._add(needed, chosen)


def make(suite: Suite, given: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan of a suite with the settings of --set; refuse invalid settings."""
    given = dict(given or {})
    if not suite.train:
        raise InputError(f"{suite.file}: no train: a suite needs at least one training task")
    maker = _Maker(changed(suite, given), {k: v for k, v in given.items() if k not in OF_SUITE})
    maker.check_names()
    for place in maker.places():
        maker.add(**place)
    if unused := [name for name in maker.given if name not in maker.used]:
        known = {*config.field_types(Run), *OF_SUITE, *maker.own}
        raise InputError(f"--set {unused[0]}: no method of the suite has it{did_you_mean(unused[0], known)}")
    return Plan(suite.name, suite.file, suite.text, given, maker.cells, maker.entries)


def tasks(suite: Suite) -> list[str]:
    """Return the names of all tasks and groups that the suite trains on or evaluates."""
    named = [*suite.evaluate.values(), *(row.evaluate or () for row in suite.rows.values())]
    named += [point.where.get("evaluate", ()) for point in suite.include]
    return [
        name for name in dict.fromkeys([*suite.train, *(name for names in named for name in names)]) if name != SAME
    ]


def changed(suite: Suite, given: Mapping[str, Any]) -> Suite:
    """Return the suite with the parts that --set changes: base, seeds, draws and limit; `at` moves along with steps."""
    parts: dict[str, Any] = {}
    if "base" in given:
        if not given["base"]:
            raise InputError("--set base=: give a folder, a GGUF file, a hub id or toyworld")
        parts["bases"] = {str(name): {"base": str(name)} for name in _list(given["base"])}
    for name, low in (("seeds", 0), ("draws", 0)):
        if name in given:
            values = [config.convert(int, value, name) for value in _list(given[name])]
            count = name == "seeds" and isinstance(given[name], int)
            if not values or min(values) < max(low, count):
                how = (
                    "give how many, at least 1, or a list as in [0,7]" if count else f"give integers of at least {low}"
                )
                raise InputError(f"--set {name}={given[name]}: {how}")
            parts[name] = tuple(range(values[0])) if count else tuple(sorted(set(values)))
    if "limit" in given:
        parts["limit"] = config.convert(int | None, given["limit"], "limit")
        if parts["limit"] is not None and parts["limit"] < 1:
            raise InputError(f"--set limit={given['limit']}: give a number of questions, or none for all of them")
    if "steps" in given:
        new = config.convert(int, given["steps"], "steps")
        parts["rows"] = {name: replace(row, at=_scaled(suite, row, new)) for name, row in suite.rows.items()}
    return replace(suite, **parts)


def _scaled(suite: Suite, row: Row, new: int) -> tuple[int, ...]:
    """Return the row's `at` at the same fractions of another number of steps."""
    old = config.convert(int, row.settings.get("steps", suite.run.get("steps", Run.steps)), "steps")
    return tuple(sorted({at if at > old else max(1, -(-at * new // old)) for at in row.at}))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value).split(",")


@dataclass
class _Maker:
    """Collects cells and entries."""

    suite: Suite
    given: Mapping[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # of `given`
    own: set[str] = field(default_factory=set)  # settings that some method has
    filled: dict[tuple[Any, ...], str] = field(default_factory=dict)  # places of the grid -> cell
    resolved: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fail(self, row: Row, error: object, line: int | None = None) -> InputError:
        """Return the error with where its cause stands: this line, --set, or the row."""
        if given := next((name for name in self.given if str(error).startswith(f"{name} is ")), None):
            return InputError(f"--set {given}={self.given[given]}: {error}")
        name = row.name.partition("@")[0]
        return InputError(f"{self.suite.file}:{line or self.suite.lines.get(name, 1)}: row {name}: {error}")

    def check_names(self) -> None:
        suite = self.suite
        for row in suite.rows.values():
            if row.method is None:
                continue
            try:
                declared = registry.declared(row.method)
            except InputError as error:
                raise self.fail(row, error) from None
            if row.source and not declared.uses_source:
                raise self.fail(row, f"{row.method} trains an adapter of its own and cannot build on one: no source")
        for point in (*suite.override, *suite.include, *suite.exclude):
            known = {"base": suite.bases, "method": self._row_names(), "train": suite.train}
            for axis, names in known.items():
                for value in point.where.get(axis, ()):
                    if value not in names:
                        hint = did_you_mean(value, names)
                        raise InputError(f"{suite.file}:{point.line}: no {axis} {value!r} in the suite{hint}")

    def _row_names(self) -> list[str]:
        rows = self.suite.rows.values()
        return [name for row in rows for name in (row.name, *(each.name for each, _ in self._steps(row)))]

    def _steps(self, row: Row) -> list[tuple[Row, int | None]]:
        """Return the rows that `at` creates from a row or its source, with their steps."""
        origin = row
        while not origin.at and origin.source:
            origin = self.suite.rows[origin.source]
        if not origin.at:
            return [(row, None)]
        return [(replace(row, name=f"{row.name}@{step}"), step) for step in origin.at]

    # ------------------------------------------------------------ the grid

    def places(self) -> Iterator[dict[str, Any]]:
        """Yield the grid without `exclude`, then `include`."""
        suite = self.suite
        for base in suite.bases:
            for train in suite.train:
                for row in suite.rows.values():
                    for seed in suite.seeds if row.method else (None,):
                        yield {"row": row, "base": base, "train": train, "seed": seed, "extra": None}
        for point in suite.include:
            seeds = point.where.get("seed", suite.seeds)
            for base in point.where.get("base", tuple(suite.bases)):
                for train in point.where.get("train", tuple(suite.train)):
                    for name in point.where["method"]:
                        row = suite.rows[name]
                        row = replace(row, name=point.name or name, settings={**row.settings, **point.settings})
                        row = replace(row, evaluate=point.where.get("evaluate", row.evaluate))
                        for seed in seeds if row.method else (None,):
                            yield {"row": row, "base": base, "train": train, "seed": seed, "extra": point}

    def add(self, row: Row, base: str, train: str, seed: int | None, extra: Point | None) -> None:
        names = self.suite.evaluate[train] if row.evaluate is None else row.evaluate
        tasks: list[str | None] = [train if name == SAME else name for name in names]
        for each, step in self._steps(row):
            place = {"base": base, "train": train, "seed": seed, "method": row.name}
            left = [task for task in tasks or [None] if extra or not self._excluded({**place, "evaluate": task}, each)]
            if not left:
                continue
            adapter = self.training(each, base, train, seed, step) if seed is not None else None
            made = adapter.hash if adapter else None
            for task in left:
                cell = self.evaluation(each, base, train, task, adapter) if task else adapter
                if cell is None:
                    raise self.fail(row, "it is neither trained nor evaluated")
                self._fill(Entry(base, each.name, train, task, seed, cell.hash, made, self.suite.draws), extra)

    def _excluded(self, place: Mapping[str, Any], row: Row) -> bool:
        """Return whether `exclude` names this place, by the row's name or that of one of its steps."""
        names = (place, {**place, "method": row.name})
        return any(each.matches(**point) for each in self.suite.exclude for point in names)

    def _fill(self, entry: Entry, extra: Point | None) -> None:
        place = (entry.base, entry.method, entry.train, entry.evaluate, entry.seed)
        if place in self.filled:
            if self.filled[place] != entry.cell:
                line = extra.line if extra else 1
                raise InputError(
                    f"{self.suite.file}:{line}: {entry.name} has two sets of settings: give the one of include a `name`"
                )
            return
        self.filled[place] = entry.cell
        self.entries.append(entry)

    # ------------------------------------------------------------ cells

    def training(self, row: Row, base: str, train: str, seed: int, step: int | None) -> Cell:
        source = None
        if row.source:
            origin = self.suite.rows[row.source]
            rows = {at: each for each, at in self._steps(origin)}
            source = self.training(rows[step], base, train, seed, step)
        resolved = self._resolve(row, base, train)
        run = {**resolved["run"], "seed": seed}
        spec = {
            "method": row.method,
            "settings": resolved["settings"],
            "run": run,
            "include_path": self.suite.include_path,
        }
        identity = {**resolved["identity"], "seed": seed, "source": source.hash if source else None}
        after = None
        if step is not None and not row.source:
            if step > resolved["steps"]:
                raise self.fail(row, f"at {step}: the training has {resolved['steps']} steps")
            stop = step if step < resolved["steps"] else 0
            spec["run"] = {**run, "stop_at": stop} if stop else run
            identity["run"] = {**resolved["identity"]["run"], "stop_at": stop}
            steps = [pair for pair in self._steps(self.suite.rows[row.name.partition("@")[0]]) if (pair[1] or 0) < step]
            after = self.training(steps[-1][0], base, train, seed, steps[-1][1]).hash if steps else None
        name = f"{base}/{row.name}/{train}/seed{seed}"
        return self._cell("train", name, spec, identity, source.hash if source else None, after)

    def evaluation(self, row: Row, base: str, train: str, task: str, adapter: Cell | None) -> Cell:
        include = self.suite.include_path
        shared: dict[str, Any] = {
            "task": task,
            "limit": self.suite.limit,
            "batch_size": self.suite.batch_size,
            "include_path": include,
        }
        identity: dict[str, Any] = {"task": task_digest(task, include), "limit": self.suite.limit}
        if adapter:
            samples = max(self.suite.draws)
            spec: dict[str, Any] = {**shared, "samples": samples}
            identity |= {"adapter": adapter.hash, "samples": samples}
            return self._cell("evaluate", f"{adapter.name} on {task}", spec, identity, adapter.hash)
        run = {**config.as_json(Run()), **self._resolve(row, base, train)["run"]}
        settings = {name: run[name] for name in ("dtype", "load_in_4bit", "load_in_8bit", *config.PROMPTS)}
        spec = {**shared, "model": row.model, "run": {**settings, "base": run["base"]}}
        identity |= {"model": row.model, "base": base_identity(run["base"]), **settings}
        return self._cell("evaluate", f"{base}/{row.name} on {task}", spec, identity)

    def _cell(
        self, kind: str, name: str, spec: Mapping[str, Any], identity: Mapping[str, Any],
        source: str | None = None, after: str | None = None,
    ) -> Cell:  # fmt: skip
        code = digest({"kind": kind, "numerics": NUMERICS, **identity})
        return self.cells.setdefault(code, Cell(code, kind, name, spec, source, after))

    def _resolve(self, row: Row, base: str, train: str) -> dict[str, Any]:
        """Return the settings of a row on a base and a task, without the seed; each is settled once."""
        key = repr((row, base, train))
        if key not in self.resolved:
            self.resolved[key] = self._layered(row, base, train)
        return self.resolved[key]

    def _layered(self, row: Row, base: str, train: str) -> dict[str, Any]:
        """Lay the suite's settings over each other, and settle them."""
        suite = self.suite
        layers = [suite.run, suite.bases[base], suite.train[train], row.settings]
        point = {"base": base, "train": train, "method": row.name.partition("@")[0]}
        layers += [each.settings for each in suite.override if each.matches(**point)]
        declared: Any = registry.declared(row.method) if row.method else None
        own = config.field_types(declared) if declared else {}
        shared = config.field_types(Run)
        self.own.update(own)
        known = {**own, **shared}
        of_method: dict[str, Any] = {}
        theirs: dict[str, Any] = {"base": base}
        for number, layer in enumerate(layers):
            for key, value in layer.items():
                name = str(key).replace("-", "_")
                # `run`, bases and tasks say what all methods share, where a method has a setting of the same name.
                settings = of_method if name in own and (number > 2 or name not in shared) else theirs
                if name not in known or (name in NOT_SETTINGS and not (name == "base" and number == 1)):
                    hint = did_you_mean(name, [k for k in known if k not in NOT_SETTINGS])
                    lines = layer.lines if isinstance(layer, Lines) else {}
                    raise self.fail(row, f"unknown setting {name!r}{hint}", lines.get(str(key)))
                settings[name] = value
        for name, value in self.given.items():
            if name in known and name not in NOT_SETTINGS:
                (of_method if name in own and name not in shared else theirs)[name] = value
                self.used.add(name)
        return self._settle(row, declared, of_method, {**theirs, "task": train})

    def _settle(self, row: Row, declared: Any, own: Mapping[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        """Resolve the layers into the run, the arguments of `train` and the hashed settings."""
        if row.source:
            theirs = {name: value for name, value in theirs.items() if name not in config.OF_ADAPTER}
        try:
            theirs["base"] = resolved_base(str(theirs["base"]))
            settings = config.as_json(config.build(declared, own)) if declared else {}
            if declared:
                config.check_values(declared, own)
            run, _ = config.resolve_run(declared.suggests if declared else {}, {**theirs, "out": "OUT"})
        except InputError as error:
            raise self.fail(row, error) from None
        full = config.as_json(run)
        fixed = config.OF_ADAPTER if row.source else ()
        decisive = {name: full[name] for name in config.fields_of("recipe", "data") if name not in fixed}
        decisive["base"], decisive["task"] = base_identity(run.base), task_digest(run.task, self.suite.include_path)
        return {
            "settings": settings,
            "run": config.as_json(theirs),
            "steps": run.steps,
            "identity": {"method": row.method, "settings": settings, "run": decisive},
        }


# -------------------------------------------------------------------- contents


def resolved_base(name: str) -> str:
    """Return the full path of a folder or file; hub ids and toyworld unchanged."""
    path = Path(name).expanduser()
    if name != "toyworld" and path.exists():
        return str(path.resolve())
    if name.startswith((".", "/", "~")):
        raise InputError(f"base {name}: no such folder or file; give a folder, a GGUF file, a hub id or toyworld")
    return name


def base_identity(name: str) -> str:
    """Return a hub id, or names, sizes and samples of the contents of files."""
    return f"toyworld {world_hash()}" if name == "toyworld" else _contents(name)


@functools.cache
def _contents(name: str) -> str:
    path = Path(name)
    if not path.exists():
        return name
    location = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja", ".bin"))
    )
    return digest([[each.name if path.is_dir() else "", each.stat().st_size, _sampled(each)] for each in location])


def _sampled(path: Path, block: int = 2**16, count: int = 16) -> str:
    """A hash of a small file, or of 16 places of a large one."""
    size, total = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for k in range(count):
            file.seek(max(0, size - block) * k // (count - 1))
            total.update(file.read(block))
            if size <= block:
                break
    return total.hexdigest()


def task_digest(name: str, include_path: str | None = None) -> str:
    """Hash the YAMLs of a task of ours or of `include_path`; identify lm-eval's tasks by name and version."""
    texts = _texts(name, include_path)
    return f"{texts} {world_hash()}" if "toyworld" in name else texts


@functools.cache
def _texts(name: str, include_path: str | None) -> str:
    texts: dict[str, str] = {}
    _collect(name, _task_files(include_path), texts)
    if not texts:
        from importlib.metadata import version

        return f"{name} of lm-eval {version('lm-eval')}"
    return f"{name} {digest(sorted(texts.items()))}"


def _collect(name: str, known: Mapping[str, Path], texts: dict[str, str]) -> None:
    """Collect the texts of a task or a group: its own, of its `include`s and of its members."""
    path = known.get(name)
    if name in texts or path is None:
        return
    texts[name] = path.read_text(encoding="utf-8")
    values = yaml.load(texts[name], _TaskLoader) or {}
    include = values.get("include")
    while include:
        path = path.parent / str(include)
        texts[path.name] = path.read_text(encoding="utf-8")
        include = (yaml.load(texts[path.name], _TaskLoader) or {}).get("include")
    members = values.get("task")
    for member in members if isinstance(members, list) else ():
        _collect(
            str(member.get("task") or member.get("group")) if isinstance(member, dict) else str(member), known, texts
        )


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's YAMLs without running their functions."""


_TaskLoader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


@functools.cache
def _task_files(include_path: str | None) -> dict[str, Path]:
    folders = [Path(str(files("uqharness.tasks").joinpath("shifts.yaml"))).parent]
    paths: dict[str, Path] = {}
    for folder in [*folders, *([Path(include_path)] if include_path else [])]:
        for path in sorted(folder.rglob("*.y*ml")):
            for match in re.finditer(r"^(?:task|group):[ \t]*[\"']?([\w.+-]+)", path.read_text(encoding="utf-8"), re.M):
                paths[match[1]] = path
    return paths


def world_hash() -> str:
    """Return a hash of the embedded world in use."""
    from uqharness.toyworld import data_path

    return _manifest_hash(data_path())


@functools.cache
def _manifest_hash(folder: Path) -> str:
    manifest = folder / "MANIFEST.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest.exists() else ""
