"""One page's view: in the URL, in its widgets, and as it was left. What a link means, `state` knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from uqharness.leaderboard import state


class View:
    """One page's values: from the URL when it is opened or changed, from the widgets otherwise.

    `key(name)` is the widget's key; `done()` after the last widget gives the values and puts them into the URL.
    """

    def __init__(self, page: str, fields: Sequence[state.Field], snapshot: str) -> None:
        self.page, self.fields, self.snapshot = page, fields, snapshot
        params = {name: st.query_params.get_all(name) for name in st.query_params}
        last, saved = st.session_state.get("uq.url"), st.session_state.get(f"uq.view.{page}")
        self.notes: list[str] = []
        here = last is not None and last[0] == page
        if last != (page, params) and not self._touched(saved) and (params or here or saved is None):
            values, self.notes = state.read(fields, params)
            self.notes += state.stale(snapshot, params)
        elif here and saved is not None:
            values = self._checked(self._widgets(saved))
        else:  # back from another page: as it was left
            values = self._checked(saved or {})
        for name, value in values.items():
            wanted = list(value) if isinstance(value, tuple) else value
            if st.session_state.get(self.key(name)) != wanted or self.key(name) not in st.session_state:
                st.session_state[self.key(name)] = wanted

    def key(self, name: str) -> str:
        return f"{self.page}.{name}"

    def options(self, name: str) -> list[Any]:
        return list(next(field.options or () for field in self.fields if field.name == name))

    def values(self) -> dict[str, Any]:
        return self._widgets({})

    def done(self) -> dict[str, Any]:
        values = self.values()
        params = state.write(self.fields, values)
        st.session_state[f"uq.view.{self.page}"] = values
        st.session_state["uq.url"] = (self.page, params)
        if {name: st.query_params.get_all(name) for name in st.query_params} != params:
            st.query_params.from_dict(params)
        return values

    def link(self) -> str:
        """The address of what is shown, with the results it was made for."""
        params = state.write(self.fields, self.values())
        return f"{st.context.url or ''}?{urlencode({**params, state.SNAPSHOT: self.snapshot}, doseq=True)}"

    def set(self, values: Mapping[str, Any]) -> None:
        """For callbacks: other values from the next run on."""
        for name, value in values.items():
            st.session_state[self.key(name)] = list(value) if isinstance(value, tuple) else value

    def _widgets(self, otherwise: Mapping[str, Any]) -> dict[str, Any]:
        out = {}
        for field in self.fields:
            value = st.session_state.get(self.key(field.name), otherwise.get(field.name, field.default))
            if value is None:  # a segmented control that was switched off
                value = field.default
            out[field.name] = tuple(value) if isinstance(field.default, tuple) else value
        return out

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return state.read(self.fields, state.write(self.fields, values))[0]

    def _touched(self, saved: Mapping[str, Any] | None) -> bool:
        """Whether a widget was used since the last run: then it counts, and not the URL that it left behind."""
        return saved is not None and self._widgets(saved) != dict(saved)
