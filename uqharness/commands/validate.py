"""`uqharness validate DIR…`: may these results go on the leaderboard? The same checks that the leaderboard makes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from uqharness.errors import InputError, did_you_mean

# Kinds of problems that do not stop a result: it is shown, with a mark, or it is there once already.
NOTES = ("trimmed", "duplicate", "foreign", "leaked", "shared")
FORMATS = ("rich", "json", "github")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="DIR", help="folders of results_*.json, or such files")
    parser.add_argument("--format", default="rich", metavar="FORMAT", help="rich, json or github [rich]")


def run(args: argparse.Namespace) -> int:
    """0: all sound; 1: something is wrong with a file; 2: there is nothing to check."""
    if args.format not in FORMATS:
        hint = did_you_mean(args.format, FORMATS)
        raise InputError(f"--format {args.format!r}{hint}: it is one of {', '.join(FORMATS)}")
    from uqharness.leaderboard.aggregate import build

    board = build([Path(path) for path in args.results])
    found = board.problems.to_dict("records")
    if not len(board.runs) and not found:
        raise InputError(f"no results_*.json below {', '.join(args.results)}: evaluate with --output_path first")
    for each in found:
        each["level"] = "note" if each["kind"] in NOTES else "error"
    errors = sum(each["level"] == "error" for each in found)
    summary = f"{len(board.runs)} sound runs, {errors} errors, {len(found) - errors} notes"
    if args.format == "json":
        print(json.dumps({"runs": len(board.runs), "errors": errors, "problems": found}, indent=2))
    else:
        write = github if args.format == "github" else line
        print("\n".join([*(write(each) for each in found), summary]))
    return 1 if errors or not len(board.runs) else 0


def line(found: dict[str, Any]) -> str:
    """Text from files is without control characters already (`checks.plain_text`)."""
    colour = {"error": "\x1b[31m", "note": "\x1b[33m"}[found["level"]] if sys.stdout.isatty() else ""
    where = f"{found['file']}, {found['task']}" if found["task"] else found["file"]
    return f"{colour}{found['level']:5} {found['kind']:9}{chr(27) + '[0m' if colour else ''} {where}: {found['reason']}"


def github(found: dict[str, Any]) -> str:
    """An annotation; `%`, and in properties `:` and `,`, have a meaning there."""
    level = {"error": "error", "note": "notice"}[found["level"]]
    data = f"{found['task']}: {found['reason']}".removeprefix(": ").replace("%", "%25")
    name = found["file"].replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} file={name},title={found['kind']}::{data}"
