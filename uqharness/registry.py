"""Methods by name, from the entry-point group `uqharness.methods`. A method is imported on first use."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import typing
from collections.abc import Collection
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness import plugins
from uqharness import settings as config
from uqharness.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from uqharness.method import Method
    from uqharness.posterior import Posterior

ALIASES = {"lap": "laplace"}


def methods() -> dict[str, EntryPoint]:
    """Return the entry points of installed methods by name; `.load()` imports one."""
    return plugins.installed(plugins.METHODS)


def get_point(name: str, package: str | None = None) -> EntryPoint:
    """Return the entry point of the method of this name, without importing it."""
    known = methods()
    point = known.get(ALIASES.get(name, name))
    if point is None:
        hint = f"; the record says it comes from the package {package}: pip install {package}" if package else ""
        close = did_you_mean(name, [*known, *ALIASES])
        raise InputError(f"unknown method {name!r}{close}{hint}; installed: {', '.join(known) or 'none'}")
    return point


def get_method(name: str, package: str | None = None) -> type[Method]:
    """Return the method's class. `package`: the distribution that a record says it came from."""
    point = get_point(name, package)
    from uqharness.method import Method  # torch: not before the name is known to be right

    cls = plugins.load(point)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise InputError(f"{plugins.describe(point)} is not a uqharness.method.Method")
    return cls


def maker_of(posterior: Posterior) -> str:
    """Return the name of an installed method that restores posteriors of this class, for nested records."""
    for name in sorted(methods(), key=lambda name: name != "mle"):  # points are the most common
        with contextlib.suppress(InputError):  # a method that cannot be imported
            if type(posterior) in get_method(name).posteriors:
                return name
    raise InputError(
        f"no installed method restores {posterior.kind} posteriors: register the one that made this adapter"
    )


@functools.cache
def declared(name: str) -> Any:
    """Return a dataclass of a method's settings, its `suggests` and `uses_source`, read from its source unimported.

    Importing a method takes seconds (torch, peft); a plan of thousands of trainings needs names, defaults and ranges.
    Where the fields do not stand in the class itself, or need more than `uqharness.settings`, the method is imported.
    """
    point = get_point(name)
    try:
        tree = _parsed(point.module)
        (definition,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == point.attr]
        if [ast.unparse(base) for base in definition.bases] != ["Method"]:
            return get_method(name)
        fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
        of_class = {node for node in fields if ast.unparse(node.annotation).startswith("ClassVar")}
        read = ("name", "suggests", "uses_source")  # the class variables that a plan reads
        fields = [node for node in fields if node not in of_class or ast.unparse(node.target) in read]
        names: dict[str, Any] = {**vars(config), **vars(typing)}
        for module in tree.body:  # aliases that are imported, then those that stand here
            if isinstance(module, ast.ImportFrom) and str(module.module).startswith("uqharness."):
                imported = {alias.name for alias in module.names}
                used = {node.id for each in fields for node in ast.walk(each.annotation) if isinstance(node, ast.Name)}
                if imported & used - set(names):
                    _assign(_parsed(str(module.module)), names, imported & used)
        _assign(tree, names)
        base = ast.parse("suggests: ClassVar[dict] = {}\nuses_source: ClassVar[bool] = False").body
        definition.bases, definition.keywords, definition.decorator_list, definition.body = [], [], [], [*base, *fields]
        _execute([definition], names)
        return dataclasses.dataclass(frozen=True)(names[definition.name])
    except (OSError, ValueError, SyntaxError, NameError, AttributeError, TypeError, ImportError):
        return get_method(name)


def _parsed(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    return ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))


def _assign(tree: ast.Module, names: dict[str, Any], wanted: Collection[str] = ()) -> None:
    """Carry out the assignments of a module that can be, such as Weights = Literal["code", "paper"]."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and (not wanted or ast.unparse(node.targets[0]) in wanted):
            with contextlib.suppress(Exception):
                _execute([node], names)


def _execute(body: list[ast.stmt], names: dict[str, Any]) -> None:
    tree = ast.fix_missing_locations(ast.Module(body, []))
    exec(compile(tree, "<settings>", "exec", dont_inherit=True), names)
