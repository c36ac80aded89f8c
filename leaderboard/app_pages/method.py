"""One method: its equation and paper, and everything that was measured or reported of it."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import about, run_view, shell, table, table_html
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.items import paged
from uqharness.leaderboard.markup_view import markup
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.table import Cell
from uqharness.leaderboard.theme import OTHERS, PAPERS
from uqharness.leaderboard.url_view import View

PER_PAGE = 25
MOST = 12  # rows of a table


def link(cell: Cell, draws: int) -> str:
    return f"run?run={cell.runs[0]}"


board = shell.board()
if board.runs.empty:
    shell.nothing("No measured results were given, so there is no method to show.")
methods = shell.kept(lambda: run_view.methods(board.runs, [*PAPERS, *OTHERS]), "methods")
fields = [
    Field("method", "BLoB" if "BLoB" in methods else methods[0], methods, "Method"),
    Field("page", 1),
]
view = View("method", fields, board.snapshot)
shell.head("Method", "What a method does, and all results of it.", view)
with st.container(horizontal=True, vertical_alignment="bottom"):
    chosen = st.selectbox("Method", methods, key=view.key("method"), width=340)
    runs = board.runs[board.runs["method"] == chosen]
    metrics = ["nll", "brier", "acc", "ece"]
    sources = shell.sources()
    mine = [sources[run_id] for run_id in runs["run_id"]]
    tables = shell.kept(lambda: table.build(mine, metrics, [0, None]), "method", chosen)
    columns, printed, remarks = shell.kept(lambda: run_view.in_papers(board.reported, chosen), "in papers", chosen)
    papers = Grid(columns, printed, "As printed: other prompts, budgets and bases", "numbers")

    def taken() -> Shown:
        """All runs, and not only those of this page."""
        listed = Grid(*run_view.listing(board, runs), f"Runs of {chosen}")
        return Shown(f"{chosen}, results {board.snapshot}", tables, [listed, *[papers] * bool(printed)])

    shell.share(view, "method", taken)

first = board.run(str(runs["run_id"].iloc[0]))
page = about.pages().get(about.method_name(first))
if page:
    st.subheader(page.title[:1].upper() + page.title[1:])
    st.code(page.equation, language=None, wrap_lines=True)
paper = about.paper(first)
if paper:
    st.markdown(f"Paper: {shell.letters(paper)}")
if page:
    with st.expander("What it does, its settings and its limits"):
        st.markdown(page.text)
elif about.method_name(first):
    st.caption("The documentation has no page for this method; its record names only what is above.")
else:
    st.caption("This model came without an adapter's record, so there is no paper or equation to show.")

st.subheader("Measured")
for k, found in enumerate(tables, start=1):
    caption = f"{chosen}, table {k} of {len(tables)}" if len(tables) > 1 else f"{chosen}: N = 0 is the posterior's mean"
    lines = [f"{MOST} of {len(found.rows)} rows are shown: export has all"] * (len(found.rows) > MOST) + found.notes
    markup(table_html.papers_view(found, caption, {}, link, most=MOST) + table_html.notes(lines), f"table.{k}")
number, start, stop = paged(len(runs), st.session_state[view.key("page")], PER_PAGE)
listed = run_view.listing(board, runs.iloc[start:stop])
shell.grid(Grid(*listed, f"Runs {start + 1} to {stop} of {len(runs)}"))
if len(runs) > PER_PAGE:
    st.session_state[view.key("page")] = number
    st.number_input("Page of runs", 1, -(-len(runs) // PER_PAGE), key=view.key("page"), width=160)

if printed:
    st.subheader("Reported in papers")
    shell.grid(papers, "reported")
    st.html(table_html.notes(remarks))
view.done()
