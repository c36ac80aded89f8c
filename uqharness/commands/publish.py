"""`uqharness publish RESULTS… OUT.parquet`: write results as one small file, for a repository or a project page."""

from __future__ import annotations

import argparse
from pathlib import Path

from uqharness.commands.folders import writable
from uqharness.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results_*.json of lm-eval, or folders of them")
    parser.add_argument("out", metavar="OUT", help="the file to write, NAME.parquet")


def run(args: argparse.Namespace) -> int:
    from uqharness.leaderboard import publish

    out = Path(args.out)
    if out.suffix != publish.SUFFIX:
        raise InputError(f"OUT is {args.out!r}; the file's name must end in {publish.SUFFIX}")
    if out.is_dir():
        raise InputError(f"OUT {out} is a folder: give the name of a file, for example {out}/results{publish.SUFFIX}")
    made = publish.create([Path(path) for path in args.results], writable(out, str(out)))
    print(
        f"{out}: {made.runs} runs, {made.whole} of them with their single draws, {made.size / 1e6:.2f} MB; "
        f"metrics exact, probabilities within {publish.STEP / 4:.1g}"
    )
    return 0
