"""The leaderboard: `uqharness leaderboard RESULTS…` runs this file with Streamlit.

One thin page per file in `pages/`; what they show is computed by pure modules beside this one.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

PAGES = {
    "table": ("Table", ":material/table_chart:"),
    "calibration": ("Calibration", ":material/balance:"),
    "uncertainty": ("Uncertainty", ":material/blur_on:"),
    "draws": ("Draws", ":material/casino:"),
    "cost": ("Cost", ":material/speed:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "items": ("Items", ":material/quiz:"),
    "method": ("Method", ":material/function:"),
    "run": ("Run", ":material/article:"),
    "problems": ("Submit", ":material/rule:"),
}

st.set_page_config("uqharness leaderboard", page_icon=":material/leaderboard:", layout="wide")
folder = Path(__file__).parent / "pages"
pages = [
    st.Page(folder / f"{name}.py", title=title, url_path="" if name == "table" else name, default=name == "table")
    for name, (title, icon) in PAGES.items()
    if (folder / f"{name}.py").exists()
]
st.navigation(pages, position="top").run()
