"""The frame of a static page, and the parts that only the static site has. Pure; every text of a result is escaped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from html import escape, unescape

from uqharness.leaderboard import item_html, table_html
from uqharness.leaderboard.chart_frame import Figure, as_json
from uqharness.leaderboard.theme import OTHERS, PAPERS

PAGES = {
    "index": "Table",
    "reported": "Reported in papers",
    "calibration": "Calibration",
    "uncertainty": "Uncertainty",
    "draws": "Draws",
    "cost": "Cost",
    "methods": "Methods",
    "problems": "Problems",
}
MARK = " · uqharness leaderboard</title>"  # by it a page is known as ours


def page(name: str, title: str, about: str, parts: Sequence[str], footer: str) -> str:
    """A whole document; `name` is its file without .html."""
    links = "".join(
        f'<a href="{file}.html"{" aria-current=page" if file == name else ""}>{escape(label)}</a>'
        for file, label in PAGES.items()
    )
    drawn = any('class="figure"' in part for part in parts)
    plot = '<script src="plotly.min.js"></script><script src="figure.js"></script>' if drawn else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}{MARK}<link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="site.css">{table_html.CSS}{item_html.CSS}</head><body>'
        f'<a class="skip" href="#main">To the content</a><nav aria-label="Pages">{links}</nav><main id="main">'
        f'<h1>{escape(title)}</h1><p class="about">{escape(about)}</p>{"".join(parts)}</main>'
        f'<footer>{escape(footer)}</footer>{plot}<script src="site.js"></script></body></html>\n'
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    return f'<pre class="code" tabindex="0">{escape(text)}</pre>'


def links(pairs: Sequence[tuple[str, str]]) -> str:
    return '<p class="take">' + "".join(f'<a href="{escape(to)}">{escape(text)}</a>' for text, to in pairs) + "</p>"


def searchable(name: str, inner: str) -> str:
    """A table with a field above it that leaves only the rows with all its words."""
    return (
        f'<div class="find"><label>Search <input class="search" type="search" data-for="{name}"></label>'
        f'<span id="{name}-count" role="status"></span></div><div id="{name}">{inner}</div>'
    )


def figure(fig: Figure, name: str, alt: str) -> str:
    """Drawn by the page's script; the colours of texts are the page's. One without data is its sentence."""
    if not fig["data"] and fig["layout"].get("annotations"):
        return paragraph(unescape(fig["layout"]["annotations"][0]["text"]))
    text = as_json(fig).replace("<", "\\u003c")  # a name cannot end the script
    height = fig["layout"]["height"]
    return (
        f'<div class="figure" id="{name}" role="img" aria-label="{escape(alt)}" style="height:{height}px">'
        f'<script type="application/json">{text}</script></div>'
    )


def file_of(kind: str, name: str) -> str:
    """A file name for a method: readable where that is safe; two methods never share one, whatever the file system."""
    if name in {**PAPERS, **OTHERS}:
        return f"{kind}-{name.lower()}.html"
    readable = f"{name.lower()}-" if re.fullmatch(r"[A-Za-z0-9-]{1,40}", name) else ""
    return f"{kind}-{readable}{hashlib.sha256(name.encode()).hexdigest()[:12]}.html"
