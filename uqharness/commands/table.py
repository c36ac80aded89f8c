"""`uqharness table RESULTS…`: print methods x datasets, every number recomputed from the draws."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from uqharness.commands.parser import check_choice
from uqharness.errors import InputError
from uqharness.settings import MAX_DRAWS, count_of
from uqharness.terminal import printable, say

if TYPE_CHECKING:
    from uqharness.results.runs import RunSummary

FORMATS = ("md", "csv", "latex", "json")
METADATA = ("model-index", "eval-results")  # of model repositories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results_*.json of lm-eval, or folders of them")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="names or lists a,b; ece:bins=20 [acc ece nll]")
    parser.add_argument("--samples", nargs="+", metavar="N", help="rows for N draws each; 0: the mean [all there are]")
    parser.add_argument(
        "--format",
        default="md",
        metavar="FORMAT",
        help="md, csv, latex or json [md]; for the hub: model-index, eval-results",
    )
    parser.add_argument(
        "--across-recipes",
        action="store_true",
        help="adapters trained by different recipes, not only by different methods, in one table (then nothing is "
        "marked as best)",
    )


def run(args: argparse.Namespace) -> int:
    check_choice("--format", args.format, (*FORMATS, *METADATA))
    from uqharness.leaderboard import table, table_formats
    from uqharness.leaderboard.table_sources import tuned_baselines
    from uqharness.metrics.registry import find
    from uqharness.results.runs import read_runs

    names = words(args.metric) or list(table.DEFAULT)
    for name in names:
        find(name)
    samples: list[int | None] = [draws_of(word) for word in words(args.samples)]
    runs = read_runs(args.results, names)
    if args.format in METADATA:
        sys.stdout.write(printable(_metadata(runs, args.format)))
        return 0
    tables = table.build(tuned_baselines(runs), names, samples or [None], args.across_recipes)
    sys.stdout.write(printable(table_formats.FORMATS[args.format](tables)))
    if args.format == "csv":  # which has no place for notes
        for k, apart in enumerate(tables[1:], start=2):
            say(f"table {k}: {apart.notes[0]}")
    return 0


def _metadata(runs: list[RunSummary], kind: str) -> str:
    import yaml

    from uqharness.results.metadata import eval_results, model_index, stated

    usable = stated(runs)
    if kind == "eval-results":
        return str(yaml.safe_dump(eval_results(usable), sort_keys=False, allow_unicode=True))
    names = dict.fromkeys(run.adapter or run.method for run in usable)
    index = [model_index(name, [run for run in usable if (run.adapter or run.method) == name]) for name in names]
    return str(yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True))


def words(given: list[str] | None) -> list[str]:
    return list(dict.fromkeys(word for part in given or () for word in part.split(",") if word))


def draws_of(word: str) -> int:
    """Return the number of draws of `--samples`."""
    if (draws := count_of(word, 0, MAX_DRAWS)) is None:
        raise InputError(f"--samples {word[:60]!r}: give integers from 0 to {MAX_DRAWS:,}, for example 0,5,10")
    return draws
