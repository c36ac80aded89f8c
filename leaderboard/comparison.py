"""Compare two to four runs: differences in their settings, and paired tests of their answers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uqharness.leaderboard import costs, ranking
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.table_formats import arrow, number
from uqharness.metrics.points import correct
from uqharness.metrics.registry import METRICS
from uqharness.results.differences import of_protocols
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

MOST = 4
TESTED = ("acc", "nll", "brier", "ece")
# Where an adapter lies, when it was made and what it cost say nothing about what it is.
IGNORED = "out resume report_to save_every record_every device task seed train_seed package version".split()


def settings(run: RunSummary) -> dict[str, str]:
    """Return the settings of this run, flat: `method.kl_lr`, `recipe.lr`, `protocol.fewshot` …"""
    parts: dict[str, Any] = {
        "evaluated on": run.task,
        "trained on": run.trained_on,
        "training seed": run.seed,
        "draws": run.draws,
        "method": run.method,
        **{f"setting.{key}": text for key, text in run.settings.items()},
        **{key: text for key, text in run.adapter_record.items() if key.startswith(("recipe.", "posterior."))},
        **{f"recipe.{key}": text for key, text in run.recipe.items()},
        **{f"protocol.{key}": text for key, text in run.protocol.items()},
    }
    built_on = "source.method."
    parts |= {
        f"built on.{key.removeprefix(built_on)}": text
        for key, text in run.adapter_record.items()
        if key.startswith(built_on)
    }
    recorded = {key: str(value) for key, value in parts.items() if value not in (None, "null")}
    return {key: text for key, text in recorded.items() if key.rsplit(".", 1)[-1] not in IGNORED}


def differing(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of every setting that is not the same in all; "–" where a run lacks it.

    A run without an adapter's record lacks them all, which says nothing about each.
    """
    all_settings, rows = [settings(run) for run in runs], []
    for key in dict.fromkeys(key for each in all_settings for key in each):
        values = [each.get(key, "–") for each in all_settings]
        known = {value for run, value in zip(runs, values, strict=True) if run.adapter_record or value != "–"}
        if len(known) > 1:
            rows.append((key, values))
    return rows


def not_comparable(runs: Sequence[RunSummary], records: Sequence[Record]) -> str:
    """Return why these answers cannot be paired; empty if they can."""
    for other in runs[1:]:
        if other.protocol_hash != runs[0].protocol_hash:
            differ = {"evaluated on": (runs[0].task, other.task)} if other.task != runs[0].task else {}
            differ |= of_protocols(runs[0].protocol, other.protocol)
            fields = ", ".join(f"{key}: {one} and {two}" for key, (one, two) in differ.items())
            return f"They were evaluated differently ({fields or 'protocol'}), so there is no test."
    first = records[0]
    if any(r.doc_hashes != first.doc_hashes or not np.array_equal(r.gold, first.gold) for r in records):
        return "They answered other questions, so there is no test."
    return ""


def tests(names: Sequence[str], given: Sequence[Answers]) -> list[dict[str, Any]]:
    """Test every pair in every tested metric: difference, 95 % interval, p, p after Holm over the pairs.

    Also return the detectable difference, and the number of questions that would show the difference.
    """
    probs = {name: [each.probs] for name, each in zip(names, given, strict=True)}
    rows = []
    for metric in TESTED:
        result = ranking.compare(metric, probs, given[0].gold)
        better = result.better()
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                winner = names[i] if better[i, j] else names[j] if better[j, i] else ""
                rows.append(
                    {
                        "metric": result.metric,
                        "one": names[i],
                        "other": names[j],
                        "difference": result.difference[i, j],
                        "low": result.difference[i, j] - result.half[i, j],
                        "high": result.difference[i, j] + result.half[i, j],
                        "p": result.p[i, j],
                        "holm": result.adjusted[i, j],
                        "better": winner,
                        "detectable": result.detectable[i, j],
                        "items_needed": result.items_needed(names[i], names[j]),
                    }
                )
    return rows


def shown_tests(tests: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the tests as text, in the units of the tables."""
    rows = []
    for row in tests:
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
    return list(rows[0]), [list(row.values()) for row in rows]


def _count(number: float | None) -> str:
    """Format a count with two digits, because it is computed from an estimated difference."""
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


def side_by_side(runs: Sequence[RunSummary], labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric and cost, one column per run."""
    rows = []
    for name, known in METRICS.items():
        rows.append([known.label + arrow(name), *(number(run.number(name, run.draws), name) for run in runs)])
    for cost in costs.COSTS:
        rows.append([costs.title(cost), *(costs.formatted(costs.average([(r, r.draws)], cost), cost) for r in runs)])
    rows.append(["Evaluation, s", *("–" if r.eval_seconds is None else f"{r.eval_seconds:,.0f}" for r in runs)])
    rows.append(["Hardware", *(costs.hardware([(r, r.draws)]) for r in runs)])
    return ["", *labels], [row for row in rows if set(row[1:]) != {"–"}]


def start(runs: Sequence[RunSummary]) -> list[str]:
    """Return two runs to begin with: MLE and a method with several draws on the same questions, else the first two."""
    groups: dict[Any, list[RunSummary]] = {}
    for run in runs:
        groups.setdefault((run.task, run.protocol_hash, run.recipe_hash), []).append(run)
    for same in groups.values():
        plain = next((run for run in same if run.method == "MLE"), None)
        several = next((run for run in same if run.draws > 1 and run.method != "MLE"), None)
        if plain and several:
            return [plain.run_id, several.run_id]
    return [run.run_id for run in runs if run.task == runs[0].task][:2]


def names(runs: Sequence[RunSummary], rows: Sequence[str]) -> list[str]:
    """Row labels, with what tells runs of one row apart."""
    labels = list(rows)
    for extra in ("seed", "trained_on", "task", "run_id"):
        if len(set(labels)) == len(labels):
            break
        if len({getattr(run, extra) for run in runs}) > 1:
            extras = [f"{extra.replace('_', ' ')} {getattr(run, extra)}" for run in runs]
            labels = [f"{name}, {text}" for name, text in zip(labels, extras, strict=True)]
    return labels
