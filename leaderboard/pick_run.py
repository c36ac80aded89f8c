"""Choosing one run out of thousands: data set, then method, then which of its runs. In the URL is only the run's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from uqharness.leaderboard.url_view import View


def first(runs: pd.DataFrame) -> str:
    """What is shown before anything was chosen: a method with several draws, if there is one."""
    several = runs[runs["draws"] > 1]
    return str((several if len(several) else runs)["run_id"].iloc[0]) if len(runs) else ""


def pick(view: View, runs: pd.DataFrame) -> dict[str, Any]:
    """Three boxes; returns the row of the chosen run."""
    chosen = runs[runs["run_id"] == st.session_state[view.key("run")]].iloc[0]
    runs = runs[["run_id", "task", "row", "trained_on", "recipe_hash", "seed", "draws"]]  # less to copy below
    tasks, here = sorted(set(runs["task"])), runs[runs["task"] == chosen["task"]]
    rows = list(dict.fromkeys(here["row"]))
    same = here[here["row"] == chosen["row"]]
    task_key, row_key = view.key("task"), view.key("row")
    st.session_state[task_key], st.session_state[row_key] = chosen["task"], chosen["row"]

    def moved(column: str, key: str) -> None:
        """The nearest run: same method and seed on the new data set, or same seed of the new method."""
        there = (runs if column == "task" else here)[lambda f: f[column] == st.session_state[key]]
        st.session_state[view.key("run")] = nearest(there, chosen)

    one, two, three = st.columns(3)
    one.selectbox("Data set", tasks, key=task_key, on_change=moved, args=("task", task_key))
    two.selectbox("Method", rows, key=row_key, on_change=moved, args=("row", row_key))
    named = {str(run["run_id"]): told(run) for run in same.to_dict("records")}
    three.selectbox("Run", list(named), key=view.key("run"), format_func=lambda i: named.get(i, i))
    return {key: None if value is None or value is pd.NA or value != value else value for key, value in chosen.items()}


def nearest(runs: pd.DataFrame, like: Mapping[str, Any] | pd.Series) -> str:
    """Of these the one of the same method, else of the same recipe, else of the same seed; the first of equal ones."""
    alike = [(runs[c] == like[c]).fillna(False).astype(int) for c in ("row", "recipe_hash", "seed")]
    score = sum(weight * a for weight, a in zip((4, 2, 1), alike, strict=True))
    return str(runs.loc[score.idxmax(), "run_id"])


def told(run: Any) -> str:
    """Which of the runs of a method on a data set."""
    seed = "no seed" if pd.isna(run["seed"]) else f"seed {run['seed']}"
    trained = f", trained on {run['trained_on']}" if run["trained_on"] not in (None, run["task"]) else ""
    return f"{seed}{trained}, N = {run['draws']} ({run['run_id'][:6]})"
