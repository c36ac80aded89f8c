"""Does a confidence of 80 % mean right in 80 % of the cases?"""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curve_rows, pick_rows, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
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
sharing = st.container()
shell.image_format()
values = view.done()
pick_rows.say_missing(picked)
shown, place = picked.answers(), picked.place
asked = values["bins"], values["mass"]
summary = Grid(*curve_rows.calibration_rows(shown, *asked), place)
bins = Grid(*curve_rows.bin_rows(shown, *asked), f"Bins of the figure, {place}")
with sharing:
    how = f"{asked[0]} bins of equal {'mass' if asked[1] else 'width'}"
    taken = Shown(f"Calibration on {place}, {how}", grids=[summary, bins])
    shell.share(view, "calibration", taken if shown else None)
if not shown:
    shell.nothing("None of the chosen methods has such a run.")
shell.figure(
    charts.reliability(shown, *asked, values["bands"]),
    "reliability",
    f"Reliability diagram of {', '.join(found.row for found in shown)} on {picked.data}",
)
shell.grid(summary)
st.caption(
    "Gap: confidence less accuracy; above zero is over-confident. Floor: the ECE that a calibrated model with these "
    "confidences would show on as many questions, on average. Compare methods by the debiased value."
)
shell.behind(bins)
st.subheader("Right and wrong answers")
shell.figure(
    charts.right_and_wrong(shown), "confidence", "Confidence where the answer was right, and where it was wrong"
)
