"""The static site's pages of figures: what the app shows before anything is chosen, and more methods where it fits.

A section is one data set of one table, of its first training seed. Pure; what was left out is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from uqharness.leaderboard import board, charts, costs, curve_rows, curves, draw_curves, table_html
from uqharness.leaderboard import site_html as html
from uqharness.leaderboard.chart_frame import Figure
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.site_runs import MOST_TABLES
from uqharness.leaderboard.table_formats import titled
from uqharness.leaderboard.table_sources import Source
from uqharness.metrics.registry import BINS, METRICS

MOST_ROWS = 25  # of a table or a legend
CURVES = ("nll", "acc", "ece_debiased")
Read = Callable[[str, int], Answers]  # run, draws -> its answers
NO_SHIFT = "These results hold no data set with a shift from the one that was trained on."


@dataclass(frozen=True)
class Section:
    group: Group
    data: str
    title: str
    key: str

    @cached_property
    def seed(self) -> str:
        return self.group.seeds(self.data)[0]

    @property
    def whose(self) -> str:
        return "No training seed" if self.seed == "None" else f"Training seed {self.seed}"

    @cached_property
    def runs(self) -> dict[str, Source]:
        """Of this seed: those that are drawn, then the others."""
        rows = [*self.group.start(self.data), *self.group.rows(self.data)]
        found = {row: run for row in rows if (run := self.group.run(self.data, row, self.seed))}
        return dict(list(found.items())[:MOST_ROWS])

    @cached_property
    def drawn(self) -> list[str]:
        return [row for row in self.group.start(self.data) if row in self.runs] or list(self.runs)[:4]

    def answers(self, read: Read, data: str = "") -> list[Answers]:
        """Of every run, or of the same rows on another data set, where they have answers."""
        found = {row: self.group.run(data, row, self.seed) if data else run for row, run in self.runs.items()}
        return [replace(read(run.run_id, run.draws), row=row) for row, run in found.items() if run]

    def note(self, others: str, drawn: Sequence[str] = ()) -> str:
        """Whose answers these are; `others`: where those are that are not drawn."""
        drawn = drawn or self.drawn
        lines = [f"{self.whose}, all draws of each run. Drawn: {', '.join(drawn)}."]
        if rest := [row for row in self.runs if row not in drawn]:
            lines.append(f"{others}: {', '.join(rest)}.")
        if left := len(self.group.rows(self.data)) - len(self.runs):
            lines.append(f"Not here: {left} more, without a run of this seed or beyond {MOST_ROWS} methods.")
        return html.paragraph(" ".join(lines))

    def folded(self, fig: Figure, rows: Sequence[str]) -> Figure:
        """A figure with one trace per row: what is not drawn waits in the legend."""
        for trace, row in zip(fig["data"], rows, strict=True):
            trace["visible"] = True if row in self.drawn else "legendonly"
        return fig


def calibration(groups: Sequence[Group], read: Read) -> list[str]:
    def of(section: Section) -> list[str]:
        told, data = section.answers(read), section.data
        drawn = [found for found in told if found.row in section.drawn]
        header, rows = curve_rows.calibration_rows(told, BINS, False)
        return [
            section.note("In the table only"),
            html.figure(charts.reliability(drawn), f"reliability-{section.key}", f"Reliability on {data}"),
            table_html.grid(header, rows, f"{data}, {section.whose.lower()}"),
            html.figure(
                charts.right_and_wrong(drawn), f"confidence-{section.key}", f"Confidence of right and wrong on {data}"
            ),
        ]

    return _each(groups, of)


def uncertainty(groups: Sequence[Group], read: Read) -> list[str]:
    def of(section: Section) -> list[str]:
        told, data = section.answers(read), section.data
        drawn = [found for found in told if found.row in section.drawn]
        risk = section.folded(charts.risk_coverage(told), [found.row for found in told])
        header, rows = curve_rows.coverage_rows(told)
        parts = curve_rows.part_rows(told)
        return [
            section.note("In the tables, and on a wide screen drawn by a click in the legend"),
            html.figure(risk, f"risk-{section.key}", f"Risk against coverage on {data}"),
            table_html.grid(header, rows, f"Accuracy at coverage, %, on {data}"),
            html.figure(charts.decomposed(drawn), f"parts-{section.key}", f"Epistemic against aleatoric on {data}"),
            *([table_html.grid(*parts, f"Means over the questions of {data}")] if parts[1] else []),
            *_away(section, read),
        ]

    parts = _each(groups, of)
    shifted = any(len(group.near(home)) > 1 for group in groups[:MOST_TABLES] for home in group.homes())
    return parts if shifted else [*parts, html.heading("From ID to OOD"), html.paragraph(NO_SHIFT)]


def _away(section: Section, read: Read) -> list[str]:
    """Of data that was trained on: is the shifted data told from it, and what becomes of the metrics there?"""
    group, home, key = section.group, section.data, section.key
    near = group.near(home) if home in group.homes() else []
    if len(near) < 2:
        return []
    answers = {data: section.answers(read, data) for data in near}
    parts = [html.heading(f"From {section.title} to OOD")]
    for score, label in curves.SCORES.items():
        found, name = curves.detections(answers, home, score), label.lower()
        if any(value == value for values in found.values() for value in values.values()):
            if score == "entropy":  # the scores differ little: a figure of one, a table of each
                fig = section.folded(charts.detections(found, name), list(found))
                parts.append(html.figure(fig, f"detection-{key}", f"AUROC of telling shifted questions by {name}"))
            caption = f"AUROC of {name}, %: {home} against the other data set"
            parts.append(table_html.grid(*curve_rows.detection_rows(found), caption))
    for metric in CURVES:
        over = group.over_seeds(list(section.runs), metric, None, near)
        fig = section.folded(charts.shifted(over, metric), list(over))
        parts.append(html.figure(fig, f"shift-{metric}-{key}", f"{METRICS[metric].label} from {home} to shifted data"))
        caption = f"{METRICS[metric].label}, mean and standard deviation over training seeds"
        parts.append(table_html.grid(*curve_rows.shift_rows(over, metric), caption))
    return parts


def draws(groups: Sequence[Group]) -> list[str]:
    def of(section: Section) -> list[str]:
        several = [row for row in section.drawn if section.runs[row].draws > 1 and section.runs[row].combine != "given"]
        if not several:
            return [html.paragraph("None of these has several draws.")]
        parts = [section.note("Not drawn, or of one answer", several)]
        runs = [(section.runs[row], row) for row in several]
        found = [
            draw_curves.draw_curves(board.record_of(run), row, CURVES) or draw_curves.known_curves(run, row, CURVES)
            for run, row in runs
        ]
        fig = charts.against_draws([[each[metric] for each in found] for metric in CURVES])
        named = ", ".join(METRICS[metric].label for metric in CURVES)
        return [*parts, html.figure(fig, f"draws-{section.key}", f"{named} against N on {section.data}")]

    return _each(groups, of)


def cost(groups: Sequence[Group], recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def of(section: Section) -> list[str]:
        data = section.data
        points = costs.points(section.group, data, section.group.rows(data), recorded, None)
        front = costs.pareto_front(points, "train_seconds")
        fig = charts.pareto(points, costs.title("train_seconds"), titled("nll"), front)
        return [
            html.figure(fig, f"cost-{section.key}", f"NLL against training time on {data}"),
            table_html.grid(*costs.rows(points), f"Costs and quality on {data}"),
        ]

    return _each(groups, of)


def _each(groups: Sequence[Group], make: Callable[[Section], list[str]]) -> list[str]:
    """A section per table and data set; what keeps the tables apart is in the notes of the landing page."""
    parts: list[str] = []
    for g, group in enumerate(groups[:MOST_TABLES]):
        table = f" ({group.name.partition(':')[0]})" if len(groups) > 1 else ""
        for d, data in enumerate(group.runs):
            parts += [html.heading(data + table), *make(Section(group, data, data + table, f"{g}-{d}"))]
    if len(groups) > MOST_TABLES:
        parts.append(html.paragraph(f"The first {MOST_TABLES} of {len(groups)} tables are on this page."))
    return parts
