"""Tables and cards in the app: the same markup as in the static site, put on the page as it is.

`st.html` walks through every element in JavaScript, 60 to 175 ms of a change where a table is large; the browser's own
sanitizer does it while it reads (docs/decisions/figures.md). The markup is ours, and every text in it escaped: this is
the second lock.
"""

from __future__ import annotations

import streamlit as st

# A layer of its own: else any change of the page paints every table anew, 0.05 to 0.1 s a click.
CSS = "<style>.uq-markup { will-change: transform; }</style>"
JS = """export default function ({ data, parentElement }) {
  const box = parentElement.querySelector(".uq-markup");
  if (box.setHTML) box.setHTML(data, { sanitizer: {} }); // all but what could run
  else box.innerHTML = data;
}"""


def markup(text: str, name: str) -> None:
    """`name`: another one for each on a page."""
    component = st.components.v2.component(
        "uq_markup", html='<div class="uq-markup"></div>', js=JS, isolate_styles=False
    )
    component(key=f"markup.{name}", data=text)
