"""Lines, points and bars as data, drawn by matplotlib for a paper; and the file that holds the figure.

Figures are made without pyplot, so nothing is shared between two of them, and the same data give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness.atomic import write_atomic
from uqharness.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg", ".html")
# Okabe & Ito 2008: told apart by colour-blind readers; a second round of them is dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "svg.hashsalt": "uqharness",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # names come from strangers
}


@dataclass(frozen=True)
class Line:
    """Values of one method: a line, or points where `joined` is false; `low` and `high` are its band or bars."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    x_low: Sequence[float] | None = None
    x_high: Sequence[float] | None = None
    joined: bool = True
    hollow: bool = False
    flat: bool = False  # one value, whatever x: across the panel


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()  # vertical lines and their names
    diagonal: bool = False
    from_zero: bool = False
    ticks: Sequence[str] = ()  # names of x = 0, 1 …
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Panels in rows of `columns`, and one legend of all labels."""

    panels: Sequence[Panel]
    columns: int
    labels: Sequence[str] = field(default_factory=tuple)  # in the order of the legend; default: as they come


def draw(chart: Chart) -> Figure:
    """The chart as a figure of matplotlib."""
    labels = list(dict.fromkeys([*chart.labels, *(line.label for p in chart.panels for line in p.lines)]))
    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    with style():
        fig, grid = blank(rows, columns, 3.2 if columns == 1 else 2.2)
        for axes in grid[len(chart.panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid, chart.panels, strict=False):
            for line in panel.lines:
                _line(axes, line, labels.index(line.label))
            _frame(axes, panel)
        if not any(panel.ticks for panel in chart.panels) and any(len(panel.lines) > 1 for panel in chart.panels):
            legend(fig, grid, labels)  # else the ticks or the titles have the names
    return fig


def blank(rows: int, columns: int, width: float = 2.2, height: float = 1.8) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row; within `style`."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width * columns + 0.3, height * rows + 0.3), layout="constrained")
    return fig, list(fig.subplots(rows, columns, squeeze=False).ravel())


def style() -> Any:
    """matplotlib's settings within; the one place that says when it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install uqharness[plot]") from error
    return matplotlib.rc_context(STYLE)


def look(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the n-th label."""
    again = place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[(place + again) % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[again % 4],
    }


def legend(fig: Figure, grid: Iterable[Axes], labels: Sequence[str]) -> None:
    """Below all panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    known = [name for label in labels if (name := shown(label)) in handles]
    if len(known) > 1:
        texts = [textwrap.fill(name, 44) for name in known]
        widest = max(len(line) for text in texts for line in text.split("\n"))
        across = max(1, min(len(known), int(fig.get_figwidth() / (0.5 + 0.06 * widest))))
        lines = math.ceil(sum(text.count("\n") + 1 for text in texts) / across)
        fig.set_size_inches(fig.get_figwidth(), fig.get_figheight() + 0.15 * (lines - 1))
        fig.legend([handles[k] for k in known], texts, loc="outside lower center", ncols=across, frameon=False)


def shown(label: str) -> str:
    """matplotlib hides labels that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _frame(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    title = "\n".join(part for line in panel.title.split("\n") for part in textwrap.wrap(line, 30))
    axes.set(title=title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=60 if max(map(len, panel.ticks)) > 5 else 0)
        axes.set_xlim(-0.5, len(panel.ticks) - 0.5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=not panel.diagonal))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 1e4 else f"{x:g}"))
    if panel.from_zero:
        axes.set_ylim(0, 1.3 * axes.dataLim.y1)
        for line in panel.lines:
            for x, y in zip(line.x, line.y, strict=True):
                where: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
                where["rotation"] = 90 if len(panel.ticks) > 6 else 0
                axes.annotate(f"{y:.3g}", (x, max(line.high or [y])), fontsize=5, **where)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for x, name in panel.marks:
        axes.axvline(x, color="0.4", linestyle="--", linewidth=0.8, zorder=0)
        beside: dict[str, Any] = {
            "xytext": (2, 0),
            "textcoords": "offset points",
            "rotation": 90,
            "ha": "left",
            "va": "center",
        }
        axes.annotate(name, (x, 0.5), xycoords=("data", "axes fraction"), fontsize=6, color="0.3", **beside)
    if panel.note:
        axes.annotate(panel.note, (0.04, 0.98), xycoords="axes fraction", fontsize=6, ha="left", va="top")


def _line(axes: Axes, line: Line, place: int) -> None:
    given = {**look(place), "label": shown(line.label)}
    if line.flat:
        axes.axhline(line.y[0], color=given["color"], linestyle=":", linewidth=1, label=given["label"], zorder=1)
        return
    if line.hollow:
        given |= {"markerfacecolor": "white", "label": "_"}
    if not line.joined:
        given["linestyle"] = "none"
        bars: dict[str, Any] = {}
        for axis, middle, low, high in (("y", line.y, line.low, line.high), ("x", line.x, line.x_low, line.x_high)):
            if low is not None and high is not None:
                ends = [(m - a, b - m) for m, a, b in zip(middle, low, high, strict=True)]
                bars[f"{axis}err"] = [[max(e[0], 0.0) for e in ends], [max(e[1], 0.0) for e in ends]]
        axes.errorbar(line.x, line.y, **bars, **given, elinewidth=0.7)
        return
    if len(line.x) > 30:
        given["marker"] = ""
    axes.plot(line.x, line.y, **given)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=given["color"], alpha=0.15, linewidth=0)


# ---------------------------------------------------------------- the file


def kind_of(out: Path) -> str:
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {out}: a figure is {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, by its name's end")
    return out.suffix.lower()[1:]


def rendered(fig: Figure, kind: str) -> bytes:
    """The figure's bytes: png, pdf, svg, or an html page that holds the svg."""
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    held = io.BytesIO()
    with style():
        fig.savefig(
            held, format="svg" if kind == "html" else kind, dpi=130, metadata=metadata.get(kind, {"Date": None})
        )
    if kind != "html":
        return held.getvalue()
    svg = re.sub(r"^.*?(?=<svg)", "", held.getvalue().decode(), flags=re.DOTALL)
    title = html.escape(fig.axes[0].get_title() if fig.axes else "figure")
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n<body>\n{svg}</body></html>\n'
    )
    return page.encode()


def save(fig: Figure, out: Path) -> None:
    """Write the figure: the whole file, or none."""
    write_atomic(out, rendered(fig, kind_of(out)))
