"""What a method costs, and which ones nothing beats."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import charts, costs, figure_view, pick_rows, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.table_formats import titled
from uqharness.metrics.registry import METRICS

MORE = [
    Field("cost", "train_seconds", list(costs.COSTS), "Cost"),
    Field("metric", "nll", costs.QUALITY, "Metric"),
]

view, groups = pick_rows.open_page(
    "cost", "Cost", "Training time, memory, parameters and forward passes, as each run recorded them.", MORE
)
picked = pick_rows.pick(view, groups, seeds=False, start="all")
with st.sidebar:
    st.selectbox("Cost", list(costs.COSTS), key=view.key("cost"), format_func=costs.title)
    st.selectbox("Metric", costs.QUALITY, key=view.key("metric"), format_func=titled)
sharing = st.container()
figure_view.image_format()
values = view.done()
rows = list(picked.rows) if values["row"] else picked.group.rows(picked.data)
recorded = shell.kept(lambda: costs.of_runs(shell.board().runs), "costs")
points = costs.points(picked.group, picked.data, rows, recorded, picked.draws)
front = costs.pareto_front(points, values["cost"])
figure_view.figure(
    charts.pareto(points, costs.title(values["cost"]), titled(values["metric"]), front),
    "pareto",
    f"{METRICS[values['metric']].label} against {costs.title(values['cost'])} on {picked.data}",
)
st.caption(
    "Ringed and bold: nothing else is at least as good in accuracy, debiased ECE and this cost, and better in one. "
    "Means over training seeds."
)
table = Grid(*costs.rows(points), f"Costs and quality on {picked.data}, means over training seeds")
with sharing:
    shell.share(view, "cost", Shown(table.caption, grids=[table]) if table.rows else None)
shell.grid(table)
st.caption("Times and memory compare only on the same hardware.")
