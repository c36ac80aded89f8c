"""Does it know when it is guessing: on the data it was trained for, and away from them?"""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curve_rows, curves, figure_view, pick_rows, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.metrics.registry import METRICS

FIGURES = {
    "risk": "Risk and coverage",
    "parts": "Epistemic and aleatoric",
    "detection": "Shift detection",
    "shift": "From ID to OOD",
}
MORE = [
    Field("figure", "risk", list(FIGURES), "Figure"),
    Field("score", "entropy", list(curves.SCORES), "Score"),
    Field("metric", "nll", list(METRICS), "Metric"),
]


def risk() -> Grid:
    shown = picked.answers()
    figure_view.figure(charts.risk_coverage(shown), "risk-coverage", f"Risk against coverage on {picked.data}")
    return Grid(*curve_rows.coverage_rows(shown), f"Accuracy at coverage, %, on {picked.place}")


def parts() -> Grid:
    shown = picked.answers()
    figure_view.figure(charts.decomposed(shown), "epistemic", f"Epistemic against aleatoric on {picked.data}")
    st.caption(
        "Expected entropy: what stays uncertain within a draw. Mutual information: what the draws disagree about. "
        "Both are divided by the logarithm of the number of choices. At most 600 questions are drawn per method."
    )
    return Grid(*curve_rows.part_rows(shown), f"Means over questions, {picked.place}")


def detection() -> Grid:
    score = st.session_state[view.key("score")]
    found = curves.detections({data: picked.answers(data) for data in near}, picked.data, score)
    name = curves.SCORES[score].lower()
    figure_view.figure(charts.detections(found, name), "detection", f"AUROC of telling shifted questions by {name}")
    return Grid(*curve_rows.detection_rows(found), f"AUROC of {name}, %: {picked.place} against the other data set")


def shift() -> Grid:
    metric = st.session_state[view.key("metric")]
    found = picked.group.over_seeds(picked.rows, metric, picked.draws, near)
    label = METRICS[metric].label
    figure_view.figure(charts.shifted(found, metric), "shift", f"{label} from {picked.data} to shifted data sets")
    n = "" if picked.draws is None else f", N = {picked.draws}"
    caption = f"{label} where it was trained, {picked.data}, and away{n}: mean and standard deviation over seeds"
    return Grid(*curve_rows.shift_rows(found, metric), caption)


view, groups = pick_rows.open_page(
    "uncertainty", "Uncertainty", "Is it unsure where it is wrong, and where the questions are new?", MORE
)
figure, sharing = pick_rows.pick_figure(view, FIGURES)
away = figure in ("detection", "shift")
picked = pick_rows.pick(view, groups, homes=away, seeds=figure != "shift")
if figure == "detection":
    st.sidebar.selectbox("Score", list(curves.SCORES), key=view.key("score"), format_func=curves.SCORES.__getitem__)
if figure == "shift":
    labels = {name: known.label for name, known in METRICS.items()}
    st.sidebar.selectbox("Metric", list(METRICS), key=view.key("metric"), format_func=labels.__getitem__)
else:
    pick_rows.say_missing(picked)
near, shown = picked.group.near(picked.data), None
if away and (picked.group.shifts[picked.data] != "id" or len(near) < 2):
    st.info("These results hold no data set with a shift from the one that was trained on.")
else:
    shown = {"risk": risk, "parts": parts, "detection": detection, "shift": shift}[figure]()
if shown and shown.rows:
    shell.grid(shown)
with sharing:
    shell.share(view, "uncertainty", Shown(FIGURES[figure], grids=[shown]) if shown and shown.rows else None)
figure_view.image_format()
view.done()
