"""Does a confidence of 80 % mean right in 80 % of the cases?"""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curve_rows, figure_view, pick_rows, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.metrics.registry import BINS

FIGURES = {"reliability": "Reliability", "confidence": "Right and wrong answers"}
SIZES = (5, 10, 15, 20, 30, 50)
MORE = [
    Field("figure", "reliability", list(FIGURES), "Figure"),
    Field("bins", BINS, SIZES, "Bins"),
    Field("mass", False),
    Field("bands", True),
]


def reliability() -> list[Grid]:
    asked = st.session_state[view.key("bins")], st.session_state[view.key("mass")]
    fig = charts.reliability(shown, *asked, st.session_state[view.key("bands")])
    figure_view.figure(fig, "reliability", f"Reliability diagram of {named}")
    how = f"{asked[0]} bins of equal {'mass' if asked[1] else 'width'}"
    summary = Grid(*curve_rows.calibration_rows(shown, *asked), f"Calibration on {picked.place}, {how}")
    shell.grid(summary)
    st.caption(
        "Gap: confidence less accuracy; above zero is over-confident. Floor: the ECE that a calibrated model with "
        "these confidences would show on as many questions, on average. Compare methods by the debiased value."
    )
    return [summary, Grid(*curve_rows.bin_rows(shown, *asked), f"Bins of the figure, {picked.place}")]


def confidence() -> list[Grid]:
    fig = charts.right_and_wrong(shown)
    figure_view.figure(fig, "confidence", f"Confidence of right and of wrong answers of {named}")
    summary = Grid(*curve_rows.sure_rows(shown), f"Confidence of right and of wrong answers on {picked.place}")
    shell.grid(summary)
    return [summary, Grid(*curve_rows.share_rows(shown), f"Bars of the figure, {picked.place}")]


view, groups = pick_rows.open_page(
    "calibration", "Calibration", "Accuracy against confidence: on the diagonal, confidence means what it says.", MORE
)
figure, sharing = pick_rows.pick_figure(view, FIGURES)
picked = pick_rows.pick(view, groups)
if figure == "reliability":
    with st.sidebar:
        st.selectbox("Bins", SIZES, key=view.key("bins"))
        st.toggle("Equally many questions per bin", key=view.key("mass"))
        st.toggle("95 % bands", key=view.key("bands"), help="questions are resampled 1,000 times")
figure_view.image_format()
view.done()
pick_rows.say_missing(picked)
shown = picked.answers()
if not shown:
    shell.nothing("None of the chosen methods has such a run.")
named = f"{', '.join(found.row for found in shown)} on {picked.data}"
grids = {"reliability": reliability, "confidence": confidence}[figure]()
shell.behind(grids[1])
with sharing:
    shell.share(view, "calibration", Shown(grids[0].caption, grids=grids))
