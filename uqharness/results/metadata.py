"""Results as metadata of model repositories: the hub's `model-index`, and entries of its `.eval_results/*.yaml`.

    uqharness table results --format model-index

Both hold numbers of one set of draws: `model-index` of any metrics, an entry of `.eval_results` one value, which is the
accuracy; its notes name the other metrics. Runs that are trimmed, leaked or contradictory are omitted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from uqharness.loose_json import value_of
from uqharness.results.runs import SUSPECT, RunSummary, printed

METRICS = {"acc": ("accuracy", "Accuracy"), "ece": ("ece", "ECE (15 bins)"), "nll": ("nll", "NLL (nats)")}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
log = logging.getLogger("uqharness.results")


def stated(runs: Iterable[RunSummary]) -> list[RunSummary]:
    """Return the runs whose numbers may be published without context; log why others are omitted."""
    entries = []
    for run in runs:
        reasons = [run.remarks[kind] for kind in ("leaked", "trimmed", *SUSPECT) if kind in run.remarks]
        if reasons:
            log.warning("%s: %s: skipped: %s", run.file, run.task, "; ".join(reasons))
        else:
            entries.append(run)
    return entries


def model_index(name: str, runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Return the entry of one model in a card's `model-index`."""
    results = []
    for run in runs:
        subset, split = (value_of(run.protocol.get(key, "")) for key in ("subset", "split"))
        on_hub = dataset_id(run)
        dataset = {"type": on_hub or run.task, "name": on_hub or run.task}
        if on_hub and subset:
            dataset |= {"name": f"{on_hub} ({subset})", "config": str(subset)}
        if split:
            dataset["split"] = str(split)
        args = {"draws": run.draws, "items": run.items, "protocol_hash": run.protocol_hash}
        metrics = [
            {"type": kind, "value": round(run.number(metric, run.draws), 6), "name": f"{label}, {run.task}, {how(run)}"}
            for metric, (kind, label) in METRICS.items()
        ]
        task = {"type": "multiple-choice", "name": "Multiple choice"}
        results.append({"task": task, "dataset": dataset, "metrics": [{**each, "args": args} for each in metrics]})
    return {"name": name, "results": results}


def eval_results(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Return `.eval_results/*.yaml` entries of runs whose data set is on the hub; value: accuracy in per cent."""
    return [
        {
            "dataset": {"id": dataset_id(run), "task_id": str(value_of(run.protocol.get("subset", "")) or "default")},
            "value": round(100 * run.number("acc", run.draws), 2),
            **({"date": datetime.fromtimestamp(run.date, timezone.utc).strftime("%Y-%m-%d")} if run.date else {}),
            "notes": f"{run.method}, {how(run)}, {run.items} questions of {run.task}; "
            + ", ".join(f"{METRICS[name][1]} {printed(name, run.number(name, run.draws))}" for name in ("ece", "nll"))
            + f"; protocol {run.protocol_hash}",
        }
        for run in runs
        if dataset_id(run)
    ]


def dataset_id(run: RunSummary) -> str:
    """Return the hub's id of the data set; empty if it is not on the hub."""
    name = str(value_of(run.protocol.get("dataset", "")))
    return name if HUB_ID.fullmatch(name) else ""


def how(run: RunSummary) -> str:
    return f"{run.draws} draws" if run.draws > 1 else "1 draw" if run.draws else "posterior mean"
