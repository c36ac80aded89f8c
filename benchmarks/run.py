"""All rows that need no GPU: `python -m benchmarks.run [--quick] [--json OUT] [--only NAME …]`.

Prints the table of figures and says which goals hold. `--quick` runs everything once or twice on small shapes: it
shows that the benchmark works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import Row, show
from uqharness.atomic import write_atomic

# Each has `rows(quick: bool) -> Iterator[Row]`.
NAMES = ("training", "laplace", "evaluation", "layers", "real", "leaderboard")
MODULES = [name for name in NAMES if importlib.util.find_spec(f"benchmarks.{name}")]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: a smoke test")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, help="these rows alone")
    flags = parser.parse_args(words)
    torch.set_num_threads(1)
    disable_progress_bar()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "lm-eval"))
    print(f"{platform.machine()}, one thread, Python {platform.python_version()}, {packages}")
    rows: list[Row] = []
    for module in flags.only:
        for row in importlib.import_module(f"benchmarks.{module}").rows(flags.quick):
            print(f"{row.row}: {row.value:.3g} ({row.low:.3g}–{row.high:.3g}), goal <= {row.goal:g}", flush=True)
            rows.append(row)
    print(show(rows))
    print(f"{sum(row.holds for row in rows)} of {len(rows)} goals hold")
    if flags.json:
        write_atomic(flags.json, json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
