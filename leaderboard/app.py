"""The leaderboard: `uqharness leaderboard RESULTS…` runs this file with Streamlit.

One thin page per file in `app_pages/` (Streamlit would run the files of a folder `pages/` by itself, past this one);
what they show is computed by pure modules beside this one.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from uqharness.leaderboard import item_html, markup_view, shell, table_html

PAGES = {
    "table": "Table",
    "calibration": "Calibration",
    "uncertainty": "Uncertainty",
    "draws": "Draws",
    "cost": "Cost",
    "compare": "Compare",
    "items": "Items",
    "method": "Method",
    "run": "Run",
    "problems": "Submit",
}

here = Path(__file__).parent
# A file of ours: an icon by name or an emoji would be fetched from another host.
st.set_page_config("uqharness leaderboard", page_icon=str(here / "icon.svg"), layout="wide")
shell.look()
# Once: repeated with every table, each change would style the whole page anew.
st.html(table_html.CSS + item_html.CSS + markup_view.CSS)
folder = here / "app_pages"
pages = [
    st.Page(folder / f"{name}.py", title=title, url_path="" if name == "table" else name, default=name == "table")
    for name, title in PAGES.items()
    if (folder / f"{name}.py").exists()
]
st.navigation(pages, position="top").run()
