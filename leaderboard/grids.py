"""A table of texts that a page shows, and the same as CSV, Markdown, LaTeX (booktabs) and JSON.

`table_formats` does this for methods x data sets; here it is for every other table, and for what a figure draws. The
texts are those on the screen, so they are rounded as there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from uqharness.leaderboard.table_formats import cautious, md_letters, tex_letters

Cell = str | tuple[str, str]  # a text, or (text, address)


class Grid(NamedTuple):
    """What `table_html.grid` shows."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    kind: str = "methods"

    @property
    def texts(self) -> list[list[str]]:
        """Without the addresses, which are the app's."""
        return [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in self.rows]


def markdown(grids: Sequence[Grid]) -> str:
    parts = []
    for grid in grids:
        lines = [list(grid.header), ["---"] * len(grid.header), *grid.texts]
        body = "\n".join("| " + " | ".join(map(md_letters, line)) + " |" for line in lines)
        parts.append(f"### {md_letters(grid.caption)}\n\n{body}\n")
    return "\n".join(parts)


def latex(grids: Sequence[Grid]) -> str:
    parts = []
    for grid in grids:
        body = [" & ".join(tex_letters(text) for text in line) + r" \\" for line in (grid.header, *grid.texts)]
        body.insert(1, r"\midrule")
        shape = "l" + ("l" if grid.kind == "words" else "r") * (len(grid.header) - 1)
        lines = [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
        parts.append(f"% {' '.join(grid.caption.split())}; needs booktabs\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def as_csv(grids: Sequence[Grid], link: str) -> str:
    """One header for all: a column that a table does not have is empty there. The first column says which it is."""
    columns = list(dict.fromkeys(column for grid in grids for column in _columns(grid)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(cautious, ["table", *(name for name, _ in columns), "link"]))
    for grid in grids:
        for row in grid.texts:
            told = dict(zip(_columns(grid), row, strict=True))
            writer.writerow([cautious(grid.caption), *(_cautious(told.get(column, "")) for column in columns), link])
    return out.getvalue()


def _columns(grid: Grid) -> list[tuple[str, int]]:
    """Names with how many of the same are before them: a method may have the name of another column."""
    return [(name, list(grid.header[:k]).count(name)) for k, name in enumerate(grid.header)]


def _cautious(text: str) -> Any:
    """A number with its sign is no formula."""
    try:
        float(text)
    except ValueError:
        return cautious(text)
    return text.strip()  # `float` takes space around it


def plain(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{"caption": grid.caption, "header": list(grid.header), "rows": grid.texts} for grid in grids]


FORMATS: dict[str, Callable[[Sequence[Grid]], str]] = {"md": markdown, "latex": latex}
