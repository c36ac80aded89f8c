"""`uqharness ood RESULTS…`: compare every adapter on its own data set with each shifted one."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uqharness.commands.parser import check_choice
from uqharness.commands.table import draws_of, words
from uqharness.errors import InputError, did_you_mean
from uqharness.terminal import printable, say

if TYPE_CHECKING:
    from uqharness.leaderboard.board import Board
    from uqharness.leaderboard.ood import Row

FORMATS = ("md", "csv", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results files, published files, or folders")
    parser.add_argument("--samples", metavar="N", help="use N draws; 0: the mean [all there are]")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="metrics whose change is shown [acc ece nll]")
    parser.add_argument("--against", metavar="METHOD", help="also: by how much more than METHOD's, paired by question")
    parser.add_argument("--format", default="md", metavar="FORMAT", help="md, csv or json [md]")


def run(args: argparse.Namespace) -> int:
    from uqharness.metrics.registry import find
    from uqharness.results.ood import CHANGES

    check_choice("--format", args.format, FORMATS)
    metrics = words(args.metric) or list(CHANGES)
    for name in metrics:
        find(name)
    draws = None if args.samples is None else draws_of(args.samples)
    tables = tables_of(board_of(args.results), metrics, draws, args.against)
    sys.stdout.write(printable({"md": markdown, "csv": as_csv, "json": as_json}[args.format](tables)))
    return 0


def board_of(paths: Sequence[str]) -> Board:
    """Return the runs of these files and folders; log problems, and refuse input without any valid run."""
    from uqharness.leaderboard import board

    for path in paths:
        if not Path(path).exists():
            raise InputError(f"{path} does not exist; give a results_*.json of lm-eval, or a folder of them")
    made = board.build([Path(path) for path in paths])
    wrong = [f"{p.file}: {p.reason}" for p in made.problems]
    if not made.runs:
        raise InputError(wrong[0] if wrong else f"no record of draws in {', '.join(paths)}: run a _uq task")
    for line in wrong:
        say(f"skipped: {line}")
    return made


def tables_of(board: Board, metrics: Sequence[str], draws: int | None, reference: str | None) -> dict[str, list[Row]]:
    """Return the rows of every table by its name."""
    from uqharness.leaderboard import ood

    tables = ood.tables(board.runs)
    if not tables:
        raise InputError(
            "no adapter was evaluated in distribution and under a shift: evaluate it on the task that it was trained "
            "on and on those that tasks/shifts.yaml pairs with it (uqharness tasks shows them)"
        )
    labels = {board.label(inside) for pairs in tables.values() for inside, _ in pairs}
    if reference is not None and reference not in labels:
        raise InputError(
            f"--against {reference!r}{did_you_mean(reference, labels)}: there are {', '.join(sorted(labels))}"
        )
    made: dict[str, list[Row]] = {}
    record = functools.cache(board.record)  # one in-distribution file stands against several shifts
    for name, pairs in tables.items():
        rows, missing = ood.compared(pairs, board.label, record, metrics, draws, reference)
        for run in missing:
            say(f"skipped: {board.label(run)} on {run.task} has no N = {draws}: evaluate again with it")
        made |= {name: rows} if rows else {}
    if not made:
        raise InputError(f"no results contain N = {draws}: evaluate again with samples={draws}")
    return made


def as_json(tables: Mapping[str, Sequence[Row]]) -> str:
    from uqharness.leaderboard.ood import flat

    return json.dumps([flat(row) for rows in tables.values() for row in rows], indent=2, ensure_ascii=False) + "\n"


def as_csv(tables: Mapping[str, Sequence[Row]]) -> str:
    from uqharness.leaderboard.ood import flat
    from uqharness.leaderboard.table_formats import csv_of

    return csv_of([flat(row) for rows in tables.values() for row in rows])


def markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """Format two tables for each pair of sets: detection of shifted questions, and changes of metrics."""
    from uqharness.leaderboard.ood import EXPLAINED, change_table, detection_table
    from uqharness.leaderboard.table_formats import md_grid, md_letters

    parts = []
    for name, rows in tables.items():
        s = rows[0].shift
        parts.append(f"### {md_letters(name)}\n")
        for header, cells in (detection_table(rows), change_table(rows)):
            parts.append(md_grid(header, [[*map(md_letters, line)] for line in cells]) + "\n")
        share = s.shifted.items / (s.inside.items + s.shifted.items)
        parts.append(
            f"- items: {s.inside.items} in distribution, {s.shifted.items} shifted (share {100 * share:.1f} %)\n"
        )
    return "\n".join([*parts, *(f"- {line}" for line in EXPLAINED)]) + "\n"
