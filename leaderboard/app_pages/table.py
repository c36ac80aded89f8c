"""Methods x data sets: the landing page."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import costs, reported_table, shell, table, table_html, table_view
from uqharness.leaderboard.table import Cell
from uqharness.metrics import METRICS

MOST_RANKED = 300  # runs: ranks need the answers of each
PER_PAGE = 6
PAPER_CAPTION = (
    "as printed: other prompts, budgets and bases, so neither averaged nor ranked with what was measured here"
)


def preset() -> None:
    if chosen := st.session_state["table.preset"]:
        view.set(table_view.PRESETS[chosen])


def controls() -> None:
    """In the sidebar: on a phone it is folded away, and the table comes first."""
    options = {field.name: field.options or () for field in fields}
    labels = {name: known.label for name, known in METRICS.items()}
    st.multiselect("Metrics", list(METRICS), key=view.key("metric"), format_func=labels.__getitem__)
    st.multiselect("N, draws averaged", options["samples"], key=view.key("samples"),
                   help="0: the mean of the posterior; all: as many as a result holds")  # fmt: skip
    for name, label in table_view.FILTER_LABELS.items():
        if len(options[name]) > 1:
            st.multiselect(label, options[name], key=view.key(name), placeholder="all")
    st.selectbox("Sort by", options["sort"], key=view.key("sort"), format_func=lambda m: labels.get(m, "method"))
    st.selectbox("Sort on", options["on"], key=view.key("on"), format_func=lambda t: t or "the first data set")
    st.toggle("Worst first", key=view.key("worst"))
    st.toggle("Ranks", key=view.key("ranks"), help="1 + how many methods are significantly better, per column")
    st.toggle("Costs", key=view.key("cost"), help="as columns of the flat layout")
    st.toggle("Recipes together", key=view.key("recipes"), help="one table for adapters trained by different recipes")


def link(cell: Cell, draws: int) -> str:
    return f"items?run={cell.runs[0]}"


def papers_layout(k: int, found: table.Table) -> None:
    """The table at once, and again with its ranks: they take longer."""
    caption = f"Table {k} of {len(tables)}" if len(tables) > 1 else "Measured with uqharness"
    place, runs = st.empty(), {run for cell in found.cells.values() for run in cell.runs}
    place.html(table_html.CSS + table_html.papers_view(found, caption, {}, link))
    lines = list(found.notes)
    if values["ranks"] and len(runs) <= MOST_RANKED:
        ranks = {metric: shell.ranks(found, metric) for metric in found.metrics}
        if any(ranks.values()):
            place.html(table_html.CSS + table_html.papers_view(found, caption, ranks, link))
    elif values["ranks"]:
        lines.insert(0, f"Ranks are tested for up to {MOST_RANKED} runs; this table has {len(runs)}: filter it.")
    st.html(table_html.CSS + table_html.notes(lines))


def flat_layout() -> None:
    header, rows = table_view.flat(tables, costs.of_runs(board.runs), values["cost"])
    st.html(table_html.CSS + table_html.grid(header, rows, "One row per method, N and data set"))


def reported() -> None:
    """What papers print, one table at a time, in a block of its own."""
    st.subheader("Reported in papers", help=PAPER_CAPTION)
    names = reported_table.names(board.reported)
    chosen = st.selectbox("Table of a paper", names, key=view.key("paper"))
    found = reported_table.build(board.reported, chosen, values["metric"])
    caption = f"{chosen}: {PAPER_CAPTION}"
    st.html(
        table_html.CSS + table_html.papers_view(found, caption, {}, measured=False) + table_html.notes(found.notes, 0)
    )


board, sources = shell.board(), shell.sources()
fields = table_view.fields(board.runs, board.reported)
view = shell.View("table", fields, board.snapshot)
shell.head("Leaderboard", table_view.summary(board.runs, board.problems, board.snapshot), view)
with st.container(horizontal=True, vertical_alignment="bottom"):
    st.session_state["table.preset"] = table_view.preset_of(view.values())
    st.segmented_control("Preset", list(table_view.PRESETS), key="table.preset", on_change=preset)
    st.segmented_control("Layout", ["papers", "flat"], key=view.key("layout"), required=True)
    sharing = st.container(width="content")
with st.sidebar:
    controls()
values = view.done()
kept = [sources[run_id] for run_id in table_view.selected(board.runs, values)]
tables = table.build(
    kept, values["metric"] or table_view.PRESETS["Paper"]["metric"], table_view.asked(values), values["recipes"]
)
tables = [table_view.ordered(each, values["sort"], values["on"], values["worst"]) for each in tables]
with sharing:
    shell.share(view, "leaderboard", tables, f"uqharness leaderboard, {len(kept)} runs, results {board.snapshot}")
if not kept:
    st.info("No measured run passes these filters." if len(board.runs) else "No measured results were given.")
elif values["layout"] == "flat":
    flat_layout()
else:
    for number, each in enumerate(tables[:PER_PAGE], start=1):
        papers_layout(number, each)
reported()
