"""Imports go one way (DESIGN): print each circle and each import against the arrows, exit 1 if there is one.

Type-checking imports and imports inside functions count. `LAYERS` lists the parts of the package from left to
right; a part imports parts to its left and its own modules. Beside that:

    uqharness/      no adapter by name: registry.py reaches them, by entry point
    leaderboard/    of uqharness only results, metrics, settings and what these stand on: nothing that knows a model
    everything      never uqharness.cli
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("uqharness", "adapters", "leaderboard", "tasks")
LAYERS = (
    "errors",
    "atomic interrupt terminal loose_json plugins",
    "settings toyworld metrics",
    "results",
    "posterior",
    "engine",
    "curvature",
    "training",
    "method",
    "registry",
    "adapters",
    "adapter_io",
    "importers",
    "harness",
    "testing tasks",
    "plots",
    "leaderboard",
    "suite",
    "commands",
    "api",
    "cli",
    "__main__",
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts.split()}
LEADERBOARD_MAY = {part for parts in LAYERS[:4] for part in parts.split()} | {"leaderboard", "tasks"}


def module_of(path: Path, root: Path) -> tuple[str, ...]:
    """The file's name as an installed module: adapters/blob.py -> ("uqharness", "adapters", "blob")."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return parts if parts[0] == "uqharness" else ("uqharness", *parts)


def imported(node: ast.AST, here: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names that an import statement, or import_module("..."), may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join([*here[: len(here) - node.level], *([node.module] if node.module else [])])
        base = base if node.level else node.module or ""
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def offence(here: tuple[str, ...], name: str) -> str | None:
    """Why module `here` may not import `name`; None if it may."""
    parts = name.split(".")
    if parts[0] != "uqharness" or len(parts) < 2 or len(here) < 2:
        return None
    part, wanted = here[1], parts[1]
    if wanted == "cli":
        return "nothing imports cli" if part != "__main__" else None
    if part == "leaderboard" and wanted not in LEADERBOARD_MAY and not wanted.startswith("__"):
        return "leaderboard imports only results, metrics, settings and what these stand on"
    if wanted == "adapters" and len(parts) > 2 and part not in ("adapters", "registry"):
        return "only registry.py reaches an adapter, by its entry point"
    if wanted == "adapters" and part == "registry":
        return None
    if part in RANK and wanted in RANK and part != wanted and RANK[wanted] >= RANK[part]:
        return f"{part} stands left of {wanted} (or beside it)"
    return None


def violations(root: Path) -> list[str]:
    """Lines that name each import against the arrows, then each circle of modules."""
    offences: dict[tuple[Path, int, str], str] = {}
    graph: dict[str, set[str]] = {}
    paths = {path: module_of(path, root) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}
    # The root has the version and hands out the API on demand: no module stands on it.
    modules = {".".join(here) for here in paths.values()} - {"uqharness"}
    for path, here in paths.items():
        edges = graph.setdefault(".".join(here), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node, here):
                edges |= {name} & modules - {".".join(here)}
                why = offence(here, name)
                if why:
                    offences.setdefault((path, getattr(node, "lineno", 0), why), name)
    lines = [f"{p.relative_to(root)}:{line}: imports {name}: {why}" for (p, line, why), name in offences.items()]
    return lines + [f"circle of imports: {', '.join(circle)}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the sets of modules that reach each other."""
    reached = {module: reach(graph, module) for module in graph}
    members = {tuple(sorted(m for m in reached[module] if module in reached[m])) for module in graph}
    return sorted(members - {()})


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that `start` imports, and those that they import."""
    seen: set[str] = set()
    stack = [start]
    while stack:
        for module in graph[stack.pop()] - seen:
            seen.add(module)
            stack.append(module)
    return seen


if __name__ == "__main__":
    lines = violations(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
    print("\n".join(lines) or "import rule: kept")
    sys.exit(bool(lines))
