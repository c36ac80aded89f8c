"""The toy world's table: worlds that were not designed on, several training seeds, settings frozen before.

    python -m tools.toyworld --full --seed 4 --out worlds/w4       (and 5, 6)
    python -m benchmarks.toyworld_report worlds/w4 worlds/w5 worlds/w6 --out report [--seeds 3] [--methods …]
    python -m benchmarks.toyworld_report --fill report                 (docs/toyworld.md takes its numbers and figures)

Every world is a `uqharness demo` of its own (resumable). To it come the suite's *mle-tuned* and *bbb-sum*, and
*mle-tuned-per-world*: MLE with the best of four (learning rate, steps) pairs by that world's own validation NLL, at the
tuning seed (toyworld_tune.py). Writes OUT/report.json, OUT/report.md and a reliability diagram per task, and prints the
Markdown. `--show docs/data/toyworld-v1.json` prints it again; intervals are those of clustered.py.

What stands in docs/toyworld.md between `<!-- report:VERSION:BLOCK -->` and `<!-- end -->` is made here from
docs/data/toyworld-VERSION.json; `--fill` alone makes it again, `--fill OUT` first takes OUT as the newest version.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.clustered import Estimate, agreeing, clustered, paired
from benchmarks.clustered import Run as Pair
from benchmarks.methods_numbers import draws, spread, versions
from benchmarks.toyworld_tune import GRID, SEED, SHARED, trial
from uqharness import __version__
from uqharness.atomic import write_atomic
from uqharness.commands import demo
from uqharness.commands import suite as suites
from uqharness.errors import InputError
from uqharness.metrics.averaging import combine_draws
from uqharness.metrics.calibration import reliability_bins
from uqharness.metrics.registry import METRICS
from uqharness.plots.svg import Panel, reliability_svg
from uqharness.results.reading import Run, read_results
from uqharness.suite import schema
from uqharness.suite.plan import Plan, make, world_hash
from uqharness.suite.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA, IMAGES = ROOT / "docs" / "toyworld.md", ROOT / "docs" / "data", ROOT / "docs" / "img"
NEWEST = "v2"
BLOCK = re.compile(r"(<!-- report:(v\d+):([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PER_WORLD = "mle-tuned-per-world"
RENAMED = ("mle-tuned", "bbb-sum")  # methods under another name, with settings of their own
METHODS = ["mle", "tempscale", "map", "mcd", "ens", "laplace", "bbb", "blob", "melora"]
METRIC_NAMES = ("acc", "ece", "ece_debiased", "ece_floor", "nll", "brier", "auroc")
SHOWN = ("acc", "ece", "nll")
FIRST = ("oracle", "zero-shot", "mle", "mle-tuned", PER_WORLD, "tempscale")
DRAWN = (
    ("mle", 1),
    (PER_WORLD, 1),
    ("tempscale", 1),
    ("ens", 3),
    ("laplace", 1),
    ("blob", 10),
    ("melora", 10),
    ("oracle", 1),
)
NEEDED = (("zero-shot", 1), ("mle", 1), ("ens", 3), ("blob", 10), ("oracle", 1))  # by what was expected
DRAWN_TASKS = (demo.TASKS[0], demo.TASKS[2])
HEADLINE = (
    ("mle", 1),
    ("mle-tuned", 1),
    (PER_WORLD, 1),
    ("tempscale", 1),
    ("ens", 3),
    ("laplace", 1),
    ("bbb", 10),
    ("bbb-sum", 10),
    ("melora", 10),
    ("blob", 0),
    ("blob", 10),
)
# First the questions a reader asks of BLoB, then what of its gain over MLE is there already at the mean.
DIFFERENCES = (
    (("blob", 10), ("tempscale", 1)),
    (("blob", 10), ("mle-tuned", 1)),
    (("blob", 10), (PER_WORLD, 1)),
    (("blob", 10), ("blob", 0)),
    (("blob", 10), ("mle", 1)),
    (("blob", 0), ("mle", 1)),
)
Row = tuple[str, int]  # name, draws
Key = tuple[str, int, str]  # name, draws, task
Values = dict[str, list[Any]]  # {"world": [...], "seed": [...], metric: [...]}, one entry per run


@dataclass(frozen=True)
class Report:
    """What a report says: metrics by row and task, and MLE's four trials on each world's validation split."""

    rows: dict[Key, Values]
    chosen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


def all_rows() -> list[str]:
    return [*METHODS, *RENAMED, PER_WORLD]


def run_world(world: Path, out: Path, args: argparse.Namespace) -> None:
    os.environ["UQHARNESS_TOYWORLD"] = str(world.resolve())
    if PER_WORLD in args.methods:
        same_recipe(schema.read("toyworld").run)
    made, store = plan(args, lambda: best(trials(out, args.workers))["settings"]), Store(out)
    store.write(made)
    suites.carry_out(made, made.cells, store, argparse.Namespace(on="local", jobs=args.workers))
    write_atomic(out / "world.json", json.dumps(base_of(world)) + "\n")


def base_of(world: Path) -> dict[str, Any]:
    """Which attempt at pretraining the base is, why those before it were given up, and what it knows."""
    from transformers import LlamaForCausalLM

    from tools.toyworld.files import read_manifest
    from tools.toyworld.pretrain import RARE, Corpus, relations_right
    from tools.toyworld.world import make_world

    manifest = read_manifest(world)
    corpus, rng = Corpus(make_world(manifest["seed"]), RARE), np.random.default_rng([manifest["seed"], 2])
    model = LlamaForCausalLM.from_pretrained(world / "base").eval()
    failed = manifest["pretraining"].get("failed", [])
    return {"attempt": len(failed) + 1, "failed": failed, "relations": round(relations_right(model, corpus, rng), 4)}


def same_recipe(run: Mapping[str, Any]) -> None:
    """Refuse to report settings under another recipe than they were chosen under."""
    differ = [f"{key}: {run.get(key)} and {value}" for key, value in SHARED.items() if run.get(key) != value]
    if differ:
        raise InputError(
            f"the suite and the trials have other run settings ({'; '.join(differ)}); "
            "choose settings with benchmarks/toyworld_tune.py and put them into uqharness/suite/shipped/toyworld.yaml"
        )


def plan(args: argparse.Namespace, tuned: Callable[[], Mapping[str, Any]]) -> Plan:
    """The demo's cells for these rows; `tuned` is asked only if its row is among them."""
    extra = [schema.Row(PER_WORLD, "mle", None, None, dict(tuned()), None)] if PER_WORLD in args.methods else []
    names = [name for name in args.methods if name != PER_WORLD]
    return make(demo.grid(names, args.seeds, args.limit or None, {}, extra))


def trials(out: Path, workers: int) -> list[dict[str, Any]]:
    """MLE's four trials on the validation split of the world in use; OUT/tuned.json keeps them."""
    path = out / "tuned.json"
    key = {"version": __version__, "world": world_hash(), "shared": SHARED, "grid": GRID["mle"]}
    if path.exists() and (stored := json.loads(path.read_text()))["key"] == key:
        return list(stored["trials"])
    jobs = [("mle", settings, SEED) for settings in GRID["mle"]]
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(trial, jobs))
    write_atomic(path, json.dumps({"key": key, "trials": done}, indent=1) + "\n")
    return done


def best(tried: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return min(tried, key=lambda one: float(one["nll"]))


def cells_of(out: Path) -> Iterable[tuple[str, str, int, Run]]:
    """(world, row's name, training seed, run) of all that is done."""
    for plan_file in sorted(out.glob("w*/suite.json")):
        for entry, folder in Store(plan_file.parent).evaluated():
            for run in read_results(folder):
                yield plan_file.parent.name, entry.method, entry.seed or 0, run


def settings_of(out: Path) -> dict[str, dict[str, Any]]:
    """{row: its settings}, which are the same in every world and at every seed; each world chooses PER_WORLD's."""
    settings: dict[str, dict[str, Any]] = {}
    for plan_file in sorted(out.glob("w*/suite.json")):
        made = Store(plan_file.parent).read()
        for entry in made.entries:
            if entry.method in (PER_WORLD, *demo.REFERENCES):
                continue
            own = demo.settings(made, entry)
            if settings.setdefault(entry.method, own) != own:
                raise InputError(
                    f"{plan_file.parent}: {entry.method} has other settings than the same row in another world; "
                    "run the report again for all worlds, or remove that folder"
                )
    return settings


def collect(out: Path) -> Report:
    """Values over worlds and seeds, and the trials of the worlds that have them."""
    rows: dict[Key, Values] = {}
    made: dict[str, Any] = {"settings": settings_of(out)}
    for world, name, seed, run in cells_of(out):
        made |= {"questions": run.record.items, "versions": versions(run) or made.get("versions")}
        for n in draws(run):
            numbers = run.metrics(n)
            entry = {"world": world, "seed": seed, **{m: round(numbers[m], 5) for m in METRIC_NAMES}}
            values = rows.setdefault((name, n, run.task), {key: [] for key in entry})
            for key, value in entry.items():
                values[key].append(value)
    made["worlds"] = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("w*/world.json"))}
    chosen = {path.parent.name: json.loads(path.read_text())["trials"] for path in sorted(out.glob("w*/tuned.json"))}
    return Report(rows, chosen, made)


def load(path: Path) -> Report:
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, list):  # the first report
        data = {"rows": data}
    rows = {(row.pop("row"), row.pop("draws"), row.pop("task")): row for row in data.pop("rows")}
    return Report(rows, **data)


def save(report: Report, path: Path) -> None:
    rows = [json.dumps({"row": n, "draws": d, "task": t, **v}) for (n, d, t), v in sorted(report.rows.items())]
    chosen = [f"{json.dumps(world)}: {json.dumps(tried)}" for world, tried in report.chosen.items()]
    made = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in report.made.items()]
    parts = [("made", made, "{}"), ("chosen", chosen, "{}"), ("rows", rows, "[]")]
    text = ",\n".join(f'"{key}": {left}\n' + ",\n".join(lines) + f"\n{right}" for key, lines, (left, right) in parts)
    write_atomic(path, "{\n" + text + "\n}\n")


def rows_of(values_of: Mapping[Key, Values]) -> list[Row]:
    rows = dict.fromkeys((name, n) for name, n, _ in values_of)
    return sorted(rows, key=lambda row: (FIRST.index(row[0]) if row[0] in FIRST else len(FIRST), *row))


def tasks_of(values_of: Mapping[Key, Values]) -> list[str]:
    return [task for task in demo.TASKS if any(key[2] == task for key in values_of)]


def table(values_of: Mapping[Key, Values]) -> str:
    """One column per task: mean ± standard deviation over all worlds and training seeds."""
    tasks = tasks_of(values_of)
    lines = [f"| | N | {' | '.join(f'{t} ACC / ECE / NLL' for t in tasks)} |", "|---|---|" + "---|" * len(tasks)]
    lines += [
        f"| {name} | {n} | {' | '.join(cell(values_of.get((name, n, t), {})) for t in tasks)} |"
        for name, n in rows_of(values_of)
    ]
    floors = [
        f"{t} {100 * mean(values_of['oracle', 1, t]['ece_floor']):.1f}" for t in tasks if ("oracle", 1, t) in values_of
    ]
    return "\n".join([*lines, "", f"ECE floor at the oracle's confidences: {', '.join(floors)}"])


def table_by_world(values_of: Mapping[Key, Values], task: str) -> str:
    """One column per world: mean ± standard deviation over its training seeds."""
    worlds = sorted({w for values in values_of.values() for w in values["world"]})
    lines = [f"| {task} | N | {' | '.join(f'{w} ACC / ECE / NLL' for w in worlds)} |"]
    lines += ["|---|---|" + "---|" * len(worlds)]
    for name, n in rows_of(values_of):
        cells = [cell(of_world(values_of.get((name, n, task), {}), w)) for w in worlds]
        lines.append(f"| {name} | {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_world(values: Values, world: str) -> Values:
    keep = [w == world for w in values.get("world", [])]
    return {key: [v for v, k in zip(column, keep, strict=True) if k] for key, column in values.items()}


def cell(values: Values) -> str:
    return " / ".join(spread(values[m], m) if values.get(m) else "–" for m in SHOWN)


def expectations(values_of: Mapping[Key, Values]) -> str:
    """What the project expected before anything was measured, what came out, and in how many worlds it holds."""
    if missing := sorted(f"{name}, N = {n}" for name, n in set(NEEDED) - set(rows_of(values_of))):
        return f"What was expected cannot be judged without {'; '.join(missing)}."
    tasks, worlds = tasks_of(values_of), sorted({w for values in values_of.values() for w in values["world"]})
    alone = [judged({key: of_world(values, w) for key, values in values_of.items()}) for w in worlds]
    lines = [f"| expected | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for what, verdicts in judged(values_of).items():
        cells = []
        for task in tasks:
            held = sum(one[what][task][0] for one in alone if task in one[what])
            met, number = verdicts.get(task, (False, ""))
            verdict = f"{'met' if met else '**not met**'}: {number} ({held} of {len(worlds)} worlds)"
            cells.append(verdict if number else "")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def judged(values_of: Mapping[Key, Values]) -> dict[str, dict[str, tuple[bool, str]]]:
    """{expectation: {task: (does it hold for the means, the number)}}."""
    tasks = tasks_of(values_of)
    home, near, far = demo.TASKS

    def means(name: str, n: int, metric: str) -> dict[str, float]:
        return {t: METRICS[metric].scale * mean(values_of[name, n, t][metric]) for t in tasks}

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
        "BLoB's NLL < MLE's": {t: lower(values_of["blob", 10, t], values_of["mle", 1, t]) for t in tasks},
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


def diagram(out: Path, values_of: Mapping[Key, Values], task: str) -> str:
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
        numbers = values_of[row[0], row[1], task]
        shown = [f"{m.upper()} {spread(numbers[m], m).split(' ')[0]}" for m in SHOWN]
        bins = reliability_bins(np.concatenate(probs[row]), np.array(gold[row]))
        panels.append(Panel(f"{row[0]}, N = {row[1]}" if row[0] == "blob" else row[0], "  ".join(shown), bins))
    return reliability_svg(panels, f"{task}, all worlds and training seeds, 15 bins; grey: how many")


def runs(values: Values, metric: str) -> dict[Pair, float]:
    """{(world, training seed): value in the table's unit}."""
    pairs = zip(values["world"], values["seed"], values[metric], strict=True)
    return {(world, seed): METRICS[metric].scale * value for world, seed, value in pairs}


def digits(metric: str) -> int:
    return 1 if METRICS[metric].scale > 1 else 3


def bracket(estimate: Estimate, metric: str, sign: str = "") -> str:
    """mean [low, high]; a metric itself, which is never negative, has no end below 0."""
    low = estimate.low if sign else max(estimate.low, 0.0)
    shown = [f"{value:{sign}.{digits(metric)}f}" for value in (estimate.mean, low, estimate.high)]
    return shown[0] if np.isnan(estimate.low) else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def intervals(values_of: Mapping[Key, Values]) -> str:
    """The headline numbers with 95 % intervals over worlds."""
    tasks = tasks_of(values_of)
    lines = [f"| | N | | {' | '.join(tasks)} |", "|---|---|---|" + "---|" * len(tasks)]
    for name, n in (row for row in HEADLINE if row in rows_of(values_of)):
        for metric in SHOWN:
            cells = [bracket(clustered(runs(values_of[name, n, t], metric)), metric) for t in tasks]
            lines.append(f"| {name} | {n} | {metric.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(values_of: Mapping[Key, Values]) -> str:
    """Paired differences with 95 % intervals over worlds, and how many pairs have the sign of the mean."""
    tasks, rows = tasks_of(values_of), rows_of(values_of)
    lines = [f"| difference | | {' | '.join(tasks)} |", "|---|---|" + "---|" * len(tasks)]
    for ours, theirs in ((a, b) for a, b in DIFFERENCES if a in rows and b in rows):
        for metric in SHOWN:
            cells = [difference(values_of[(*ours, t)], values_of[(*theirs, t)], metric) for t in tasks]
            lines.append(f"| {label(ours)} − {label(theirs)} | {metric.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "There are no two rows to compare."


def difference(ours: Values, theirs: Values, metric: str) -> str:
    pairs = paired(runs(ours, metric), runs(theirs, metric))
    return f"{bracket(clustered(pairs), metric, '+')}, {agreeing(pairs)} of {len(pairs)}"


def label(row: Row) -> str:
    return f"{row[0]} (N = {row[1]})" if row[0] == "blob" else row[0]


def chosen(trials_of: Mapping[str, list[dict[str, Any]]]) -> str:
    """MLE's four trials on each world's validation split; the one that *mle-tuned-per-world* uses is bold."""
    if not trials_of:
        return "No setting was chosen per world."
    lines = [f"| mle, validation ACC / ECE / NLL | {' | '.join(trials_of)} |", "|---|" + "---|" * len(trials_of)]
    for i, one in enumerate(next(iter(trials_of.values()))):
        settings = ", ".join(f"{key}={value}" for key, value in one["settings"].items()) or "the shared recipe"
        cells = []
        for tried in trials_of.values():
            numbers = " / ".join(f"{METRICS[m].scale * tried[i][m]:.{digits(m)}f}" for m in SHOWN)
            cells.append(f"**{numbers}**" if tried[i] is best(tried) else numbers)
        lines.append(f"| {settings} | {' | '.join(cells)} |")
    return "\n".join(lines)


def worlds(report: Report) -> str:
    """What each world's base knows before fine-tuning."""
    bases = report.made.get("worlds")
    if not bases:
        return "What the bases know was not written down."
    tasks = [task for task in tasks_of(report.rows) if ("zero-shot", 1, task) in report.rows]
    lines = [f"| world | attempt | relation questions right | {' | '.join(f'zero-shot ACC, {t}' for t in tasks)} |"]
    lines += ["|---" * (3 + len(tasks)) + "|"]
    for world, base in bases.items():
        attempt = f"{base['attempt']}{''.join(f'; {why}' for why in base['failed'])}"
        accs = [f"{100 * mean(of_world(report.rows['zero-shot', 1, t], world)['acc']):.1f}" for t in tasks]
        lines.append(f"| {world} | {attempt} | {100 * base['relations']:.1f} % | {' | '.join(accs)} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[Report], str]] = {
    "table": lambda report: table(report.rows),
    "expectations": lambda report: expectations(report.rows),
    "intervals": lambda report: intervals(report.rows),
    "differences": lambda report: differences(report.rows),
    "worlds": worlds,
    "chosen": lambda report: chosen(report.chosen),
    "by-world": lambda report: table_by_world(report.rows, tasks_of(report.rows)[0]),
}


def markdown(report: Report) -> str:
    by_world = [table_by_world(report.rows, task) for task in tasks_of(report.rows)[1:]]
    return "\n\n".join([*(block(report) for block in BLOCKS.values()), *by_world]) + "\n"


def filled(page: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{made(block[2], block[3])}\n{block[4]}", page)


def made(version: str, block: str) -> str:
    """One block of the page."""
    path = DATA / f"toyworld-{version}.json"
    if not path.exists():
        return "*Not measured yet.*"
    if block == "figures":
        shown = [(task, IMAGES / f"{task}-{version}.svg") for task in demo.TASKS]
        return "\n\n".join(f"![Reliability, {task}](img/{path.name})" for task, path in shown if path.exists())
    report = load(path)
    return source(report, path.name) if block == "source" else BLOCKS[block](report)


def source(report: Report, name: str) -> str:
    """What the runs were made with, and where every value is."""
    packages = ", ".join(f"{package} {version}" for package, version in (report.made.get("versions") or {}).items())
    questions = f"{report.made.get('questions', 1500):,} questions per test set"
    everything = f"all values by world and seed, with Brier score, AUROC and debiased ECE: [{name}](data/{name})"
    return f"{questions}{f'; {packages}' if packages else ''}; {everything}."


def take(out: Path) -> None:
    """OUT's numbers and figures become the newest version's."""
    save(load(out / "report.json"), DATA / f"toyworld-{NEWEST}.json")
    for task in DRAWN_TASKS:
        shutil.copyfile(out / f"{task}.svg", IMAGES / f"{task}-{NEWEST}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", type=Path, help="folders made by python -m tools.toyworld --full")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--methods", nargs="+", default=all_rows(), metavar="ROW", help="methods and other rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1500, help="questions per test set; 0: all 6000")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=Path, metavar="JSON", help="run nothing: print the tables of this report.json")
    parser.add_argument("--fill", type=Path, nargs="?", const=Path(), metavar="OUT", help="run nothing: fill the page")
    args = parser.parse_args()
    if args.show:
        print(markdown(load(args.show)))
        return
    if args.fill is not None:
        if args.fill != Path():
            take(args.fill)
        write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8")))
        return
    try:
        for world in args.worlds:
            run_world(world, args.out / f"w{world.name.lstrip('w')}", args)
        report = collect(args.out)
    except InputError as error:
        raise SystemExit(f"toyworld_report: {error}") from error
    save(report, args.out / "report.json")
    for task in tasks_of(report.rows):
        write_atomic(args.out / f"{task}.svg", diagram(args.out, report.rows, task))
    write_atomic(args.out / "report.md", markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
