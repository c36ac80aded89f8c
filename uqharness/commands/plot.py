"""`uqharness plot KIND RESULTS|ADAPTERS --out FIG.pdf`: the papers' figures from what was recorded."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness.commands.folders import writable
from uqharness.commands.ood import board_of
from uqharness.commands.table import draws_of, words
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import count_of

if TYPE_CHECKING:
    from uqharness.plots.results import Row

# kind -> (what it is made of, what it shows)
KINDS = {
    "reliability": ("results", "accuracy against confidence, in bins"),
    "risk-coverage": ("results", "error rate against the share that is answered"),
    "draws": ("results", "metrics against N"),
    "steps": ("results", "metrics against the training step, MAP's best marked (Laplace-LoRA, Figure 3)"),
    "predictive": ("results", "Laplace's predictives side by side (Laplace-LoRA, Figure 4)"),
    "cost": ("results", "time, memory and parameters (Me-LoRA, Tables 1 and 6)"),
    "tradeoff": ("results", "accuracy against ECE"),
    "std-growth": ("nothing", "a std under its KL alone, two parameterisations (BLoB, Figure 2)"),
    "embedding": ("adapters", "last-token embeddings of draws in a plane (BLoB, Figure 3)"),
    "std-layers": ("adapters", "the std of each layer against the training step"),
}
METRIC_KINDS = ("draws", "steps", "predictive")
SAMPLE_KINDS = ("reliability", "risk-coverage", "tradeoff", "embedding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "kinds:\n" + "\n".join(f"  {kind:<14} {about}" for kind, (_, about) in KINDS.items())
    parser.add_argument("kind", metavar="KIND", help="one of the kinds above")
    parser.add_argument(
        "paths", nargs="*", metavar="RESULTS|ADAPTERS", help="results, or adapter folders; see docs/figures.md"
    )
    parser.add_argument("--out", required=True, metavar="FIG", help="the file: .png, .pdf, .svg or .html")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="metrics of draws, steps, predictive [acc ece nll]")
    parser.add_argument(
        "--task", nargs="+", metavar="TASK", help="only these tasks [all]; for embedding: the one it asks"
    )
    parser.add_argument("--method", nargs="+", metavar="METHOD", help="only these rows of the table [all]")
    parser.add_argument("--samples", metavar="N", help="use N draws; 0: the mean [all there are; embedding: 10]")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of the questions that embedding shows [0]")
    parser.add_argument("--include-path", metavar="DIR", help="a folder with the YAML of embedding's task")
    parser.add_argument("--limit", metavar="D", help="embedding: use the first D questions [all]")


def run(args: argparse.Namespace) -> int:
    if args.kind not in KINDS:
        raise InputError(f"unknown kind {args.kind!r}{did_you_mean(args.kind, KINDS)}; there are {', '.join(KINDS)}")
    from uqharness.plots import figure

    made_of = KINDS[args.kind][0]
    out = writable(Path(args.out), args.out)
    figure.kind_of(out)
    with figure.style():  # without matplotlib there is nothing to compute
        pass
    if made_of == "nothing" and args.paths:
        raise InputError(f"{args.kind} is computed and takes no results: remove {args.paths[0]}")
    if made_of != "nothing" and not args.paths:
        raise InputError(f"{args.kind} is made of {made_of}: name at least one folder")
    draws = None if args.samples is None else draws_of(args.samples)
    if draws is not None and args.kind not in SAMPLE_KINDS:
        raise InputError(f"--samples {args.samples!r}: {args.kind} takes none")
    if args.metric and args.kind not in METRIC_KINDS:
        raise InputError(f"--metric is for {', '.join(METRIC_KINDS)}: {args.kind} takes none")
    limit = None if args.limit is None else count_of(args.limit, 1, 10**9)
    if args.limit is not None and (limit is None or args.kind != "embedding"):
        raise InputError(f"--limit {args.limit[:60]!r}: it is a number of questions, of embedding alone")
    if args.kind == "embedding":
        fig, lines = embedding(args, 10 if draws is None else draws, limit)
    else:
        fig, lines = drawn(args, draws), []
    figure.save(fig, out)
    print("\n".join([*lines, str(out)]))
    return 0


def embedding(args: argparse.Namespace, samples: int, limit: int | None) -> tuple[Any, list[str]]:
    """The figure, and the ratio of each adapter's spreads."""
    from uqharness.harness.model import BayesLoRA
    from uqharness.plots import embedding as plots
    from uqharness.training.questions import load_task

    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the embedding figure needs scikit-learn: pip install uqharness[plot]")
    records = [record_of(path) for path in args.paths]
    names = list(dict.fromkeys(words(args.task) or [str((record.get("data") or {}).get("task")) for record in records]))
    if len(names) != 1 or names == ["None"]:
        raise InputError(f"embedding asks one task, here {', '.join(names)}: name it with --task TASK")
    task, planes = load_task(names[0], args.include_path), []
    for path, record in zip(args.paths, records, strict=True):
        label = str((record.get("method") or {}).get("label") or Path(path).name)
        planes.append(plots.project(plots.embed(label, BayesLoRA(adapter=path, samples=samples), task, limit)))
    return plots.draw(planes, args.seed), [plots.said(plane) for plane in planes]


def drawn(args: argparse.Namespace, draws: int | None) -> Any:
    """The figure of a kind."""
    from uqharness.plots import figure, results, std

    if args.kind == "std-growth":
        return figure.draw(std.std_growth())
    if args.kind == "std-layers":
        return figure.draw(std.std_layers([(Path(path).name, record_of(path)) for path in args.paths]))
    rows = rows_of(args.paths, words(args.task), words(args.method))
    if args.kind in METRIC_KINDS:
        return figure.draw(getattr(results, args.kind)(rows, metrics_of(args.metric)))
    if args.kind == "cost":
        return figure.draw(results.cost(rows))
    if draws is not None:
        rows = [row for row in rows if row.run.used(draws) is not None]
        if not rows:
            raise InputError(f"no run contains N = {draws}: evaluate again with samples={draws}")
    return figure.draw(getattr(results, args.kind.replace("-", "_"))(rows, draws))


def rows_of(paths: Sequence[str], tasks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """The runs of these files that are asked for, one of each method, seed, task and recipe, by the names of tables."""
    from functools import partial

    from uqharness.leaderboard.table_sources import newest
    from uqharness.plots.results import Row

    board = board_of(paths)
    rows = [Row(board.label(run), run, partial(board.record, run.run_id)) for run in newest(board.runs, [])]
    known = {"--task": {row.run.task for row in rows}, "--method": {row.label for row in rows}}
    for flag, names in (("--task", tasks), ("--method", methods)):
        for name in names:
            if name not in known[flag]:
                have = ", ".join(sorted(known[flag]))
                raise InputError(f"{flag} {name!r}{did_you_mean(name, known[flag])}: these results hold {have}")
    order = {name: place for place, name in enumerate(methods)}
    rows = [row for row in rows if (not tasks or row.run.task in tasks) and (not methods or row.label in methods)]
    return sorted(rows, key=lambda row: order.get(row.label, 0))


def metrics_of(given: list[str] | None) -> list[str]:
    from uqharness.metrics.registry import METRICS
    from uqharness.plots.results import DEFAULT

    names = words(given) or list(DEFAULT)
    for name in names:
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; there are {', '.join(METRICS)}")
    return names


def record_of(path: str) -> dict[str, Any]:
    """Return the record of an adapter folder."""
    from uqharness.adapter_io.folder import fetch, read_record

    record = read_record(fetch(path))
    if record is None:
        raise InputError(f"{path} has no uq_config.json: give an adapter folder that uqharness train made")
    return dict(record)
