"""The app without a browser: every page runs, a widget's choice is in the URL, and texts of files are letters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from uqharness.leaderboard import app
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import Grid

EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize("name", PAGES)
def test_every_page_runs_and_its_default_view_has_a_clean_url(shown: Any, name: str) -> None:
    at = shown.open(name)
    assert len(at.title) == 1 and shown.params == {} and "<script" not in shown.html
    assert not at.info or name in ("cost", "submit")


def test_a_choice_stands_in_the_url_and_the_default_does_not(shown: Any) -> None:
    at = shown.open("table")
    (control,) = [w for w in at.get("button_group") if w.label == "Metric of the tables"]
    control.set_value("acc").run()
    assert shown.params == {"metric": ["acc"]} and "ACC" in shown.html
    at.multiselect(key="table.method").set_value(["MLE"]).run()
    assert shown.params == {"metric": ["acc"], "method": ["MLE"]}
    at.multiselect(key="table.method").set_value([]).run()
    assert shown.params == {"metric": ["acc"]}
    again = shown.open("table", metric="acc", method=["MLE"], samples="")
    assert again.multiselect(key="table.method").value == ["MLE"]


def test_nonsense_in_a_link_is_said_and_left_out(shown: Any) -> None:
    at = shown.open("table", metric="f1", other="1", snapshot="0000")
    notes = " ".join(note.value for note in at.info)
    for part in ("f1", "other", "0000", "numbers may differ"):
        assert part in notes


def test_ranks_come_in_the_second_round(shown: Any) -> None:
    shown.open("table")
    assert "testing …" not in shown.html and 'class="rank top"' in shown.html


def test_a_page_is_made_once_for_its_parameters_and_again_where_ranks_were_pending(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool]] = []
    finish = app.finish

    def counted(shared: Any, name: str, params: Any) -> Any:
        page, complete = finish(shared, name, params)
        made.append((name, complete))
        return page, complete

    app._results.clear()
    monkeypatch.setattr(app, "finish", counted)
    shown.open("table", metric="brier")
    first = shown.html
    shown.open("table", metric="brier")
    assert made == [("table", False), ("table", True)] and shown.html == first and "testing …" not in first
    shown.open("table", metric="brier", method="MLE")
    assert len(made) > 2 and shown.html != first


def test_texts_of_links_and_files_are_letters(shown: Any) -> None:
    at = shown.open("calibration", data="![x](http://e)<b>")
    assert r"\!\[x\]\(http\:\/\/e" in at.info[0].value.replace("/", r"\/") and "<b>" not in at.info[0].value


def test_a_long_table_is_a_data_frame_with_numbers_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(app.st, "dataframe", lambda frame, **more: seen.update(frame=frame, **more))
    monkeypatch.setattr(app.st, "caption", lambda text: None)
    rows = [[EVIL, f"{k}.5", "–" if k else "1,000", "0.5 ± 0.1", (f"{k:016x}", f"run?run={k:016x}")] for k in range(60)]
    app.drawing(Grid(["Method", "NLL", "Cost", "ACC", "Run"], rows, "all", sortable=True))("x")
    frame = seen["frame"]
    assert frame["NLL"].tolist()[:2] == [0.5, 1.5] and frame["Cost"][0] == 1000 and frame["ACC"][0] == "0.5 ± 0.1"
    assert frame["Run"][1] == f"run?run={1:016x}" and seen["column_config"]["Method"]["pinned"]
    assert seen["column_config"]["Run"]["type_config"]["type"] == "link"
    json.dumps(frame.to_dict())


def test_a_page_is_left_and_found_as_it_was(shown: Any) -> None:
    at = shown.open("draws", metric="acc")
    assert at.session_state[app.LEFT]["draws"] == {"metric": ["acc"]}
    at.query_params.clear()
    at.session_state["uq.page"] = "cost"  # another page was open meanwhile
    shown.run()
    assert shown.params == {"metric": ["acc"]}
