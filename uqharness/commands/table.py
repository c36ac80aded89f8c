"""`uqharness table RESULTS…`: methods x datasets, every number computed again from the draws."""

from __future__ import annotations

import argparse
import sys

from uqharness.errors import InputError, did_you_mean
from uqharness.settings import count_of
from uqharness.terminal import printable

MAX_DRAWS = 10_000  # of a record: `record.MAX_DRAWS`, which needs numpy
FORMATS = ("md", "csv", "latex", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results_*.json of lm-eval, or folders of them")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="names or lists a,b; ece:bins=20 [acc ece nll]")
    parser.add_argument("--samples", nargs="+", metavar="N", help="rows for N draws each; 0: the mean [all there are]")
    parser.add_argument("--format", default="md", metavar="FORMAT", help="md, csv, latex or json [md]")
    parser.add_argument(
        "--across-recipes",
        action="store_true",
        help="adapters trained by different recipes in one table (then nothing is marked as best)",
    )


def run(args: argparse.Namespace) -> int:
    if args.format not in FORMATS:
        raise InputError(
            f"--format {args.format!r}{did_you_mean(args.format, FORMATS)}: it is one of {', '.join(FORMATS)}"
        )
    from uqharness.leaderboard import table, table_formats
    from uqharness.metrics.registry import find
    from uqharness.results.runs import read_runs

    names = _words(args.metric) or list(table.DEFAULT)
    for name in names:
        find(name)
    samples: list[int | None] = [_draws(word) for word in _words(args.samples)]
    tables = table.build(read_runs(args.results, names), names, samples or [None], args.across_recipes)
    sys.stdout.write(printable(table_formats.FORMATS[args.format](tables)))
    return 0


def _words(given: list[str] | None) -> list[str]:
    return list(dict.fromkeys(word for part in given or () for word in part.split(",") if word))


def _draws(word: str) -> int:
    if (draws := count_of(word, 0, MAX_DRAWS)) is None:
        raise InputError(f"--samples {word[:60]!r}: give whole numbers from 0 to {MAX_DRAWS:,}, for example 0,5,10")
    return draws
