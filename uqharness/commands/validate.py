"""`uqharness validate DIR…`: check whether these results can enter the leaderboard, with the leaderboard's own checks.

With `--submit` also check the requirements for a contribution and explain how to send it. Nothing is sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uqharness.commands.parser import check_choice
from uqharness.errors import InputError

NOTES = ("duplicate", "foreign")  # problems that keep a file off the board without anything being wrong with a result
FORMATS = ("rich", "json", "github")
STEPS = """
Results come in by pull request; nothing was sent.
  1. copy {folders} to leaderboard/submitted/NAME/ in a clone of the project
  2. commit the results_*.json alone: no adapters, no samples_*.jsonl
  3. open a pull request that says how the adapters were made; CI runs `uqharness validate --submit` on it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="DIR", help="folders of results_*.json, or such files")
    parser.add_argument("--format", default="rich", metavar="FORMAT", help="rich, json or github [rich]")
    parser.add_argument(
        "--submit",
        action="store_true",
        help="also refuse results of a part of the questions (--limit), and say how to send the results in",
    )
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)  # of `uqharness submit`


def run(args: argparse.Namespace) -> int:
    """Return 0 if all results are valid, 1 if a file has a problem, 2 if no results exist."""
    check_choice("--format", args.format, FORMATS)
    from uqharness.leaderboard.board import build
    from uqharness.results.runs import SUSPECT

    board = build([Path(path) for path in args.results])
    problems = [{**asdict(each), "level": "note" if each.kind in NOTES else "error"} for each in board.problems]
    for each in board.runs:
        for kind, reason in each.remarks.items():
            if kind not in SUSPECT:  # those are among the problems
                level = "error" if args.submit and kind == "trimmed" else "note"
                problems.append({"file": each.file, "task": each.task, "kind": kind, "reason": reason, "level": level})
    if not board.runs and not problems:
        raise InputError(f"no results_*.json below {', '.join(args.results)}: evaluate with --output_path first")
    errors = sum(each["level"] == "error" for each in problems)
    summary = f"{len(board.runs)} valid runs, {errors} errors, {len(problems) - errors} notes"
    if args.format == "json":
        print(json.dumps({"runs": len(board.runs), "errors": errors, "problems": problems}, indent=2))
    else:
        write = github if args.format == "github" else line
        print("\n".join([*(write(each) for each in problems), summary]))
    code = 1 if errors or not board.runs else 0
    if args.submit and not args.dry_run and not code and args.format == "rich":
        print(STEPS.format(folders=" ".join(args.results)))
    return code


def line(problem: dict[str, Any]) -> str:
    """Format a problem; text from files has no control characters (`runs.plain_text`)."""
    colour = {"error": "\x1b[31m", "note": "\x1b[33m"}[problem["level"]] if sys.stdout.isatty() else ""
    where = f"{problem['file']}, {problem['task']}" if problem["task"] else problem["file"]
    reset = "\x1b[0m" if colour else ""
    return f"{colour}{problem['level']:5} {problem['kind']:9}{reset} {where}: {problem['reason']}"


def github(problem: dict[str, Any]) -> str:
    """Format a GitHub annotation; escape `%`, and `:` and `,` in properties."""
    level = {"error": "error", "note": "notice"}[problem["level"]]
    data = f"{problem['task']}: {problem['reason']}".removeprefix(": ").replace("%", "%25")
    name = problem["file"].replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} file={name},title={problem['kind']}::{data}"
