"""One run: its numbers, how to make it again, its adapter's record and its file."""

from __future__ import annotations

from html import escape

import streamlit as st

from uqharness.leaderboard import about, pick_run, run_view, shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.url_view import View

board = shell.board()
if board.runs.empty:
    shell.nothing("No measured results were given, so there is no run to show.")
fields = [Field("run", pick_run.first(board.runs), list(board.runs["run_id"]), "Run")]
view = View("run", fields, board.snapshot)
shell.head("Run", "One method, one training seed, one data set.", view)
run = pick_run.pick(view, board.runs)
record = shell.record(run["run_id"], shell.sources()[run["run_id"]])
numbers = Grid(*run_view.numbers(board, run, record), "Computed from the answers; intervals over questions", "numbers")
facts = Grid(["What", "Value"], run_view.facts(run), "What it is", "words")
caption = f"{run['row']} on {run['task']}, run {run['run_id']}"
shell.share(view, "run", Shown(caption, grids=[numbers, facts]))
for text in run_view.warnings(run, board.problems):
    st.warning(shell.letters(text), icon=":material/flag:")

left, right = st.columns([3, 2], gap="large")
with left:
    shell.grid(numbers)
    pairs = [("All questions of this run", "items"), ("Compare it", "compare")]
    me = escape(run["run_id"])  # of a published file it can be any text
    links = (f'<a style="color:inherit" href="{to}?run={me}" target="_self">{text}</a>' for text, to in pairs)
    st.html(f"<p>{' · '.join(links)}</p>")
with right:
    shell.grid(facts, "facts")

st.subheader("Make it again")
for step in about.reproduce(run):
    st.code(step, language="bash", wrap_lines=True, height=300 if step.count("\n") > 12 else "content")
if left_out := about.withheld_text(run):
    st.caption(shell.letters(left_out))
told = about.short_record(run)
st.subheader("Record of the adapter")
if told:
    st.json(told, expanded=1)
else:
    st.caption("This model came without an adapter's record: how it was trained is not known.")
view.done()
