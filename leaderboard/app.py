"""The leaderboard in the browser: `uqharness leaderboard RESULTS…` runs this file with Streamlit.

It renders the pages of `views` with stock elements. The URL is the whole view: a widget writes its parameter there,
and a page is made from the parameters alone. Streamlit is known here and nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from uqharness.leaderboard import board, cache, export, markup, publish
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import (
    SNAPSHOT,
    Block,
    Cards,
    Columns,
    Control,
    Figure,
    Grid,
    Methods,
    Page,
    Text,
    View,
    as_params,
    relative,
)
from uqharness.leaderboard.results import Results

# How the command tells the app: a JSON list of result files and folders, and a parquet to keep what was computed.
RESULTS, CACHE = "UQHARNESS_LEADERBOARD", "UQHARNESS_LEADERBOARD_CACHE"
HERE = Path(__file__).parent
MOST_ROWS = 50  # of a table that is neither sorted nor searched
LEFT = "uq.left"  # parameters of every page of this session as it was left
Draw = Callable[[str], Any]  # draws a block; the text is its key
SAVED = {"toImageButtonOptions": {"format": "svg"}, "displaylogo": False}  # by the camera above a figure


def results() -> Results:
    """Of the files that the command was given; looked at again every ten seconds, and built again when one changed."""
    given = json.loads(os.environ.get(RESULTS) or "[]")
    paths = tuple(str(path) for path in given)
    return _results(paths, _stamp(paths))


@st.cache_data(ttl=10, max_entries=8, show_spinner=False)
def _stamp(paths: tuple[str, ...]) -> int:
    """Changes with any name, size or time of the files."""
    files = [path for path, _ in cache.result_files([Path(path) for path in paths] or publish.shipped())]
    return hash(tuple((path, cache.state_of(path)) for path in files))


@st.cache_resource(max_entries=2, show_spinner="Reading results")
def _results(paths: tuple[str, ...], stamp: int) -> Results:
    cache_path = os.environ.get(CACHE)
    return Results(board.build([Path(path) for path in paths], Path(cache_path) if cache_path else None))


def show(name: str) -> None:
    """One page: its head, its controls, what it shows; ranks that are not known yet come in a second round."""
    shared, params = results(), parameters(name)
    page, drawings = shared.finished((name, *map(str, params.items())), lambda: finish(shared, name, params))
    st.title(page.title)
    st.markdown(letters(page.about))
    for note in page.notes:
        st.info(letters(note), icon=":material/link_off:")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for control in page.controls:
            if control.main:
                widget(name, control)
        share(name, page, shared.board.snapshot, params)
    with st.sidebar:
        for control in page.controls:
            if not control.main:
                widget(name, control)
    for number, draw in enumerate(drawings):
        draw(f"{name}.{number}")
    if page.later:
        for compute in page.later:
            compute()
        st.rerun()


def finish(shared: Results, name: str, params: dict[str, list[str]]) -> tuple[tuple[Page, list[Draw]], bool]:
    """The page and what draws its blocks, and whether nothing of it is computed later."""
    page = PAGES[name].make(View(shared, params, patient=False))
    return (page, list(map(drawing, page.blocks))), not page.later


def parameters(name: str) -> dict[str, list[str]]:
    """Those of the URL; of a page that is opened again in this session, those it was left with."""
    left, here = st.session_state.setdefault(LEFT, {}), {key: st.query_params.get_all(key) for key in st.query_params}
    if st.session_state.get("uq.page") != name:
        if not here and left.get(name):
            st.query_params.from_dict(left[name])
            here = left[name]
        st.session_state["uq.page"] = name
    left[name] = here
    return here


# ---------------------------------------------------------------- controls


def widget(page: str, control: Control) -> None:
    key = f"{page}.{control.name}"
    many = isinstance(control.value, tuple)
    st.session_state[key] = list(control.value) if many else control.value
    common: dict[str, Any] = {"key": key, "help": control.help, "on_change": write, "args": (key, control)}
    options: dict[str, Any] = {"options": list(control.options), "format_func": control.text}
    if control.kind == "segments":
        st.segmented_control(control.label, required=True, **options, **common)
    elif control.kind == "several":
        st.multiselect(control.label, placeholder="all", **options, **common)
    elif control.kind == "switch":
        st.toggle(control.label, **common)
    elif control.kind == "number":
        st.number_input(control.label, 1, len(control.options), width=170, **common)
    else:
        longest = max((len(control.text(option)) for option in control.options), default=0)
        st.selectbox(control.label, width=min(110 + 8 * longest, 560), **options, **common)


def write(key: str, control: Control) -> None:
    """What a widget holds becomes the parameter of the URL; the default is no parameter."""
    value = st.session_state[key]
    value = tuple(value) if isinstance(value, list) else value
    for name in control.clears:
        st.query_params.pop(name, None)
    if value == control.default or value is None:
        st.query_params.pop(control.name, None)
    else:
        st.query_params[control.name] = as_params(value)


def share(name: str, page: Page, snapshot: str, params: dict[str, list[str]]) -> None:
    """Copy the link, and take away the tables that are shown; their text is made when a button is pressed."""
    st.html(f'<button type="button" class="uq-link" data-snapshot="{snapshot}">Copy link</button>', width="content")
    if not any(isinstance(block, (Methods, Grid, Cards, Columns)) for block in page.blocks):
        return
    link = relative(st.context.url or "", {**params, SNAPSHOT: snapshot})

    def made(kind: str) -> str:
        return export.text(kind, f"uqharness leaderboard, {page.title}, results {snapshot}", page.shown(), link)

    with st.popover("Export", icon=":material/download:"):
        for kind, (ending, mime) in export.KINDS.items():
            file, make = f"{name}.{ending}", partial(made, kind)
            st.download_button(kind, make, file, mime, key=f"{name}.{kind}", on_click="ignore", width="stretch")


# ---------------------------------------------------------------- blocks


def drawing(block: Block) -> Draw:
    """What draws a block under a key, all that can be made beforehand made: a finished page is drawn many times."""
    if isinstance(block, Text) and block.address:
        return html(markup.link(block))
    if isinstance(block, Text):
        return folded(block.folded, lambda key: TEXTS[block.kind](block.text))
    if isinstance(block, Figure) and block.empty:
        return lambda key: st.info(letters(block.empty))
    if isinstance(block, Figure):
        figure = go.Figure(block.figure)  # Streamlit validates a dict each time that it is drawn
        return lambda key: st.plotly_chart(figure, key=key, config=SAVED, alt=block.alt)
    if isinstance(block, Methods):
        return html(markup.methods(block))
    if isinstance(block, Cards):
        return html(block.html)
    if isinstance(block, Columns):
        sides = [list(map(drawing, blocks)) for blocks in (block.left, block.right)]

        def columns(key: str) -> None:
            for side, (place, drawings) in enumerate(zip(st.columns([3, 2], gap="large"), sides, strict=True)):
                with place:
                    for number, draw in enumerate(drawings):
                        draw(f"{key}.{side}.{number}")

        return columns
    if block.sortable and len(block.rows) > MOST_ROWS:
        return frame(block)
    return folded(block.caption if block.folded else "", html(markup.grid(block, MOST_ROWS if block.folded else None)))


def html(text: str) -> Draw:
    return lambda key: st.html(text)


def folded(title: str, draw: Draw) -> Draw:
    def expander(key: str) -> None:
        with st.expander(title):
            draw(key)

    return expander if title else draw


def frame(grid: Grid) -> Draw:
    """A long table, to sort by a click on a head and to search with the tool above it."""
    linked = {k for row in grid.rows for k, cell in enumerate(row) if not isinstance(cell, str)}
    columns: dict[str, list[Any]] = {}
    config: dict[str, Any] = {}
    for k, title in enumerate(grid.header):
        cells = [row[k] for row in grid.rows]
        texts = [cell if isinstance(cell, str) else cell[1] for cell in cells]
        numbers = pd.to_numeric(pd.Series(texts).replace("–", None).str.replace(",", ""), errors="coerce")
        known = numbers.notna().sum() == sum(text != "–" for text in texts) > 0
        columns[title] = numbers.tolist() if known and k not in linked else texts
        if k in linked:
            config[title] = st.column_config.LinkColumn(title, display_text=r"[?&]run=([0-9a-f]+)")
        elif k == 0:
            config[title] = st.column_config.TextColumn(title, pinned=True)
    data, caption = pd.DataFrame(columns), letters(f"{grid.caption}: {len(grid.rows):,} rows")

    def draw(key: str) -> None:
        st.caption(caption)
        st.dataframe(data, column_config=config, hide_index=True, height=620)

    return draw


def letters(text: str) -> str:
    """Text of a link or a file as letters: Streamlit reads Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|:$~^" else c for c in text)


def code(text: str) -> None:
    st.code(text, language=None, wrap_lines=True, height=300 if text.count("\n") > 12 else "content")


TEXTS: dict[str, Callable[[str], Any]] = {
    "paragraph": lambda text: st.markdown(letters(text)),
    "heading": lambda text: st.subheader(letters(text)),
    "caption": lambda text: st.caption(letters(text)),
    "info": lambda text: st.info(letters(text)),
    "warning": lambda text: st.warning(letters(text), icon=":material/flag:"),
    "code": code,
    "json": lambda text: st.json(text, expanded=1),
    "markdown": lambda text: st.markdown(text),
}


def pages() -> Sequence[Any]:
    def page(name: str) -> Callable[[], None]:
        def run() -> None:
            show(name)

        return run

    first = next(iter(PAGES))
    return [
        st.Page(page(name), title=known.title, url_path="" if name == first else name, default=name == first)
        for name, known in PAGES.items()
    ]


if __name__ == "__main__":
    # A file of ours: an icon by name or an emoji would be fetched from another host.
    st.set_page_config("uqharness leaderboard", page_icon=str(HERE / "icon.svg"), layout="wide")
    chosen = st.navigation(pages(), position="top")
    st.html(HERE / "board.css")
    st.html(f"<script>{(HERE / 'board.js').read_text(encoding='utf-8')}</script>", unsafe_allow_javascript=True)
    chosen.run()
