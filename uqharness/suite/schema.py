"""The YAML of a suite: bases x methods x training tasks x evaluation tasks x seeds x draws.

    title: BLoB, Table 1                  one line (required)
    about: |                              what it reproduces, and what it costs on which machine
      ...
    reproduces: {paper: blob, table: 1}   for `uqharness reproduce`: any mapping; the engine does not read it

    bases: [toyworld]                     names of bases, or {row name: settings}, as in
                                          {llama2-7b: {base: meta-llama/Llama-2-7b-hf, dtype: bfloat16}}
    run: {steps: 5000, lr: 1.0e-4}        settings of every training: the flags of `uqharness train`
    methods:                              {row name: settings}; the settings of a row are its method's own and the run's
      mle: {}                             the row's name is its method, unless it says `method:`
      mle-tuned: {method: mle, lr: 1.0e-3, steps: 200}
      laplace: {source: map, tokens: expand}  `source`: builds on the adapter of that row (same base, task and seed)
      map: {weight_decay: 3.0}
      zero-shot: {model: hf}              no training: an lm-eval model; `hf` is the base itself
      map-own: {method: map, lr: 3.0e-4, evaluate: []}   trained for others to build on, not evaluated
      map-steps: {method: map, at: [1000, 2000]}         the adapter as it is after each of these steps of one
                                          training; its rows are map-steps@1000 ..., and rows whose `source` it is
                                          become as many
    train: [openbookqa_uq, boolq_uq]      training tasks, or {task: settings}, as in {boolq_uq: {max_length: 512}}
    evaluate: [same, uq_ood]              lm-eval tasks or groups for every adapter (`same`: the task it was trained on;
                                          this is the default), or {training task: [tasks]}
    seeds: 3                              0, 1, 2; or a list
    draws: [0, 5, 10]                     the N of the tables. One evaluation with the largest gives them all
    limit: 1500                           questions of each evaluation (omit it for all)
    batch_size: 64                        of evaluations
    include_path: tasks                   a folder with task YAMLs, beside this file

    override:                             settings for some of the grid: all that are named must match
      - {where: {method: blob, train: [boolq_uq]}, set: {kl_lr: 0.02, steps: 10000}}
    include:                              points beyond the grid: a row (`method`); base, train, evaluate and seeds are
      - {method: blob, train: [arc_easy_uq], seeds: [7], set: {kl_lr: 0.1}, name: blob-0.1}   the suite's if omitted
    exclude:                              points to remove
      - {method: laplace, train: winogrande_m_uq}

A later layer wins: `run`, then the base's settings, the training task's, the row's, `override` in its order, `--set`.
Unknown keys are refused with their line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uqharness.errors import InputError, did_you_mean

AXES = ("base", "method", "train", "evaluate", "seed")
SAME = "same"
_TOP = (
    "title",
    "about",
    "reproduces",
    "bases",
    "run",
    "methods",
    "train",
    "evaluate",
    "seeds",
    "draws",
    "limit",
    "batch_size",
    "include_path",
    "override",
    "include",
    "exclude",
)
_ROW = ("method", "model", "source", "evaluate", "at")


class Lines(dict[str, Any]):
    """A mapping of the file that knows the line of each of its keys."""

    lines: dict[str, int]

    def without(self, keys: Sequence[str]) -> Lines:
        rest = Lines({key: value for key, value in self.items() if key not in keys})
        rest.lines = self.lines
        return rest


@dataclass(frozen=True)
class Row:
    """A row of the table: a method with settings, or (`model`) an lm-eval model that is not trained."""

    name: str
    method: str | None
    model: str | None
    source: str | None
    settings: Mapping[str, Any]
    evaluate: tuple[str, ...] | None  # None: as the suite says
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Point:
    """A point of `include`, `exclude` or `override`: {axis: values}, and the settings there."""

    where: Mapping[str, tuple[Any, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    line: int = 1

    def matches(self, **point: Any) -> bool:
        return all(point[axis] in values for axis, values in self.where.items() if axis in point)


@dataclass(frozen=True)
class Suite:
    """A suite as its file says it; names and settings are checked by `plan`."""

    name: str
    file: str
    text: str
    title: str
    about: str
    reproduces: Mapping[str, Any]
    bases: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    rows: Mapping[str, Row]
    train: Mapping[str, Mapping[str, Any]]
    evaluate: Mapping[str, tuple[str, ...]]  # by training task
    seeds: tuple[int, ...]
    draws: tuple[int, ...]
    limit: int | None
    batch_size: str
    include_path: str | None
    override: tuple[Point, ...]
    include: tuple[Point, ...]
    exclude: tuple[Point, ...]
    lines: Mapping[str, int]  # of rows, for messages


def shipped() -> dict[str, Path]:
    """Return the shipped suites by name."""
    folder = Path(str(files("uqharness.suite.shipped")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(name: str | Path) -> Suite:
    """Read a shipped suite by name, or a file."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = shipped()
        if str(name) not in known:
            hint = did_you_mean(str(name), known)
            raise InputError(f"unknown suite {str(name)!r}{hint}; shipped are {', '.join(known)}; or give a YAML file")
        path = known[str(name)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"suite {path} cannot be read: {error}; give a name from `uqharness suite list`") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Suite:
    """Return the suite that this text describes. file: its name in messages."""
    return _Reader(file).suite(text)


@dataclass(frozen=True)
class _Reader:
    """Checks shapes and keys; every complaint begins with FILE:LINE."""

    file: str

    def fail(self, line: int, message: str) -> InputError:
        return InputError(f"{self.file}:{line}: {message}")

    def suite(self, text: str) -> Suite:
        top = self._load(text)
        self.keys(top, _TOP, "a suite")
        for key in ("title", "methods"):
            if not top.get(key):
                raise self.fail(1, f"no {key}: a suite needs {'a line that names it' if key == 'title' else 'rows'}")
        train = {str(task): self.mapping(top, "train", own) for task, own in self._named(top, "train", {}).items()}
        rows = {name: self._row(top["methods"], name) for name in self.mapping(top, "methods")}
        for name, row in rows.items():
            if row.source is not None and (row.source not in rows or rows[row.source].method is None):
                hint = did_you_mean(row.source, rows)
                line = top["methods"][name].lines["source"]
                raise self.fail(line, f"{name} builds on {row.source!r}{hint}: name a row that is trained")
        limit = self.number(top, "limit", 1)
        return Suite(
            name=Path(self.file).stem,
            file=self.file,
            text=text,
            title=str(top["title"]),
            about=str(top.get("about") or ""),
            reproduces=self.mapping(top, "reproduces"),
            bases={n: {"base": n, **self.mapping(top, "bases", v)} for n, v in self._named(top, "bases").items()},
            run=self.mapping(top, "run"),
            rows=rows,
            train=train,
            evaluate=self._evaluate(top, train),
            seeds=self._seeds(top, "seeds") or (0,),
            draws=tuple(sorted(self.numbers(top, "draws", 0))) or (10,),
            limit=limit,
            batch_size=str(top.get("batch_size", 8)),
            include_path=self._beside(top),
            override=self._points(top, "override", ("where", "set")),
            include=self._points(top, "include", ("method", "base", "train", "evaluate", "seeds", "set", "name")),
            exclude=self._points(top, "exclude", AXES),
            lines={name: top["methods"].lines[name] for name in rows},
        )

    def _load(self, text: str) -> Lines:
        try:
            top = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error)
            raise self.fail(mark.line + 1 if mark else 1, f"no valid YAML: {' '.join(problem.split())}") from None
        if not isinstance(top, Lines):
            raise self.fail(1, f"a suite is a mapping of {', '.join(_TOP)}: found {type(top).__name__}")
        return top

    def keys(self, given: Lines, known: Sequence[str], what: str) -> None:
        for key in given:
            if key not in known:
                hint = did_you_mean(key, known)
                raise self.fail(given.lines[key], f"unknown key {key!r}{hint}; {what} has {', '.join(known)}")

    def mapping(self, top: Lines, key: str, value: Any = ...) -> Lines:
        """`top[key]`, or `value` of that place, as a mapping; nothing is an empty one."""
        value = top.get(key) if value is ... else value
        if value is None or value == {}:
            empty = Lines()
            empty.lines = {}
            return empty if not isinstance(value, Lines) else value
        if not isinstance(value, Lines):
            raise self.fail(top.lines[key], f"{key} holds {value!r}: it must be `name: value` pairs")
        return value

    def _named(self, top: Lines, key: str, default: Any = ("",)) -> Mapping[str, Any]:
        """A list of names, or {name: settings}."""
        value = top.get(key)
        if isinstance(value, Lines):
            return value
        return {str(name): None for name in self.words(top, key) or default}

    def words(self, top: Lines, key: str, value: Any = ...) -> tuple[str, ...]:
        value = top.get(key) if value is ... else value
        items = [] if value is None else value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, (list, dict)) or item is None:
                raise self.fail(top.lines[key], f"{key} holds {item!r}: give names")
        if len(set(map(str, items))) < len(items):
            raise self.fail(top.lines[key], f"{key} contains a name twice: {', '.join(map(str, items))}")
        return tuple(map(str, items))

    def number(self, top: Lines, key: str, low: int) -> int | None:
        if top.get(key) is None:
            return None
        if type(top[key]) is not int or top[key] < low:
            raise self.fail(top.lines[key], f"{key} is {top[key]!r}: it must be an integer of at least {low}")
        return int(top[key])

    def numbers(self, top: Lines, key: str, low: int) -> tuple[int, ...]:
        value = top.get(key)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(item) is not int or item < low for item in items) or len(set(items)) < len(items):
            raise self.fail(top.lines[key], f"{key} is {value!r}: give integers of at least {low}, each once")
        return tuple(items)

    def _seeds(self, top: Lines, key: str) -> tuple[int, ...]:
        """A list, or how many."""
        if type(count := top.get(key)) is int and count > 0:
            return tuple(range(count))
        if key in top and not (isinstance(count, list) and count):
            raise self.fail(top.lines[key], f"{key} is {count!r}: give how many (from 0), or a list of seeds")
        return self.numbers(top, key, 0)

    def _row(self, rows: Lines, name: str) -> Row:
        given = self.mapping(rows, name)
        for key in ("method", "model", "source"):
            if not isinstance(given.get(key), (str, type(None))):
                raise self.fail(given.lines[key], f"{key} is {given[key]!r}: give a name")
        if "model" in given:
            self.keys(given, ("model", "evaluate"), "a row that is not trained (`model`)")
        if "@" in name:
            raise self.fail(rows.lines[name], f"row {name!r}: @ is for the rows that `at` makes; choose another name")
        return Row(
            name=name,
            method=None if "model" in given else str(given.get("method") or name),
            model=given.get("model"),
            source=given.get("source"),
            settings=given.without(_ROW),
            evaluate=self.words(given, "evaluate") if "evaluate" in given else None,
            at=tuple(sorted(self.numbers(given, "at", 1))),
        )

    def _evaluate(self, top: Lines, train: Iterable[str]) -> dict[str, tuple[str, ...]]:
        value = top.get("evaluate")
        if not isinstance(value, Lines):
            return dict.fromkeys(train, (SAME,) if value is None else self.words(top, "evaluate"))
        self.keys(value, list(train), "train")
        return {task: self.words(value, task) if task in value else (SAME,) for task in train}

    def _beside(self, top: Lines) -> str | None:
        if top.get("include_path") is None:
            return None
        folder = Path(self.file).parent / str(top["include_path"])
        if not folder.is_dir():
            raise self.fail(
                top.lines["include_path"], f"include_path {folder} is not a folder: give one that contains task YAMLs"
            )
        return str(folder)

    def _points(self, top: Lines, key: str, known: Sequence[str]) -> tuple[Point, ...]:
        value = top.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, Lines) for item in value):
            raise self.fail(top.lines[key], f"{key} must be a list of mappings of {', '.join(known)}")
        return tuple(self._point(item, key, known) for item in value)

    def _point(self, given: Lines, key: str, known: Sequence[str]) -> Point:
        line = min(given.lines.values(), default=1)
        self.keys(given, known, key)
        place, settings = given, self.mapping(given, "set")
        if key == "override":
            place = self.mapping(given, "where")
            self.keys(place, ("base", "method", "train"), "where")
            if not settings:
                raise self.fail(line, "override without `set`: say which settings")
        if key == "include" and "method" not in given:
            raise self.fail(line, "include without `method`: name a row of methods")
        where: dict[str, tuple[Any, ...]] = {}
        for axis in AXES:
            if axis == "seed" and "seeds" in place:
                where["seed"] = self._seeds(place, "seeds")
            elif axis in place:
                where[axis] = self.numbers(place, axis, 0) if axis == "seed" else self.words(place, axis)
        if key == "exclude" and not where:
            raise self.fail(line, "exclude without an axis would remove everything")
        name = given.get("name")
        return Point(where, settings, None if name is None else str(name), line)


class _Loader(yaml.SafeLoader):
    """Mappings with lines; a key that stands twice is refused (YAML takes the last silently)."""

    def construct_lines(self, node: yaml.MappingNode) -> Any:
        result = Lines()
        result.lines = {}
        yield result
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if keys[number] in keys[:number] and keys[number] != "<<":
                raise yaml.MarkedYAMLError(problem=f"{keys[number]!r} occurs twice", problem_mark=key.start_mark)
        self.flatten_mapping(node)
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else str(self.construct_object(key, deep=True))
            result[name] = self.construct_object(value, deep=True)
            result.lines[name] = key.start_mark.line + 1


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_lines)
