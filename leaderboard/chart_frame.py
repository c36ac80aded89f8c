"""The frame that all figures share: transparent, quiet grid, legend above; panels below each other. Pure.

Nothing here sets the colour of a text or of the paper: a figure takes the light or dark theme of its page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from uqharness.leaderboard.theme import GRID, NEUTRAL

Trace = dict[str, Any]
ABOVE_TITLES = {"margin_t": 58, "legend_yref": "container", "legend_y": 1, "legend_yanchor": "top"}
CLEAR = "rgba(0, 0, 0, 0)"


def laid_out(fig: go.Figure, height: int, legend: bool = True, names: bool = False) -> go.Figure:
    """The frame that all figures share: transparent, legend below the title line, quiet grid.

    `names`: an axis has names of any length; to measure them takes Plotly a second round of drawing.
    """
    fig.update_layout(
        template="none", height=height, margin={"l": 56, "r": 14, "t": 34, "b": 46},
        paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        bargap=0, hoverlabel={"namelength": -1}, modebar={"bgcolor": CLEAR, "color": NEUTRAL, "activecolor": "#1f7ae0"},
    )  # fmt: skip
    fig.update_xaxes(gridcolor=GRID, zeroline=False, automargin=names)
    fig.update_yaxes(gridcolor=GRID, zeroline=False, automargin=names)
    return fig


def empty(why: str) -> go.Figure:
    """A figure that says why there is nothing in it."""
    fig = laid_out(go.Figure(), 160, legend=False)
    fig.add_annotation(text=plain(why), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)


@lru_cache(maxsize=64)
def stacked(rows: int, spacing: float, heights: tuple[float, ...] = (), titles: tuple[str, ...] = ()) -> str:
    """Panels below each other that share their x axis, as JSON: made once, since Plotly takes long for them."""
    return str(laid_out(make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=spacing, row_heights=list(heights) or None,
        subplot_titles=titles or None,
    ), 100).to_json())  # fmt: skip


def in_panels(
    frame: str, height: int, traces: Sequence[Trace], axes: Mapping[str, Mapping[str, Any]], legend: bool = True
) -> go.Figure:
    """Traces say their axes; `axes`: what else these axes are.

    Plotly does not look at every property of every point here: that is half of a page's time. The tests let it.
    """
    layout = json.loads(frame)["layout"]
    for name, more in axes.items():
        layout[name] |= more
    layout |= {"height": height, "showlegend": legend}
    return go.Figure({"data": list(traces), "layout": layout}, _validate=False)


def between(rows: int, most: float) -> float:
    """Space between rows of panels, as a share of the height: less where there are many."""
    return min(most, 0.3 / rows)


def plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names of results are letters, not markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
