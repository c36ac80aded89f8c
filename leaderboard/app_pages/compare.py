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
    alike = [(board.run(i), there[there["row"] == board.run(i)["row"]]) for i in ids]
    found = list(dict.fromkeys(pick_run.nearest(same, run) for run, same in alike if len(same)))
    st.session_state[view.key("run")] = found if len(found) > 1 else comparison.start(there)


def other_methods() -> None:
    """A method that is added comes with one run, like the first that is there."""
    wanted = st.session_state["compare.methods"]
    kept = [i for i in ids if board.run(i)["row"] in wanted]
    new = [here[here["row"] == row] for row in wanted if row not in rows]
    like = board.run(ids[0]) if ids else new[0].iloc[0]
    st.session_state[view.key("run")] = [*kept, *(pick_run.nearest(each, like) for each in new)]


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
few = ["run_id", "row", "seed", "trained_on", "task", "draws", "recipe_hash"]
here = shell.kept(lambda: runs[few][runs["task"] == task], "runs on", task)
ids = [i for i in ids if board.run(i)["task"] == task]
if len(ids) < len(asked):
    left_out = len(asked) - len(ids)
    st.info(f"Left out of these runs: {left_out}. At most {comparison.MOST} are compared, all on one data set.")
st.session_state[view.key("run")] = ids
st.session_state[view.key("task")] = task
rows = list(dict.fromkeys(board.run(i)["row"] for i in ids))
st.session_state["compare.methods"] = rows
names = named(here[here["row"].isin(rows)])
one, two, three = st.columns([1, 1.5, 2.5])
one.selectbox("Data set", sorted(set(runs["task"])), key=view.key("task"), on_change=other_data)
two.multiselect(
    "Methods",
    list(dict.fromkeys(here["row"])),
    key="compare.methods",
    on_change=other_methods,
    max_selections=comparison.MOST,
)
three.multiselect(
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
told = [shell.answers(i, label) for i, label in zip(ids, labels, strict=True)]
left, right = st.columns(2, gap="large")
below = st.container()
st.subheader("Reliability")
# First, though not at the top: the browser draws it while the tests run here.
figure_view.figure(charts.reliability(told, bands=False), "compare", "Reliability of the compared runs")
settings = [[key, *values] for key, values in comparison.differing(chosen)]
numbers = Grid(*comparison.side_by_side(board, chosen, labels), "At all draws of each run", "numbers")
differ = Grid(["Setting", *labels], settings, "Equal ones are left out", "words")
tested = []
if not (why := comparison.not_comparable(chosen, records)):
    tests = comparison.shown_tests(comparison.tests(labels, told))
    caption = "Paired over questions; ACC by McNemar's exact test. These runs only: other training seeds may differ."
    both = comparison.both_right(labels, told)
    tested = [
        Grid(list(tests), tests.values.tolist(), caption, "words"),
        Grid(*both, "Questions that both, one or neither got right", "numbers"),
    ]
with left:
    st.subheader("Numbers")
    shell.grid(numbers)
with right:
    st.subheader("Settings that differ")
    if settings:
        shell.grid(differ, "differ")
    else:
        st.caption("None is recorded.")
with below:
    st.subheader("Tests")
    if why:
        st.warning(shell.letters(why))
    for name, each in zip(("tests", "both"), tested, strict=False):  # none where not comparable
        shell.grid(each, name)
links = [(f"Questions of {label}", f"items?run={i}") for i, label in zip(ids, labels, strict=True)]
shell.grid(Grid(["Look closer"], [[each] for each in links], "Every answer", "words"), "links")
with sharing:
    shown = [numbers, *[differ] * bool(settings), *tested]
    shell.share(view, "compare", Shown(f"{' against '.join(labels)} on {task}", grids=shown))
