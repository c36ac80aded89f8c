"""What a figure may put together: adapters of one training data set, in one order of the others."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from made_results import result

from uqharness.leaderboard import costs, picks, publish
from uqharness.leaderboard.board import Board, build
from uqharness.leaderboard.page import View
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.views.runs import pick_run

HOME, NEAR, FAR = "openbookqa_uq", "arc_challenge_uq", "mmlu_college_chemistry_uq"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Adapters of one recipe trained on two data sets; MLE was not asked about the small shift."""
    for task in (HOME, NEAR, FAR):
        result(tmp_path, "BLoB", 0, task, trained_on=HOME)
        result(tmp_path, "BLoB", 0, task, trained_on="boolq_uq")
        if task != NEAR:
            result(tmp_path, "MLE", 0, task, trained_on=HOME, draws=1, finite=1)
    result(tmp_path, "BLoB", 0, "boolq_uq", trained_on="boolq_uq")
    return build([tmp_path])


@pytest.fixture
def group(board: Board) -> Group:
    (group,) = picks.groups(board.runs)
    return group


@pytest.mark.parametrize(("draws", "passes"), [(None, 5.0), (1, 2.0), (0, 1.0)])
def test_forward_passes_are_those_of_the_draws_that_are_averaged(
    group: Group, draws: int | None, passes: float
) -> None:
    """Four draws and the mean were run; N = 0 needs the mean alone."""
    title = costs.title("passes")
    runs = group.runs[HOME]["BLoB"]
    runs["0"] = replace(runs["0"], passes=5.0)
    [point] = costs.points(group, HOME, ["BLoB"], draws)
    assert point[title] == passes and point["draws"] == str(4 if draws is None else draws)
    runs["0"] = replace(runs["0"], passes=None)
    [point] = costs.points(group, HOME, ["BLoB"], draws)
    assert isnan(point[title])


def test_a_figure_starts_with_the_papers_methods_whatever_their_settings() -> None:
    assert picks.first_rows(["MLE", "SWAG", "BLoB (kl_lr=0.1)"]) == ("MLE", "BLoB (kl_lr=0.1)")
    assert picks.first_rows(["SWAG", "TFB"]) == ("SWAG", "TFB")


def test_items_start_with_a_run_whose_draws_are_at_hand(tmp_path: Path) -> None:
    """Of published results, of which one seed alone kept them."""
    for seed in range(2):
        result(tmp_path, "BLoB", seed)
    board, lost = build([tmp_path]), build([tmp_path]).runs[0].run_id
    results = Results(board)
    results.whole = lambda run_id: run_id != lost  # type: ignore[method-assign]
    assert pick_run(View(results, {})).run_id == board.runs[1].run_id
    assert pick_run(View(results, {"task": ["arc_easy_uq"], "method": ["BLoB"]})).run_id == board.runs[1].run_id
    assert pick_run(View(results, {"run": [lost]})).run_id == lost


def test_a_language_model_is_the_first_of_the_published_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("minilm-glue", "real-small", "toyworld"):
        (folder / f"{name}.parquet").touch()
    monkeypatch.setattr(publish, "__file__", str(tmp_path / "publish.py"))
    assert [path.stem for path in publish.shipped()] == ["real-small", "minilm-glue", "toyworld"]
