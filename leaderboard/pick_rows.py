"""Choosing what a figure shows: table, data set, methods, training seed and N, in the sidebar."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from uqharness.errors import InputError
from uqharness.leaderboard import shell
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.publish import Averaged
from uqharness.leaderboard.state import Field
from uqharness.leaderboard.table_sources import Source
from uqharness.leaderboard.url_view import View

ALL = "all"


@dataclass(frozen=True)
class Picked:
    group: Group
    data: str
    rows: list[str]
    seed: str
    draws: int | None  # None: as many as each holds

    @property
    def place(self) -> str:
        """What all of it shares, for captions."""
        seed = "no training seed" if self.seed == "None" else f"seed {self.seed}"
        return f"{self.data}, {seed}" + ("" if self.draws is None else f", N = {self.draws}")

    def run(self, row: str, data: str = "") -> Source | None:
        return self.group.run(data or self.data, row, self.seed)

    def answers(self, data: str = "", draws: int | None = None) -> list[Answers]:
        """Of every chosen row that has a run with so many draws, and has kept them."""
        out = []
        for row in self.rows:
            source = self.run(row, data)
            used = source.used(self.draws if draws is None else draws) if source else None
            if source is not None and used is not None:
                with contextlib.suppress(InputError):  # published without its single draws
                    out.append(shell.answers(source.run_id, row, used))
        return out

    def missing(self) -> list[str]:
        """Rows without such answers, for a note."""
        return [row for row in self.rows if not (run := self.run(row)) or not self._held(run)]

    def _held(self, run: Source) -> bool:
        used = run.used(self.draws)
        if used in (None, 0, run.draws):
            return used is not None
        return not isinstance(shell.record(run.run_id, run), Averaged)  # published without its single draws


def fields(groups: Sequence[Group]) -> list[Field]:
    rows = list(dict.fromkeys(row for g in groups for data in g.runs for row in g.rows(data)))
    seeds = sorted({seed for g in groups for data in g.runs for seed in g.seeds(data)}, key=lambda s: (len(s), s))
    most = max(
        (run.draws for g in groups for d in g.runs.values() for r in d.values() for run in r.values()), default=0
    )
    data = list(dict.fromkeys(data for g in groups for data in g.runs))
    return [
        Field("table", groups[0].name, [g.name for g in groups], "Table"),
        Field("data", data[0], data, "Data set"),
        Field("row", (), rows, "Methods"),
        Field("seed", seeds[0], seeds, "Seed"),
        Field("samples", ALL, [ALL, *map(str, range(most + 1))], "N"),
    ]


def pick(
    view: View,
    groups: Sequence[Group],
    draws: bool = True,
    seeds: bool = True,
    homes: bool = False,
    start: str = "",
) -> Picked:
    """The widgets; a choice that another choice made impossible falls back.

    Without `draws`, all of them; without `seeds`, no box for what shows them all; `homes`: data that was trained on.
    """
    box, state = st.sidebar, st.session_state
    if len(groups) > 1:
        box.selectbox("Table", [g.name for g in groups], key=view.key("table"))
    group = next(g for g in groups if g.name == state[view.key("table")])
    offered = (group.homes() if homes else []) or list(group.runs)
    if state[view.key("data")] not in offered:
        state[view.key("data")] = offered[0]
    box.selectbox("Trained on" if homes else "Data set", offered, key=view.key("data"))
    data = state[view.key("data")]
    rows, known = group.rows(data), group.seeds(data)
    state[view.key("row")] = [row for row in state[view.key("row")] if row in rows]
    if state[view.key("seed")] not in known:
        state[view.key("seed")] = known[0]
    first = start or ", ".join(group.start(data))
    box.multiselect("Methods", rows, key=view.key("row"), placeholder=first)
    if seeds and len(known) > 1:
        box.selectbox("Training seed", known, key=view.key("seed"))
    if draws:
        box.selectbox("N, draws averaged", view.options("samples"), key=view.key("samples"))
    asked = state[view.key("samples")]
    chosen = list(state[view.key("row")]) or list(group.start(data))
    return Picked(group, data, chosen, state[view.key("seed")], None if asked == ALL or not draws else int(asked))


def pick_figure(view: View, figures: Mapping[str, str]) -> tuple[str, DeltaGenerator]:
    """Which of a page's figures is shown, one at a time since each takes long to draw; and a place for `share`."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = view.key("figure")
        st.segmented_control("Figure", list(figures), key=key, format_func=figures.__getitem__, required=True)
        sharing = st.container(width="content")
    return st.session_state[key], sharing


def open_page(page: str, title: str, about: str, more: Sequence[Field] = ()) -> tuple[View, list[Group]]:
    """The head of a page of figures; ends the page where there is nothing to draw."""
    board, groups = shell.board(), shell.groups()
    if not groups:
        st.title(title)
        shell.nothing("No measured results were given, so there is nothing to draw.")
    view = View(page, [*shell.kept(lambda: fields(groups), "fields of figures"), *more], board.snapshot)
    shell.head(title, about, view)
    return view, groups


def say_missing(picked: Picked) -> None:
    if rows := picked.missing():
        st.caption(shell.letters(f"Without answers on {picked.place}: {', '.join(rows)}"))
