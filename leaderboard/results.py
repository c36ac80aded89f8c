"""The results that pages are made from: a board, and what is computed from it once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np

from uqharness.errors import InputError
from uqharness.leaderboard import curves, draw_curves, picks, ranking, table
from uqharness.leaderboard.board import Board
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.publish import Averaged
from uqharness.leaderboard.ranking import Tests
from uqharness.leaderboard.table import Cell, Table
from uqharness.metrics.metric import Answers as Given
from uqharness.metrics.metric import Floats
from uqharness.metrics.registry import METRICS, tested
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

T = TypeVar("T")
GUESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # by the number of choices
    "nll": np.log,
    "acc": lambda choices: 1 / choices,
    "brier": lambda choices: 1 - 1 / choices,
    "ece": lambda choices: 0.0 * choices,
    "auroc": lambda choices: 0.0 * choices + 0.5,
    "aurc": lambda choices: 1 - 1 / choices,
}
MOST_VALUES, MOST_PAGES, MOST_BYTES = 256, 64, 128 * 2**20  # that are kept (bytes: of records); the oldest goes first


class Results:
    """One state of the files; shared by all visitors, so what it returns is not to be changed."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._values: dict[Hashable, Any] = {}
        self._records: dict[Hashable, Any] = {}
        self._pages: dict[Hashable, Any] = {}

    @property
    def runs(self) -> list[RunSummary]:
        return self.board.runs

    def run(self, run_id: str) -> RunSummary:
        return self.board.run(run_id)

    @cached_property
    def groups(self) -> list[Group]:
        """One per table; a figure never mixes what tables keep apart."""
        return picks.groups(self.runs) if self.runs else []

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        return cast(T, _cached(self._values, MOST_VALUES, key, make))

    def finished(self, key: Hashable, make: Callable[[], tuple[T, bool]]) -> T:
        """A page, kept once `make` says that nothing of it is still to be computed."""
        if key in self._pages:
            return cast(T, self._pages[key])
        page, complete = make()
        return cast(T, _cached(self._pages, MOST_PAGES, key, lambda: page)) if complete else page

    def record(self, run_id: str) -> Record:
        made = _cached(self._records, MOST_BYTES, run_id, lambda: self.board.record(run_id), _bytes)
        return cast(Record, made)

    def whole(self, run_id: str) -> bool:
        """Whether the single draws of a run are at hand."""
        return not isinstance(self.record(run_id), Averaged)

    def answers(self, run_id: str, row: str = "", draws: int | None = None) -> Answers:
        """Under this many draws; an `InputError` where the run was published without its single draws."""
        return curves.answers(self.record(run_id), row, draws)

    def curves_of(self, run_id: str, row: str, metrics: Sequence[str]) -> dict[str, DrawCurve]:
        """Of results that were published without their single draws: the values, without a spread."""

        def make() -> dict[str, DrawCurve]:
            drawn = draw_curves.draw_curves(self.record(run_id), row, metrics)
            return drawn or draw_curves.known_curves(self.run(run_id), row, metrics)

        return self.cached(("curves", run_id, row, tuple(metrics)), make)

    def tables(
        self, runs: Sequence[str], metrics: Sequence[str], samples: Sequence[int | None], mixed: bool = False
    ) -> list[Table]:
        key = ("tables", tuple(runs), tuple(metrics), tuple(samples), mixed)
        return self.cached(key, lambda: table.build([self.run(i) for i in runs], metrics, samples, mixed))

    def tests(self, of: Table, metric: str, known_only: bool = False) -> dict[int, Tests] | None:
        """Paired tests by column, named by row; None: not known yet, where only known ones are wanted."""
        cells = tuple((i, j, c.runs, of.rows[i][1]) for (m, i, j), c in of.cells.items() if m == metric)
        key = ("tests", metric, cells)
        if known_only and key not in self._values:
            return None

        def make() -> dict[int, Tests]:
            with suppress(InputError):  # published without single draws: the answers for this N are gone
                return ranking.of_table(of, metric, self._probs)
            return {}

        return self.cached(key, make)

    def intervals(self, of: Table, metric: str) -> dict[tuple[str, int, int], tuple[float, float]]:
        """The 95 % interval of each cell with one seed, over questions; of ECE of every cell, over seeds as well."""
        cells = {(i, j): c for (m, i, j), c in of.cells.items() if m == metric and (c.std is None or metric == "ece")}
        key = ("intervals", metric, tuple((at, c.runs, of.rows[at[0]][1]) for at, c in cells.items()))

        def make() -> dict[tuple[str, int, int], tuple[float, float]]:
            ends = {}
            for (i, j), cell in cells.items():
                pairs = self.runs_of(cell.runs, of.rows[i][1]) if cell.runs and METRICS[metric].has_interval else None
                if pairs and not METRICS[metric].needs_draws and cell.mean == cell.mean:
                    ends[metric, i, j] = cell_interval(metric, cell, pairs)
            return ends

        return self.cached(key, make)

    def guess(self, run_id: str, metric: str) -> float:
        """Return the expected metric of the answer that gives all choices of a question the same probability."""
        of = GUESS.get(metric)
        return float(of(self.record(run_id).choices).mean()) if of else float("nan")

    def runs_of(self, run_ids: Sequence[str], draws: int) -> list[tuple[Floats, np.ndarray]] | None:
        """Averaged probabilities and labels of each run; None where some were published without them."""
        with suppress(InputError):
            return [self._probs(run_id, draws) for run_id in run_ids]
        return None

    def _probs(self, run_id: str, draws: int) -> tuple[Floats, np.ndarray]:
        answers = self.answers(run_id, draws=min(draws, self.run(run_id).draws))
        return answers.probs, answers.gold


def cell_interval(metric: str, cell: Cell, pairs: Sequence[tuple[Floats, np.ndarray]]) -> tuple[float, float]:
    """Of one seed the metric's own; of several, ECE's mean and its comparison's spread over questions and seeds."""
    given = [Given.of(probs, gold) for probs, gold in pairs]
    if len(given) == 1:
        return METRICS[metric].confidence_interval(given[0])
    by = tested(metric)
    assert by is not None and by.paired is not None
    half = 1.96 * float(np.sqrt(by.paired(given)[1].mean() + (cell.std or 0.0) ** 2 / len(given)))
    return max(cell.mean - half, 0.0), cell.mean + half


def _bytes(record: Record) -> int:
    return int(record.logp.nbytes)


def _cached(
    store: dict[Hashable, Any],
    most: int,
    key: Hashable,
    make: Callable[[], Any],
    size: Callable[[Any], int] = lambda value: 1,
) -> Any:
    """The value of this key, made if it is not there. Two threads may make the same value; either one is right."""
    if key in store:
        return store[key]
    value, sizes = make(), {old: size(each) for old, each in list(store.items())}
    spare = most - sum(sizes.values()) - size(value)
    for old, freed in sizes.items():
        if spare >= 0:
            break
        store.pop(old, None)
        spare += freed
    store[key] = value
    return value
