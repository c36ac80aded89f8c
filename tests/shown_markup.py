"""What a page of the app puts on the screen, without a browser."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest


def html_of(app: AppTest) -> str:
    """Tables and cards, then what `st.html` shows."""
    parts = [each.proto for each in app.get("bidi_component")]
    shown = [json.loads(part.json) for part in parts if part.component_name == "uq_markup"]
    return "\n".join([*shown, *(str(each.proto.body) for each in app.get("html"))])
