"""`uqharness reproduce SUITE DIR`: print the paper's table beside the measured values, cell by cell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from uqharness.commands.parser import check_choice
from uqharness.errors import InputError
from uqharness.terminal import printable

FORMATS = ("md", "csv", "html", "latex")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="a shipped suite of a paper, or a suite's YAML file")
    parser.add_argument("folder", metavar="DIR", help="where the suite ran: its results and adapters")
    parser.add_argument("--format", default="md", metavar="FORMAT", help="md, csv, html or latex [md]")
    parser.add_argument("--out", metavar="FILE", help="write to this file instead of the screen")


def run(args: argparse.Namespace) -> int:
    check_choice("--format", args.format, FORMATS)
    if not Path(args.folder).is_dir():
        raise InputError(f"{args.folder} is not a folder; give the --out of `uqharness suite run {args.suite}`")
    from uqharness import loose_json
    from uqharness.atomic import write_atomic
    from uqharness.leaderboard import reproduce, reproduce_formats
    from uqharness.results.runs import read_runs
    from uqharness.suite.schema import read

    suite = read(args.suite)
    if not suite.reproduces:
        raise InputError(f"suite {suite.name} reproduces no paper: give one whose YAML says `reproduces`")
    folder = Path(args.folder)
    runs = read_runs(sorted(folder.rglob("results_*.json")))
    records = [loose_json.read_object(file) for file in sorted(folder.rglob("uq_config.json"))]
    if not runs and not records:
        raise InputError(f"{folder} has no results_*.json and no adapter; run `uqharness suite run {args.suite}` first")
    text = reproduce_formats.FORMATS[args.format](reproduce.report(suite.title, suite.reproduces, runs, records))
    if args.out:
        write_atomic(Path(args.out), text)
    else:
        sys.stdout.write(printable(text))
    return 0
