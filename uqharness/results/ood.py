"""Compare each adapter on its own data set with each shifted one, from recorded answers; pure functions.

for inside, shifted in pairs(board.runs):
    row = compare(inside, board.record(inside.run_id), shifted, board.record(shifted.run_id))
    row.detection["entropy"].auroc, row.changes["acc"].difference
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uqharness.errors import InputError
from uqharness.metrics.averaging import average
from uqharness.metrics.metric import Answers
from uqharness.metrics.ood import Change, Detection, change, change_against, detect, scores
from uqharness.metrics.registry import find, tested
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

CHANGES = ("acc", "ece", "nll")


@dataclass(frozen=True)
class Shift:
    """One adapter with N draws: detection of shifted questions, and changes under the shift."""

    inside: RunSummary
    shifted: RunSummary
    draws: int
    detection: dict[str, Detection]  # by score; no mutual information where there are not two draws
    changes: dict[str, Change]  # by metric

    @property
    def kind(self) -> str:
        """ "small" or "large"."""
        return str(self.shifted.shift)


def pairs(runs: Sequence[RunSummary]) -> list[tuple[RunSummary, RunSummary]]:
    """Return (in-distribution, shifted) runs of each adapter, by tasks/shifts.yaml; of equal runs the latest counts."""
    latest: dict[tuple[object, ...], RunSummary] = {}
    for run in sorted(runs, key=lambda run: run.date or 0.0):
        if run.trained_on and run.shift:
            key = (*_adapter(run), run.task)
            latest[key] = run
    inside: dict[tuple[object, ...], RunSummary] = {}
    for run in latest.values():  # its own task before another in-distribution one: WinoGrande has two sizes
        own = run.task.removesuffix("_test") == str(run.trained_on).removesuffix("_test")
        if run.shift == "id" and (own or _adapter(run) not in inside):
            inside[_adapter(run)] = run
    pairs = [(inside[_adapter(run)], run) for run in latest.values() if run.shift != "id" and _adapter(run) in inside]
    order = {id(run): place for place, run in enumerate(runs)}
    return sorted(pairs, key=lambda pair: order[id(pair[1])])


def _adapter(run: RunSummary) -> tuple[object, ...]:
    return run.adapter_hash or run.adapter, run.row, run.seed, run.base, run.recipe_hash, run.trained_on


def answers(record: Record, draws: int | None = None) -> Answers:
    """Return the averaged answers of the first `draws` draws (None: all)."""
    return average(record.rows(draws), record.gold, record.combine)


def compare(
    inside: RunSummary,
    inside_record: Record,
    shifted: RunSummary,
    shifted_record: Record,
    draws: int | None = None,
    metrics: Sequence[str] = CHANGES,
) -> Shift | None:
    """Compare one adapter's answers to the two sets with `draws` draws (None: all); None if a run has fewer."""
    used = inside.used(draws), shifted.used(draws)
    if draws is None and None not in used:
        used = (min(used), min(used))  # type: ignore[type-var]
    if used[0] is None or used[1] is None:
        return None
    a, b = answers(inside_record, used[0]), answers(shifted_record, used[1])
    near, far = scores(a), scores(b)
    return Shift(
        inside,
        shifted,
        used[1],
        {name: detect(near[name], far[name]) for name in near if name in far},
        {name: change(find(name), a, b) for name in metrics},
    )


def against(
    row: Shift, records: tuple[Record, Record], reference: Shift, reference_records: tuple[Record, Record]
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return how much more the shift changes each metric than for a reference, paired by question.

    Of metrics with a paired test; ECE's is that of its debiased value. `records`: in distribution, shifted.
    """
    for run, other in ((row.inside, reference.inside), (row.shifted, reference.shifted)):
        if run.protocol_hash != other.protocol_hash:
            raise InputError(
                f"{run.method} and {other.method} were asked {run.task} in different ways: "
                "no paired interval; evaluate both alike"
            )
    own = [answers(record, row.draws) for record in records]
    others = [answers(record, reference.draws) for record in reference_records]
    return {
        name: change_against(metric, (own[0], others[0]), (own[1], others[1]))
        for name in row.changes
        if (metric := tested(name)) is not None
    }
