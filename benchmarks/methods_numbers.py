"""The embedded world's numbers in docs/methods.md, from results or from the file that is committed.

    uqharness demo --all --seeds 3 --out all
    python benchmarks/methods_numbers.py all --machine "..."   # reads all/results, writes docs/data/methods.json
    python benchmarks/methods_numbers.py                       # fills docs/methods.md from docs/data/methods.json

What stands between `<!-- toyworld:NAME -->` and `<!-- end -->` is made here; NAME is a method, `references` or `order`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from uqharness.atomic import write_atomic
from uqharness.commands.demo import TASKS
from uqharness.commands.demo import settings as settings_of
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import Run, read_results
from uqharness.suite.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA = ROOT / "docs" / "methods.md", ROOT / "docs" / "data" / "methods.json"
COMMAND = "uqharness demo --all --seeds 3"
SHOWN = ("acc", "ece", "nll")
PLACES = dict(zip(TASKS, ("in-distribution", "near", "far"), strict=True))
# What the project expected of these before they were measured: at most half of MLE's ECE, but not under the far shift.
HALF = ("bbb", "blob", "laplace")
BLOCK = re.compile(r"(<!-- toyworld:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# ---------------------------------------------------------------- results -> docs/data/methods.json


def collect(out: Path, machine: str) -> dict[str, Any]:
    """All cells of a demo: settings by method, metrics by method, N and task with one value per training seed."""
    settings: dict[str, Any] = {}
    rows: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    made: dict[str, Any] = {"command": COMMAND, "machine": machine}
    planned = Store(out).read()
    for entry, folder in sorted(Store(out).evaluated(), key=lambda pair: pair[0].name):
        name = entry.method
        settings[name] = settings_of(planned, entry)
        for run in read_results(folder):
            made |= {"questions": run.record.items, "versions": versions(run) or made.get("versions")}
            for n in draws(run):
                numbers = run.metrics(n)
                values = rows.setdefault((name, n, run.task), {"seed": [], **{m: [] for m in (*SHOWN, "ece_floor")}})
                values["seed"].append(entry.seed or 0)
                for metric in (*SHOWN, "ece_floor"):
                    values[metric].append(round(numbers[metric], 5))
    listed = [{"row": name, "draws": n, "task": task, **values} for (name, n, task), values in sorted(rows.items())]
    return {**made, "settings": settings, "rows": listed}


def versions(run: Run) -> dict[str, str] | None:
    return ((run.config.get("uqharness") or {}).get("record") or {}).get("versions")


def draws(run: Run) -> list[int]:
    """N = 0, 5 and all where the posterior has any number of draws; a point or a combined answer is one row."""
    have = run.record.draws
    posterior = ((run.config.get("uqharness") or {}).get("record") or {}).get("posterior", {})
    return [have] if posterior.get("finite", 1) is not None or run.record.combine == "given" else [0, 5, have]


# ---------------------------------------------------------------- docs/data/methods.json -> docs/methods.md


def filled(page: str, data: dict[str, Any]) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], data)}\n{match[3]}", page)


def block(name: str, data: dict[str, Any]) -> str:
    if name == "order":
        return order(data)
    if name == "references":
        return table(data, ["oracle", "zero-shot"])
    own = {k: v for k, v in data["settings"][name].items() if k not in data["settings"]["mle"]}
    listed = ", ".join(f"`{key}={value}`" for key, value in own.items()) or "no settings of its own"
    return f"Embedded world ({listed}):\n\n{table(data, [name])}"


def table(data: dict[str, Any], names: list[str]) -> str:
    lines = [f"| | N | {' | '.join(f'{p}, ACC / ECE / NLL' for p in PLACES.values())} |", "|---|---|---|---|---|"]
    for name in names:
        for n in sorted({row["draws"] for row in data["rows"] if row["row"] == name}):
            cells = [" / ".join(spread(values(data, name, n, task)[m], m) for m in SHOWN) for task in TASKS]
            lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def values(data: dict[str, Any], name: str, n: int | None, task: str) -> dict[str, list[float]]:
    """`n` None: the most draws that there are."""
    by_draws = {row["draws"]: row for row in data["rows"] if (row["row"], row["task"]) == (name, task)}
    return by_draws[max(by_draws) if n is None else n]


def spread(numbers: list[float], metric: str) -> str:
    """Mean ± standard deviation over training seeds."""
    scale, digits = METRICS[metric].scale, 1 if METRICS[metric].scale > 1 else 3
    deviation = f" ± {scale * stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{scale * mean(numbers):.{digits}f}{deviation}"


def order(data: dict[str, Any]) -> str:
    """Every method against MLE: difference of the NLL, ratio of the ECE, and what was expected."""
    places = list(PLACES.values())
    head = [f"NLL − MLE's, {p}" for p in places] + [f"ECE / MLE's, {p}" for p in places]
    lines = [f"| | {' | '.join(head)} | lower than MLE in all six | half of MLE's ECE, {places[0]} and {places[1]} |"]
    lines.append("|---" * 9 + "|")
    for name in (name for name in data["settings"] if name not in ("mle", "oracle", "zero-shot")):
        nll = [against(data, name, task, "nll") for task in TASKS]
        ece = [against(data, name, task, "ece") for task in TASKS]
        better = all(ours < theirs for ours, theirs in nll + ece)
        half = all(ours <= theirs / 2 for ours, theirs in ece[:2])
        cells = [f"{ours - theirs:+.3f}" for ours, theirs in nll] + [f"{ours / theirs:.2f}" for ours, theirs in ece]
        lines.append(f"| {name} | {' | '.join(cells)} | {said(better)} | {said(half) if name in HALF else '–'} |")
    return "\n".join(lines)


def against(data: dict[str, Any], name: str, task: str, metric: str) -> tuple[float, float]:
    return mean(values(data, name, None, task)[metric]), mean(values(data, "mle", None, task)[metric])


def said(met: bool) -> str:
    return "met" if met else "**not met**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="the demo's --out")
    parser.add_argument("--machine", default="", help="what it ran on, for the record")
    args = parser.parse_args()
    if args.out:
        data = collect(args.out, args.machine)
        rows = ",\n".join(json.dumps(row) for row in data.pop("rows"))
        text = json.dumps(data, indent=1)[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'
        write_atomic(DATA, text)
    write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8"), json.loads(DATA.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
