"""Numbers that papers report, as they print them: `papers/*.csv`, a paper and a table for every row.

They are shown beside measured results, marked, and never averaged or ranked with them: budgets, prompts, bases and
ways of averaging differ between papers (footnotes). `status`: ok, failed (starred in its paper), suspect (the paper
contradicts itself, or its correction). A run that failed without printing a number has NaN as its value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

import pandas as pd

METRIC_NAMES = {"ACC": "acc", "ECE": "ece", "NLL": "nll", "train_time": "train_seconds", "memory": "peak_memory"}
PER_CENT = ("acc", "ece")
# (paper, method) -> what a reader must know before comparing; "" stands for every paper or method.
FOOTNOTES: tuple[tuple[str, str, str], ...] = (
    ("BLoB", "ENS", "averages logits where BLoB averages probabilities: not like for like"),
    ("BLoB", "", "trained on train, reported on validation; 15 bins; the reference code drops the last batch"),
    ("BLoB", "MCD", "10 draws; the Me-LoRA paper uses 3"),
    ("BLoB", "MAP", "its weight decay of 1e-5 under AdamW is next to none: the gap to MLE is seed noise"),
    ("BLoB", "BLoB", "the same cell differs between papers: BoolQ, 7B has 86.99 here (N = 10), 77.34 in Me-LoRA's"),
    ("BLoB", "LoRA", "the same cell differs between papers: WG-S, 7B takes 14,688 MB here, 4.80 GB in Me-LoRA's"),
    ("BLoB-NeurIPS2024-slides", "", "slides of the conference talk; they correct some cells of the paper's table 1"),
    ("Me-LoRA", "", "own code and budgets (draws: 1, MCD and ENS 3); BoolQ's validation split in parts"),
    ("Me-LoRA", "BLoB", "no flipout, Me-LoRA's KL, one draw: not the BLoB of the BLoB paper"),
    ("Me-LoRA", "LAP", "NLL has a std of 0.47 of the mean in every cell: not the spread over seeds"),
)


@lru_cache(maxsize=1)
def load() -> pd.DataFrame:
    """Every reported number: fractions for ACC and ECE, as in our own metrics; costs in seconds and MB."""
    return pd.DataFrame([*_results(), *_costs(), *_parameters()])


@lru_cache(maxsize=1)
def hyperparameters() -> tuple[dict[str, str], ...]:
    """Return the papers' settings, one row per paper, table, base and setting.

    `value` is what the paper states in our notation, empty where it states nothing; `used` is what our suites take;
    `words` are the paper's. A row is `suspect` where the two differ for a reason that `note` gives.
    """
    return tuple(_read("hyperparameters.csv"))


@lru_cache(maxsize=1)
def claims() -> tuple[dict[str, str], ...]:
    """Return what papers say about figures that print no values: curve `left` is `relation` curve `right`."""
    return tuple(_read("claims.csv"))


def _read(name: str) -> Iterator[dict[str, str]]:
    text = (files("uqharness.leaderboard") / "papers" / name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


def _results() -> Iterator[dict[str, Any]]:
    for row in _read("results.csv"):
        metric, dataset, trained_on = METRIC_NAMES[row["metric"]], row["evaluated_on"], row["trained_on"]
        scale = 0.01 if metric in PER_CENT else 1.0
        more = {
            "trained_on": trained_on,
            "setting": f"trained on {trained_on}" if trained_on != dataset else "",
            "std": float(row["std"]) * scale if row["std"] else None,
            "draws": int(row["samples"]) if row["samples"] else None,
            "status": row["status"],
            "note": row["note"],
        }
        yield _row(row, dataset, metric, float(row["mean"] or "nan") * scale, **more)


def _costs() -> Iterator[dict[str, Any]]:
    for row in _read("costs.csv"):
        value = float(row["value"]) * {"s": 1.0, "MB": 2.0**20, "GB": 2.0**30}[row["unit"]]
        yield _row(row, row["dataset"], METRIC_NAMES[row["metric"]], value, setting=row["hardware"])


def _parameters() -> Iterator[dict[str, Any]]:
    for row in _read("parameters.csv"):
        value = float(row["trainable_params_millions"]) * 1e6
        yield _row(row, "", "trainable", value, setting=f"rank {row['rank']}")


def _row(row: dict[str, str], dataset: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    paper, method = row["paper"], row["method"]
    notes = [text for who, what, text in FOOTNOTES if who in ("", paper) and what in ("", method)]
    about = {"paper": paper, "table": row["table"], "base": row["base_model"], "method": method, "dataset": dataset}
    open_ones = {"trained_on": dataset, "setting": "", "metric": metric, "value": value, "std": None, "draws": None}
    return {**about, **open_ones, "status": "ok", "note": "", "footnotes": json.dumps(notes), **more}
