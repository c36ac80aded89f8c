"""What a figure may put together: adapters of one training data set, in one order of the others."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from made_results import result

from uqharness.leaderboard import costs, picks
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
