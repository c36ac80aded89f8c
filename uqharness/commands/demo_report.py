"""The demo's final output: the table, the reliability diagram and the next commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from uqharness.atomic import write_atomic
from uqharness.leaderboard import table, table_formats
from uqharness.leaderboard.table_sources import labels
from uqharness.metrics.averaging import combine_draws
from uqharness.metrics.calibration import reliability_bins
from uqharness.plots.svg import Panel, reliability_svg
from uqharness.results.reading import Run, read_results
from uqharness.results.runs import summarise

DRAWS = (0, 5, 10)
MARKS = {1: ("\x1b[1m", "\x1b[0m"), 2: ("\x1b[4m", "\x1b[0m")}
PLAIN = {1: ("*", "*"), 2: ("_", "_")}
HEADLINE = "toyworld_uq"


def report(out: Path, folders: Sequence[Path]) -> None:
    """Print the table of these results; write table.md and reliability.svg beside them."""
    runs = [run for folder in folders for run in read_results(folder)]
    tables = table.build([summarise(run) for run in runs], samples=list(DRAWS))
    write_atomic(out / "table.md", table_formats.markdown(tables))
    write_atomic(out / "reliability.svg", diagram(runs))
    colours = sys.stdout.isatty()
    for each in tables:
        print(terminal(each, MARKS if colours else PLAIN))
    print(_next(out, runs))


def terminal(shown: table.Table, marks: dict[int, tuple[str, str]]) -> str:
    """Return aligned columns; best bold, second underlined (or *best*, _second_ without a terminal)."""
    names = [f"{c.task}, {c.shift} shift" if c.shift in ("small", "large") else c.task for c in shown.columns]
    grid = [[*table_formats.header(shown)[:4], *names], *table_formats.lines(shown, marks, "±")]
    widths = [max(len(_bare(row[k])) for row in grid) for k in range(len(grid[0]))]
    rows = [
        "  ".join(text + " " * (width - len(_bare(text))) for text, width in zip(row, widths, strict=True))
        for row in grid
    ]
    rule = "─" * (sum(widths) + 2 * len(widths) - 2)
    size = len(shown.rows)
    blocks = [rule + "\n" + "\n".join(rows[start : start + size]) for start in range(1, len(rows), size)]
    return "\n".join([rows[0], *blocks, rule, *(f"  {line}" for line in table_formats.about(shown))])


def diagram(runs: Sequence[Run], task: str = HEADLINE) -> str:
    """Draw the reliability of every method in distribution, with all its draws, for the first seed."""
    runs_of_task = [(summarise(run), run.record) for run in runs if run.task == task]
    names = labels(source for source, _ in runs_of_task)
    panels: dict[str, Panel] = {}
    for source, record in runs_of_task:
        probs = combine_draws(record.rows(), record.combine)  # [D, C]
        acc, ece, nll = (source.number(name, source.draws) for name in ("acc", "ece", "nll"))
        note = f"ACC {100 * acc:.1f}  ECE {100 * ece:.1f}  NLL {nll:.2f}"
        name = names[source.row]
        panels.setdefault(name, Panel(name, note, reliability_bins(probs, record.gold)))
    items = runs_of_task[0][0].items
    return reliability_svg(list(panels.values()), f"{task}, {items} questions, 15 bins; grey: how many")


def _next(out: Path, runs: Sequence[Run]) -> str:
    trained = [run.config["uqharness"]["adapter"] for run in runs if "uqharness" in run.config]
    adapter = next((a for a in trained if "blob" in a), trained[-1] if trained else "ADAPTER")
    model_args, results = shlex.quote(f"adapter={adapter},samples=10"), shlex.quote(str(out / "results"))
    return f"""
adapters:  {out / "adapters"}
results:   {out / "results"}   table: {out / "table.md"}   diagram: {out / "reliability.svg"}

next
  evaluate one by hand   lm_eval --model bayeslora --model_args {model_args} --tasks toyworld_far_uq
  in the browser         uqharness leaderboard {results}
  the table again        uqharness table {results} --metric acc,ece,nll,brier,auroc --samples 0,5,10
  a real model           uqharness train blob --base meta-llama/Llama-3.2-1B --task openbookqa_uq --out runs/obqa
  a method of your own   docs/plugin.md: one file"""


def _bare(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)
