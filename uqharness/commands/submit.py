"""`uqharness submit DIR`: the checks of `uqharness validate`, then how to send the results in. It sends nothing."""

from __future__ import annotations

import argparse

from uqharness.commands import validate

STEPS = """
Results come in by pull request; nothing was sent.
  1. copy {folders} to leaderboard/submitted/NAME/ in a clone of the project
  2. commit the results_*.json alone: no adapters, no samples_*.jsonl
  3. open a pull request that says how the adapters were made; CI runs `uqharness validate --format github` on it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    validate.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="only the checks")


def run(args: argparse.Namespace) -> int:
    code = validate.run(args)
    if not args.dry_run and not code and args.format == "rich":
        print(STEPS.format(folders=" ".join(args.results)))
    return code
