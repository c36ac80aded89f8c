"""A page as data: `page(view) -> Page(controls, blocks)`. `app` and `site` render it; nothing here knows how.

The parameters of a link are the whole view: they are read here, checked against what the results hold, and each
becomes a control. A value that the results do not have falls back to the default and is named in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Literal
from urllib.parse import urlencode

from uqharness.leaderboard.ranking import Ranks
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.table import Cell, Table

SNAPSHOT = "snapshot"
SWITCH = {"1": True, "0": False, "true": True, "false": False}  # the first two are written
LONGEST = 60  # letters of a foreign value that a note repeats
Kind = Literal["one", "several", "segments", "switch", "number"]
CellText = str | tuple[str, str]  # a text, or (text, address)


@dataclass(frozen=True)
class Control:
    """One parameter of a link. `main`: beside the title and not in the sidebar."""

    name: str
    label: str
    kind: Kind
    value: Any
    options: Sequence[Any] = ()
    labels: Mapping[Any, str] = field(default_factory=dict)
    help: str | None = None
    main: bool = False
    default: Any = None
    clears: Sequence[str] = ()  # parameters that a choice here makes obsolete

    def text(self, option: Any) -> str:
        return self.labels.get(option, str(option))


@dataclass(frozen=True)
class Text:
    """`kind` markdown is for texts of ours alone; any other is shown letter by letter.

    `folded`: behind this title; `address`: where a click on the text leads.
    """

    text: str
    kind: Literal["paragraph", "heading", "caption", "info", "warning", "code", "json", "markdown"] = "paragraph"
    folded: str = ""
    address: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of texts. Kinds: methods (the first column names them), numbers, words, cells (the last is of words).

    `sortable`: a reader wants to sort and to search it; `folded`: behind a figure that shows the same.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[CellText]]
    caption: str
    kind: str = "methods"
    sortable: bool = False
    folded: bool = False

    @property
    def texts(self) -> list[list[str]]:
        return [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Methods:
    """Methods x data sets of some metrics, with what belongs to its rows and cells.

    `extra` are columns of texts beside the methods (header, one per row); `marks` number the notes of a cell;
    `about` says what a row's method is (a line, and the address of its page), `roles` what a row is that is no method
    to be ranked; `guess` is the last line: name, what it is, a text per data set.
    """

    table: Table
    caption: str
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    pending: bool = False  # ranks are being tested
    extra: Sequence[tuple[str, Sequence[str]]] = ()
    beside: Mapping[tuple[int, int], str] = field(default_factory=dict)  # row, column -> a small text below the number
    intervals: Mapping[tuple[str, int, int], tuple[float, float]] = field(default_factory=dict)
    marks: Mapping[tuple[str, int, int], Sequence[int]] = field(default_factory=dict)
    about: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    roles: Mapping[int, str] = field(default_factory=dict)
    guess: tuple[str, str, Sequence[str]] | None = None
    link: Callable[[Cell], str] | None = None
    measured: bool = True
    most: int | None = None


@dataclass(frozen=True)
class Figure:
    """What plotly.js draws: {"data": traces, "layout": …}."""

    figure: dict[str, Any]
    name: str
    alt: str

    @property
    def empty(self) -> str:
        """Why nothing is drawn; no text where something is."""
        notes = self.figure["layout"].get("annotations") or [{"text": "There is nothing to draw."}]
        return "" if self.figure["data"] else unescape(notes[0]["text"])


@dataclass(frozen=True)
class Cards:
    """Questions of a run as markup in which every text is escaped; `grid` gives all that a filter leaves."""

    html: str
    grid: Callable[[], Grid]


@dataclass(frozen=True)
class Columns:
    left: Sequence[Any]
    right: Sequence[Any]


Block = Text | Grid | Methods | Figure | Cards | Columns


@dataclass(frozen=True)
class Page:
    title: str
    about: str
    blocks: Sequence[Block]
    controls: Sequence[Control] = ()
    notes: Sequence[str] = ()  # what of the link could not be followed
    later: Sequence[Callable[[], object]] = ()  # what takes long; the page is made again when it is known

    def shown(self) -> list[Methods | Grid]:
        """The tables of the page, in their order: what an export holds."""
        flat = [b for block in self.blocks for b in _inner(block)]
        made = [block.grid() if isinstance(block, Cards) else block for block in flat]
        return [block for block in made if isinstance(block, (Methods, Grid))]


def _inner(block: Block) -> list[Block]:
    return [*block.left, *block.right] if isinstance(block, Columns) else [block]


def relative(page: str, params: Mapping[str, Any]) -> str:
    """The address of a page of the app from any other one."""
    return f"{page or '.'}{'?' if params else ''}{urlencode(params, doseq=True)}"


class View:
    """What a page is made from: the results and the parameters of its link. Asking for a value makes its control."""

    def __init__(
        self,
        results: Results,
        params: Mapping[str, Sequence[str]] | None = None,
        address: Callable[[str, Mapping[str, Any]], str] = relative,
        patient: bool = True,
    ) -> None:
        self.results, self.params, self.address = results, dict(params or {}), address
        self.patient = patient  # whether ranks are waited for
        self.controls: list[Control] = []
        self.later: list[Callable[[], object]] = []
        self.notes: list[str] = []

    def link(self, page: str, **params: Any) -> str:
        return self.address(page, params)

    def one(self, name: str, label: str, options: Sequence[Any], default: Any = None, **more: Any) -> Any:
        """One of the options; the first where there is no default."""
        default = options[0] if default is None or default not in options else default
        by_text = {str(option): option for option in options}
        given = self._given(name)
        self._unknown(label, [text for text in given if text not in by_text])
        value = next((by_text[text] for text in given if text in by_text), default)
        return self._add(Control(name, label, more.pop("kind", "one"), value, options, default=default, **more))

    def several(self, name: str, label: str, options: Sequence[Any], default: Sequence[Any] = (), **more: Any) -> Any:
        """Some of the options; none is the parameter without a value."""
        by_text = {str(option): option for option in options}
        wanted = [text for text in dict.fromkeys(self.params.get(name, ())) if text]
        bad = [text for text in wanted if text not in by_text]
        self._unknown(label, bad)
        known = tuple(by_text[text] for text in wanted if text in by_text)
        value = known if name in self.params and (known or not bad) else tuple(default)
        return self._add(Control(name, label, "several", value, options, default=tuple(default), **more))

    def switch(self, name: str, label: str, default: bool = False, **more: Any) -> bool:
        given = self._given(name)
        self._unknown(label, [text for text in given if text not in SWITCH])
        value = next((SWITCH[text] for text in given if text in SWITCH), default)
        return bool(self._add(Control(name, label, "switch", value, default=default, **more)))

    def number(self, name: str, label: str, most: int, **more: Any) -> int:
        """From 1 to `most`; a page number that is too large is the last page."""
        given = self._given(name)
        fits = [text for text in given if text.isascii() and text.isdigit() and len(text) < 10]
        self._unknown(label, [text for text in given if text not in fits])
        value = min(max(int(fits[0]) if fits else 1, 1), max(most, 1))
        return int(self._add(Control(name, label, "number", value, range(1, max(most, 1) + 1), default=1, **more)))

    def page(self, title: str, about: str, blocks: Sequence[Block]) -> Page:
        """The page of these blocks, with a note for each part of the link that could not be used."""
        known = {control.name for control in self.controls} | {SNAPSHOT}
        if unknown := [short(name) for name in self.params if name not in known]:
            self.notes.append(f"The link has parameters that this page does not know: {', '.join(unknown)}.")
        snapshot = self.results.board.snapshot
        wanted = next(iter(self.params.get(SNAPSHOT, ())), snapshot)
        if wanted != snapshot:
            self.notes.append(
                f"The link was made for results {short(wanted)}; these are {snapshot}: numbers may differ."
            )
        return Page(title, about, [*blocks], self.controls, self.notes, self.later)

    def _given(self, name: str) -> list[str]:
        return list(self.params.get(name, ()))[-1:]

    def _add(self, control: Control) -> Any:
        self.controls.append(control)
        return control.value

    def _unknown(self, label: str, bad: Sequence[str]) -> None:
        if bad:
            named = ", ".join(map(short, bad))
            self.notes.append(f"{label}: {named} is not among these results; the link was followed without it.")


def as_params(value: Any) -> list[str]:
    """A control's value as its parameter of a link."""
    if isinstance(value, (tuple, list)):
        return [str(each) for each in value] or [""]
    return [str(int(value)) if isinstance(value, bool) else str(value)]


def short(text: str) -> str:
    """In quotes and of a bearable length."""
    return f"“{text}”" if len(text) <= LONGEST else f"“{text[:LONGEST]}…”"
