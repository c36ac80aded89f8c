"""`uqharness ood RESULTS…`: compare every adapter on its own data set with each shifted one."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from uqharness.commands.parser import check_choice
from uqharness.commands.table import MAX_DRAWS, words
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import count_of
from uqharness.terminal import printable, say

if TYPE_CHECKING:
    from uqharness.leaderboard.board import Board
    from uqharness.results.ood import Shift

FORMATS = ("md", "csv", "json")
SCORES = {"confidence": "confidence", "entropy": "entropy", "mutual_information": "MI"}
EXPLAINED = (
    "AUROC, AUPR: shifted questions are the positives, less confidence or more entropy or mutual information (MI) "
    "their sign; AUPR of chance is the share of shifted questions",
    "FPR95: share of shifted questions accepted where 95 % of the in-distribution ones are",
    "[…]: 95 % interval over questions of one adapter; ±: standard deviation over training seeds",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results files, published files, or folders")
    parser.add_argument("--samples", metavar="N", help="use N draws; 0: the mean [all there are]")
    parser.add_argument("--metric", nargs="+", metavar="NAME", help="metrics whose change is shown [acc ece nll]")
    parser.add_argument("--against", metavar="METHOD", help="also: by how much more than METHOD's, paired by question")
    parser.add_argument("--format", default="md", metavar="FORMAT", help="md, csv or json [md]")


@dataclass(frozen=True)
class Row:
    """One adapter and one shifted set."""

    label: str
    shift: Shift
    against: Mapping[str, tuple[float, tuple[float, float]]]

    @property
    def table(self) -> tuple[str, str, str]:
        return self.shift.inside.base, self.shift.inside.task, self.shift.shifted.task

    @property
    def name(self) -> tuple[str, int]:
        return self.label, self.shift.draws


def run(args: argparse.Namespace) -> int:
    from uqharness.metrics.registry import find
    from uqharness.results.ood import CHANGES

    check_choice("--format", args.format, FORMATS)
    metrics = words(args.metric) or list(CHANGES)
    for name in metrics:
        find(name)
    draws = None if args.samples is None else count_of(args.samples, 0, MAX_DRAWS)
    if args.samples is not None and draws is None:
        raise InputError(f"--samples {args.samples[:60]!r}: give an integer from 0 to {MAX_DRAWS:,}")
    rows = rows_of(board_of(args.results), metrics, draws, args.against)
    sys.stdout.write(printable({"md": markdown, "csv": as_csv, "json": as_json}[args.format](rows)))
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


def rows_of(board: Board, metrics: Sequence[str], draws: int | None, reference: str | None) -> list[Row]:
    from uqharness.results import ood

    pairs = ood.pairs(board.runs)
    if not pairs:
        raise InputError(
            "no adapter was evaluated in distribution and under a shift: evaluate it on the task that it was trained "
            "on and on those that tasks/shifts.yaml pairs with it (uqharness tasks shows them)"
        )
    labels = {board.label(inside) for inside, _ in pairs}
    if reference is not None and reference not in labels:
        raise InputError(
            f"--against {reference!r}{did_you_mean(reference, labels)}: there are {', '.join(sorted(labels))}"
        )
    shifts, records = [], {}
    read = functools.cache(board.record)  # one in-distribution file stands against several shifts
    for inside, shifted in pairs:
        pair = (read(inside.run_id), read(shifted.run_id))
        shift = ood.compare(inside, pair[0], shifted, pair[1], draws, metrics)
        if shift is None:
            say(f"skipped: {board.label(shifted)} on {shifted.task} has no N = {draws}: evaluate again with it")
        else:
            shifts.append(shift)
            records[shifted.run_id] = pair
    base = {_place(s): s for s in shifts if board.label(s.inside) == reference}
    rows = []
    for shift in shifts:
        other = base.get(_place(shift))
        paired = {}
        if other is not None and other is not shift:
            paired = ood.against(shift, records[shift.shifted.run_id], other, records[other.shifted.run_id])
        rows.append(Row(board.label(shift.inside), shift, paired))
    if not rows:
        raise InputError(f"no results contain N = {draws}: evaluate again with samples={draws}")
    return rows


def _place(shift: Shift) -> tuple[Any, ...]:
    """Return the attributes that an adapter shares with its reference."""
    return shift.inside.base, shift.inside.task, shift.shifted.task, shift.inside.seed


# ---------------------------------------------------------------- as text


def flat(row: Row) -> dict[str, Any]:
    """Return every number of a row by name, in the metrics' own units."""
    s = row.shift
    out: dict[str, Any] = {
        "method": row.label,
        "samples": s.draws,
        "base": s.inside.base,
        "trained_on": s.inside.trained_on,
        "seed": s.inside.seed,
        "task": s.inside.task,
        "items": s.inside.items,
        "shifted": s.shifted.task,
        "shift": s.kind,
        "shifted_items": s.shifted.items,
    }
    for score in SCORES:
        d = s.detection.get(score)
        out[f"auroc_{score}"] = d and d.auroc
        out[f"auroc_{score}_low"], out[f"auroc_{score}_high"] = d.auroc_interval if d else (None, None)
        out[f"aupr_{score}"], out[f"fpr95_{score}"] = d and d.aupr, d and d.fpr95
    for name, c in s.changes.items():
        out |= {name: c.inside, f"{name}_shifted": c.shifted, f"{name}_change": c.difference}
        out[f"{name}_change_low"], out[f"{name}_change_high"] = c.interval
        more, interval = row.against.get(name, (None, (None, None)))
        out |= {f"{name}_change_against": more}
        out[f"{name}_change_against_low"], out[f"{name}_change_against_high"] = interval
    return {key: None if value is not None and value != value else value for key, value in out.items()}


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([flat(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    lines = [flat(row) for row in rows]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """Format two tables for each pair of sets: detection of shifted questions, and changes of metrics."""
    tables: dict[tuple[str, str, str], dict[tuple[str, int], list[dict[str, Any]]]] = {}
    shifts = {row.table: row.shift for row in rows}
    for row in rows:
        tables.setdefault(row.table, {}).setdefault(row.name, []).append(flat(row))
    metrics = list(rows[0].shift.changes)
    paired = any(row.against for row in rows)
    parts = []
    for table, lines in tables.items():
        s = shifts[table]
        share = s.shifted.items / (s.inside.items + s.shifted.items)
        parts.append(f"### {s.inside.task} → {s.shifted.task} ({s.kind} shift), {s.inside.base}\n")
        names = [f"{kind} {name}" for kind in ("AUROC", "AUPR", "FPR95") for name in SCORES.values()]
        parts.append(grid(["Method", "N", "Seeds", *names], [detection(*line) for line in lines.items()]))
        parts.append(
            grid(
                ["Method", "N", "Seeds", *heads(metrics, paired)],
                [changed(*line, metrics, paired) for line in lines.items()],
            )
        )
        parts.append(
            f"- items: {s.inside.items} in distribution, {s.shifted.items} shifted (share {100 * share:.1f} %)\n"
        )
    return "\n".join([*parts, *(f"- {line}" for line in EXPLAINED)]) + "\n"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from uqharness.leaderboard.table_formats import md_letters

    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(map(md_letters, row)) + " |\n" for row in rows)


def detection(name: tuple[str, int], seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [over_seeds(seeds, f"auroc_{score}", 100, 1, interval=True) for score in SCORES]
    cells += [over_seeds(seeds, f"{kind}_{score}", 100, 1) for kind in ("aupr", "fpr95") for score in SCORES]
    return [name[0], str(name[1]), str(len(seeds)), *cells]


def heads(metrics: Sequence[str], paired: bool) -> list[str]:
    from uqharness.metrics.registry import find

    names = [(m.label, m.label + (", %" if m.scale == 100 else "")) for m in map(find, metrics)]
    return [text for short, full in names for text in (full, f"change of {short}", *["… against"] * paired)]


def changed(
    name: tuple[str, int], seeds: Sequence[Mapping[str, Any]], metrics: Sequence[str], paired: bool
) -> list[str]:
    from uqharness.metrics.registry import find

    cells = []
    for metric in metrics:
        known = find(metric)
        scale, decimals = known.scale, known.decimals
        both = (over_seeds(seeds, key, scale, decimals, spread=False) for key in (metric, f"{metric}_shifted"))
        cells += [" → ".join(both), over_seeds(seeds, f"{metric}_change", scale, decimals, interval=True, sign=True)]
        if paired:
            cells.append(over_seeds(seeds, f"{metric}_change_against", scale, decimals, interval=True, sign=True))
    return [name[0], str(name[1]), str(len(seeds)), *cells]


def over_seeds(
    seeds: Sequence[Mapping[str, Any]],
    key: str,
    scale: float,
    decimals: int,
    *,
    interval: bool = False,
    sign: bool = False,
    spread: bool = True,
) -> str:
    """Format mean ± standard deviation, or a single value with its interval."""
    known = [line for line in seeds if line[key] is not None]
    if not known:
        return "–"

    def shown(value: float) -> str:
        return f"{value * scale:{'+' if sign else ''}.{decimals}f}"

    if len(known) > 1:
        values = [line[key] for line in known]
        return f"{shown(fmean(values))} ± {stdev(values) * scale:.{decimals}f}" if spread else shown(fmean(values))
    low, high = (known[0].get(f"{key}_{end}") if interval else None for end in ("low", "high"))
    return shown(known[0][key]) + (f" [{shown(low)}, {shown(high)}]" if low is not None and high is not None else "")
