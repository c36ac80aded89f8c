"""What every page of the app shares: the board, the row with link and export, tables.

Streamlit is known here, in `app.py`, `app_pages/`, `url_view.py`, `figure_view.py`, `markup_view.py`,
`pick_rows.py` and `pick_run.py`,
and nowhere else.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import streamlit as st

from uqharness.errors import InputError
from uqharness.leaderboard import (
    aggregate,
    cache,
    curves,
    draw_curves,
    export,
    markup_view,
    picks,
    publish,
    ranking,
    table_html,
)
from uqharness.leaderboard.aggregate import Board
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.export import Shown
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.ranking import Ranks
from uqharness.leaderboard.table import Table
from uqharness.leaderboard.table_sources import Source
from uqharness.leaderboard.url_view import View
from uqharness.metrics.registry import Floats
from uqharness.results.record import Record

T = TypeVar("T")
# How the command tells the app: a JSON list of result files and folders, and a parquet to keep what was computed.
RESULTS, CACHE = "UQHARNESS_LEADERBOARD", "UQHARNESS_LEADERBOARD_CACHE"
MOST_ROWS = 50  # of a table, where no page says otherwise
COPY_JS = """export default function ({ data, parentElement }) {
  const button = parentElement.querySelector("button");
  button.onclick = async () => {
    const link = new URL(window.location.href);
    link.searchParams.set("snapshot", data.snapshot);
    let copied = true;
    try { await navigator.clipboard.writeText(link.href); }
    catch {
      const box = document.createElement("textarea");
      box.value = link.href; document.body.append(box); box.select();
      copied = document.execCommand("copy"); box.remove();
    }
    button.textContent = copied ? "Copied" : link.href;
    setTimeout(() => { button.textContent = "Copy link"; }, 2000);
  };
}"""
COPY_CSS = """button { font: inherit; color: var(--st-text-color); background: var(--st-background-color);
  cursor: pointer; border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius);
  padding: .25rem .75rem; min-height: 2.5rem; white-space: nowrap; font-size: .875rem; }
button:hover { border-color: var(--st-primary-color); color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }"""


# ---------------------------------------------------------------- the board


def look() -> None:
    """Once at the start of a run: whether files have changed. What follows sees one state of them, to the end."""
    st.session_state["uq.results"] = (_paths(), _stamp(_paths()))


def board() -> Board:
    """The board of the results that the command was given; built again when a file changes."""
    return _board(*st.session_state["uq.results"])


def kept(make: Callable[[], T], *key: Hashable) -> T:
    """What `make` returned for this key and these results before; not to be changed by who gets it."""
    return cast(T, _kept((st.session_state["uq.results"], *key), make))


def sources() -> dict[str, Source]:
    """Every run of the board by its id, as `table.build` takes it."""
    return kept(lambda: {source.run_id: source for source in board().sources()}, "sources")


def groups() -> list[picks.Group]:
    return kept(lambda: picks.groups(list(sources().values())), "groups")


def answers(run_id: str, row: str, draws: int | None = None) -> Answers:
    """A run's answers under this many draws; an `InputError` where it was published without its single draws."""
    return curves.answers(record(run_id, sources()[run_id]), row, draws)


def curves_of(run_id: str, row: str, metrics: Sequence[str]) -> dict[str, DrawCurve]:
    """Of results that were published without their single draws: the values, without a spread."""
    source = sources()[run_id]
    wanted = tuple(metrics)
    return _curves_of(run_id, source.file, row, wanted, source) or draw_curves.known_curves(source, row, wanted)


@st.cache_data(max_entries=512, show_spinner=False)
def _curves_of(run_id: str, file: str, row: str, metrics: tuple[str, ...], _source: Source) -> dict[str, DrawCurve]:
    return draw_curves.draw_curves(record(run_id, _source), row, metrics)


def ranks(table: Table, metric: str, known_only: bool = False) -> Ranks | None:
    """Ranks by column and row; tested once per set of runs (None: not yet, where only known ones are wanted)."""
    kept, known = _tested(), sources()
    runs = {k: tuple((run, known[run].file) for run in c.runs) for k, c in table.cells.items() if k[0] == metric}
    key = hash((metric, tuple(table.rows), tuple(runs.items())))
    if key not in kept and not known_only:
        try:
            kept[key] = ranking.ranks_of(ranking.of_table(table, metric, _told))
        except InputError:  # published without single draws: their answers for this N are gone
            kept[key] = {}
    return kept.get(key)


def _told(run_id: str, draws: int) -> tuple[Floats, np.ndarray]:
    found = answers(run_id, "", draws)
    return found.probs, found.gold


@st.cache_resource
def _tested() -> dict[int, Ranks]:
    return {}


def record(run_id: str, source: Source) -> Record:
    """All answers of a run, or what was published of them: then another file may have more under the same id."""
    return _record(run_id, source.file, source)


@st.cache_resource(max_entries=128, show_spinner=False)
def _record(run_id: str, file: str, _source: Source) -> Record:
    return board().record(_source.run_id)


def _paths() -> tuple[str, ...]:
    given = json.loads(os.environ.get(RESULTS) or "[]")
    return tuple(str(path) for path in given)


@st.cache_data(ttl=10, max_entries=8, show_spinner=False)
def _stamp(paths: tuple[str, ...]) -> int:
    """Changes with any name, size or time of the files; looked at again every ten seconds."""
    files = [path for path, _ in cache.result_files([Path(path) for path in paths] or publish.shipped())]
    return hash(tuple((path, cache.state_of(path)) for path in files))


@st.cache_resource(max_entries=2, show_spinner="Reading results")
def _board(paths: tuple[str, ...], stamp: int) -> Board:
    kept = os.environ.get(CACHE)
    made = aggregate.build([Path(path) for path in paths], Path(kept) if kept else None)
    gc.collect()
    gc.freeze()  # else every tenth click walks through all results and libraries again, 0.1 to 0.2 s
    return made


@st.cache_resource(max_entries=32, show_spinner=False)
def _kept(key: tuple[Hashable, ...], _make: Callable[[], Any]) -> Any:
    return _make()


# ---------------------------------------------------------------- what pages show


def head(title: str, about: str, view: View) -> None:
    st.title(title)
    st.caption(about)
    for note in view.notes:
        st.info(letters(note), icon=":material/link_off:")


def share(view: View, name: str, shown: Shown | Callable[[], Shown] | None = None) -> None:
    """Copy the link, and take away what is shown (None: nothing is)."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        copy_link(view.snapshot)
        if shown is not None:
            export_button(view, name, shown)


def export_button(view: View, name: str, shown: Shown | Callable[[], Shown], label: str = "Export") -> None:
    """One button per format; the text is made when one is pressed, outside of the session."""
    link = view.link()

    def made(kind: str) -> str:
        return export.text(kind, shown if isinstance(shown, Shown) else shown(), link)

    with st.popover(label, icon=":material/download:"):
        for kind, (ending, mime) in export.KINDS.items():
            st.download_button(
                kind,
                partial(made, kind),
                f"{name}.{ending}",
                mime,
                key=f"{view.page}.{name}.{kind}",
                on_click="ignore",
                width="stretch",
            )


def copy_link(snapshot: str) -> None:
    component = st.components.v2.component("uq_copy_link", html="<button>Copy link</button>", css=COPY_CSS, js=COPY_JS)
    component(key="uq.copy", data={"snapshot": snapshot}, width="content", height="content")


def grid(shown: Grid, name: str = "grid") -> None:
    markup_view.markup(table_html.grid(*shown, most=MOST_ROWS), name)


def behind(shown: Grid) -> None:
    """What a figure draws, folded away."""
    with st.expander("The figure as a table"):
        grid(shown, "behind")


def nothing(why: str) -> None:
    """Ends the page where there is nothing to show."""
    st.info(why)
    st.stop()


def letters(text: str) -> str:
    """Text of a link or a file as letters: Streamlit reads Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|:$~^" else c for c in text)
