"""A figure in the app, drawn by `figure.js` as in the static site.

`st.plotly_chart` takes a figure off the page whenever a number in it changes, and draws the new one twice: a component
that keeps it and draws once makes a change 0.1 s shorter (docs/decisions/figures.md).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import plotly
import streamlit as st
from streamlit.components import v1

from uqharness.leaderboard.chart_frame import Figure, as_json

# Public, if in an odd place: Streamlit serves a folder's files under its component's name, here Plotly's own.
v1.declare_component("library", path=str(Path(plotly.__file__).parent / "package_data"))
LIBRARY = f"component/{__name__}.library/plotly.min.js"
JS = (
    files("uqharness.leaderboard").joinpath("figure.js").read_text(encoding="utf-8")
    + """
export default async function ({ data, parentElement }) {
  const box = parentElement.querySelector(".uq-figure"), figure = JSON.parse(data.figure);
  box.setAttribute("aria-label", data.alt);
  box.style.height = `${figure.layout.height}px`; // before the library is there, so that nothing below moves
  window.uqPlotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    [script.src, script.onload, script.onerror] = [data.library, done, failed];
    document.head.append(script);
  });
  try { await window.uqPlotly; }
  catch { box.textContent = `${data.alt}: ${data.library} could not be loaded.`; return; }
  drawFigure(box, figure, data.name, data.format);
}"""
)
CSS = """.uq-figure { width: 100%; }
.uq-figure:fullscreen { background: var(--st-background-color); color: var(--st-text-color); }"""
FORMAT = "uq.image"  # key of the widget


def figure(fig: Figure, name: str, alt: str) -> None:
    """The camera of a figure saves it; as what, the sidebar says."""
    component = st.components.v2.component(
        "uq_figure", html='<div class="uq-figure" role="figure"></div>', css=CSS, js=JS, isolate_styles=False
    )
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    component(
        key=f"figure.{name}",
        data={
            "figure": as_json(fig),
            "name": name,
            "alt": alt,
            "format": st.session_state.get(FORMAT, "SVG").lower(),
            "library": f"{base and f'/{base}'}/{LIBRARY}",
        },
    )


def image_format() -> None:
    st.sidebar.segmented_control(
        "Figures are saved as", ["SVG", "PNG"], default="SVG", key=FORMAT, help="by the camera above a figure"
    )
