"""Entry points that packages offer in a group; built-ins use the same mechanism as others.

An installed package's entry points are in its metadata. In a checkout that is not installed the same list is
read from its pyproject.toml. Entry points are imported on first use.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from uqharness import __version__
from uqharness.errors import InputError

METHODS = "uqharness.methods"
METRICS = "uqharness.metrics"
log = logging.getLogger(__name__)


def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; built-ins hide others of the same name."""
    points = {point.name: point for point in _checkout(group)}
    for point in sorted(entry_points(group=group), key=lambda p: (not built_in(p), p.name, p.value)):
        if point.name not in points:
            points[point.name] = point
        elif points[point.name].value != point.value:
            what = f"{group.rpartition('.')[2][:-1]} {point.name} of {point.value}"
            log.warning("%s is hidden by %s", what, points[point.name].value)
    return dict(sorted(points.items()))


def load(point: EntryPoint) -> Any:
    """Import the object of an entry point."""
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{describe(point)} cannot be imported: {error}") from error


def describe(point: EntryPoint) -> str:
    """`method sgld (module:Class, package)`, for messages."""
    return f"{point.group.rpartition('.')[2][:-1]} {point.name} ({point.value}, {distribution(point)})"


def distribution(point: EntryPoint) -> str:
    """Return the package that an entry point comes from."""
    dist = getattr(point, "dist", None)
    return dist.name if dist is not None else "uqharness"


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is missing. This one's is known in a checkout too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return __version__ if package == "uqharness" else None


def built_in(point: EntryPoint) -> bool:
    """Return whether an entry point belongs to this package."""
    return point.value.startswith("uqharness.")


def _checkout(group: str) -> list[EntryPoint]:
    """Return the entry points in the pyproject.toml beside this package, if it is a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "adapters").is_dir() or not (root / "pyproject.toml").is_file():
        return []
    # tomllib is Python 3.11's; the table that is wanted is plain `name = "module:Class"` lines.
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(rf'^\[project\.entry-points\."{re.escape(group)}"\]\n((?:(?!\[).*\n?)*)', text, re.MULTILINE)
    lines = re.findall(r'^([\w-]+)\s*=\s*"([^"]+)"', table.group(1), re.MULTILINE) if table else []
    return [EntryPoint(name, value, group) for name, value in lines]
