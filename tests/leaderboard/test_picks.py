"""What a figure may put together: adapters of one training data set, in one order of the others."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from made_results import result

from uqharness.leaderboard import charts, costs, curve_rows, curves, picks
from uqharness.leaderboard.board import Board, build
from uqharness.leaderboard.picks import Group

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
    (found,) = picks.groups(board.runs)
    return found


def test_a_shift_is_away_from_what_the_same_adapters_were_trained_on(group: Group) -> None:
    assert set(group.homes()) == {HOME, "boolq_uq"}
    assert group.near(HOME) == [HOME, f"{NEAR} ({HOME})", f"{FAR} ({HOME})"]
    assert all(group.trained[data] == "boolq_uq" for data in group.near("boolq_uq"))


def test_every_row_of_a_figure_has_the_data_sets_in_one_order(group: Group, board: Board) -> None:
    near = group.near(HOME)
    told = group.over_seeds(["MLE", "BLoB", "gone"], "nll", None, near)
    assert list(told) == ["MLE", "BLoB"] and {tuple(points) for points in told.values()} == {tuple(near)}
    assert isnan(told["MLE"][near[1]][0]) and not isnan(told["BLoB"][near[1]][0])
    lines = charts.shifted(told, "nll")["data"]
    assert {tuple(line["x"]) for line in lines} == {tuple(near)} and all(line["connectgaps"] for line in lines)
    runs = {data: [run for row in ("MLE", "BLoB") if (run := group.run(data, row, "0"))] for data in near}
    shown = {
        data: [curves.answers(board.record(run.run_id), run.method) for run in found] for data, found in runs.items()
    }
    found = curves.detections(shown, HOME, "entropy")
    assert {row: list(values) for row, values in found.items()} == {"MLE": near[1:], "BLoB": near[1:]}
    assert isnan(found["MLE"][near[1]]) and 0 < found["BLoB"][near[1]] < 1
    assert curve_rows.detection_rows(found)[1][0][1] == "–"


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
