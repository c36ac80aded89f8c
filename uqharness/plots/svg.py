"""Reliability diagrams as SVG text: accuracy against confidence, per bin (Guo et al. 2017, arXiv:1706.04599, Sec. 2).

Pure functions of `reliability_bins`; no plotting library, so the demo can draw where nothing else is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

SIZE, HEAD, COUNTS, GAP, LEFT, FOOT = 190, 44, 44, 34, 44, 34
INK, FAINT, PAPER = "#222222", "#c9c9c9", "#ffffff"
BAR, OVER, UNDER = "#0072b2", "#d55e00", "#e69f00"  # Okabe–Ito: told apart with any colour vision


@dataclass(frozen=True)
class Panel:
    """One method: its bins (`metrics.reliability_bins`) and the line of numbers under its name."""

    title: str
    note: str
    bins: Mapping[str, Sequence[float]]


def reliability_svg(panels: Sequence[Panel], caption: str, columns: int = 4) -> str:
    """Panels side by side; bars are accuracy, the coloured part is the gap to confidence."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    cell = (SIZE + GAP, HEAD + SIZE + COUNTS + GAP)
    width, height = LEFT + columns * cell[0], rows * cell[1] + FOOT + 14
    body = [_panel(p, LEFT + (i % columns) * cell[0], (i // columns) * cell[1]) for i, p in enumerate(panels)]
    legend = [
        _rect(LEFT, height - 26, 11, 11, BAR),
        _text(LEFT + 16, height - 16, "accuracy"),
        _rect(LEFT + 80, height - 26, 11, 11, OVER),
        _text(LEFT + 96, height - 16, "over-confident by"),
        _rect(LEFT + 208, height - 26, 11, 11, UNDER),
        _text(LEFT + 224, height - 16, "under-confident by"),
        _text(LEFT + 344, height - 16, caption, FAINT_TEXT),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img" aria-label="{escape(caption)}">\n'
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>\n' + "\n".join([*body, *legend]) + "\n</svg>\n"
    )


FAINT_TEXT = "#767676"


def _panel(panel: Panel, x: float, y: float) -> str:
    top = y + HEAD
    parts = [
        _text(x, y + 20, panel.title, INK, 14, "bold"),
        _text(x, y + 36, panel.note, FAINT_TEXT, 11),
        f'<rect x="{x}" y="{top}" width="{SIZE}" height="{SIZE}" fill="none" stroke="{FAINT}"/>',
    ]
    parts += [_bar(panel.bins, k, x, top) for k in range(len(panel.bins["count"]))]
    parts.append(f'<line x1="{x}" y1="{top + SIZE}" x2="{x + SIZE}" y2="{top}" stroke="{INK}" stroke-dasharray="4 3"/>')
    for tick in (0, 0.5, 1):
        parts.append(_text(x - 5, top + SIZE - tick * SIZE + 4, f"{tick:g}", FAINT_TEXT, 10, anchor="end"))
        parts.append(_text(x + tick * SIZE, top + SIZE + COUNTS + 14, f"{tick:g}", FAINT_TEXT, 10, anchor="middle"))
    parts.append(_text(x + SIZE / 2, top + SIZE + COUNTS + 26, "confidence", FAINT_TEXT, 10, anchor="middle"))
    return "\n".join(parts)


def _bar(bins: Mapping[str, Sequence[float]], k: int, x: float, top: float) -> str:
    """Accuracy, the gap to the mean confidence, and below the axis how many items the bin has."""
    count = bins["count"][k]
    if not count:
        return ""
    lo, hi, acc, conf = (float(bins[name][k]) for name in ("lo", "hi", "accuracy", "confidence"))
    left, width = x + lo * SIZE + 0.5, max((hi - lo) * SIZE - 1, 0.5)
    share = count / max(bins["count"])
    low, high = sorted((acc, conf))
    return "".join(
        [
            _rect(left, top + SIZE * (1 - acc), width, SIZE * acc, BAR, 0.75),
            _rect(left, top + SIZE * (1 - high), width, SIZE * (high - low), OVER if conf > acc else UNDER, 0.7),
            _rect(left, top + SIZE + 4, width, (COUNTS - 8) * share, FAINT),
        ]
    )


def _rect(x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0) -> str:
    see = f' fill-opacity="{opacity}"' if opacity < 1 else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{see}/>'


def _text(
    x: float, y: float, words: str, fill: str = INK, size: int = 11, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
