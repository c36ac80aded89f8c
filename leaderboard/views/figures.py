"""Pages of figures: calibration, uncertainty, shift, draws, cost. Each figure has its numbers as a table."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from uqharness.errors import InputError
from uqharness.leaderboard import charts, costs, curve_rows, ood
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.page import Block, Figure, Grid, Page, Text, View
from uqharness.leaderboard.picks import Group, first_rows
from uqharness.leaderboard.table import synthetic, titled_task, titled_tasks
from uqharness.leaderboard.table_formats import titled
from uqharness.metrics.calibration import BINS
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import RunSummary

ALL, NOBODY = "all", "nothing"
NOTHING = "No measured results were given, so there is nothing to draw."
ABOUT = {
    "Calibration": "Accuracy against confidence: on the diagonal, confidence means what it says.",
    "Uncertainty": "Is it unsure where it is wrong?",
    "Shift": "Questions of another data set than the one that was trained on: can they be told, what do they change?",
    "Draws": "Metrics of the first N draws of one run, and how much it matters which N draws these are.",
    "Cost": "Training time, memory, parameters and forward passes, as each run recorded them.",
}
ELSEWHERE = (
    "No adapter here answered both its own data set and a shifted one. `uqharness tasks` lists the pairs; evaluate an "
    "adapter on both:"
)
EVALUATE = "uqharness eval ADAPTER --tasks openbookqa_uq,uq_ood --output_path results\nuqharness leaderboard results"
CHANGES = (
    "Change: shifted minus in distribution. The two sets hold different questions, so the 95 % interval combines those "
    "of both values; {more}with several training seeds mean ± standard deviation stands there. ECE is biased upwards "
    "on small sets."
)
MORE = "“than {}” is how much more the metric changes than {}'s of the same seed, paired by question; "

GAPS = (
    "Gap: confidence less accuracy; above zero is over-confident. Floor: the ECE that a calibrated model with "
    "these confidences would show on as many questions, on average."
)
PARTS = (
    "Expected entropy: what stays uncertain within a draw. Mutual information: what the draws disagree about. "
    "Both are divided by the logarithm of the number of choices. At most 600 questions are drawn per method."
)
BANDS = (
    "Line: the first N draws. Band: 5 to 95 % of 30 random choices of N of the draws that the run holds; with all "
    "of them there is only one choice, so it closes at the right. Hollow marker at 0: the posterior's mean. "
    "Results that were published without their single draws have no band."
)
FRONT = (
    "Dotted line, ringed and named: the Pareto front of these two axes; no other method is at least as good in "
    "both and better in one. Means over training seeds; differences on it may be within chance (see the ranks). "
    "Times and memory compare only on the same hardware."
)


@dataclass(frozen=True)
class Picked:
    """What a figure shows: rows of one table on one data set, of one training seed."""

    view: View
    group: Group
    data: str
    rows: list[str]
    seed: str
    draws: int | None  # None: as many as each holds

    @property
    def place(self) -> str:
        """What all of it shares, for captions."""
        seed = "no training seed" if self.seed == "None" else f"seed {self.seed}"
        return f"{titled_task(self.data)}, {seed}" + ("" if self.draws is None else f", N = {self.draws}")

    def run(self, row: str) -> RunSummary | None:
        return self.group.run(self.data, row, self.seed)

    def answers(self) -> list[Answers]:
        """Of every chosen row that has a run with so many draws, and has kept them."""
        out = []
        for row in self.rows:
            source = self.run(row)
            used = source.used(self.draws) if source else None
            if source is not None and used is not None:
                with contextlib.suppress(InputError):  # published without its single draws
                    out.append(self.view.results.answers(source.run_id, row, used))
        return out

    def missing(self) -> list[Block]:
        """A note that names rows without such answers."""
        results = self.view.results
        rows = []
        for row in self.rows:
            run = self.run(row)
            used = run.used(self.draws) if run else None
            if run is None or used is None or (used not in (0, run.draws) and not results.whole(run.run_id)):
                rows.append(row)
        return [Text(f"Without answers on {self.place}: {', '.join(rows)}", "caption")] if rows else []


def pick(view: View, draws: bool = True, seeds: bool = True, every: bool = False) -> Picked:
    """The choice of table, data set, methods, seed and N.

    Without `draws`, all of them; without `seeds`, what is shown is over all; `every`: starts with all methods.
    """
    groups = view.results.groups
    names = [group.name for group in groups]
    name = view.one("table", "Table", names) if len(groups) > 1 else names[0]
    group = groups[names.index(name)]
    data = view.one("data", "Data set", list(group.runs), labels=titled_tasks(group.runs), main=True)
    rows, known = group.rows(data), group.seeds(data)
    start = rows if every else group.start(data)
    chosen = view.several("row", "Methods", rows, start)
    seed = view.one("seed", "Training seed", known) if seeds and len(known) > 1 else known[0]
    most = max(run.draws for runs in group.runs[data].values() for run in runs.values())
    samples = view.one("samples", "N, draws averaged", [ALL, *map(str, range(most + 1))]) if draws else ALL
    return Picked(view, group, data, list(chosen) or list(start), seed, None if samples == ALL else int(samples))


def calibration(view: View) -> Page:
    if not view.results.groups:
        return _nothing(view, "Calibration")
    figures = {"reliability": "Reliability", "confidence": "Right and wrong answers"}
    figure = view.one("figure", "Figure", list(figures), kind="segments", labels=figures, main=True)
    picked = pick(view)
    shown, at = picked.answers(), picked.place
    named = f"{', '.join(answers.row for answers in shown)} on {picked.data}"
    if figure == "confidence":
        blocks: list[Block] = [
            Figure(charts.right_and_wrong(shown), "confidence", f"Confidence of right and of wrong answers of {named}"),
            Grid(*curve_rows.sure_rows(shown), f"Confidence of right and of wrong answers on {at}"),
            Grid(*curve_rows.share_rows(shown), f"Bars of the figure, {at}", folded=True),
        ]
    else:
        bins = view.one("bins", "Bins", (5, 10, 15, 20, 30, 50), BINS)
        mass = view.switch("mass", "Equally many questions per bin")
        bands = view.switch("bands", "95 % bands", True, help="questions are resampled 1,000 times")
        how = f"{bins} bins of equal {'mass' if mass else 'width'}"
        blocks = [
            Figure(charts.reliability(shown, bins, mass, bands), "reliability", f"Reliability diagram of {named}"),
            Grid(*curve_rows.calibration_rows(shown, bins, mass), f"Calibration on {at}, {how}"),
            Text(GAPS, "caption"),
            Grid(*curve_rows.bin_rows(shown, bins, mass), f"Bins of the figure, {at}", folded=True),
        ]
    if not shown:
        blocks = [Text("None of the chosen methods has such a run.", "info")]
    return view.page("Calibration", ABOUT["Calibration"], [*picked.missing(), *blocks])


def uncertainty(view: View) -> Page:
    if not view.results.groups:
        return _nothing(view, "Uncertainty")
    figures = {"risk": "Risk and coverage", "parts": "Epistemic and aleatoric"}
    whole = any(s.draws > 1 and s.combine != "given" and view.results.whole(s.run_id) for s in _drawn(view))
    if not whole:  # a figure that nothing can be drawn in is no choice
        figures.pop("parts")
    figure = view.one("figure", "Figure", list(figures), kind="segments", labels=figures, main=True)
    picked = pick(view)
    shown, at = picked.answers(), picked.place
    if figure == "parts":
        blocks: list[Block] = [
            Figure(charts.decomposed(shown), "epistemic", f"Epistemic against aleatoric on {picked.data}"),
            Text(PARTS, "caption"),
            Grid(*curve_rows.part_rows(shown), f"Means over questions, {at}"),
        ]
    else:
        blocks = [
            Figure(charts.risk_coverage(shown), "risk-coverage", f"Risk against coverage on {picked.data}"),
            Grid(*curve_rows.coverage_rows(shown), f"Accuracy at coverage, %, on {at}"),
        ]
    return view.page("Uncertainty", ABOUT["Uncertainty"], [*picked.missing(), *blocks])


def shift(view: View) -> Page:
    """`uqharness ood` as a page: one pair of data sets as tables, all shifts from the same home as figures."""
    results, label = view.results, view.results.board.label
    tables = results.cached("shifts", lambda: ood.tables(results.runs))
    if not tables:
        return view.page("Shift", ABOUT["Shift"], [Text(ELSEWHERE, "info"), Text(EVALUATE, "code")])
    titles = {name: f"Synthetic: {name}" if synthetic(name) else name for name in tables}
    name = view.one("data", "Data sets", list(tables), labels=titles, main=True)
    near = {tables[other][0][1].task: other for other in ood.same_home(tables, name)}
    labels = list(dict.fromkeys(label(inside) for other in near.values() for inside, _ in tables[other]))
    known = [f"{score} of the answer" for score in ood.SCORES]
    score = view.one("score", "Score", list(ood.SCORES), "entropy", labels=dict(zip(ood.SCORES, known, strict=True)))
    metric = view.one("metric", "Metric", list(METRICS), "nll", labels={m: k.label for m, k in METRICS.items()})
    chosen = view.several("row", "Methods of the figures", labels, first_rows(labels))
    most = max(run.draws for pair in tables[name] for run in pair)
    samples = view.one("samples", "N, draws averaged", [ALL, *map(str, range(most + 1))])
    against = view.one("against", "Changes against", [NOBODY, *labels], "MLE")
    draws = None if samples == ALL else int(samples)

    def compared(of: str) -> list[ood.Row]:
        def make() -> tuple[list[ood.Row], list[RunSummary]]:
            with contextlib.suppress(InputError):  # a file with other labels for the same questions
                return ood.compared(tables[of], label, results.record, draws=draws, against=against)
            return ood.compared(tables[of], label, results.record, draws=draws)

        return results.cached(("ood", of, draws, against), make)[0]

    by_set = {data: [row for row in compared(other) if row.label in chosen] for data, other in near.items()}
    home, rows = tables[name][0][0].task, compared(name)
    aurocs, values, form = ood.detected(by_set, score), ood.numbers(by_set, metric), METRICS[metric]
    detection = charts.shifted(aurocs, f"AUROC of {ood.SCORES[score]}, %; 50 is chance", 100, 50)
    blocks: list[Block] = [
        Text("Can shifted questions be told?", "heading"),
        Figure(detection, "detection", f"AUROC of telling shifted questions by {ood.SCORES[score]}"),
        Grid(*ood.spread_table(aurocs, 100, 1), f"AUROC of {ood.SCORES[score]}, the figure as a table", folded=True),
    ]
    if not rows:
        return view.page("Shift", ABOUT["Shift"], [Text(f"No result here has N = {draws}.", "info")])
    more = MORE.format(against, against) if any(row.against for row in rows) else ""
    blocks += [
        Grid(*ood.detection_table(rows), f"Detection, %: {titles[name]}"),
        *(Text(line, "caption") for line in ood.EXPLAINED),
        Text("What does the shift change?", "heading"),
        Figure(
            charts.shifted(values, titled(metric), form.scale),
            "shift",
            f"{form.label} from {home} to shifted data sets",
        ),
        Grid(*ood.spread_table(values, form.scale, form.decimals), f"{form.label}, the figure as a table", folded=True),
        Grid(*ood.change_table(rows, f"than {against}"), f"Changes: {titles[name]}"),
        Text(CHANGES.format(more=more), "caption"),
    ]
    return view.page("Shift", ABOUT["Shift"], blocks)


def draws(view: View) -> Page:
    if not view.results.groups:
        return _nothing(view, "Draws")
    picked = pick(view, draws=False)
    drawn = [name for name in METRICS if name != "ece_floor"]
    labels = {name: METRICS[name].label for name in drawn}
    metrics = view.several("metric", "Metrics", drawn, ("nll", "acc", "ece"), labels=labels)
    runs = {row: run for row in picked.rows if (run := picked.run(row))}
    known = [view.results.curves_of(run.run_id, row, metrics) for row, run in runs.items()] if metrics else []
    panels = [[by_metric[metric] for by_metric in known if by_metric] for metric in metrics]
    single = [row for row, run in runs.items() if run.draws < 2 or run.combine == "given"]
    blocks: list[Block] = [*picked.missing()]
    if single:
        blocks.append(Text(f"One draw, or an answer that is combined already: {', '.join(single)}", "caption"))
    if metrics:
        alt = f"{', '.join(map(labels.__getitem__, metrics))} against N on {picked.data}"
        blocks.append(Figure(charts.against_draws(panels), "draws", alt))
    blocks.append(Text(BANDS, "caption"))
    header, rows = curve_rows.draw_rows([curve for panel in panels for curve in panel])
    blocks += [Grid(header, rows, f"Metrics against N on {picked.place}", "words", folded=True)] * bool(rows)
    return view.page("Draws", ABOUT["Draws"], blocks)


def cost(view: View) -> Page:
    if not view.results.groups:
        return _nothing(view, "Cost")
    picked = pick(view, seeds=False, every=True)
    kind = view.one(
        "cost", "Cost", list(costs.COSTS), labels={name: costs.title(name) for name in costs.COSTS}, main=True
    )
    metric = view.one(
        "metric", "Metric", costs.QUALITY, labels={name: titled(name) for name in costs.QUALITY}, main=True
    )
    points = costs.points(picked.group, picked.data, picked.rows, picked.draws)
    front = costs.pareto_front(points, kind, metric)
    alt = f"{METRICS[metric].label} against {costs.title(kind)} on {picked.data}"
    blocks: list[Block] = [
        Figure(charts.pareto(points, costs.title(kind), titled(metric), front), "pareto", alt),
        Text(FRONT, "caption"),
    ]
    header, rows = costs.rows(points)
    blocks += [
        Grid(header, rows, f"Costs and quality on {titled_task(picked.data)}, means over training seeds", sortable=True)
    ] * bool(rows)
    return view.page("Cost", ABOUT["Cost"], blocks)


def _drawn(view: View) -> list[RunSummary]:
    """The first runs with several draws of every method: enough to see whether single draws are at hand."""
    first: dict[Any, RunSummary] = {}
    for source in view.results.runs:
        if source.draws > 1:
            first.setdefault(source.row, source)
    return list(first.values())


def _nothing(view: View, title: str) -> Page:
    return view.page(title, ABOUT[title], [Text(NOTHING, "info")])
