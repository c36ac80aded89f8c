"""How to add results, and every file that could not be used or relied on, with the reason."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import shell
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.items import paged
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.url_view import View

PER_PAGE = 50
COMMANDS = """lm_eval --model bayeslora --model_args adapter=DIR,samples=10 --tasks TASK --output_path results/NAME
uqharness validate --submit results/NAME"""
HOW = """
1. Evaluate with an output path: the results file then holds the answers of every draw, and every number here is
   computed from them. A `--limit` makes a result that is marked as trimmed.
2. `uqharness validate --submit` runs the checks that a submission must pass: the format, probabilities that are
   probabilities, metrics that agree with the answers, all questions of the task, no run twice, a true protocol hash.
3. Open a pull request that adds the folder. The same checks run there, and the reasons are written on its lines.

Results that do not pass are listed below with the reason. None is dropped silently, and none is changed.
"""

board = shell.board()
kinds = ["all", *sorted(set(board.problems["kind"]))]
fields = [Field("kind", "all", kinds, "Kind"), Field("page", 1)]
view = View("problems", fields, board.snapshot)
shell.head("Submit and problems", "How results get here, and what was wrong with those that did not.", view)
st.subheader("Add results")
st.code(COMMANDS, language="bash", wrap_lines=True)
st.markdown(HOW)

st.subheader("Files with problems")
found = board.problems
if found.empty:
    st.success("Every file could be read, and every number agrees with its answers.")
else:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.selectbox("Kind", kinds, key=view.key("kind"), width=220)
        sharing = st.container(width="content")
    found = found if kind == "all" else found[found["kind"] == kind]
    page, start, stop = paged(len(found), st.session_state[view.key("page")], PER_PAGE)
    rows = [[str(row[key]) or "–" for key in ("file", "task", "kind", "reason")] for row in found.to_dict("records")]
    listed = Grid(["File", "Task", "Kind", "Reason"], rows, f"Files with problems: {kind}", "words")
    shell.grid(listed._replace(rows=rows[start:stop], caption=f"{start + 1} to {stop} of {len(found)}"))
    with sharing:
        shell.share(view, "problems", Shown(f"{listed.caption}, results {board.snapshot}", grids=[listed]))
    if len(found) > PER_PAGE:
        st.session_state[view.key("page")] = page
        st.number_input("Page", 1, -(-len(found) // PER_PAGE), key=view.key("page"), width=160)
view.done()
