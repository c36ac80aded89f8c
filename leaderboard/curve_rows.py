"""Data of the figures as tables: (header, rows of texts), for a page and its export. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from uqharness.leaderboard.curves import Answers, sure_shares
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.table_formats import arrow, number
from uqharness.metrics.calibration import bin_probs, ece, ece_debiased, ece_floor, mce, reliability_bins
from uqharness.metrics.points import confidence, correct, expected_entropy, mutual_information
from uqharness.metrics.registry import METRICS
from uqharness.metrics.selective import accuracy_at_coverage, aurc

Rows = tuple[list[str], list[list[str]]]


def calibration_rows(shown: Sequence[Answers], bins: int, equal_mass: bool) -> Rows:
    """ECE beside what sampling alone would give."""
    header = ["Method", "ECE, %", "Floor, %", "Debiased, %", "Largest gap, %", "Accuracy, %", "Mean confidence, %"]
    rows = []
    for answers in shown:
        binned = bin_probs(answers.probs, answers.gold, bins, equal_mass)
        floor, debiased = "–", "–"  # known for bins of equal width
        if not equal_mass:
            floor = f"{100 * ece_floor(binned):.2f}"
            debiased = f"{100 * ece_debiased(binned):.2f}"
        rows.append(
            [
                answers.row,
                f"{100 * ece(binned):.2f}",
                floor,
                debiased,
                f"{100 * mce(binned):.2f}",
                f"{100 * correct(answers.probs, answers.gold).mean():.2f}",
                f"{100 * confidence(answers.probs).mean():.2f}",
            ]
        )
    return header, rows


def bin_rows(shown: Sequence[Answers], bins: int, equal_mass: bool) -> Rows:
    """The bins of a reliability diagram that hold any question."""
    header = ["Method", "From", "To", "Questions", "Confidence", "Accuracy", "Gap"]
    rows = []
    for answers in shown:
        binned = reliability_bins(answers.probs, answers.gold, bins, equal_mass)
        for b, count in enumerate(binned["count"]):
            if count:
                sure, right = binned["confidence"][b], binned["accuracy"][b]
                ends = f"{binned['lo'][b]:.3f}", f"{binned['hi'][b]:.3f}"
                rows.append([answers.row, *ends, str(count), f"{sure:.4f}", f"{right:.4f}", f"{sure - right:+.4f}"])
    return header, rows


def sure_rows(shown: Sequence[Answers]) -> Rows:
    """Mean confidence of the answers that were right, and of those that were wrong."""
    header = ["Method", "Accuracy, %", "Confidence where right, %", "Confidence where wrong, %"]
    rows = []
    for answers in shown:
        right, sure = correct(answers.probs, answers.gold), confidence(answers.probs)
        means = (f"{100 * group.mean():.2f}" if len(group) else "–" for group in (sure[right], sure[~right]))
        rows.append([answers.row, f"{100 * right.mean():.2f}", *means])
    return header, rows


def share_rows(shown: Sequence[Answers]) -> Rows:
    """The bars of right and wrong answers, where there is any."""
    header = ["Method", "From", "To", "Right, % of all", "Wrong, % of all"]
    rows = []
    for answers in shown:
        edges, *shares = sure_shares(answers)
        for low, high, right, wrong in zip(edges[:-1], edges[1:], *shares, strict=True):
            if right or wrong:
                rows.append([answers.row, f"{low:.2f}", f"{high:.2f}", f"{100 * right:.2f}", f"{100 * wrong:.2f}"])
    return header, rows


def coverage_rows(shown: Sequence[Answers]) -> Rows:
    """Accuracy among the surest share of the questions."""
    shares = (0.25, 0.5, 0.75, 0.9, 1.0)
    rows = []
    for answers in shown:
        values = [accuracy_at_coverage(answers.probs, answers.gold, share) for share in shares]
        rows.append(
            [answers.row, f"{100 * aurc(answers.probs, answers.gold):.2f}", *(f"{100 * value:.2f}" for value in values)]
        )
    return ["Method", "AURC ↓", *(f"at {share:.0%}" for share in shares)], rows


def part_rows(shown: Sequence[Answers]) -> Rows:
    """Means of the two parts over all questions, those answered right and those answered wrong; per log C."""
    header = [
        "Method",
        *(
            f"{part}, {which}"
            for part in ("Expected entropy", "Mutual information")
            for which in ("all", "right", "wrong")
        ),
    ]
    rows = []
    for answers in shown:
        if answers.draws is not None:
            right = correct(answers.probs, answers.gold)
            parts = expected_entropy(answers.draws, normalised=True), mutual_information(answers.draws, normalised=True)
            groups = [part[which] for part in parts for which in (right | True, right, ~right)]
            rows.append([answers.row, *(f"{values.mean():.4f}" if len(values) else "–" for values in groups)])
    return header, rows


def draw_rows(curves: Sequence[DrawCurve]) -> Rows:
    """Every point of the lines and bands; N = 0 is the posterior's mean."""
    header = ["Metric", "Method", "N", "First N draws", "5 % of choices", "95 % of choices"]
    rows = []
    for curve in curves:
        label = METRICS[curve.metric].label + arrow(curve.metric)
        if curve.mean is not None:
            rows.append([label, curve.row, "0", number(curve.mean, curve.metric), "–", "–"])
        for n, *numbers in zip(curve.counts, curve.value, curve.low, curve.high, strict=True):
            rows.append([label, curve.row, str(n), *(number(float(value), curve.metric) for value in numbers)])
    return header, rows
