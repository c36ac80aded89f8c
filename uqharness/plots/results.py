"""Charts of recorded results: pure functions from runs and their answers to `figure.Chart`.

A run comes with the name of its row; runs of one name that differ in nothing but the training seed are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np

from uqharness.errors import InputError
from uqharness.metrics.averaging import average
from uqharness.metrics.calibration import bin_probs
from uqharness.metrics.intervals import wilson
from uqharness.metrics.metric import Answers, Metric
from uqharness.metrics.points import right, sure
from uqharness.metrics.registry import find
from uqharness.metrics.selective import risk_curve
from uqharness.plots.figure import Chart, Line, Panel
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

DEFAULT = ("acc", "ece", "nll")
PREDICTIVES = ("joint", "indep", "probit", "bridge")
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A run, the name of its row, and where its answers are read."""

    label: str
    run: RunSummary
    record: Callable[[], Record]

    def answers(self, draws: int | None = None) -> Answers:
        record = self.record()
        return average(record.rows(self.run.used(draws)), record.gold, record.combine)


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """In-distribution sets first, then the shifted ones."""
    order = {"id": 0, "small": 1, "large": 2, None: 3}
    groups = grouped(rows, lambda row: row.run.task)
    return dict(sorted(groups.items(), key=lambda item: min(order[row.run.shift] for row in item[1])))


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return grouped(rows, lambda row: row.label)


def axis(metric: Metric) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    return metric.label + (" (%)" if metric.scale == 100 else "") + arrow


def centre(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and mean ± standard deviation of two values or more."""
    mean = fmean(values)
    spread = stdev(values) if len(values) > 1 else 0.0
    return mean, mean - spread, mean + spread


def per_metric(rows: Sequence[Row], metrics: Sequence[str], panel: Callable[[str, list[Row], Metric], Panel]) -> Chart:
    """A row of panels for each metric, a column for each task; of one task, one row."""
    tasks = by_task(rows)
    panels = [panel(task, group, find(name)) for name in metrics for task, group in tasks.items()]
    return Chart(panels, len(tasks) if len(tasks) > 1 else len(metrics), list(by_label(rows)))


# ---------------------------------------------------------------- from the answers


def reliability(rows: Sequence[Row], draws: int | None = None, bins: int = 10) -> Chart:
    """Accuracy against mean confidence in bins of equal width, a panel for each method and task.

    The bars are Wilson's 95 % intervals. Seeds answer the same questions, so all of them count as one set in these.
    """
    panels = []
    for task, group in by_task(rows).items():
        for label, same in by_label(group).items():
            every = [row.answers(draws) for row in same]
            p, gold = pooled(every)
            b = bin_probs(p, gold, bins)
            used = b.counts > 0
            n, hits = b.counts[used], b.total(b.right.astype(np.float64))[used]
            ends = [
                wilson(round(h / len(same)), max(round(k / len(same)), 1), 0.95) for h, k in zip(hits, n, strict=True)
            ]
            ece, accuracy = (
                find(name).scale * fmean(float(find(name).value(a)) for a in every) for name in ("ece", "acc")
            )
            y = hits / n
            low = [min(a, v) for (a, _), v in zip(ends, y, strict=True)]
            high = [max(b, v) for (_, b), v in zip(ends, y, strict=True)]
            line = Line(label, b.mean_confidence[used].tolist(), y.tolist(), low, high, joined=False)
            title = f"{label}\n{task}" if len(by_task(rows)) > 1 else label
            note = f"ECE {ece:.1f} %\nACC {accuracy:.1f} %"
            panels.append(Panel(title, "confidence", "accuracy", [line], diagonal=True, note=note))
    return Chart(panels, min(4, len(by_label(rows))), list(by_label(rows)))


def pooled(every: Sequence[Answers]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [D, C] and right answers of several answers together."""
    width = max(a.p.shape[-1] for a in every)
    p = [np.pad(a.p, ((0, 0), (0, width - a.p.shape[-1]))) for a in every]
    return np.concatenate(p), np.concatenate([a.gold for a in every])


def risk_coverage(rows: Sequence[Row], draws: int | None = None) -> Chart:
    """Error rate among the most confident answers against the share that is answered, a panel for each task."""
    panels = []
    for task, group in by_task(rows).items():
        lines = []
        for label, same in by_label(group).items():
            curves = [risk_curve(sure(a), right(a)) for a in (row.answers(draws) for row in same)]
            if len({len(curve) for curve in curves}) > 1:
                raise InputError(f"{label} answered different numbers of questions of {task}: choose one with --method")
            values = 100 * np.array(curves)  # [seeds, D]
            coverage = np.arange(1, values.shape[1] + 1) / values.shape[1]
            shown = coverage >= 0.02  # of a handful of answers the rate jumps
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None
            band = (
                (None, None) if spread is None else ((mean - spread)[shown].tolist(), (mean + spread)[shown].tolist())
            )
            name = f"{label} (AURC {mean.mean():.1f} %)" if len(by_task(rows)) == 1 else label
            lines.append(Line(name, (100 * coverage[shown]).tolist(), mean[shown].tolist(), *band))
        panels.append(Panel(task, "coverage (%)", "error rate (%)", lines))
    return Chart(panels, min(3, len(panels)))


# ---------------------------------------------------------------- from the numbers of each N


def draws(rows: Sequence[Row], metrics: Sequence[str] = DEFAULT) -> Chart:
    """Each metric against N, 0 being the mean's weights; what has one answer alone is a dotted line."""
    if all(row.run.draws < 2 for row in rows):
        raise InputError("no run holds two draws: evaluate with samples=10 (--model_args samples=10)")

    def panel(task: str, group: list[Row], metric: Metric) -> Panel:
        lines = []
        for label, same in by_label(group).items():
            runs = [row.run for row in same]
            counts = sorted(set(runs[0].counts).intersection(*(run.counts for run in runs)))
            counts = [n for n in counts if all(math.isfinite(run.number(metric.name, n)) for run in runs)]
            if not counts:
                continue
            one = all(run.draws < 2 for run in runs)
            values = [[metric.scale * run.number(metric.name, n) for run in runs] for n in counts]
            parts = [centre(v) for v in values]
            y, low, high = ([part[k] for part in parts] for k in range(3))
            if one:
                lines.append(Line(label, [counts[-1]], [y[-1]], flat=True))
            else:
                band = (low, high) if len(runs) > 1 else (None, None)
                lines.append(Line(label, counts, y, *band))
        return Panel(task, "N", axis(metric), lines)

    return per_metric(rows, metrics, panel)


def step_of(run: RunSummary) -> int:
    """The optimiser step whose weights were evaluated."""
    return int(run.recipe.get("stop_at") or 0) or int(run.recipe.get("steps") or 0)


def steps(rows: Sequence[Row], metrics: Sequence[str] = DEFAULT, all_draws: int | None = None) -> Chart:
    """Each metric against the step of one training (Laplace-LoRA's Figure 3); MAP's most accurate step is marked."""
    known = [row for row in rows if step_of(row.run)]
    moving = {label for label, same in by_label(known).items() if len({step_of(row.run) for row in same}) > 1}
    if not moving:
        raise InputError(
            "no method has results of two steps of its training: give its row `at: [1000, 2000]` in a suite, or train "
            "with --stop-at STEP, and evaluate each adapter"
        )
    shown = [row for row in known if row.label in moving]
    best = best_steps(shown)

    def panel(task: str, group: list[Row], metric: Metric) -> Panel:
        lines = [over_steps(label, same, metric, all_draws) for label, same in by_label(group).items()]
        marks = [(best[task][1], f"{best[task][0]}'s best ACC")] if task in best else []
        return Panel(task, "training step", axis(metric), lines, marks=marks)

    return per_metric(shown, metrics, panel)


def over_steps(label: str, rows: Sequence[Row], metric: Metric, all_draws: int | None) -> Line:
    at = dict(sorted(grouped(rows, lambda row: f"{step_of(row.run):012d}").items()))
    parts = [centre([metric.scale * number(row.run, metric.name, all_draws) for row in same]) for same in at.values()]
    y, low, high = ([part[k] for part in parts] for k in range(3))
    band = (low, high) if any(len(same) > 1 for same in at.values()) else (None, None)
    return Line(label, [float(step) for step in at], y, *band)


def number(run: RunSummary, metric: str, draws: int | None) -> float:
    used = run.used(draws)
    return math.nan if used is None else run.number(metric, used)


def best_steps(rows: Sequence[Row]) -> dict[str, tuple[str, int]]:
    """The point estimate and its most accurate step, by task: MAP where there is one, else another of one function."""
    curves = {}
    for task, group in by_task(rows).items():
        points = [row for row in group if row.run.finite == 1]
        label = next((row.label for row in points if row.label.startswith("MAP")), points[0].label if points else None)
        if label is not None:
            line = over_steps(label, [row for row in points if row.label == label], find("acc"), None)
            curves[task] = (label, int(line.x[int(np.argmax(line.y))]))
    return curves


def predictive(rows: Sequence[Row], metrics: Sequence[str] = DEFAULT) -> Chart:
    """The linearised predictives of Laplace side by side (Laplace-LoRA's Figure 4), with the mean's point."""
    shown = [
        Row(name, row.run, row.record)
        for row in rows
        if (name := row.run.settings.get("predictive", "")) in PREDICTIVES
    ]
    names = [name for name in PREDICTIVES if any(row.label == name for row in shown)]
    if len(names) < 2:
        have = f"only {names[0]}" if names else "none"
        raise InputError(
            f"results of two Laplace predictives are needed, there is {have}: train laplace with --set predictive=NAME "
            f"for {', '.join(PREDICTIVES)}, and evaluate each adapter"
        )
    points = [Row("MAP", row.run, row.record) for row in rows if row.run.finite == 1 and row.run.adapter_record]
    if len({step_of(row.run) for row in shown}) > 1:
        return steps([*points, *sorted(shown, key=lambda row: names.index(row.label))], metrics)
    order = ["MAP", *names] if points else names

    def panel(task: str, group: list[Row], metric: Metric) -> Panel:
        lines = []
        for label, same in by_label(group).items():
            y, low, high = spread_of(same, metric)
            lines.append(Line(label, [order.index(label)], [y], [low], [high], joined=False))
        return Panel(task, "", axis(metric), lines, ticks=order)

    return per_metric([*points, *shown], metrics, panel)


def spread_of(rows: Sequence[Row], metric: Metric, n: int | None = None) -> tuple[float, float, float]:
    """A metric with its interval over questions, of one run; of several the mean ± standard deviation over seeds."""
    values = [metric.scale * number(row.run, metric.name, n) for row in rows]
    if len(values) > 1:
        return centre(values)
    low, high = metric.confidence_interval(rows[0].answers(n))
    return values[0], metric.scale * low, metric.scale * high


def tradeoff(rows: Sequence[Row], n: int | None = None) -> Chart:
    """Accuracy against ECE: 95 % intervals over questions, or the standard deviation over seeds; hollow: the mean."""
    acc, ece = find("acc"), find("ece")
    panels = []
    for task, group in by_task(rows).items():
        lines = []
        for label, same in by_label(group).items():
            (y, low, high), (x, left, right_end) = (spread_of(same, metric, n) for metric in (acc, ece))
            if math.isnan(x) or math.isnan(y):
                continue
            lines.append(Line(label, [x], [y], [low], [high], [left], [right_end], joined=False))
            if n is None and all(row.run.has_mean and row.run.draws > 1 for row in same):
                mean_x, mean_y = (fmean(m.scale * row.run.number(m.name, 0) for row in same) for m in (ece, acc))
                lines.append(Line(label, [mean_x, x], [mean_y, y], hollow=True))
        panels.append(Panel(task, axis(ece), axis(acc), lines))
    return Chart(panels, min(3, len(panels)), list(by_label(rows)))


COSTS: Mapping[str, tuple[str, float]] = {
    "train_seconds": ("training time (s)", 1.0),
    "peak_memory": ("peak memory (GB)", 1e-9),
    "trainable": ("trained parameters (thousands)", 1e-3),
    "eval_seconds": ("evaluation time (s)", 1.0),
}


def cost(rows: Sequence[Row]) -> Chart:
    """What each method's adapters cost to make and to evaluate (Me-LoRA's Tables 1 and 6): mean and range over runs."""
    trained = [row for row in rows if row.run.train_seconds is not None]
    if not trained:
        raise InputError(
            "no run records what its adapter cost to train: `uqharness train` writes it into the adapter, whose "
            "evaluation (--model bayeslora) takes it over; a base alone or a plain PEFT adapter has none"
        )
    labels = list(by_label(trained))
    panels = []
    for name, (title, scale) in COSTS.items():
        lines = []
        for place, (label, same) in enumerate(by_label(trained).items()):
            values = [scale * value for row in same if (value := getattr(row.run, name)) is not None]
            if values:
                ends = [min(values)], [max(values)]
                lines.append(Line(label, [place], [fmean(values)], *ends, joined=False))
        if lines:
            panels.append(Panel(title, "", "", lines, ticks=labels, from_zero=True))
    return Chart(panels, 2 if len(labels) > 6 else 4, labels)
