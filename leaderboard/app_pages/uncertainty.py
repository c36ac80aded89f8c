"""Does it know when it is guessing: on the data it was trained for, and away from them?"""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curves, pick_rows, shell, table_html
from uqharness.leaderboard.state import Field
from uqharness.metrics import METRICS

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


def risk() -> None:
    shown = picked.answers()
    shell.figure(charts.risk_coverage(shown), "risk-coverage", f"Risk against coverage on {picked.data}")
    header, rows = curves.coverage_rows(shown)
    st.html(table_html.grid(header, rows, f"Accuracy at coverage, %, on {picked.data}"))


def parts() -> None:
    shell.figure(charts.decomposed(picked.answers()), "epistemic", f"Epistemic against aleatoric on {picked.data}")
    st.caption(
        "Expected entropy: what stays uncertain within a draw. Mutual information: what the draws disagree about. "
        "Both are divided by the logarithm of the number of choices. At most 600 questions are drawn per method."
    )


def detection() -> None:
    st.sidebar.selectbox("Score", list(curves.SCORES), key=view.key("score"), format_func=curves.SCORES.__getitem__)
    score = st.session_state[view.key("score")]
    found = curves.detections({data: picked.answers(data) for data in near}, picked.data, score)
    name = curves.SCORES[score].lower()
    shell.figure(charts.detections(found, name), "detection", f"AUROC of telling shifted questions by {name}")
    header, rows = curves.detection_rows(found)
    caption = f"AUROC of {name}, %: {picked.data} against the other data set"
    st.html(table_html.grid(header, rows, caption))


def shift() -> None:
    labels = {name: known.label for name, known in METRICS.items()}
    st.sidebar.selectbox("Metric", list(METRICS), key=view.key("metric"), format_func=labels.__getitem__)
    metric = st.session_state[view.key("metric")]
    found = picked.group.over_seeds(picked.rows, metric, picked.draws, near)
    shell.figure(charts.shifted(found, metric), "shift", f"{labels[metric]} from {picked.data} to shifted data sets")
    st.caption("Mean and standard deviation over training seeds.")


view, groups = pick_rows.open_page(
    "uncertainty", "Uncertainty", "Is it unsure where it is wrong, and where the questions are new?", MORE
)
with st.container(horizontal=True, vertical_alignment="bottom"):
    st.segmented_control(
        "Figure", list(FIGURES), key=view.key("figure"), format_func=FIGURES.__getitem__, required=True
    )
    shell.share(view, "uncertainty")
figure = st.session_state[view.key("figure")]
away = figure in ("detection", "shift")
picked = pick_rows.pick(view, groups, homes=away, seeds=figure != "shift")
if figure != "shift":
    pick_rows.say_missing(picked)
near = picked.group.near(picked.data)
if away and (picked.group.shifts[picked.data] != "id" or len(near) < 2):
    st.info("These results hold no data set with a shift from the one that was trained on.")
else:
    {"risk": risk, "parts": parts, "detection": detection, "shift": shift}[figure]()
shell.image_format()
view.done()
