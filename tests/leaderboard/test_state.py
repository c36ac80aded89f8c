"""The view in the URL: there and back gives the same; what makes no sense falls back and is said."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uqharness.leaderboard.state import Field, read, stale, write

FIELDS = [
    Field("metric", ("nll", "acc"), ("nll", "brier", "acc", "ece"), "Metric"),
    Field("samples", (10,), (0, 1, 5, 10), "N"),
    Field("layout", "papers", ("papers", "flat")),
    Field("ranks", True),
    Field("page", 1),
    Field("find", ""),
]
DEFAULTS = {field.name: field.default for field in FIELDS}


def values() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "metric": st.lists(st.sampled_from(FIELDS[0].options), unique=True).map(tuple),
            "samples": st.lists(st.sampled_from(FIELDS[1].options), unique=True).map(tuple),
            "layout": st.sampled_from(FIELDS[2].options),
            "ranks": st.booleans(),
            "page": st.integers(0, 10**9 - 1),
            "find": st.text(),
        }
    )


@given(values())
def test_there_and_back_is_the_same_view_without_a_note(view: dict[str, Any]) -> None:
    assert read(FIELDS, write(FIELDS, view)) == (view, [])


def test_the_default_view_has_a_clean_url() -> None:
    assert write(FIELDS, DEFAULTS) == {}
    assert read(FIELDS, {}) == (DEFAULTS, [])


@given(st.dictionaries(st.sampled_from([*DEFAULTS, "other"]), st.lists(st.text(), min_size=1)))
def test_any_link_gives_a_view_that_widgets_can_show(params: dict[str, list[str]]) -> None:
    view, notes = read(FIELDS, params)
    for field in FIELDS:
        value = view[field.name]
        assert type(value) is type(field.default)
        if field.options:
            assert set(value if isinstance(value, tuple) else (value,)) <= set(field.options)
    assert ("other" in params) == any("does not know" in note for note in notes)


def test_what_is_gone_is_named_and_what_is_left_is_used() -> None:
    view, notes = read(FIELDS, {"metric": ["acc", "f1"], "layout": ["<script>"], "page": ["-3"], "ranks": ["yes"]})
    assert view == {**DEFAULTS, "metric": ("acc",)}
    assert len(notes) == 4 and "“f1”" in notes[0] and "Metric" in notes[0]
    assert read(FIELDS, {"ranks": ["false"]}) == ({**DEFAULTS, "ranks": False}, [])
    view, notes = read(FIELDS, {"metric": ["gone"]})
    assert view["metric"] == ("nll", "acc") and len(notes) == 1
    assert len(read(FIELDS, {"layout": ["x" * 9999]})[1][0]) < 200


def test_a_link_made_for_other_results_says_so() -> None:
    assert stale("abc", {}) == stale("abc", {"snapshot": ["abc"]}) == []
    assert "“old”" in stale("abc", {"snapshot": ["old"]})[0]
