"""Methods x data sets: the landing page."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import costs, reported_table, shell, table, table_html, table_view
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.markup_view import markup
from uqharness.leaderboard.table import Cell
from uqharness.leaderboard.url_view import View
from uqharness.metrics.registry import METRICS

MOST_RANKED = 300  # runs: ranks need the answers of each
PER_PAGE = 6
MARKS = (
    "mean ± standard deviation over training seeds; best bold, second underlined; "
    "#: 1 + how many are significantly better"
)
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
    st.multiselect(
        "N, draws averaged",
        options["samples"],
        key=view.key("samples"),
        help="0: the mean of the posterior; all: as many as a result holds",
    )
    for name, label in table_view.FILTER_LABELS.items():
        if len(options[name]) > 1:
            st.multiselect(label, options[name], key=view.key(name), placeholder="all")
    st.selectbox("Sort by", options["sort"], key=view.key("sort"), format_func=lambda m: labels.get(m, "method"))
    st.selectbox("Sort on", options["on"], key=view.key("on"), format_func=lambda t: t or "the first data set")
    st.toggle("Worst first", key=view.key("worst"))
    st.selectbox("Rows of a table", options["rows"], key=view.key("rows"))
    about = "which ranks the paired tests leave a method, per column; columns are not corrected for each other"
    st.toggle("Ranks", key=view.key("ranks"), help=about)
    st.toggle("Costs", key=view.key("cost"), help="as columns of the flat layout")
    st.toggle("Recipes together", key=view.key("recipes"), help="one table for adapters trained by different recipes")


def link(cell: Cell, draws: int) -> str:
    return f"items?run={cell.runs[0]}"


def papers_layout(k: int, found: table.Table) -> None:
    """The table; where its ranks are not tested yet, first without them."""
    caption = f"Table {k} of {len(tables)}: {MARKS}" if len(tables) > 1 else MARKS.capitalize()
    runs = {run for cell in found.cells.values() for run in cell.runs}
    wanted = values["ranks"] and len(runs) <= MOST_RANKED
    lines = list(found.notes)
    if values["ranks"] and not wanted:
        lines.insert(0, f"Ranks are tested for up to {MOST_RANKED} runs; this table has {len(runs)}: filter it.")
    if len(found.rows) > values["rows"]:
        lines.insert(
            0, f"{values['rows']} of {len(found.rows)} rows are shown, in the order of the sidebar: export has all"
        )
    known = {m: shell.ranks(found, m, known_only=True) for m in found.metrics} if wanted else {}
    ranks = {m: r or {} for m, r in known.items()}
    measured = table_html.papers_view(found, caption, ranks, link, most=values["rows"])
    markup(measured + table_html.notes(lines), f"table.{k}")
    if None in known.values():
        later.append(found)


def add_ranks() -> None:
    """Last, when everything else is on the screen; then all of it is known, and shown again."""
    for found in later:
        for metric in found.metrics:
            shell.ranks(found, metric)
    if later:
        st.rerun()


def flat_layout() -> Shown:
    recorded = shell.kept(lambda: costs.of_runs(board.runs), "costs")
    flat = Grid(*table_view.flat(tables, recorded, values["cost"]), "One row per method, N and data set")
    lines = [f"Table {k}: {line}" for k, each in enumerate(tables, start=1) for line in each.notes]
    markup(table_html.grid(*flat, most=values["rows"]) + table_html.notes(lines), "flat")
    return Shown(caption, grids=[flat])


def reported() -> None:
    """What papers print, one table at a time, in a block of its own."""
    st.subheader("Reported in papers", help=PAPER_CAPTION)
    chosen = st.selectbox("Table of a paper", view.options("paper"), key=view.key("paper"))
    found = shell.kept(lambda: reported_table.build(board.reported, chosen, metrics), "reported", chosen, metrics)
    caption = f"{chosen}: {PAPER_CAPTION}"
    shell.export_button(view, "reported", Shown(caption, [found]), "Export this table")
    markup(table_html.papers_view(found, caption, {}, measured=False) + table_html.notes(found.notes, 0), "paper")


board, sources = shell.board(), shell.sources()
fields = shell.kept(lambda: table_view.fields(board.runs, board.reported), "fields")
view = View("table", fields, board.snapshot)
shell.head("Leaderboard", table_view.summary(board.runs, board.problems, board.snapshot), view)
with st.container(horizontal=True, vertical_alignment="bottom"):
    st.session_state["table.preset"] = table_view.preset_of(view.values())
    st.segmented_control("Preset", list(table_view.PRESETS), key="table.preset", on_change=preset)
    st.segmented_control("Layout", ["papers", "flat"], key=view.key("layout"), required=True)
    sharing = st.container(width="content")
with st.sidebar:
    controls()
values = view.done()
later: list[table.Table] = []
metrics = values["metric"] or table_view.PRESETS["Paper"]["metric"]
filters = tuple(values[name] for name in table_view.FILTERS)
kept = shell.kept(lambda: [sources[run_id] for run_id in table_view.selected(board.runs, values)], "selected", filters)
asked = tuple(table_view.asked(values))
tables = shell.kept(
    lambda: table.build(kept, metrics, asked, values["recipes"]), "tables", filters, metrics, asked, values["recipes"]
)
tables = [table_view.ordered(each, values["sort"], values["on"], values["worst"]) for each in tables]
caption = f"uqharness leaderboard, {len(kept)} runs, results {board.snapshot}"
shown = Shown(caption, tables)
if not kept:
    st.info("No measured run passes these filters." if len(board.runs) else "No measured results were given.")
elif values["layout"] == "flat":
    shown = flat_layout()
else:
    pages = -(-len(tables) // PER_PAGE)
    page = min(max(values["page"], 1), pages)
    first = PER_PAGE * (page - 1)
    for number, each in enumerate(tables[first : first + PER_PAGE], start=first + 1):
        papers_layout(number, each)
    if pages > 1:
        st.session_state[view.key("page")] = page
        st.number_input(f"Tables, page of {pages}", 1, pages, key=view.key("page"), width=200)
with sharing:
    shell.share(view, "leaderboard", shown if tables else None)
reported()
add_ranks()
