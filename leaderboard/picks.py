"""Results that one figure can show: those of one table, on one data set, one run per row and seed.

The groups are those of `table.comparable`, so that a figure never mixes what the table keeps apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uqharness.leaderboard.table import SHIFTS, comparable, differences
from uqharness.leaderboard.table_sources import labels, newest
from uqharness.leaderboard.theme import order
from uqharness.results.runs import RunSummary

FIRST = ("MLE", "MCD", "ENS", "LAP", "BLoB")  # what a figure starts with


def first_rows(rows: Sequence[str]) -> tuple[str, ...]:
    """Return what a figure starts with: methods of `FIRST` with any settings, else a few rows."""
    return tuple([row for row in rows if row.partition(" (")[0] in FIRST] or rows[:4])


@dataclass(frozen=True)
class Group:
    """One table's results: `runs[data set][row][seed]`, data sets nearest first."""

    name: str
    runs: dict[str, dict[str, dict[str, RunSummary]]] = field(default_factory=dict)

    def rows(self, data: str) -> list[str]:
        """Return rows that have a result on this data set, the papers' methods first."""
        return sorted(self.runs.get(data, ()), key=order)

    def start(self, data: str) -> tuple[str, ...]:
        """Return the rows of the initial selection: a few rows, those of the papers if available."""
        rows = self.rows(data)
        return first_rows(rows)

    def seeds(self, data: str) -> list[str]:
        return sorted({seed for runs in self.runs.get(data, {}).values() for seed in runs}, key=lambda s: (len(s), s))

    def run(self, data: str, row: str, seed: str) -> RunSummary | None:
        """The run of this seed; of a row that was not trained here (the base alone), the one there is."""
        runs = self.runs.get(data, {}).get(row, {})
        return runs.get(seed) or (next(iter(runs.values())) if list(runs) == ["None"] else None)


def groups(sources: Sequence[RunSummary]) -> list[Group]:
    """Return one group per table of `table.build`, in its order."""
    chosen = newest(sources, [])
    parts = comparable(chosen, False)
    out = []
    for k, part in enumerate(parts):
        why = "" if k == 0 else f": {differences(parts[0], part)}"
        group = Group(f"Table {k + 1}{why}" if len(parts) > 1 else "all")
        names, trained = labels(part), {s.trained_on for s in part}
        ordered = sorted(part, key=lambda s: SHIFTS[s.shift])
        for s in ordered:
            data = s.task if len(trained) < 2 or s.trained_on in (None, s.task) else f"{s.task} ({s.trained_on})"
            group.runs.setdefault(data, {}).setdefault(names[s.row], {})[str(s.seed)] = s
        out.append(group)
    return out
