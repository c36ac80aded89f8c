"""The numbers behind the figures: answers of one run, bootstrap bands, metrics of fewer draws, Pareto fronts.

Pure functions of arrays and records; `charts` draws what they return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.table_sources import Source
from uqharness.metrics import (
    METRICS,
    Floats,
    accuracy_at_coverage,
    aurc,
    combine_draws,
    confidence,
    correct,
    ece,
    ece_debiased,
    ece_floor_mean,
    expected_entropy,
    mce,
    mutual_information,
    ood_auroc,
    predictive_entropy,
    softmax_draws,
)
from uqharness.record import Record

SCORES = {"entropy": "Predictive entropy", "confidence": "1 − confidence", "information": "Mutual information"}


@dataclass(frozen=True)
class Answers:
    """What one run answered: averaged, and per draw where that means anything."""

    row: str
    probs: Floats  # [D, C], NaN beyond a question's own choices
    gold: np.ndarray  # [D]
    draws: Floats | None = None  # [S, D, C]


def answers(record: Record, row: str, draws: int | None = None) -> Answers:
    """The first `draws` draws (None: all there are; 0: the posterior's mean) under the record's own rule."""
    wanted = record.draws if draws is None else min(draws, record.draws)
    logp = record.rows(wanted)  # [n, D, C]
    apart = softmax_draws(logp) if record.combine != "given" and len(logp) > 1 else None
    return Answers(row, combine_draws(logp, record.combine), record.gold, apart)


def band(bins: Mapping[str, Sequence[Any]], replicates: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
    """2.5 % and 97.5 % of each bin's accuracy when questions are resampled; NaN in empty bins.

    Within a bin only right and wrong matter, so resampling D questions is one multinomial draw over 2 x bins cells.
    """
    count = np.asarray(bins["count"], dtype=np.float64)
    right = np.rint(np.array([0.0 if a is None else a for a in bins["accuracy"]]) * count)
    cells = np.concatenate([right, count - right]) / count.sum()
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.multinomial(int(count.sum()), cells, size=replicates)  # [R, 2 bins]
    hits, misses = drawn[:, : len(count)], drawn[:, len(count) :]
    total = hits + misses
    share = np.where(total > 0, hits / np.maximum(total, 1), np.nan)
    ends = np.full((2, len(count)), np.nan)
    always, sometimes = (total > 0).all(axis=0), (total > 0).any(axis=0)
    ends[:, always] = np.quantile(share[:, always], (0.025, 0.975), axis=0)
    ends[:, sometimes & ~always] = np.nanquantile(share[:, sometimes & ~always], (0.025, 0.975), axis=0)
    return ends[0], ends[1]


def draw_curve(record: Record, row: str, metric: str, orders: int = 30, seed: int = 0) -> DrawCurve | None:
    """None where there is nothing to vary: one draw, combined answers, draws that were not kept or not taken."""
    logp, known = record.rows(None), METRICS[metric]  # [S, D, C]
    if record.combine == "given" or len(logp) < max(record.draws, 2) or record.taken.min() < record.draws:
        return None
    counts = list(range(1, record.draws + 1))

    def curve(order: np.ndarray) -> list[float]:
        if known.needs_draws:
            return [known.fn(apart[order[:n]], record.gold) for n in counts]
        summed = np.cumsum(terms[order], axis=0)
        return [known.fn(_joined(summed[n - 1] / n, record.combine), record.gold) for n in counts]

    apart = softmax_draws(logp)
    terms = logp if record.combine == "logits" else apart  # what is constant per draw cancels in the average
    rng = np.random.Generator(np.random.Philox(seed))
    spread = np.array([curve(rng.permutation(record.draws)) for _ in range(orders)])  # [R, S]
    low, high = np.quantile(spread, (0.05, 0.95), axis=0)
    mean = None
    if record.has_mean and not known.needs_draws:
        mean = known.fn(combine_draws(record.rows(0), record.combine), record.gold)
    return DrawCurve(row, metric, counts, np.array(curve(np.arange(record.draws))), low, high, mean)


def known_curve(source: Source, row: str, metric: str) -> DrawCurve | None:
    """The values without a spread, of results that were published without their single draws."""
    if source.draws < 2 or source.combine == "given":
        return None
    counts = list(range(1, source.draws + 1))
    values = np.array([source.number(metric, n) for n in counts])
    return DrawCurve(row, metric, counts, values, values, values, source.number(metric, 0) if source.has_mean else None)


def _joined(average: Floats, rule: str) -> Floats:
    """combine_draws, from the average of what it averages."""
    return combine_draws(average[None], rule) if rule == "logits" else average


def scores(found: Answers, kind: str) -> Floats | None:
    """How uncertain each question is, [D]: larger means less sure; per log C so that questions compare."""
    if kind == "information":
        return None if found.draws is None else mutual_information(found.draws, normalised=True)
    return predictive_entropy(found.probs, normalised=True) if kind == "entropy" else 1 - confidence(found.probs)


def detection(inside: Answers, outside: Answers, kind: str) -> float:
    """AUROC of telling shifted questions by their uncertainty; NaN where there is no such score."""
    one, other = scores(inside, kind), scores(outside, kind)
    return float("nan") if one is None or other is None else ood_auroc(one, other)


def detections(shown: Mapping[str, Sequence[Answers]], home: str, kind: str) -> dict[str, dict[str, float]]:
    """{row: {shifted data set: AUROC}} from the answers on every data set; `home` is the one that was trained on.

    Every row names all data sets, in their order: NaN where it has no answers.
    """
    away = {data: {found.row: found for found in many} for data, many in shown.items() if data != home and many}
    return {
        own.row: {
            data: detection(own, found[own.row], kind) if own.row in found else float("nan")
            for data, found in away.items()
        }
        for own in shown[home]
        if any(own.row in found for found in away.values())
    }


def decomposition(found: Answers, most: int = 600) -> dict[str, np.ndarray] | None:
    """Aleatoric and epistemic part and whether it was right, of at most `most` questions, evenly spaced."""
    if found.draws is None:
        return None
    kept = np.unique(np.linspace(0, len(found.gold) - 1, min(most, len(found.gold))).astype(int))
    return {
        "aleatoric": expected_entropy(found.draws, normalised=True)[kept],
        "epistemic": mutual_information(found.draws, normalised=True)[kept],
        "right": correct(found.probs, found.gold)[kept],
    }


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether no other point is at least as low in every number and lower in one; a NaN keeps a point out."""
    values = np.asarray(points, dtype=np.float64)  # [P, K]
    keep = []
    for mine in values:
        beaten = ((values <= mine).all(axis=1) & (values < mine).any(axis=1)).any()
        keep.append(bool(not beaten and not np.isnan(mine).any()))
    return keep


# ---------------------------------------------------------------- the same as tables: header and rows of texts


def calibration_rows(shown: Sequence[Answers], bins: int, equal_mass: bool) -> tuple[list[str], list[list[str]]]:
    """ECE beside what sampling alone would give."""
    header = ["Method", "ECE, %", "Floor, %", "Debiased, %", "Largest gap, %", "Accuracy, %", "Mean confidence, %"]
    rows = []
    for found in shown:
        asked = (found.probs, found.gold, bins, equal_mass)
        floor, debiased = "–", "–"  # known for bins of equal width
        if not equal_mass:
            floor = f"{100 * ece_floor_mean(found.probs, bins):.2f}"
            debiased = f"{100 * ece_debiased(found.probs, found.gold, bins):.2f}"
        rows.append([
            found.row, f"{100 * ece(*asked):.2f}", floor, debiased,
            f"{100 * mce(*asked):.2f}", f"{100 * correct(found.probs, found.gold).mean():.2f}",
            f"{100 * confidence(found.probs).mean():.2f}",
        ])  # fmt: skip
    return header, rows


def coverage_rows(shown: Sequence[Answers]) -> tuple[list[str], list[list[str]]]:
    """Accuracy among the surest share of the questions."""
    shares = (0.25, 0.5, 0.75, 0.9, 1.0)
    rows = []
    for found in shown:
        values = [accuracy_at_coverage(found.probs, found.gold, share) for share in shares]
        rows.append(
            [found.row, f"{100 * aurc(found.probs, found.gold):.2f}", *(f"{100 * value:.2f}" for value in values)]
        )
    return ["Method", "AURC ↓", *(f"at {share:.0%}" for share in shares)], rows


def detection_rows(found: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    data = list(dict.fromkeys(name for values in found.values() for name in values))
    texts = {row: [values.get(name, float("nan")) for name in data] for row, values in found.items()}
    shown = {row: ["–" if np.isnan(v) else f"{100 * v:.2f}" for v in values] for row, values in texts.items()}
    return ["Method", *data], [[row, *values] for row, values in shown.items()]
