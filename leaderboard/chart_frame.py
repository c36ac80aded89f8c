"""The frame that all figures share: transparent, quiet grid, legend above; panels below each other. Pure.

A figure is a plain dict of what plotly.js draws. Plotly's Python objects look at every property of every point, which
took half of a page's time; the tests let them. Nothing here sets the colour of a text or of the paper: a figure takes
the light or dark theme of its page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import plotly.io as pio
from plotly.subplots import make_subplots

from uqharness.leaderboard.theme import GRID, NEUTRAL

Trace = dict[str, Any]
Axes = dict[str, dict[str, Any]]  # plotly.js's names of axes, and what they are
Figure = dict[str, Any]  # {"data": traces, "layout": …}
CLEAR = "rgba(0, 0, 0, 0)"


@lru_cache(maxsize=64)
def stacked(
    rows: int = 1, spacing: float = 0.0, heights: tuple[float, ...] = (), titles: tuple[str, ...] = (), columns: int = 1
) -> str:
    """The layout of panels that share their axes, as JSON: made once, since Plotly takes long for it."""
    fig = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes=True if columns == 1 else "all",
        shared_yaxes=False if columns == 1 else "all",
        vertical_spacing=spacing,
        horizontal_spacing=0.06 if columns > 1 else None,
        row_heights=list(heights) or None,
        subplot_titles=titles or None,
    )
    fig.update_layout(
        template="none",
        margin={"l": 56, "r": 14, "t": 34, "b": 46},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        bargap=0,
        hoverlabel={"namelength": -1},
        modebar={"bgcolor": CLEAR, "color": NEUTRAL, "activecolor": "#1f7ae0"},
    )
    fig.update_xaxes(gridcolor=GRID, zeroline=False, automargin=False)
    fig.update_yaxes(gridcolor=GRID, zeroline=False, automargin=False)
    return json.dumps(fig.to_plotly_json()["layout"])


def framed(
    frame: str,
    height: int,
    traces: Sequence[Trace],
    axes: Axes,
    legend: bool = True,
    titles: bool = False,
    **more: Any,
) -> Figure:
    """Traces say their axes; `axes`: what else these axes are; `titles`: panels have them, below the legend.

    An axis with names of any length needs `automargin`; to measure them takes Plotly a second round of drawing.
    """
    layout = json.loads(frame)
    for name, of_axis in axes.items():
        layout[name] |= of_axis
    if titles:
        layout["margin"]["t"] = 58
        layout["legend"] |= {"yref": "container", "y": 1, "yanchor": "top"}
    return {"data": list(traces), "layout": {**layout, "height": height, "showlegend": legend, **more}}


def empty(why: str) -> Figure:
    """A figure that says why there is nothing in it."""
    told = {"text": plain(why), "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    unseen = {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return framed(stacked(), 160, [], unseen, legend=False, annotations=[told])


def as_json(figure: Figure) -> str:
    return str(pio.to_json(figure, validate=False))


def nth(k: int) -> str:
    """What Plotly calls the k-th axis after "x" or "xaxis": nothing for the first."""
    return "" if k == 1 else str(k)


def between(rows: int, most: float) -> float:
    """Space between rows of panels, as a share of the height: less where there are many."""
    return min(most, 0.3 / rows)


def plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names of results are letters, not markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
