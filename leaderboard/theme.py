"""One fixed look per method: a colour, a marker and a dash, the same on every page and in the static site.

All colours reach a contrast of 3:1 on both white and the dark background (WCAG 2.1, 1.4.11). Those of the papers'
methods stay apart in OKLab by at least 0.07 under simulated protanopia, deuteranopia and tritanopia (Machado et al.
2009); no fifteen colours could, so markers differ as well.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

LIGHT, DARK = "#ffffff", "#0e1117"  # the backgrounds, as in .streamlit/config.toml
NEUTRAL = "#808495"  # lines and texts of a figure that must be seen on both
GRID = "rgba(128, 132, 149, 0.22)"

PAPERS = {
    "MLE": "#7f7f7f",
    "MAP": "#1e6987",
    "MCD": "#c32db4",
    "ENS": "#e1781e",
    "BBB": "#a587d2",
    "LAP": "#d23c00",
    "BLoB": "#1f7ae0",
    "Me-LoRA": "#a53c5a",
}
OTHERS = {
    "TS": "#3ca587",
    "TFB": "#4b7800",
    "SWAG": "#c30f87",
    "ScalaBL": "#7887ff",
    "oracle": "#8a7350",
    "zero-shot": "#5a874b",
}
KNOWN = {**PAPERS, **OTHERS}
SPARE = ("#c35aa5", "#1e5af0", "#969669", "#2d7869", "#b4692d", "#875a96")
SYMBOLS = "circle square diamond triangle-up triangle-down cross x star pentagon hexagon".split()
SYMBOLS += "triangle-left triangle-right hourglass bowtie".split()
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Style:
    colour: str
    symbol: str
    dash: str


def style(row: str) -> Style:
    """The look of a table's row: its method's colour; a variant, `BLoB (eps=0.1)`, differs in marker and dash."""
    method, _, variant = row.partition(" (")
    if row.endswith("(zero-shot)") or method == "zero-shot":
        method, variant = "zero-shot", ""
    if "oracle" in method.lower():
        method, variant = "oracle", ""
    shift = zlib.crc32(variant.encode()) if variant else 0
    if method in KNOWN:
        place = list(KNOWN).index(method)
        return Style(KNOWN[method], SYMBOLS[(place + shift) % len(SYMBOLS)], DASHES[shift % len(DASHES)])
    code = zlib.crc32(method.encode())
    return Style(SPARE[code % len(SPARE)], SYMBOLS[(code + shift) % len(SYMBOLS)], DASHES[(code + shift) % len(DASHES)])


def order(row: str) -> tuple[int, str]:
    """Where a row stands among others: those of the papers first, in their order."""
    method = row.partition(" (")[0]
    return (list(KNOWN).index(method) if method in KNOWN else len(KNOWN)), row


def soft(colour: str, opacity: float) -> str:
    """The colour as rgba text: for bands and bars."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
