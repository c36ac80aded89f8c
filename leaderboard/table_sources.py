"""Select the runs of a table and name its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uqharness.loose_json import value_of
from uqharness.results.runs import RunSummary, texts
from uqharness.settings import UNRECORDED

DEFAULTS = texts(UNRECORDED)


def newest(runs: Sequence[RunSummary], notes: list[str]) -> list[RunSummary]:
    """One run per method, seed, column and protocol: the one with most draws, then the latest."""
    groups: dict[Any, list[RunSummary]] = {}
    for run in runs:
        key = (run.row, run.seed, run.column, run.protocol_hash, run.recipe_hash, run.recipe_text)
        groups.setdefault(key, []).append(run)
    chosen = []
    for same in groups.values():
        chosen.append(max(same, key=lambda run: (run.draws, run.mean_taken is None, run.date or 0.0)))
        if len(same) > 1:
            adapters = len({run.adapter_hash for run in same})
            other = f" of {adapters} adapters" if adapters > 1 else ""
            notes.append(
                f"{len(same)} results{other} of {same[0].method}, seed {same[0].seed}, "
                f"on {same[0].task}: the one in {chosen[-1].file} counts (most draws, then latest)"
            )
    return chosen


def labels(runs: Iterable[RunSummary]) -> dict[tuple[str, str], str]:
    """Row names; the settings that differ are named where one method comes with several."""
    by_method: dict[str, dict[tuple[str, str], Mapping[str, str]]] = {}
    for run in runs:
        by_method.setdefault(run.method, {})[run.row] = run.settings
    names = {}
    for method, group in by_method.items():
        keys = sorted({key for settings in group.values() for key in settings})
        differ = [k for k in keys if len({settings.get(k) for settings in group.values()}) > 1]
        for row, settings in group.items():
            values = {k: settings.get(k, DEFAULTS.get(k, "not recorded")) for k in differ}
            text = ", ".join(f"{k}={value_of(value)}" for k, value in values.items())
            names[row] = f"{method} ({text})" if text else method
    return names
