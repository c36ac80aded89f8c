"""The view that is shown, as text to take away: CSV, Markdown, LaTeX (booktabs) or JSON, with caption and link.

What is on the screen, in its order. `table_formats` writes the tables, as for `uqharness table`; `grids` the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from uqharness.leaderboard import grids, table_formats
from uqharness.leaderboard.grids import Grid
from uqharness.leaderboard.table import Table

KINDS = {
    "CSV": ("csv", "text/csv"),
    "Markdown": ("md", "text/markdown"),
    "LaTeX": ("tex", "text/x-tex"),
    "JSON": ("json", "application/json"),
}


@dataclass(frozen=True)
class Shown:
    """What a page shows: methods x data sets, and tables of any other kind."""

    caption: str
    tables: Sequence[Table] = ()
    grids: Sequence[Grid] = ()


def text(kind: str, shown: Shown, link: str) -> str:
    """CSV has no place for a caption: the link is its last column, and of two kinds of tables each has its header."""
    if kind == "CSV":
        parts = [table_formats.as_csv(shown.tables, link)] * bool(shown.tables)
        return "\n".join(parts + [grids.as_csv(shown.grids, link)] * bool(shown.grids))
    if kind == "JSON":
        tables = json.loads(table_formats.FORMATS["json"](shown.tables))
        told = {"caption": shown.caption, "link": link, **tables, "grids": grids.plain(shown.grids)}
        return json.dumps({key: value for key, value in told.items() if value}, indent=2, ensure_ascii=False) + "\n"
    caption = " ".join(shown.caption.split())
    if kind == "LaTeX":
        return "\n".join([f"% {caption}\n% {link}\n", *_parts("latex", shown)])
    letters = escape(caption, quote=False)  # it names methods: no tag, link or image
    letters = letters.replace("\\", r"\\").replace("[", r"\[")
    return "\n".join([f"{letters}\n\n<{link}>\n", *_parts("md", shown)])


def _parts(kind: str, shown: Shown) -> list[str]:
    tables = [table_formats.FORMATS[kind](shown.tables)] * bool(shown.tables)
    return tables + [grids.FORMATS[kind](shown.grids)] * bool(shown.grids)
