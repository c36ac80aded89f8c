"""`uqharness export-site RESULTS… OUT`: write the leaderboard as static files, for a project page."""

from __future__ import annotations

import argparse
from pathlib import Path

from uqharness.commands.folders import writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results_*.json, or folders of them")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; an older site in it is replaced")


def run(args: argparse.Namespace) -> int:
    from uqharness.leaderboard import board, site

    out = writable(args.out, str(args.out))
    written = site.export(board.build(args.results), out)
    size = sum(path.stat().st_size for path in written) / 2**20
    print(f"{len(written)} files, {size:.1f} MiB: open {out / 'index.html'}")
    return 0
