"""Two to four runs side by side: what they differ in, and paired tests of their answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from uqharness.leaderboard import ranking
from uqharness.leaderboard.aggregate import Board
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.table_formats import arrow, number
from uqharness.metrics.registry import METRICS, correct
from uqharness.results.reading import Record

MOST = 4
TESTED = ("acc", "nll", "brier", "ece")
# Where an adapter lies, when it was made and what it cost say nothing about what it is.
IGNORED = ("out", "resume", "report_to", "save_every", "device", "task", "seed", "train_seed", "package", "version")
COSTS = {
    "train_seconds": "training time (s)",
    "peak_memory": "peak memory (bytes)",
    "trainable": "trainable parameters",
    "passes": "forward passes per answer",
    "device": "device",
    "dtype": "dtype",
    "eval_seconds": "evaluation time (s)",
}


def settings(run: Mapping[str, Any]) -> dict[str, str]:
    """What made this run, flat: `method.kl_lr`, `recipe.lr`, `protocol.fewshot` …"""
    record = json.loads(run["record"] or "{}")
    parts = {
        "evaluated on": run["task"],
        "trained on": run["trained_on"],
        "training seed": run["seed"],
        "draws": run["draws"],
        "method": run["method"],
        "setting": json.loads(run["settings"] or "{}"),
        "recipe": {**(record.get("recipe") or {}), **json.loads(run["setup"] or "{}")},
        "posterior": record.get("posterior") or {},
        "protocol": json.loads(run["protocol"] or "{}"),
        "built on": (record.get("source") or {}).get("method") or {},
    }
    return {key: text for key, text in _flat(parts) if key.rsplit(".", 1)[-1] not in IGNORED}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if value is None:
        return []
    return [(prefix, value if isinstance(value, str) else json.dumps(value, default=int))]


def differing(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of every setting that is not the same in all; "–" where a run lacks it.

    A run without an adapter's record lacks them all, which says nothing about each.
    """
    found = [settings(run) for run in runs]
    told = [len(json.loads(run["record"] or "{}")) > 0 for run in runs]
    rows = []
    for key in dict.fromkeys(key for each in found for key in each):
        values = [each.get(key, "–") for each in found]
        known = {value for value, knows in zip(values, told, strict=True) if knows or value != "–"}
        if len(known) > 1:
            rows.append((key, values))
    return rows


def not_comparable(runs: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> str:
    """Why these answers cannot be paired; empty where they can."""
    if len({run["protocol_hash"] for run in runs}) > 1:
        keys = [key for key, _ in differing(runs) if key.startswith(("protocol.", "evaluated on"))]
        return f"They were evaluated differently ({', '.join(keys) or 'protocol'}), so there is no test."
    first = records[0]
    if any(r.doc_hashes != first.doc_hashes or not np.array_equal(r.gold, first.gold) for r in records):
        return "They answered other questions, so there is no test."
    return ""


def tests(names: Sequence[str], given: Sequence[Answers]) -> pd.DataFrame:
    """Every pair in every tested metric: difference, 95 % interval, p, p after Holm over the pairs.

    Also what these questions could have shown, and how many would show the difference.
    """
    probs = {name: [each.probs] for name, each in zip(names, given, strict=True)}
    rows = []
    for metric in TESTED:
        found = ranking.compare(metric, probs, given[0].gold)
        better = found.better()
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                winner = names[i] if better[i, j] else names[j] if better[j, i] else ""
                rows.append(
                    {
                        "metric": found.metric,
                        "one": names[i],
                        "other": names[j],
                        "difference": found.difference[i, j],
                        "low": found.difference[i, j] - found.half[i, j],
                        "high": found.difference[i, j] + found.half[i, j],
                        "p": found.p[i, j],
                        "holm": found.adjusted[i, j],
                        "better": winner,
                        "detectable": found.detectable[i, j],
                        "items_needed": found.items_needed(names[i], names[j]),
                    }
                )
    return pd.DataFrame(rows)


def shown_tests(found: pd.DataFrame) -> pd.DataFrame:
    """The tests as text, in the units of the tables."""
    rows = []
    for row in found.to_dict("records"):
        known = METRICS[row["metric"]]
        one, low, high = (f"{row[k] * known.scale:+.{known.decimals}f}" for k in ("difference", "low", "high"))
        rows.append(
            {
                "Metric": known.label,
                "Pair": f"{row['one']} − {row['other']}",
                "Difference": one,
                "95 % interval": f"{low} … {high}",
                "p": _p(row["p"]),
                "p (Holm)": _p(row["holm"]),
                "Better": row["better"] or "no clear difference",
                "Detectable": f"{row['detectable'] * known.scale:.{known.decimals}f}",
                "Questions needed": "" if row["better"] else _count(row["items_needed"]),
            }
        )
    return pd.DataFrame(rows)


def _count(number: float | None) -> str:
    """Two digits of it: the difference it is computed from is an estimate."""
    if number is None or number != number:
        return f"over {ranking.MOST_ITEMS:,}"
    return f"{float(f'{number:.2g}'):,.0f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def both_right(names: Sequence[str], given: Sequence[Answers]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): how often both, one alone or neither of a pair was right."""
    right = [correct(each.probs, each.gold) for each in given]
    rows = []
    for i, a in enumerate(right):
        for j in range(i + 1, len(right)):
            b = right[j]
            counts = [a & b, a & ~b, ~a & b, ~a & ~b]
            rows.append([f"{names[i]} | {names[j]}", *(str(int(count.sum())) for count in counts)])
    return ["Pair", "both right", "first only", "second only", "both wrong"], rows


def side_by_side(
    board: Board, runs: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric and cost, one column per run."""
    rows = []
    for name, known in METRICS.items():
        values = [number(board.number(run["run_id"], name, run["draws"]), name) for run in runs]
        rows.append([known.label + arrow(name), *values])
    for key, label in COSTS.items():
        values = [run[key] for run in runs]
        if any(value not in (None, "") for value in values):
            told = [f"{v:,.0f}" if isinstance(v, float) else str(v or "–") for v in values]
            rows.append([label, *told])
    return ["", *labels], rows


def start(runs: pd.DataFrame) -> list[str]:
    """Two runs to begin with: MLE and a method with several draws on the same questions, else the first two."""
    for (_, _, _), same in runs.groupby(["task", "protocol_hash", "recipe_hash"], dropna=False, sort=False):
        plain = same[same["method"] == "MLE"]
        several = same[(same["draws"] > 1) & (same["method"] != "MLE")]
        if len(plain) and len(several):
            return [str(plain["run_id"].iloc[0]), str(several["run_id"].iloc[0])]
    first = runs[runs["task"] == runs["task"].iloc[0]]
    return [str(i) for i in first["run_id"].iloc[:2]]


def names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Row labels, with what tells runs of one row apart."""
    found = [str(run["row"]) for run in runs]
    for extra in ("seed", "trained_on", "task", "run_id"):
        if len(set(found)) == len(found):
            break
        if len({run[extra] for run in runs}) > 1:
            found = [f"{name}, {extra.replace('_', ' ')} {run[extra]}" for name, run in zip(found, runs, strict=True)]
    return found
