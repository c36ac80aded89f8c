"""Export tables of a page as CSV, Markdown, LaTeX (booktabs) or JSON, with caption and link.

What is on the screen, in its order. Methods x data sets are written as by `uqharness table`, with every digit in CSV
and JSON; other tables hold the texts of the screen.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from uqharness.leaderboard import table_formats
from uqharness.leaderboard.page import Grid, Methods
from uqharness.leaderboard.table_formats import (
    cautious,
    md_grid,
    md_letters,
    tex_comments,
    tex_grid,
    tex_letters,
    tex_row,
)

KINDS = {
    "CSV": ("csv", "text/csv"),
    "Markdown": ("md", "text/markdown"),
    "LaTeX": ("tex", "text/x-tex"),
    "JSON": ("json", "application/json"),
}


def text(kind: str, caption: str, blocks: Sequence[Methods | Grid], link: str) -> str:
    """CSV has no place for a caption: the link is its last column, and of two kinds of tables each has its header."""
    tables = [block.table for block in blocks if isinstance(block, Methods)]
    grids = [block for block in blocks if isinstance(block, Grid)]
    caption = " ".join(caption.split())
    if kind == "CSV":
        parts = [table_formats.as_csv(tables, link)] * bool(tables)
        return "\n".join(parts + [as_csv(grids, link)] * bool(grids))
    if kind == "JSON":
        plain = [{"caption": g.caption, "header": list(g.header), "rows": g.texts} for g in grids]
        content = {"caption": caption, "link": link, **json.loads(table_formats.as_json(tables)), "grids": plain}
        return json.dumps({key: value for key, value in content.items() if value}, indent=2, ensure_ascii=False) + "\n"
    if kind == "LaTeX":
        parts = [table_formats.latex(tables)] * bool(tables) + [latex(grids)] * bool(grids)
        return "\n".join([f"% {caption}\n% {link}\n", *parts])
    parts = [table_formats.markdown(tables)] * bool(tables) + [markdown(grids)] * bool(grids)
    letters = escape(caption, quote=False).replace("\\", r"\\").replace("[", r"\[")  # it names methods: no markup
    return "\n".join([f"{letters}\n\n<{link}>\n", *parts])


def markdown(grids: Sequence[Grid]) -> str:
    bodies = [md_grid(grid.header, [[*map(md_letters, line)] for line in grid.texts]) for grid in grids]
    return "\n".join(f"### {md_letters(grid.caption)}\n\n{body}\n" for grid, body in zip(grids, bodies, strict=True))


def latex(grids: Sequence[Grid]) -> str:
    parts = []
    for grid in grids:
        shape = "l" + ("l" if grid.kind in ("words", "cells") else "r") * (len(grid.header) - 1)
        header, *rows = [tex_row([*map(tex_letters, line)]) for line in (grid.header, *grid.texts)]
        body = tex_grid(shape, [header, r"\midrule", *rows])
        parts.append(f"{tex_comments([f'{grid.caption}; needs booktabs'])}\n{body}\n")
    return "\n".join(parts)


def as_csv(grids: Sequence[Grid], link: str) -> str:
    """One header for all: a column that a table does not have is empty there. The first column says which it is."""
    columns = list(dict.fromkeys(column for grid in grids for column in _columns(grid)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cautious, ["table", *(name for name, _ in columns), "link"]))
    for grid in grids:
        for row in grid.texts:
            cells = dict(zip(_columns(grid), row, strict=True))
            writer.writerow([cautious(grid.caption), *(_cautious(cells.get(column, "")) for column in columns), link])
    return out.getvalue()


def _columns(grid: Grid) -> list[tuple[str, int]]:
    """Names with how many of the same are before them: a method may have the name of another column."""
    return [(name, list(grid.header[:k]).count(name)) for k, name in enumerate(grid.header)]


def _cautious(text: str) -> Any:
    """Escape text that a spreadsheet would read as a formula; signed numbers are unchanged."""
    try:
        float(text)
    except ValueError:
        return cautious(text)
    return text.strip()  # `float` takes space around it
