"""Methods come in through the entry-point group `uqharness.methods`, built-ins by the same door as others.

An installed package's entry points are in its metadata. In a checkout that is not installed the same list is
read from its pyproject.toml. Nothing is imported until a method is asked for.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from uqharness.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from uqharness.method import Method

GROUP = "uqharness.methods"
ALIASES = {"lap": "laplace"}
log = logging.getLogger(__name__)


def methods() -> dict[str, EntryPoint]:
    """Installed methods by name; `.load()` imports one."""
    found = {point.name: point for point in _checkout()}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (not _built_in(p), p.name, p.value)):
        if point.name not in found:
            found[point.name] = point
        elif found[point.name].value != point.value:
            log.warning("method %s of %s is hidden by %s", point.name, point.value, found[point.name].value)
    return dict(sorted(found.items()))


def get_point(name: str, package: str | None = None) -> EntryPoint:
    """Return where the method of this name is, without importing it."""
    known = methods()
    point = known.get(ALIASES.get(name, name))
    if point is None:
        hint = f"; the record says it comes from the package {package}: pip install {package}" if package else ""
        close = did_you_mean(name, [*known, *ALIASES])
        raise InputError(f"unknown method {name!r}{close}{hint}; installed: {', '.join(known) or 'none'}")
    return point


def get_method(name: str, package: str | None = None) -> type[Method]:
    """The method's class. `package`: the distribution that a record says it came from."""
    point = get_point(name, package)
    from uqharness.method import Method  # torch: not before the name is known to be right

    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"method {name} ({point.value}, {distribution(point)}) cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise InputError(f"method {name} ({point.value}, {distribution(point)}) is no uqharness.method.Method")
    return cls


def distribution(point: EntryPoint) -> str:
    """The package that provides a method."""
    dist = getattr(point, "dist", None)
    return dist.name if dist is not None else "uqharness"


def _built_in(point: EntryPoint) -> bool:
    return point.value.startswith("uqharness.")


def _checkout() -> list[EntryPoint]:
    """The entry points in the pyproject.toml beside this package, when that is a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "adapters").is_dir() or not (root / "pyproject.toml").is_file():
        return []
    # tomllib is Python 3.11's; the table that is wanted is plain `name = "module:Class"` lines.
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(rf'^\[project\.entry-points\."{re.escape(GROUP)}"\]\n((?:(?!\[).*\n?)*)', text, re.MULTILINE)
    lines = re.findall(r'^([\w-]+)\s*=\s*"([^"]+)"', table.group(1), re.MULTILINE) if table else []
    return [EntryPoint(name, value, GROUP) for name, value in lines]
