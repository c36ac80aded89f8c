"""The view that is shown, as text to take away: CSV, Markdown, LaTeX (booktabs) or JSON, with caption and link.

The tables are those on the screen, in their order; `table_formats` writes them, as for `uqharness table`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from html import escape

from uqharness.leaderboard.table import Table
from uqharness.leaderboard.table_formats import FORMATS

KINDS = {"CSV": ("csv", "text/csv"), "Markdown": ("md", "text/markdown"), "LaTeX": ("tex", "text/x-tex"),
         "JSON": ("json", "application/json")}  # fmt: skip


def text(kind: str, tables: Sequence[Table], caption: str, link: str) -> str:
    """CSV has no place for a caption: the link is its last column."""
    if kind == "CSV":
        head, *rows = csv.reader(io.StringIO(FORMATS["csv"](tables)))
        csv.writer(out := io.StringIO(), lineterminator="\n").writerows([[*head, "link"], *([*r, link] for r in rows)])
        return out.getvalue()
    if kind == "JSON":
        told = {"caption": caption, "link": link, **json.loads(FORMATS["json"](tables))}
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    caption = " ".join(caption.split())
    if kind == "LaTeX":
        return f"% {caption}\n% {link}\n\n{FORMATS['latex'](tables)}"
    letters = escape(caption, quote=False).replace("[", r"\[")  # it names methods: no tag, link or image
    return f"{letters}\n\n<{link}>\n\n{FORMATS['md'](tables)}"
