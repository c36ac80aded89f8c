"""Pages of figures: each draws, keeps its view in the URL, and says where there is nothing to draw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_results import result

from uqharness.leaderboard import publish

PAGES = ("calibration", "uncertainty", "draws", "cost")


def figures(app: Any) -> list[dict[str, Any]]:
    told = [json.loads(element.proto.json) for element in app.at.get("bidi_component")]  # tables are texts
    return [json.loads(data["figure"]) for data in told if isinstance(data, dict) and "figure" in data]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_and_its_default_view_has_a_clean_url(app: Any, page: str) -> None:
    app.open(page)
    assert len(figures(app)) == 1 and app.params == {}
    assert "<script>" not in json.dumps(figures(app))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_that_there_is_nothing(page: str, monkeypatch: pytest.MonkeyPatch, empty_app: Any) -> None:
    monkeypatch.setattr(publish, "shipped", list)
    at = empty_app.open(page)
    assert not figures(empty_app) and "nothing to draw" in at.info[0].value


def test_methods_are_chosen_by_the_link_and_by_hand(app: Any) -> None:
    app.open("calibration", row=["BLoB"], bins="10")
    lines = [t["name"] for t in figures(app)[0]["data"] if t.get("mode") == "lines+markers"]
    assert lines == ["BLoB"]
    app.widget("multiselect", "Methods").set_value(["MLE", "BLoB"])
    app.run()
    assert app.params["row"] == ["MLE", "BLoB"] and app.params["bins"] == ["10"]
    assert len([t for t in figures(app)[0]["data"] if t.get("mode") == "lines+markers"]) == 2


@pytest.mark.parametrize(("figure", "traces"), [("parts", 2), ("detection", 2), ("shift", 2), ("risk", 2)])
def test_the_figures_of_uncertainty(app: Any, figure: str, traces: int) -> None:
    app.open("uncertainty", figure=figure, row=["MLE", "BLoB"])
    (fig,) = figures(app)
    assert len(fig["data"]) == traces
    shown = re.search(r"<tbody>.*</tbody>", app.html)
    assert shown and shown[0].count("<tr>") == (1 if figure == "parts" else 2) and "BLoB" in shown[0]
    assert len(app.at.get("download_button")) == 4
    assert app.params["row"] == ["MLE", "BLoB"]


def test_right_and_wrong_answers_have_a_view_of_their_own(app: Any) -> None:
    app.open("calibration", figure="confidence", row="BLoB")
    (fig,) = figures(app)
    assert [t["name"] for t in fig["data"]] == ["right", "wrong"] and "Confidence where wrong, %" in app.html
    assert [box.label for box in app.at.selectbox] == ["Data set", "Training seed", "N, draws averaged"]
    assert app.params == {"figure": ["confidence"], "row": ["BLoB"]}


def test_no_metric_is_no_figure(app: Any) -> None:
    app.open("draws", metric="")
    assert not figures(app) and app.params["metric"] == [""]


def test_draws_start_at_the_mean_and_end_at_all(app: Any) -> None:
    app.open("draws", metric="nll", row="BLoB")
    band, line = figures(app)[0]["data"]
    assert line["x"] == [1, 2, 3, 4, 0, 0] and line["y"][4] is None and len(band["x"]) == 8


def test_a_page_is_left_and_found_as_it_was(app: Any) -> None:
    app.open("draws", metric="acc")
    app.at.query_params.clear()
    app.open("cost")
    app.at.query_params.clear()
    app.open("draws")
    assert app.params["metric"] == ["acc"] and len(figures(app)) == 1


def test_what_is_over_all_seeds_asks_for_none_and_shifts_start_where_it_was_trained(app: Any) -> None:
    labels = [box.label for box in app.open("calibration").selectbox]
    assert "Training seed" in labels
    assert "Training seed" not in [box.label for box in app.open("cost").selectbox]
    app.open("uncertainty", figure="shift", data="arc_challenge_uq")
    box = app.widget("selectbox", "Trained on")
    assert box.options == ["openbookqa_uq"] and "Training seed" not in [box.label for box in app.at.selectbox]


def test_results_published_without_their_draws_are_named_where_draws_are_asked(
    empty_app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result(tmp_path, "MLE", draws=1, finite=1)
    result(tmp_path, "BLoB")
    publish.create([tmp_path], tmp_path / "published.parquet")
    monkeypatch.setenv("UQHARNESS_LEADERBOARD", json.dumps([str(tmp_path / "published.parquet")]))
    captions = [caption.value for caption in empty_app.open("calibration", samples="2").caption]
    assert any(text.startswith("Without answers") and "BLoB" in text for text in captions)
    monkeypatch.setenv("UQHARNESS_LEADERBOARD", json.dumps([str(tmp_path)]))  # now with the files that it was made of
    assert not any("Without" in caption.value for caption in empty_app.open("calibration", samples="2").caption)
    empty_app.open("draws", metric="nll", row="BLoB")
    assert empty_app.html.count("<td>–</td>") == 2  # of N = 0 alone
