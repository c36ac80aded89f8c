"""Select the runs of a table and name its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from uqharness.loose_json import value_of
from uqharness.results.differences import of_recipes
from uqharness.results.runs import RunSummary, texts
from uqharness.settings import UNRECORDED

DEFAULTS = texts(UNRECORDED)
SELECTION = {"select", "select_split", "eval_every"}  # what tells MLE with early stopping from MLE
MOST_DIFFERENT = 4  # settings of a recipe; with more it is another experiment


def tuned_baselines(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Name MLE of a recipe that no other method shares: `MLE (steps=200)`, a reference beside the usual MLE.

    Such a baseline was tuned or stopped for itself. Where base, training set and evaluation are the same, it is a row
    of the methods' table, not ranked and never averaged with their MLE.
    """

    def setup(run: RunSummary) -> tuple[object, ...]:
        return run.column, run.protocol_hash, run.recipe.get("base")

    shared = {run.recipe_text for run in runs if run.recipe_hash and run.method != "MLE"}
    usual = {setup(run): run for run in runs if run.method == "MLE" and run.recipe_text in shared}

    def named(run: RunSummary) -> RunSummary:
        plain = usual.get(setup(run))
        if plain is None or run.method != "MLE" or not run.recipe_hash or run.recipe_text in shared:
            return run
        differ = of_recipes({**DEFAULTS, **plain.recipe}, {**DEFAULTS, **run.recipe})
        words = [f"{key}={own}" for key, (_, own) in differ.items() if key not in SELECTION]
        words += ["stopped early"] * (differ.get("select", ("", "last"))[1] != "last")
        if not words or len(differ) > MOST_DIFFERENT:
            return run
        return replace(run, method=f"MLE ({', '.join(words)})", reference=True)

    return [named(run) for run in runs]


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
