"""Two to four runs side by side: numbers, paired tests, and the settings that differ."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from uqharness.leaderboard import charts, comparison, figure_view, pick_run, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.url_view import View


def other_data() -> None:
    """The same methods on the other data set."""
    there = runs[runs["task"] == st.session_state[view.key("task")]]
    wanted = [row for row in st.session_state["compare.rows"] if row in set(there["row"])]
    ids = [str(there[there["row"] == row]["run_id"].iloc[0]) for row in dict.fromkeys(wanted)]
    st.session_state[view.key("run")] = ids if len(ids) > 1 else comparison.start(there)


def named(runs: pd.DataFrame) -> dict[str, str]:
    told = runs.to_dict("records")
    return {run["run_id"]: f"{run['row']}, {pick_run.told(run)}" for run in told}


board = shell.board()
runs, sources = board.runs, shell.sources()
if len(runs) < 2:
    shell.nothing("There are fewer than two measured runs, so there is nothing to compare.")
start = shell.kept(lambda: comparison.start(runs), "start")
fields = [Field("run", tuple(start), list(runs["run_id"]), "Runs")]
view = View("compare", fields, board.snapshot)
shell.head("Compare", "Two to four runs on the same questions, tested in pairs.", view)
asked = [str(i) for i in st.session_state[view.key("run")]]
ids = asked[: comparison.MOST]
task = board.run(ids[0])["task"] if ids else sorted(set(runs["task"]))[0]
here = runs[["run_id", "row", "seed", "trained_on", "task", "draws"]][runs["task"] == task]
names = shell.kept(lambda: named(here), "names", task)
ids = [i for i in ids if i in names]
if len(ids) < len(asked):
    left_out = len(asked) - len(ids)
    st.info(f"Left out of these runs: {left_out}. At most {comparison.MOST} are compared, all on one data set.")
st.session_state[view.key("run")] = ids
st.session_state[view.key("task")] = task
st.session_state["compare.rows"] = [board.run(i)["row"] for i in ids]
one, two = st.columns([1, 3])
one.selectbox("Data set", sorted(set(runs["task"])), key=view.key("task"), on_change=other_data)
two.multiselect(
    "Runs", list(names), key=view.key("run"), format_func=lambda i: names.get(i, i), max_selections=comparison.MOST
)
sharing = st.container()
view.done()
if len(ids) < 2:
    with sharing:
        shell.share(view, "compare")
    shell.nothing("Choose at least two runs.")

chosen, records = [board.run(i) for i in ids], [shell.record(i, sources[i]) for i in ids]
labels = comparison.names(chosen)
settings = [[key, *values] for key, values in comparison.differing(chosen)]
numbers = Grid(*comparison.side_by_side(board, chosen, labels), "At all draws of each run", "numbers")
differ = Grid(["Setting", *labels], settings, "Equal ones are left out", "words")
tested = []
if not (why := comparison.not_comparable(chosen, records)):
    tests = comparison.shown_tests(comparison.tests(labels, records))
    caption = "Paired over questions; ACC by McNemar's exact test. These runs only: other training seeds may differ."
    both = comparison.both_right(labels, records)
    tested = [
        Grid(list(tests), tests.values.tolist(), caption, "words"),
        Grid(*both, "Questions that both, one or neither got right", "numbers"),
    ]
with sharing:
    shown = [numbers, *[differ] * bool(settings), *tested]
    shell.share(view, "compare", Shown(f"{' against '.join(labels)} on {task}", grids=shown))
left, right = st.columns(2, gap="large")
with left:
    st.subheader("Numbers")
    shell.grid(numbers)
with right:
    st.subheader("Settings that differ")
    if settings:
        shell.grid(differ, "differ")
    else:
        st.caption("None is recorded.")
st.subheader("Tests")
if why:
    st.warning(shell.letters(why))
for name, each in zip(("tests", "both"), tested, strict=False):  # none where not comparable
    shell.grid(each, name)
st.subheader("Reliability")
told = [shell.answers(i, label) for i, label in zip(ids, labels, strict=True)]
figure_view.figure(charts.reliability(told, bands=False), "compare", "Reliability of the compared runs")
links = [(f"Questions of {label}", f"items?run={i}") for i, label in zip(ids, labels, strict=True)]
shell.grid(Grid(["Look closer"], [[each] for each in links], "Every answer", "words"), "links")
