"""Does a confidence of 80 % mean right in 80 % of the cases?"""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curves, pick_rows, shell, table_html
from uqharness.leaderboard.state import Field
from uqharness.metrics import BINS

SIZES = (5, 10, 15, 20, 30, 50)
MORE = [Field("bins", BINS, SIZES, "Bins"), Field("mass", False), Field("bands", True)]

view, groups = pick_rows.open_page(
    "calibration", "Calibration", "Accuracy against confidence: on the diagonal, confidence means what it says.", MORE
)
picked = pick_rows.pick(view, groups)
with st.sidebar:
    st.selectbox("Bins", SIZES, key=view.key("bins"))
    st.toggle("Equally many questions per bin", key=view.key("mass"))
    st.toggle("95 % bands", key=view.key("bands"), help="questions are resampled 1,000 times")
shell.share(view, "calibration")
shell.image_format()
values = view.done()
pick_rows.say_missing(picked)
shown = picked.answers()
if not shown:
    shell.nothing("None of the chosen methods has such a run.")
shell.figure(
    charts.reliability(shown, values["bins"], values["mass"], values["bands"]),
    "reliability",
    f"Reliability diagram of {', '.join(found.row for found in shown)} on {picked.data}",
)
header, rows = curves.calibration_rows(shown, values["bins"], values["mass"])
st.html(table_html.grid(header, rows, f"{picked.data}, seed {picked.seed}"))
st.caption(
    "Gap: confidence less accuracy; above zero is over-confident. Floor: the ECE that a calibrated model with these "
    "confidences would show on as many questions, on average. Compare methods by the debiased value."
)
st.subheader("Right and wrong answers")
shell.figure(
    charts.right_and_wrong(shown), "confidence", "Confidence where the answer was right, and where it was wrong"
)
