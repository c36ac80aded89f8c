"""The toy world's table: worlds that were not designed on, several training seeds, settings frozen before.

    python -m uqharness.toyworld --full --seed 1 --out worlds/w1       (and 2, 3)
    python -m benchmarks.toyworld_report worlds/w1 worlds/w2 worlds/w3 --out report [--seeds 3] [--methods …]

Every world is a `uqharness demo` of its own (resumable); this adds the MLE whose learning rate and steps were chosen on
validation, and averages over worlds and seeds. Writes OUT/report.json (docs/data/toyworld.json is one), OUT/report.md
and a reliability diagram per task, and prints the Markdown. `--show docs/data/toyworld.json` prints it again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml

from benchmarks.methods_numbers import draws, spread
from uqharness import demo
from uqharness.atomic import write_atomic
from uqharness.leaderboard.figures import Panel, reliability_svg
from uqharness.metrics import METRICS, combine_draws, reliability_bins
from uqharness.results import Run, read_results

METHODS = ["mle", "tempscale", "map", "mcd", "ens", "laplace", "bbb", "blob", "melora"]
METRIC_NAMES = ("acc", "ece", "ece_debiased", "ece_floor", "nll", "brier", "auroc")
FIRST = ("oracle", "zero-shot", "mle", "mle-tuned", "tempscale")
DRAWN = (("zero-shot", 1), ("mle", 1), ("mle-tuned", 1), ("ens", 3), ("laplace", 1), ("blob", 10), ("melora", 10),
         ("oracle", 1))  # fmt: skip
NEEDED = (("zero-shot", 1), ("mle", 1), ("ens", 3), ("blob", 10), ("oracle", 1))  # by what was expected
Row = tuple[str, int]  # name, draws
Key = tuple[str, int, str]  # name, draws, task
Values = dict[str, list[Any]]  # {"world": [...], "seed": [...], metric: [...]}, one entry per run


def run_world(world: Path, out: Path, args: argparse.Namespace, suite: dict[str, Any]) -> None:
    os.environ["UQHARNESS_TOYWORLD"] = str(world.resolve())
    wanted = argparse.Namespace(
        out=out, all=False, methods=args.methods, seeds=args.seeds, quick=False, limit=args.limit
    )
    cells = demo.plan(wanted, suite)
    tuned = {**suite["run"], **suite["mle_tuned"]}
    limit = args.limit or None
    cells += [demo.Cell(f"mle-tuned/seed{s}", "mle", s, tuned, limit) for s in range(args.seeds)]
    demo.run_cells(out, [cell for cell in cells if not demo.is_done(out, cell)], args.workers)


def cells_of(out: Path) -> Iterable[tuple[str, str, int, Run]]:
    """(world, row's name, training seed, run) of all that is done."""
    for marker in sorted(out.glob("w*/results/**/demo.json")):
        cell = json.loads(marker.read_text())["cell"]
        world = marker.relative_to(out).parts[0]
        for run in read_results(marker.parent):
            yield world, cell["name"].split("/")[0], cell["seed"], run


def collect(out: Path) -> dict[Key, Values]:
    """{(row, draws, task): values over worlds and seeds}."""
    found: dict[Key, Values] = {}
    for world, name, seed, run in cells_of(out):
        for n in draws(run):
            numbers = run.metrics(n)
            told = {"world": world, "seed": seed, **{m: round(numbers[m], 5) for m in METRIC_NAMES}}
            values = found.setdefault((name, n, run.task), {key: [] for key in told})
            for key, value in told.items():
                values[key].append(value)
    return found


def load(path: Path) -> dict[Key, Values]:
    return {(row.pop("row"), row.pop("draws"), row.pop("task")): row for row in json.loads(path.read_text())}


def save(found: Mapping[Key, Values], path: Path) -> None:
    rows = [json.dumps({"row": n, "draws": d, "task": t, **v}) for (n, d, t), v in sorted(found.items())]
    write_atomic(path, "[\n" + ",\n".join(rows) + "\n]\n")


def rows_of(found: Mapping[Key, Values]) -> list[Row]:
    rows = dict.fromkeys((name, n) for name, n, _ in found)
    return sorted(rows, key=lambda row: (FIRST.index(row[0]) if row[0] in FIRST else len(FIRST), *row))


def tasks_of(found: Mapping[Key, Values]) -> list[str]:
    return [task for task in demo.TASKS if any(key[2] == task for key in found)]


def table(found: Mapping[Key, Values]) -> str:
    """One column per task: mean ± standard deviation over all worlds and training seeds."""
    tasks = tasks_of(found)
    lines = [f"| | N | {' | '.join(f'{t} ACC / ECE / NLL' for t in tasks)} |", "|---|---|" + "---|" * len(tasks)]
    lines += [f"| {name} | {n} | {' | '.join(cell(found.get((name, n, t), {})) for t in tasks)} |"
              for name, n in rows_of(found)]  # fmt: skip
    floors = [f"{t} {100 * mean(found['oracle', 1, t]['ece_floor']):.1f}" for t in tasks if ("oracle", 1, t) in found]
    return "\n".join([*lines, "", f"ECE floor at the oracle's confidences: {', '.join(floors)}"])


def table_by_world(found: Mapping[Key, Values], task: str) -> str:
    """One column per world: mean ± standard deviation over its training seeds."""
    worlds = sorted({w for values in found.values() for w in values["world"]})
    lines = [f"| {task} | N | {' | '.join(f'{w} ACC / ECE / NLL' for w in worlds)} |"]
    lines += ["|---|---|" + "---|" * len(worlds)]
    for name, n in rows_of(found):
        cells = [cell(of_world(found.get((name, n, task), {}), w)) for w in worlds]
        lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_world(values: Values, world: str) -> Values:
    keep = [w == world for w in values.get("world", [])]
    return {key: [v for v, k in zip(column, keep, strict=True) if k] for key, column in values.items()}


def cell(values: Values) -> str:
    return " / ".join(spread(values[m], m) if values.get(m) else "–" for m in ("acc", "ece", "nll"))


def expectations(found: Mapping[Key, Values]) -> str:
    """What the project expected before anything was measured, what came out, and in how many worlds it holds."""
    if missing := sorted(f"{name}, N = {n}" for name, n in set(NEEDED) - set(rows_of(found))):
        return f"What was expected cannot be judged without {'; '.join(missing)}."
    tasks, worlds = tasks_of(found), sorted({w for values in found.values() for w in values["world"]})
    alone = [judged({key: of_world(values, w) for key, values in found.items()}) for w in worlds]
    lines = [f"| expected | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for what, told in judged(found).items():
        cells = []
        for task in tasks:
            held = sum(one[what][task][0] for one in alone if task in one[what])
            met, number = told.get(task, (False, ""))
            verdict = f"{'met' if met else '**not met**'}: {number} ({held} of {len(worlds)} worlds)"
            cells.append(verdict if number else "")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def judged(found: Mapping[Key, Values]) -> dict[str, dict[str, tuple[bool, str]]]:
    """{expectation: {task: (does it hold for the means, the number)}}."""
    tasks = tasks_of(found)
    home, near, far = demo.TASKS

    def means(name: str, n: int, metric: str) -> dict[str, float]:
        return {t: METRICS[metric].scale * mean(found[name, n, t][metric]) for t in tasks}

    mle, blob, ens = means("mle", 1, "ece"), means("blob", 10, "ece"), means("ens", 3, "ece")
    floor = means("mle", 1, "ece_floor")
    base, ours, best = means("zero-shot", 1, "acc"), means("blob", 10, "acc"), means("oracle", 1, "acc")
    gain = {t: ours[t] - x for t, x in means("mle", 1, "acc").items()}
    closed = (ours[home] - base[home]) / (best[home] - base[home])
    relative = {t: 100 * ours[t] / best[t] for t in tasks}
    harder = (relative[near] - relative[far] >= 5, f"{relative[far]:.1f} % against {relative[near]:.1f} %")
    return {
        "MLE: ECE ≥ 15": {t: (mle[t] >= 15, f"{mle[t]:.1f}") for t in tasks},
        "MLE: ECE ≥ 3 × floor": {t: (mle[t] >= 3 * floor[t], f"{mle[t] / floor[t]:.1f} ×") for t in tasks},
        "BLoB's ECE ≤ half of MLE's": {t: (blob[t] <= mle[t] / 2, f"{blob[t] / mle[t]:.2f}") for t in tasks},
        "BLoB's NLL < MLE's": {t: lower(found["blob", 10, t], found["mle", 1, t]) for t in tasks},
        "BLoB's ACC ≥ MLE's": {t: (gain[t] >= 0, f"{gain[t]:+.1f}") for t in tasks},
        "ECE of ENS between the two": {t: (blob[t] < ens[t] < mle[t], f"{ens[t]:.1f}") for t in tasks},
        "BLoB's ACC ≥ zero-shot + 5": {home: (ours[home] >= base[home] + 5, f"{ours[home] - base[home]:+.1f}")},
        "a third of the gap to the oracle closed": {home: (closed >= 1 / 3, f"{100 * closed:.0f} %")},
        "far harder than near: BLoB's ACC / oracle's, by 5 points": {far: harder},
    }


def lower(ours: Values, theirs: Values) -> tuple[bool, str]:
    """Is the mean NLL lower, by how much, and in how many pairs of the same world and training seed?"""
    pairs = list(zip(ours["nll"], theirs["nll"], strict=True))
    difference = mean(ours["nll"]) - mean(theirs["nll"])
    return difference < 0, f"{difference:+.3f}, in {sum(x < y for x, y in pairs)} of {len(pairs)} pairs"


def diagram(out: Path, found: Mapping[Key, Values], task: str) -> str:
    """Reliability over all worlds and seeds together; the numbers are the means of the table."""
    probs: dict[Row, list[Any]] = {row: [] for row in DRAWN}
    gold: dict[Row, list[int]] = {row: [] for row in DRAWN}
    for _, name, _, run in cells_of(out):
        row = (name, run.record.draws)
        if run.task == task and row in probs:
            p = combine_draws(run.record.rows(), run.record.combine)  # [D, C]
            probs[row].append(np.pad(p, ((0, 0), (0, 5 - p.shape[1])), constant_values=np.nan))
            gold[row] += list(run.record.gold)
    panels = []
    for row in (r for r in DRAWN if probs[r]):
        numbers = found[row[0], row[1], task]
        shown = [f"{m.upper()} {spread(numbers[m], m).split(' ')[0]}" for m in ("acc", "ece", "nll")]
        bins = reliability_bins(np.concatenate(probs[row]), np.array(gold[row]))
        panels.append(Panel(f"{row[0]}, N = {row[1]}" if row[0] == "blob" else row[0], "  ".join(shown), bins))
    return reliability_svg(panels, f"{task}, all worlds and training seeds, 15 bins; grey: how many")


def markdown(found: Mapping[Key, Values]) -> str:
    by_world = [table_by_world(found, task) for task in tasks_of(found)]
    return "\n\n".join([table(found), expectations(found), *by_world]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", type=Path, help="folders made by python -m uqharness.toyworld --full")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1500, help="questions per test set; 0: all 6000")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=Path, metavar="JSON", help="run nothing: print the tables of this report.json")
    args = parser.parse_args()
    if args.show:
        print(markdown(load(args.show)))
        return
    suite = yaml.safe_load(files("uqharness.suites").joinpath("toyworld.yaml").read_text(encoding="utf-8"))
    for world in args.worlds:
        run_world(world, args.out / f"w{world.name.lstrip('w')}", args, suite)
    found = collect(args.out)
    save(found, args.out / "report.json")
    for task in tasks_of(found):
        write_atomic(args.out / f"{task}.svg", diagram(args.out, found, task))
    write_atomic(args.out / "report.md", markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
