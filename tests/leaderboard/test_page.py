"""The view in a link: there and back gives the same; what makes no sense falls back and is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import result

from uqharness.leaderboard.board import build, record_of
from uqharness.leaderboard.page import Page, View, as_params
from uqharness.leaderboard.results import Results

DEFAULTS = {"metric": "nll", "samples": (10,), "ranks": True, "page": 1}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(build([tmp_path_factory.mktemp("none")]))


def read(results: Results, params: dict[str, list[str]]) -> tuple[dict[str, Any], Page]:
    view = View(results, params)
    values = {
        "metric": view.one("metric", "Metric", ("nll", "brier", "acc")),
        "samples": view.several("samples", "N", (0, 1, 5, 10), (10,)),
        "ranks": view.switch("ranks", "Ranks", True),
        "page": view.number("page", "Page", 9),
    }
    return values, view.page("title", "about", [])


def values() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "metric": st.sampled_from(("nll", "brier", "acc")),
            "samples": st.lists(st.sampled_from((0, 1, 5, 10)), unique=True).map(tuple),
            "ranks": st.booleans(),
            "page": st.integers(1, 9),
        }
    )


@given(values())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_and_back_is_the_same_view_without_a_note(empty: Results, view: dict[str, Any]) -> None:
    values, page = read(empty, {name: as_params(value) for name, value in view.items()})
    assert values == view and page.notes == []


def test_without_parameters_every_control_has_its_default(empty: Results) -> None:
    values, page = read(empty, {})
    assert values == DEFAULTS and page.notes == []
    assert {control.name: control.default for control in page.controls} == DEFAULTS


@given(st.dictionaries(st.sampled_from([*DEFAULTS, "other"]), st.lists(st.text(), min_size=1)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_link_gives_a_view_that_widgets_can_show(empty: Results, params: dict[str, list[str]]) -> None:
    values, page = read(empty, params)
    for control in page.controls:
        assert type(values[control.name]) is type(DEFAULTS[control.name])
        if control.options:
            value = values[control.name]
            assert set(value if isinstance(value, tuple) else (value,)) <= set(control.options)
    assert ("other" in params) == any("does not know" in note for note in page.notes)


def test_what_is_gone_is_named_and_what_is_left_is_used(empty: Results) -> None:
    values, page = read(empty, {"samples": ["5", "f1"], "metric": ["<script>"], "page": ["-3"], "ranks": ["yes"]})
    assert values == {**DEFAULTS, "samples": (5,)}
    assert len(page.notes) == 4 and any("“f1”" in note and "N:" in note for note in page.notes)
    assert read(empty, {"ranks": ["false"]})[0] == {**DEFAULTS, "ranks": False}
    values, page = read(empty, {"samples": ["gone"]})
    assert values["samples"] == (10,) and len(page.notes) == 1
    assert len(read(empty, {"metric": ["x" * 9999]})[1].notes[0]) < 200
    assert read(empty, {"page": ["99"]})[0]["page"] == 9  # the last page


def test_a_link_made_for_other_results_says_so(empty: Results) -> None:
    own = empty.board.snapshot
    assert read(empty, {"snapshot": [own]})[1].notes == []
    assert "“old”" in read(empty, {"snapshot": ["old"]})[1].notes[0]


def test_what_is_computed_is_kept_and_the_oldest_goes_first(empty: Results, tmp_path: Path) -> None:
    results, made = Results(empty.board), list[int]()
    for k in [*range(300), 299, 0]:
        results.cached(("value", k), lambda k=k: made.append(k))
    assert made == [*range(300), 0] and len(results._values) <= 256


def test_records_are_kept_up_to_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        result(tmp_path, seed=seed)
    results = Results(build([tmp_path]))
    size, reads = results.board.record(results.runs[0].run_id).logp.nbytes, list[str]()
    monkeypatch.setattr("uqharness.leaderboard.results.MOST_BYTES", 2 * size)
    monkeypatch.setattr("uqharness.leaderboard.board.record_of", lambda run: reads.append(run.seed) or record_of(run))
    for k in (0, 1, 1, 0, 2, 1, 0):  # the third drives out the first that came
        results.record(results.runs[k].run_id)
    assert reads == [results.runs[k].seed for k in (0, 1, 2, 0)]
    monkeypatch.setattr("uqharness.leaderboard.results.MOST_BYTES", 1)
    assert results.record(results.runs[3].run_id).items == 40  # larger than all that may be kept
