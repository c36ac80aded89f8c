"""`uqharness suite run | status | retry | cell | list`: grids of trainings and evaluations, each cell once."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from uqharness import settings as config
from uqharness.commands import early
from uqharness.commands.dryrun import duration, size
from uqharness.commands.folders import writable
from uqharness.commands.parser import Parser
from uqharness.errors import InputError, RunError, did_you_mean
from uqharness.settings import Run
from uqharness.suite import clusters, costs, plan, runners, schema
from uqharness.suite.plan import Cell, Plan
from uqharness.suite.store import Store

AXES = {"base": "base", "method": "method", "train": "train", "task": "train", "evaluate": "evaluate", "seed": "seed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    run = commands.add_parser("run", help="run a suite, or its remaining cells")
    run.add_argument("suite", metavar="NAME|FILE", help="a shipped suite (`uqharness suite list`) or a YAML file")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the suite [suites/NAME]")
    run.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="base, seeds, draws, limit, or settings of all rows",
    )
    run.add_argument("--dry-run", action="store_true", help="print cells, sharing, progress and estimates; do not run")
    status = commands.add_parser("status", help="show done and failed cells, with reasons")
    status.add_argument("out", type=Path, metavar="DIR", help="folder of the suite")
    status.add_argument("--cells", action="store_true", help="one line for each cell")
    retry = commands.add_parser("retry", help="run failed cells again, and the cells that wait for them")
    retry.add_argument("out", type=Path, metavar="DIR", help="folder of the suite")
    cell = commands.add_parser("cell", help="run one cell: for a shell loop, SkyPilot, Kubernetes")
    cell.add_argument("hash", metavar="HASH", help="of `uqharness suite status DIR --cells`")
    cell.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder of the suite [.]")
    commands.add_parser("list", help="list the suites that come with uqharness")
    for each in (run, retry):
        each.add_argument("--only", nargs="+", action="extend", metavar="KEY=VALUE", help=f"a part: {', '.join(AXES)}")
        each.add_argument("--jobs", type=int, metavar="N", help="processes [one per GPU, else per core]")
        each.add_argument("--on", choices=("local", "slurm", "ray"), default="local", help="where cells run [local]")
        slurm = each.add_argument_group("slurm (pip install uqharness[slurm])")
        for name, about in (
            ("partition", "partition of the jobs"),
            ("account", "account of the jobs"),
            ("time", "minutes of a job; one that needs more is requeued and continues [60]"),
            ("gres", "resources of a job, for example gpu:1"),
            ("max-parallel", "jobs of the array at a time [64]"),
        ):
            slurm.add_argument(f"--{name}", metavar=name.rsplit("-", 1)[-1].upper(), help=about)
        ray = each.add_argument_group("ray (pip install uqharness[ray])")
        ray.add_argument("--address", metavar="ADDRESS", help="of a cluster, or `auto` [a local one]")


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        raise InputError("no action: give run, status, retry, cell or list; see `uqharness suite --help`")
    return {"run": _run, "status": _status, "retry": _retry, "cell": _cell, "list": _list}[args.action](args)


# -------------------------------------------------------------------- run


def _run(args: argparse.Namespace) -> int:
    suite = schema.read(args.suite)
    try:
        early.check_tasks(plan.tasks(suite), [suite.include_path] if suite.include_path else [])
    except InputError as error:
        raise InputError(f"{suite.file}: {error}") from None
    made = plan.make(suite, {name: _value(text) for name, text in config.parse_set(args.set or []).items()})
    out = args.out or Path("suites") / suite.name
    writable(out / "results", f"--out {out}")
    store, cells = Store(out), made.chosen(_only(args.only))
    if args.dry_run:
        return _show(made, cells, store, args)
    for line in store.write(made):
        print(line, file=sys.stderr)
    carry_out(made, cells, store, args)
    _next(store, made)
    return 0


def _value(text: str) -> Any:
    """Parse a value of --set as YAML: a number, a list or a word."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _only(words: list[str] | None) -> dict[str, list[str]]:
    selection: dict[str, list[str]] = {}
    for word in words or ():
        key, equals, values = word.partition("=")
        if not equals or key not in AXES:
            hint = did_you_mean(key, AXES)
            raise InputError(f"--only {word}: give KEY=VALUE with a KEY of {', '.join(AXES)}{hint}")
        selection.setdefault(AXES[key], []).extend(values.split(","))
    return selection


def carry_out(made: Plan, cells: Mapping[str, Cell], store: Store, args: argparse.Namespace) -> None:
    """Run the remaining cells, including those that failed before."""
    from tqdm.auto import tqdm

    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: must be a positive integer")
    options = slurm_options(args)
    graph = runners.Graph(cells, store, lambda cell: costs.forwards(cell, made))
    left, started = dict(graph.left), time.monotonic()
    print(f"{store.out}: {len(cells)} cells, {len(cells) - len(left)} done already", file=sys.stderr)
    if left:
        if args.on == "slurm":
            clusters.check_slurm()
        elif args.on == "ray":
            clusters.check_ray(args.address)
        preflight(made, left)
        store.forget_failures(left)
        shape = "{percentage:3.0f}% |{bar:40}| {elapsed} elapsed, {remaining} left{postfix}"
        bar = tqdm(total=sum(graph.weights.values()) or 1, bar_format=shape)

        def tell(cell: Cell) -> None:
            if cell.hash in graph.failed:
                bar.write(f"failed: {cell.name}: {graph.failed[cell.hash]} (log: {store.log(cell.hash)})", sys.stderr)
            bar.set_postfix_str(f"{len(graph.left) + len(graph.running)} cells left", refresh=False)
            bar.update(graph.weights[cell.hash])

        from uqharness.commands.cell import work

        try:
            if args.on == "local":
                runners.local(graph, min(_jobs(args), len(left)), work, tell)
            elif args.on == "slurm":
                clusters.slurm(graph, options, work, tell)
            else:
                clusters.ray(graph, args.address, _jobs(args), work, tell)
        except KeyboardInterrupt as stop:
            jobs = "; Slurm jobs keep running (scancel ends them)" if args.on == "slurm" else ""
            stop.args = (f"finished cells stay in {store.out}: the same command continues{jobs}",)
            raise
        finally:
            bar.close()
        print(f"{len(left)} cells in {duration(time.monotonic() - started)}", file=sys.stderr)
    if graph.failed:
        raise RunError(
            f"{len(graph.failed)} of {len(left)} cells failed or were not started: `uqharness suite status "
            f"{store.out}` says why, `uqharness suite retry {store.out}` runs them again"
        )


def slurm_options(args: argparse.Namespace) -> clusters.SlurmOptions:
    """Return the options of sbatch; refuse those of a runner that is not used."""
    of = {"slurm": ("partition", "account", "time", "gres", "max_parallel"), "ray": ("address",)}
    given = {name: text for name, text in vars(args).items() if text}  # the demo has flags of neither
    for runner, options in of.items():
        if args.on != runner and (name := next((name for name in options if name in given), None)):
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: only used with --on {runner}")
    whole = [name for name in ("time", "max_parallel") if name in given]
    numbers = {name: config.convert(int, given[name], f"--{name.replace('_', '-')}") for name in whole}
    if bad := next((name for name, number in numbers.items() if number < 1), None):
        raise InputError(f"--{bad.replace('_', '-')} {numbers[bad]}: give a number of at least 1")
    texts = {name: given[name] for name in ("partition", "account", "gres") if name in given}
    return clusters.SlurmOptions(**texts, **numbers)


def _jobs(args: argparse.Namespace) -> int:
    return args.jobs or len(runners.gpus()) or os.cpu_count() or 1


def preflight(made: Plan, cells: Mapping[str, Cell]) -> None:
    """Refuse a method, base or data set that a cell would fail on, before the first training."""
    from uqharness import registry

    specs = [cell.spec for cell in cells.values() if "method" in cell.spec]
    for spec in {(spec["method"], repr(spec["settings"])): spec for spec in specs}.values():
        config.build(registry.get_method(spec["method"]), spec["settings"])
    include = next((c.spec["include_path"] for c in cells.values()), None)
    tasks = [c.spec["task"] for c in cells.values() if c.kind == "evaluate"]
    tasks += [c.spec["run"]["task"] for c in cells.values() if c.kind == "train"]
    classes: dict[str, int] = {}  # of the tasks that an encoder answers
    if wanted := [name for name in dict.fromkeys(tasks) if not name.startswith("toyworld")]:
        from lm_eval.tasks import TaskManager

        from uqharness.commands.tasks_only import manager
        from uqharness.training.pairs import classes_of

        index = manager(TaskManager, wanted, include, None)
        for name in wanted:
            try:
                loaded = index.load(name)["tasks"]
            except Exception as error:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise InputError(f"task {name} cannot be loaded: {reason}; nothing was run") from error
            classes |= {each: len(classes_of(task)) for each, task in loaded.items()}
    bases: dict[tuple[str, int], list[Any]] = {}  # (base, classes): the runs on it
    for run in [cell.spec["run"] for cell in cells.values() if "run" in cell.spec]:
        bases.setdefault((run["base"], classes.get(run.get("task"), 0)), []).append(run)
    for (base, count), runs in bases.items():
        if base != "toyworld":
            _check_base(base, count, runs)


def _check_base(name: str, classes: int, runs: list[Any]) -> None:
    """Refuse a base that cannot be loaded, or that lacks the layers or modules that get a LoRA."""
    from uqharness.training.base_model import skeleton
    from uqharness.training.targets import peft_targets

    base = skeleton(name, classes)
    chosen = [config.build(Run, {key: run[key] for key in ("target_modules", "layers") if key in run}) for run in runs]
    for targets, layers in dict.fromkeys((run.target_modules, run.layers) for run in chosen):
        try:
            peft_targets(base, targets, layers)
        except InputError as error:
            raise InputError(f"base {name}: {error}; nothing was run") from None
    path = Path(name)
    if path.is_dir() and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise InputError(f"base {name}: no weights in this folder; nothing was run")


def _next(store: Store, made: Plan) -> None:
    print(f"next:\n  uqharness table {store.out}/results --samples {','.join(map(str, made.entries[0].draws))}")
    print(f"  uqharness leaderboard {store.out}/results")


# -------------------------------------------------------------------- what is shown


def _show(made: Plan, cells: Mapping[str, Cell], store: Store, args: argparse.Namespace) -> int:
    """Print the plan and its cost; write nothing."""
    options = slurm_options(args)
    if args.on == "slurm":
        clusters.check_package("slurm", "submitit")
    states = store.states()
    left = {name: cell for name, cell in cells.items() if states.get(name) != "done"}
    entries = [entry for entry in made.entries if entry.cell in cells]
    kinds, todo = (Counter(cell.kind for cell in group.values()) for group in (cells, left))
    trained = {(e.base, e.method, e.train, e.seed) for e in entries if e.adapter}
    print(f"suite {made.suite} ({made.file}) in {store.out}")
    print(f"entries of the table: {len(entries)}; rows x tasks x seeds that are trained: {len(trained)}")
    print(f"cells: {len(cells)}: {kinds['train']} trainings, {kinds['evaluate']} evaluations")
    print(f"  done: {len(cells) - len(left)}; to do: {todo['train']} trainings, {todo['evaluate']} evaluations")
    built = Counter(cell.spec["method"] for cell in cells.values() if cell.kind == "train" and cell.source)
    if built:
        print("  built on another cell's adapter: " + ", ".join(f"{count} {name}" for name, count in built.items()))
    uses = Counter(
        entry.adapter for entry in {(e.adapter, e.base, e.method, e.train, e.seed): e for e in entries}.values()
    )
    print(f"  adapters that several rows share: {sum(count > 1 for name, count in uses.items() if name)}")
    together, apart = costs.compare(made, cells)
    ratio = together / apart if apart else 1.0
    print(f"forward-equivalents: {together:,.0f} with sharing, {apart:,.0f} with each entry separately: {ratio:.2f}")
    jobs = _jobs(args)
    time_, how = costs.seconds(made, store, left, "gpu" if runners.gpus() else "cpu")
    if time_ is None:
        print(f"time: {how}")
    else:
        print(f"time: {duration(time_)} of one process, {duration(time_ / jobs)} of {jobs}; {how}")
    print(f"disk: {size(costs.disk(made, left))}; computed")
    if args.on == "slurm" and left:
        groups = clusters.stages(left)
        shown = ", then ".join(f"{len(stage)} jobs" for stage in groups)
        print(f"slurm: {shown}, each a training with its evaluations; the first array's script:")
        print(clusters.sbatch_script(options, len(groups[0]), store.out))
    return 0


def _status(args: argparse.Namespace) -> int:
    store = Store(args.out)
    made, states = store.read(), store.states()
    count = Counter((cell.kind, states.get(name, "to do")) for name, cell in made.cells.items())
    print(f"suite {made.suite} in {args.out}: {len(made.cells)} cells")
    for kind in ("train", "evaluate"):
        shown = [
            f"{count[kind, state]} {state}" for state in ("done", "running", "failed", "to do") if count[kind, state]
        ]
        print(f"  {kind}: {', '.join(shown) or 'none'}")
    failed = [cell for name, cell in made.cells.items() if states.get(name) == "failed"]
    for cell in failed if args.cells else failed[:10]:
        about = store.error(cell.hash)
        print(f"failed: {cell.name}: {about['error']} (log: {about.get('log', store.log(cell.hash))})")
    if len(failed) > 10 and not args.cells:
        print(f"… and {len(failed) - 10} more; --cells shows all")
    if args.cells:
        for name, cell in made.cells.items():
            print(f"{name}  {states.get(name, 'to do'):8} {cell.kind:8}  {cell.name}")
    return 0


def _retry(args: argparse.Namespace) -> int:
    store = Store(args.out)
    made, states = store.read(), store.states()
    chosen = made.chosen(_only(args.only))
    again = {name for name in chosen if states.get(name) == "failed"}
    if not again:
        print(f"{args.out}: no cell has failed")
        return 0
    for name, cell in made.cells.items():  # each after those that it needs
        if name in chosen and again.intersection(cell.needs):
            again.add(name)
    carry_out(made, {name: made.cells[name] for name in made.cells if name in again}, store, args)
    _next(store, made)
    return 0


def _cell(args: argparse.Namespace) -> int:
    from uqharness.commands import cell as cells

    store = Store(args.out)
    made = store.read()
    if args.hash not in made.cells:
        raise InputError(
            f"no cell {args.hash} in {args.out}{did_you_mean(args.hash, made.cells)}; see suite status --cells"
        )
    cell = made.cells[args.hash]
    try:
        cells.run(store, cell)
    except Exception as error:
        store.fail(cell, " ".join(str(error).split()) or type(error).__name__)
        raise
    print(f"{args.hash} done: {cell.name}")
    return 0


def _list(args: argparse.Namespace) -> int:
    for name in schema.shipped():
        print(f"{name:32} {schema.read(name).title}")
    return 0
