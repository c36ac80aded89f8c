"""Data flows one way, and so do imports: print each import that breaks the rule, exit 1 if there is one.

    uqharness/      no adapter by name: registry.py reaches them, by entry point
    adapters/       may import uqharness.*
    leaderboard/    of uqharness only results, metrics, settings and what these stand on: nothing that knows a model
    everything      never uqharness.cli
"""
from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("uqharness", "adapters", "leaderboard", "tasks")
LEADERBOARD_MAY = (
    "leaderboard", "metrics", "results",
    "atomic", "calibration", "config", "errors", "leakage", "loose_json", "provenance", "record", "scores", "tasks",
    "toyworld",
)  # fmt: skip


def module_of(path: Path, root: Path) -> tuple[str, ...]:
    """The file's name as an installed module: adapters/blob.py -> ("uqharness", "adapters", "blob")."""
    parts = path.relative_to(root).with_suffix("").parts
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
    if parts[0] != "uqharness" or len(parts) < 2:
        return None
    part, wanted = here[1], parts[1]
    if wanted == "cli":
        return "nothing imports cli" if part != "__main__" else None
    if part == "leaderboard" and wanted not in LEADERBOARD_MAY and not wanted.startswith("__"):
        return "leaderboard imports only results, metrics, settings and what these stand on"
    if wanted == "adapters" and len(parts) > 2 and part not in ("adapters", "registry"):
        return "only registry.py reaches an adapter, by its entry point"
    return None


def violations(root: Path) -> list[str]:
    found: dict[tuple[Path, int, str], str] = {}
    for path in sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py")):
        here = module_of(path, root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node, here):
                why = offence(here, name)
                if why:
                    found.setdefault((path, getattr(node, "lineno", 0), why), name)
    return [f"{p.relative_to(root)}:{line}: imports {name}: {why}" for (p, line, why), name in found.items()]


if __name__ == "__main__":
    lines = violations(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
    print("\n".join(lines) or "import rule: kept")
    sys.exit(bool(lines))
