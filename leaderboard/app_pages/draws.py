"""How many draws does it take? All N from one run."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, curve_rows, figure_view, pick_rows, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.metrics.registry import METRICS

DRAWN = [name for name in METRICS if name != "ece_floor"]
MORE = [Field("metric", ("nll", "acc", "ece_debiased"), DRAWN, "Metric")]

view, groups = pick_rows.open_page(
    "draws", "Draws", "Metrics of the first N draws of one run, and how much it matters which N draws these are.", MORE
)
picked = pick_rows.pick(view, groups, draws=False)
labels = {name: METRICS[name].label for name in DRAWN}
st.sidebar.multiselect("Metrics", DRAWN, key=view.key("metric"), format_func=labels.__getitem__)
sharing = st.container()
figure_view.image_format()
values = view.done()
pick_rows.say_missing(picked)
runs = {row: run for row in picked.rows if (run := picked.run(row))}
single = [row for row, run in runs.items() if run.draws < 2 or run.combine == "given"]
if single:
    st.caption(shell.letters(f"One draw, or an answer that is combined already: {', '.join(single)}"))
asked = values["metric"]
with st.spinner("Choosing among draws"):  # one for all: each is a message that the page waits for
    known = [shell.curves_of(run.run_id, row, asked) for row, run in runs.items()] if asked else []
curves = [found for found in known if found]
panels = [[found[metric] for found in curves] for metric in asked]
if asked:
    alt = f"{', '.join(map(labels.__getitem__, asked))} against N on {picked.data}"
    figure_view.figure(charts.against_draws(panels), "draws", alt)
st.caption(
    "Line: the first N draws. Band: 5 to 95 % of 30 random choices of N of the draws that the run holds; with all "
    "of them there is only one choice, so it closes at the right. Hollow marker at 0: the posterior's mean. "
    "Results that were published without their single draws have no band."
)
points = Grid(
    *curve_rows.draw_rows([curve for panel in panels for curve in panel]),
    f"Metrics against N on {picked.place}",
    "words",
)
if points.rows:
    shell.behind(points)
with sharing:
    shell.share(view, "draws", Shown(points.caption, grids=[points]) if points.rows else None)
