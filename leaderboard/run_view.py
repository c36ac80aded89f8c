"""Texts of the Run, Method and Problems pages. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import pandas as pd

from uqharness.leaderboard import reported_table
from uqharness.leaderboard.curves import answers
from uqharness.leaderboard.table_formats import arrow, number
from uqharness.leaderboard.theme import order
from uqharness.loose_json import value_of
from uqharness.metrics import metric
from uqharness.metrics.registry import METRICS
from uqharness.results.files import Problem
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

LISTED = ("nll", "brier", "acc", "ece", "ece_debiased")
STEPS = (0, 1, 2, 3, 5, 10, 20, 50, 100)  # numbers of draws that get a column
Linked = tuple[str, str]


def facts(run: RunSummary, row: str) -> list[tuple[str, str]]:
    """Return (what, value) of the facts that identify a run, without unknown ones."""
    values = {
        "method": row,
        "evaluated on": run.task,
        "questions": f"{run.items:,}",
        "shift": {"id": "in distribution", "small": "small", "large": "large"}.get(run.shift or ""),
        "trained on": run.trained_on,
        "labels seen": _with(run.labels_seen, "", ","),
        "LoRAs trained": run.training_passes,
        "base model": run.base,
        "training seed": run.seed,
        "draws": f"{run.draws}{' and the mean' if run.has_mean else ''}",
        "draws are combined as": run.combine,
        "protocol": f"{value_of(run.protocol.get('name', 'null')) or '–'} ({run.protocol_hash})",
        "recipe": run.recipe_hash,
        "adapter": run.adapter,
        "adapter hash": run.adapter_hash,
        "training time": _with(run.train_seconds, " s", ",.0f"),
        "peak memory": _with(run.peak_memory, " MiB", ",.0f", 2.0**-20),
        "trainable parameters": _with(run.trainable, "", ",.0f"),
        "forward passes": _with(run.passes, "", ",.0f"),
        "device": run.device,
        "precision": run.dtype,
        "evaluated": _day(run.date),
        "source": run.origin,
        "file": run.file,
    }
    return [(key, str(value)) for key, value in values.items() if value not in (None, "")]


def _with(value: float | None, unit: str, form: str, scale: float = 1) -> str | None:
    return None if value is None else f"{value * scale:{form}}{unit}"


def _day(seconds: float | None) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d") if seconds else None
    except (ValueError, OverflowError, OSError):  # a file can say any number
        return None


def warnings(run: RunSummary, problems: Sequence[Problem]) -> list[str]:
    """Return warnings about this run's numbers."""
    own = [each for each in problems if (each.file, each.task) == (run.file, run.task)]
    remarks = [text for kind, text in run.remarks.items() if kind not in {each.kind for each in own}]
    return [*(f"{each.kind}: {each.reason}" for each in own), *remarks]


def numbers(run: RunSummary, record: Record) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric at all draws with its interval over questions, and at fewer draws."""
    steps = [n for n in STEPS if n < run.draws and (n or run.has_mean)]
    result = answers(record, "")
    given = metric.Answers.of(result.probs, result.gold, draws=result.draws)
    rows = []
    for name, known in METRICS.items():
        value = run.number(name, run.draws)
        low, high = float("nan"), float("nan")
        if known.has_interval and value == value:
            low, high = known.confidence_interval(given)
        ends = "–" if low != low else f"{number(low, name)} … {number(high, name)}"
        fewer = [number(run.number(name, n), name) for n in steps]
        rows.append([known.label + arrow(name), number(value, name), ends, *fewer])
    return ["Metric", f"N = {run.draws}", "95 % interval", *(f"N = {n}" for n in steps)], rows


def listing(
    runs: Sequence[RunSummary], label: Callable[[RunSummary], str], address: Callable[[str], str]
) -> tuple[list[str], list[list[str | Linked]]]:
    """(header, rows): one row per run, with an address behind its name."""
    rows: list[list[str | Linked]] = []
    for run in runs:
        seed = "–" if run.seed is None else str(run.seed)
        values = [number(run.number(m, run.draws), m) for m in LISTED]
        about = [label(run), run.task, run.trained_on or "–", seed, str(run.draws)]
        rows.append([*about, *values, (run.run_id, address(run.run_id))])
    head = ["Method", "Data set", "Trained on", "Seed", "N"]
    return [*head, *(METRICS[m].label + arrow(m) for m in LISTED), "Run"], rows


def in_papers(reported: pd.DataFrame, method: str) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): what papers report of a method, a row per paper, base and metric, as printed."""
    printed = reported[(reported["method"] == method) & reported["metric"].isin(list(METRICS))]
    data = list(dict.fromkeys(printed["dataset"]))
    cells: dict[tuple[str, str, str, str], dict[str, str]] = {}
    notes: dict[str, None] = {}
    for row in printed.to_dict("records"):
        text = f"{reported_table.printed(row)}{'' if row['status'] == 'ok' else ' ‡'}"
        paper = f"{row['paper']}, table {row['table']}"
        cells.setdefault((paper, row["base"], row["setting"] or "–", METRICS[row["metric"]].label), {})[
            row["dataset"]
        ] = text
        notes |= dict.fromkeys(f"{row['paper']}: {note}" for note in json.loads(row["footnotes"]))
        if row["status"] != "ok":
            notes["‡: it failed in its paper, or the paper contradicts itself"] = None
    rows = [[*key, *(by_data.get(name, "–") for name in data)] for key, by_data in sorted(cells.items())]
    return ["Paper", "Base", "Setting", "Metric", *data], rows, list(notes)


def methods(runs: Sequence[RunSummary]) -> list[str]:
    """Methods that have results, those of the papers first."""
    return sorted({run.method for run in runs}, key=order)
