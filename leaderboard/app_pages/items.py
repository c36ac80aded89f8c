"""Every question of a run: prompt, choices, label, and the probabilities of every draw."""

from __future__ import annotations

import streamlit as st

from uqharness.leaderboard import item_html, items, pick_run, shell, texts
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.item_rows import item_rows
from uqharness.leaderboard.markup_view import markup
from uqharness.leaderboard.publish import Averaged
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.url_view import View

SIZES = (5, 10, 25, 50)


def restart() -> None:
    st.session_state[view.key("page")] = 1


board = shell.board()
runs = board.runs
if runs.empty:
    shell.nothing("No measured results were given, so there are no questions to show.")
most = ["all", *(str(n) for n in range(0, int(runs["draws"].max()) + 1))]
fields = [
    Field("run", pick_run.first(runs), list(runs["run_id"]), "Run"),
    Field("samples", "all", most, "N"),
    Field("show", "all", list(items.FILTERS), "Questions"),
    Field("sort", "id", list(items.SORTS), "Order"),
    Field("size", 10, SIZES, "Questions per page"),
    Field("page", 1),
]
view = View("items", fields, board.snapshot)
shell.head("Items", "What was asked, what was answered, and how much the draws disagree.", view)
run = pick_run.pick(view, runs)
record = shell.record(run["run_id"], shell.sources()[run["run_id"]])
base = items.baseline(runs, run["run_id"])
held = [n for n in most if n == "all" or (n == "0" and run["has_mean"]) or 0 < int(n) <= run["draws"]]
if isinstance(record, Averaged):  # published without its single draws
    held = [n for n in held if n in ("all", "0")]
if st.session_state[view.key("samples")] not in held:
    st.session_state[view.key("samples")] = "all"
one, two, three, four = st.columns([1, 2.4, 2, 1])
one.selectbox("N", held, key=view.key("samples"), help="draws averaged; 0: the posterior's mean")
two.selectbox(
    "Questions", list(items.FILTERS), key=view.key("show"), on_change=restart, format_func=lambda k: items.FILTERS[k][0]
)
three.selectbox(
    "Order", list(items.SORTS), key=view.key("sort"), on_change=restart, format_func=lambda k: items.SORTS[k][0]
)
four.selectbox("Per page", SIZES, key=view.key("size"), on_change=restart)

plain = shell.record(base, shell.sources()[base]) if base else None
chosen = st.session_state[view.key("samples")]
found = items.items(record, run["row"], None if chosen == "all" else int(chosen), plain)
kept = items.select(found, st.session_state[view.key("show")], st.session_state[view.key("sort")])
size = st.session_state[view.key("size")]
page, start, stop = items.paged(len(kept), st.session_state[view.key("page")], size)
st.session_state[view.key("page")] = page
alike = runs["file"][(runs["task"] == run["task"]) & (runs["protocol_hash"] == run["protocol_hash"])]
files = list(dict.fromkeys([run["file"], *alike]))

n = "" if chosen == "all" else f", N = {chosen}"
which = items.FILTERS[st.session_state[view.key("show")]][0]
caption = f"{run['row']} on {run['task']}, run {run['run_id']}{n}: {which}"


def taken() -> Shown:
    """Every question of the filter, not only those of this page; called when the session is not at hand."""
    told, _ = texts.texts(record, files, [int(d) for d in kept["at"]])
    return Shown(caption, grids=[Grid(*item_rows(found, kept, told), caption, "words")])


with st.container(horizontal=True, vertical_alignment="bottom"):
    st.number_input(
        f"Page of {max(1, -(-len(kept) // size))}",
        min_value=1,
        max_value=max(1, -(-len(kept) // size)),
        key=view.key("page"),
        width=150,
    )
    shell.share(view, "items", taken if len(kept) else None)
rows = kept.iloc[start:stop].to_dict("records")
words, whence = texts.texts(record, files, [int(row["at"]) for row in rows])
whence = whence if whence == texts.ADD else shell.letters(whence)  # it names a file
compared = "compared with MLE of the same recipe" if found.base else "no MLE of the same recipe to compare with"
st.caption(f"{len(kept):,} of {record.items:,} questions, {compared}. {whence}")
if not rows:
    st.info("No question is like that.")
markup("".join(item_html.card(found, row, text) for row, text in zip(rows, words, strict=True)), "cards")
view.done()
