"""`uqharness demo`: train the methods on the embedded world, evaluate them through lm-eval, print the table.

The rows are those of the suite `toyworld`, and the demo is a suite itself: what is done is kept, so it can be
interrupted, and a second run with nothing changed is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from uqharness import registry
from uqharness.commands import suite as suites
from uqharness.commands.folders import writable
from uqharness.errors import InputError
from uqharness.suite import plan, schema
from uqharness.suite.plan import Entry, Plan
from uqharness.suite.schema import Row, Suite
from uqharness.suite.store import Store

TASKS = ("toyworld_uq", "toyworld_near_uq", "toyworld_far_uq")
REFERENCES = ("oracle", "zero-shot")
PAPERS = ("mle", "map", "mcd", "ens", "laplace", "blob", "melora")  # the others: --all or --methods
QUICK = {"steps": 300}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for adapters and results [demo]")
    parser.add_argument("--all", action="store_true", help="every installed method, not only the papers'")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these methods only")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="training seeds 0 … N-1 [1]")
    parser.add_argument(
        "--quick", action="store_true", help="mle and blob with fewer steps and questions; takes a minute"
    )
    parser.add_argument("--limit", type=int, help="questions per task [1500, quick: 400; 0: all 6000]")
    parser.add_argument("--workers", type=int, help="processes [one per core]")


def run(args: argparse.Namespace) -> int:
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: must be a positive integer")
    writable(args.out / "results", f"--out {args.out}")
    made, store = planned(args), Store(args.out)
    store.write(made)
    suites.carry_out(made, made.cells, store, argparse.Namespace(on="local", jobs=args.workers))
    from uqharness.commands.demo_report import report

    report(args.out, [store.results(entry.cell) for entry in made.entries])
    return 0


def planned(args: argparse.Namespace) -> Plan:
    """Return the cells of a demo."""
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}: must be a positive integer")
    if args.limit is not None and args.limit < 0:
        raise InputError(f"--limit {args.limit}: give a number of questions, or 0 for all of them")
    for name in args.methods or ():
        registry.get_point(name)  # an unknown name is refused here, with a suggestion
    wanted = args.methods or (("mle", "blob") if args.quick else PAPERS)
    if args.all:
        wanted = (*PAPERS, *registry.methods())
    limit = args.limit if args.limit is not None else (400 if args.quick else 1500)
    return plan.make(grid(wanted, args.seeds, limit or None, QUICK if args.quick else {}))


def grid(
    methods: Iterable[str], seeds: int, limit: int | None, run: Mapping[str, Any], extra: Iterable[Row] = ()
) -> Suite:
    """Return the suite `toyworld` with these rows and references; a method that it does not have gets its defaults."""
    suite = schema.read("toyworld")
    names = dict.fromkeys([*REFERENCES, *(registry.ALIASES.get(name, name) for name in methods)])
    known = {**suite.rows, **{row.name: row for row in extra}}
    names.update(dict.fromkeys(row.name for row in extra))
    rows = {name: known.get(name) or Row(name, name, None, None, {}, None) for name in names}
    alone = {name: replace(row, source=None) for name, row in rows.items() if row.source not in rows}
    return replace(
        suite, name="demo", rows={**rows, **alone}, seeds=tuple(range(seeds)), limit=limit, run={**suite.run, **run}
    )


def settings(made: Plan, entry: Entry) -> dict[str, Any]:
    """Return the settings of a row: the run's and the method's own; equal for all seeds."""
    if entry.adapter is None:
        return {}
    spec = made.cells[entry.adapter].spec
    return {**{name: value for name, value in spec["run"].items() if name != "seed"}, **spec["settings"]}
