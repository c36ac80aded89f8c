"""Compare a paper's table with ours, cell by cell, and test its claims about figures without printed values.

A verdict needs the paper's base, the paper's settings, all questions and more than one seed. Then the 95 % interval of
ours minus the paper's (Welch's, from the two spreads over seeds, widened by the paper's rounding) decides:

    agrees          it lies within the margin (2 points of ACC and ECE, 0.05 of NLL)
    differs         it lies outside the margin on one side
    cannot be told  anything else

Reported and measured numbers are never mixed in a column, mean or mark. `reproduce_formats` writes the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from uqharness.errors import InputError
from uqharness.leaderboard import reported
from uqharness.leaderboard.reported import FOOTNOTES
from uqharness.loose_json import check, nest
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import AdapterRecord, RunSummary
from uqharness.settings import fields_of

MARGINS = {"acc": 0.02, "ece": 0.02, "nll": 0.05}
PAPER_SEEDS = 3  # no paper prints how many seeds its ± is over
RECIPE = fields_of("recipe")  # of a run's settings, those that change what is learned
COSTS = {"train_seconds": "seconds", "peak_memory": "peak_memory_bytes", "trainable": "trainable_parameters"}
DECIDED = ("agrees", "holds", "differs", "fails", "cannot be told")
VERDICTS = (*DECIDED, "no verdict", "not measured")
SEEDS_NOTE = f"no paper prints over how many seeds its ± is: {PAPER_SEEDS} are assumed in the intervals"
# Our tasks by what comes before `_uq`, under the papers' names.
DATASETS = {
    "winogrande_s": "WG-S", "winogrande_m": "WG-M", "arc_challenge": "ARC-C", "arc_easy": "ARC-E", "openbookqa": "OBQA",
    "boolq": "BoolQ", "boolq_glue": "BoolQ", "mmlu_college_chemistry": "MMLU-Chem", "mmlu_college_physics": "MMLU-Phy",
    "mmlu_college_mathematics": "MMLU-Math", "rte": "RTE", "mrpc": "MRPC", "wic": "WiC", "cola": "CoLA", "wnli": "WNLI",
    "cb": "CB",
}  # fmt: skip
# A row of a paper -> our label and the settings it must have. Rows that are not here have our label and any settings.
ROWS: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]] = {
    ("BLoB", "BLoB"): ("BLoB", {"asymmetric": True, "reweight": True, "parameterization": "square"}),
    ("BLoB", "BBB"): ("BBB", {"on": "A"}),
    ("BLoB", "BBB (A and B Bayesian)"): ("BBB", {"on": "AB"}),
    ("BLoB", "BLoB (A and B Bayesian)"): ("BLoB", {"asymmetric": False, "std_scale_b": 1.0}),
    ("BLoB", "BLoB (A and B Bayesian, std on B scaled by 1/100)"): ("BLoB", {"asymmetric": False, "std_scale_b": 0.01}),
    ("BLoB", "BLoB without asymmetric Bayesianization"): ("BLoB", {"asymmetric": False, "std_scale_b": 0.01}),
    ("BLoB", "LoRA"): ("MLE", {}),
    ("Me-LoRA", "LoRA"): ("MLE", {}),
    ("Me-LoRA", "Me-LoRA"): ("Me-LoRA", {"prior_noise": True}),
    ("Me-LoRA", "Me-LoRA (no prior noise)"): ("Me-LoRA", {"prior_noise": False}),
}
DIAGONAL = ("5", "6", "7")  # Laplace-LoRA's figures with the diagonal of the Fisher
# Rows that a paper prints a second time, and our file holds once: (paper, table) -> (other table, its rows).
PRINTED_TWICE = {("BLoB", "8"): ("1", {"MLE", "BBB", "BLoB"})}


@dataclass(frozen=True)
class Number:
    """A mean over seeds; std is None where it is not printed or there is one seed."""

    mean: float
    std: float | None
    seeds: int


@dataclass(frozen=True)
class Cell:
    method: str
    draws: int | None
    dataset: str
    trained_on: str
    base: str
    metric: str
    paper: Number | None  # None: the paper prints no number (its run failed)
    ours: Number | None  # None: not measured
    verdict: str  # agrees, differs, cannot be told, no verdict, not measured
    why: str = ""
    difference: float = nan  # ours minus the paper's
    interval: tuple[float, float] = (nan, nan)
    suspect: bool = False  # the paper contradicts itself here, or its run failed


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper about a figure, at one data set: `left` and `right` are curves."""

    words: str
    metric: str
    left: str
    relation: str  # below, not below, within (the margin), mixed (not below everywhere)
    right: str
    dataset: str
    points: int  # training steps at which both were measured
    held: int  # of them
    difference: float  # left minus right, mean over seeds and steps
    interval: tuple[float, float]
    verdict: str  # holds, fails, cannot be told, no verdict, not measured
    why: str = ""


@dataclass(frozen=True)
class Report:
    title: str
    cells: list[Cell]
    claims: list[Claim]
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        every = [cell.verdict for cell in self.cells] + [claim.verdict for claim in self.claims]
        return {verdict: every.count(verdict) for verdict in VERDICTS if verdict in every}


@dataclass(frozen=True)
class Measured:
    """One task of one results file, under the paper's names."""

    source: RunSummary
    name: str  # the method's
    label: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    dataset: str
    trained_on: str
    step: int | None
    cut: str  # how the questions were cut short; empty: all of them


def report(
    title: str, reproduces: Mapping[str, Any], runs: Sequence[RunSummary], records: Sequence[Mapping[str, Any]]
) -> Report:
    """Return the report of a suite: its `{paper, table or figure, base}` beside its results and records."""
    paper, which = str(reproduces.get("paper", "")), str(reproduces.get("table", reproduces.get("figure", "")))
    named = reproduces.get("base", [])
    bases = list(map(str, named)) if isinstance(named, list) else [str(named)]
    printed = reported.load()
    printed = printed[printed["paper"].eq(paper) & printed["table"].eq(which)]
    if "figure" in reproduces and any((each["paper"], each["figure"]) == (paper, which) for each in reported.claims()):
        return figure(title, paper, which, bases, measured(runs))
    if "table" not in reproduces or printed.empty:
        raise InputError(f"{title}: no table or figure of that name is among the papers' numbers: {dict(reproduces)}")
    if printed["metric"].isin(list(COSTS)).any():
        return costs(title, paper, which, bases, records)
    return table(title, paper, which, bases, measured(runs))


def reports(runs: Sequence[RunSummary]) -> dict[str, Report]:
    """Return the report of every table and figure of a paper that these runs have a cell of, most verdicts first."""
    bases = dict.fromkeys((line["paper"], line["base_model"]) for line in reported.hyperparameters())
    printed = reported.load()[["paper", "table", "base"]].drop_duplicates().to_dict("records")
    known = [
        ("table", row["paper"], row["table"], row["base"]) for row in printed if (row["paper"], row["base"]) in bases
    ]
    known += dict.fromkeys(("figure", line["paper"], line["figure"], line["base_model"]) for line in reported.claims())
    records = list({run.adapter_hash or run.run_id: nest(run.adapter_record) for run in runs}.values())
    made = {}
    for kind, paper, which, base in known if any(map(_dataset, {run.task for run in runs})) else ():
        title = f"{paper}, {kind} {which}, {base}"
        one = report(title, {"paper": paper, kind: which, "base": base}, runs, records)
        if any(cell.ours for cell in one.cells) or any(claim.points for claim in one.claims):
            made[title] = one
    decided = {title: sum(map(one.counts().get, DECIDED, [0] * len(DECIDED))) for title, one in made.items()}
    return dict(sorted(made.items(), key=lambda item: -decided[item[0]]))


def measured(runs: Iterable[RunSummary]) -> list[Measured]:
    """The results on data sets that papers have; the newest of the same adapter and task."""
    best: dict[tuple[Any, ...], Measured] = {}
    for source in runs:
        dataset, trained_on = _dataset(source.task), _dataset(source.trained_on or "")
        if not dataset or not trained_on:
            continue
        record: AdapterRecord = check(nest(source.adapter_record), AdapterRecord, "adapter's record")
        method, trained = record.get("method") or {}, record.get("source") or record
        recipe = {**(trained.get("run") or {}), **(record.get("recipe") or {})} or record.get("run") or {}
        step = recipe.get("stop_at") or recipe.get("steps")
        cut = f"{source.remarks['trimmed']} (limit)" if "trimmed" in source.remarks else ""
        one = Measured(
            source, str(method.get("name", "")), source.method, method.get("settings") or {}, recipe, dataset,
            trained_on, step if isinstance(step, int) else None, cut,
        )  # fmt: skip
        key = (source.row, source.recipe_text, source.seed, source.task, source.trained_on, one.step)
        if key not in best or (best[key].source.date or 0) <= (source.date or 0):
            best[key] = one
    return list(best.values())


def _dataset(task: str) -> str:
    return DATASETS.get(task.partition("_uq")[0], "")


def table(title: str, paper: str, which: str, bases: Sequence[str], ours: Sequence[Measured]) -> Report:
    """Return every cell of a paper's table, in its order, with our number if available."""
    frame = reported.load()
    frame = frame[frame["paper"].eq(paper) & frame["base"].isin(list(bases)) & frame["metric"].isin(list(MARGINS))]
    rows = frame[frame["table"] == which].to_dict("records")
    if again := PRINTED_TWICE.get((paper, which)):
        other = frame[frame["table"].eq(again[0]) & frame["method"].isin(again[1])].to_dict("records")
        drawn = {row["draws"] for row in rows}
        rows = [row for row in other if row["draws"] in drawn or row["draws"] != row["draws"]] + rows
    cells = [_cell(row, ours) for row in rows]
    return Report(title, cells, [], notes_of(paper, bases, rows))


def _cell(row: Mapping[Any, Any], ours: Sequence[Measured]) -> Cell:
    paper, base, metric = row["paper"], row["base"], row["metric"]
    draws = None if row["draws"] is None or row["draws"] != row["draws"] else int(row["draws"])
    label, wanted = ROWS.get((paper, row["method"]), (row["method"], {}))
    matches = [
        m for m in ours
        if (m.label, m.dataset, m.trained_on) == (label, row["dataset"], row["trained_on"])
        and all(m.settings.get(key, value) == value for key, value in wanted.items())
    ]  # fmt: skip
    matches.sort(key=lambda m: len(departures(m, paper, base)))  # of several settings, those nearest to the paper's
    taken: dict[Any, tuple[Measured, int]] = {}
    for m in matches:
        used, first = m.source.used(draws), matches[0].source
        if used is not None and (m.source.row, m.source.recipe_text) == (first.row, first.recipe_text):
            taken[m.source.seed] = (m, used)
    value = float(row["value"])
    std = None if row["std"] is None or row["std"] != row["std"] else float(row["std"])
    printed = Number(value, std, PAPER_SEEDS) if isfinite(value) else None
    odd = row["status"] != "ok" or printed is None
    known = (row["method"], draws, row["dataset"], row["trained_on"], base, metric, printed)
    if not taken:
        return Cell(*known, None, "not measured", suspect=odd)
    got = over_seeds(m.source.number(metric, n) for m, n in taken.values())
    difference, interval = (nan, (nan, nan)) if printed is None else compare(got, printed, metric)
    reasons = list(dict.fromkeys(reason for m, _ in taken.values() for reason in departures(m, paper, base)))
    if odd:
        reasons.insert(0, row["note"] or row["status"])
    else:
        reasons += ["one seed"] * (got.seeds < 2) + ["the paper prints no spread"] * (std is None)
    word = "no verdict" if reasons else verdict(interval, MARGINS[metric])
    return Cell(*known, got, word, "; ".join(reasons), difference, interval, odd)


def over_seeds(values: Iterable[float]) -> Number:
    every = list(values)
    return Number(fmean(every), stdev(every) if len(every) > 1 else None, len(every))


def compare(ours: Number, paper: Number, metric: str) -> tuple[float, tuple[float, float]]:
    """Ours minus the paper's, and its 95 % interval: Welch's, widened by half of the paper's last digit."""
    difference = ours.mean - paper.mean
    if ours.std is None or paper.std is None:
        return difference, (nan, nan)
    known = METRICS[metric]
    rounding = 0.5 * 10.0**-known.decimals / known.scale
    parts = [ours.std**2 / ours.seeds, paper.std**2 / paper.seeds]
    total = sum(parts)
    half = 0.0
    if total > 0:
        freedom = total**2 / (parts[0] ** 2 / (ours.seeds - 1) + parts[1] ** 2 / (paper.seeds - 1))
        half = float(stdtrit(freedom, 0.975)) * sqrt(total)
    return difference, (difference - half - rounding, difference + half + rounding)


def verdict(interval: tuple[float, float], margin: float) -> str:
    low, high = interval
    if -margin <= low and high <= margin:
        return "agrees"
    return "differs" if low > margin or high < -margin else "cannot be told"


def departures(m: Measured, paper: str, base: str) -> list[str]:
    """Return why this result is not comparable with the paper's: another base, other settings, fewer questions."""
    reasons = [m.cut] * bool(m.cut)
    for line in reported.hyperparameters():
        if (
            line["paper"] != paper
            or line["base_model"] != base
            or line["method"] not in ("", m.name)
            or line["dataset"]
        ):
            continue
        setting, wanted = line["setting"], line["used"]
        if setting == "base":
            reasons = [other, *reasons] if (other := another_base(m.recipe, wanted)) else reasons
            continue
        held = m.settings if line["method"] else {key: m.recipe[key] for key in RECIPE if key in m.recipe}
        own_dropout = m.name == "mcd" and setting == "lora_dropout"
        if setting in held and not own_dropout and not same(held[setting], wanted):
            reasons.append(f"{setting} is {held[setting]}, the paper's {wanted}")
    return reasons


def another_base(recipe: Mapping[str, Any], wanted: str) -> str:
    """Return the difference of a training's base from the paper's; empty if equal."""
    have = str(recipe.get("base", "")).rstrip("/").rpartition("/")[2]
    return "" if have == wanted.rpartition("/")[2] else f"another base: {have or 'unknown'}"


def same(value: Any, stated: str) -> bool:
    """Return whether a recorded setting equals that in the file of hyper-parameters."""
    if isinstance(value, bool):
        return str(value).lower() == stated
    if isinstance(value, (int, float)):
        try:
            return float(value) == float(stated)
        except ValueError:
            return False
    if isinstance(value, (list, tuple)):
        return sorted(map(str, value)) == sorted(stated.split())
    return str(value) == stated


def notes_of(paper: str, bases: Sequence[str], rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return notes: contradictions of the paper, and settings that it leaves open."""
    methods = {row["method"] for row in rows}
    notes = [SEEDS_NOTE] if rows else []
    notes += [f"{who}: {text}" if who else text for p, who, text in FOOTNOTES if p == paper and who in ("", *methods)]
    for row in rows:
        if row["note"]:
            notes.append(f"{'‡ ' if row['status'] != 'ok' else ''}{row['method']} on {row['dataset']}: {row['note']}")
    notes += [
        f"{line['method'] or 'all methods'}, {line['setting']}: {line['value'] or 'not stated'} in the paper, "
        f"{line['used']} here: {line['note']}"
        for line in reported.hyperparameters()
        if line["paper"] == paper and line["base_model"] in bases and line["value"] != line["used"]
        and line["setting"] != "base"
    ]  # fmt: skip
    return list(dict.fromkeys(notes))


# ---------------------------------------------------------------- figures


def figure(title: str, paper: str, which: str, bases: Sequence[str], ours: Sequence[Measured]) -> Report:
    """Test the claims of the paper's text about a figure on every measured data set."""
    claims: list[Claim] = []
    for line in reported.claims():
        if (line["paper"], line["figure"]) == (paper, which):
            sets = list(dict.fromkeys(m.dataset for m in ours if m.dataset == m.trained_on)) or ["–"]
            claims += [_claim(line, data, paper, bases, ours) for data in sets]
    notes = ["the figure prints no values: sentences about it are tested; ECE has 10 bins, as in the paper"]
    notes += ["differences are means over steps, and their intervals are over seeds"] if claims else []
    return Report(title, [], claims, notes + notes_of(paper, bases, []))


def _claim(line: Mapping[str, str], data: str, paper: str, bases: Sequence[str], ours: Sequence[Measured]) -> Claim:
    metric, relation = line["metric"], line["relation"]
    curves = [
        {(m.step, m.source.seed): m for m in ours if m.dataset == m.trained_on == data
         and on_curve(m, line[side], "diag" if line["figure"] in DIAGONAL else "kron")}
        for side in ("left", "right")
    ]  # fmt: skip
    both = sorted(set(curves[0]) & set(curves[1]), key=str)
    known = (line["words"], metric, line["left"], relation, line["right"], data)
    if not both:
        return Claim(*known, 0, 0, nan, (nan, nan), "not measured")
    gaps = {at: _value(curves[0][at], metric) - _value(curves[1][at], metric) for at in both}
    margin = MARGINS.get(metric.removesuffix("10"), 0.02)
    steps = list(dict.fromkeys(step for step, _ in both))
    by_step = [fmean(gap for (s, _), gap in gaps.items() if s == step) for step in steps]
    by_seed = [fmean(gap for (_, s), gap in gaps.items() if s == seed) for seed in dict.fromkeys(s for _, s in both)]
    held = sum(_holds(gap, relation, margin) for gap in by_step)
    mean = fmean(by_seed)
    reasons = [r for at in both for m in (curves[0][at], curves[1][at]) for r in departures(m, paper, bases[0])]
    why = "; ".join(dict.fromkeys(r for r in reasons if not r.startswith(("structure is", "predictive is"))))
    if len(by_seed) < 2:
        why = "; ".join(filter(None, [why, "one seed"]))
        return Claim(*known, len(steps), held, mean, (nan, nan), "no verdict", why)
    half = float(stdtrit(len(by_seed) - 1, 0.975)) * stdev(by_seed) / sqrt(len(by_seed))
    interval = (mean - half, mean + half)
    word = "no verdict" if why else _claim_verdict(interval, relation, margin, by_step)
    return Claim(*known, len(steps), held, mean, interval, word, why)


def on_curve(m: Measured, curve: str, structure: str) -> bool:
    """Whether a result belongs to a curve of Laplace-LoRA's figures: MAP, LA, LLLA, or one of four predictives."""
    if curve == "MAP":
        return m.name in ("mle", "map")
    predictive = "joint" if curve in ("LA", "LLLA") else curve.removeprefix("MC ")
    wanted = {"layers": "last" if curve == "LLLA" else "all", "predictive": predictive, "structure": structure}
    return m.name == "laplace" and all(m.settings.get(key) == value for key, value in wanted.items())


def _value(m: Measured, metric: str) -> float:
    return m.source.number(metric, m.source.used(None) or 0)


def _holds(gap: float, relation: str, margin: float) -> bool:
    return {"below": gap < 0, "within": abs(gap) <= margin}.get(relation, gap >= 0)


def _claim_verdict(interval: tuple[float, float], relation: str, margin: float, by_step: Sequence[float]) -> str:
    low, high = interval
    if relation == "mixed":
        return "holds" if max(by_step) >= 0 else "fails"
    if relation == "within":
        return {"agrees": "holds", "differs": "fails"}.get(verdict(interval, margin), "cannot be told")
    if relation == "not below":
        return "holds" if low >= 0 else "fails" if high < 0 else "cannot be told"
    return "holds" if high < 0 else "fails" if low > 0 else "cannot be told"


# ---------------------------------------------------------------- costs


def costs(title: str, paper: str, which: str, bases: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Report:
    """A paper's table of costs beside what adapters' records hold (`uq_config.json`).

    Only parameters are compared. Seconds and memory of another machine are not: their ratios to the LoRA's are shown.
    """
    frame = reported.load()
    chosen = frame["paper"].eq(paper) & frame["table"].eq(which) & frame["base"].isin(list(bases))
    rows = frame[chosen & frame["metric"].isin(list(COSTS))].to_dict("records")
    recorded = [_recorded(row, records) for row in rows]
    place = [(row["base"], row["dataset"], row["metric"], row["setting"]) for row in rows]
    plain = {at: (row, ours) for at, row, ours in zip(place, rows, recorded, strict=True) if row["method"] == "LoRA"}
    cells = [_cost(row, ours, plain.get(at)) for at, row, ours in zip(place, rows, recorded, strict=True)]
    return Report(title, cells, [], notes_of(paper, bases, rows)[1:])


def _recorded(row: Mapping[Any, Any], records: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Ours for a paper's row: (value, why it is not the paper's base, or empty)."""
    label, wanted = ROWS.get((row["paper"], row["method"]), (row["method"], {}))
    bases = [
        line["used"] for line in reported.hyperparameters()
        if (line["paper"], line["base_model"], line["setting"]) == (row["paper"], row["base"], "base")
    ]  # fmt: skip
    rank = row["setting"].removeprefix("rank ") if row["metric"] == "trainable" else ""
    measurements = []
    for each in records:
        record: AdapterRecord = check(each, AdapterRecord, "adapter's record")
        method, trained = record.get("method") or {}, record.get("run") or {}
        settings = method.get("settings") or {}
        fits = method.get("label") == label
        fits &= all(settings.get(key, value) == value for key, value in wanted.items())
        fits &= row["dataset"] in ("", _dataset((record.get("data") or {}).get("task") or ""))
        fits &= rank in ("", str(trained.get("lora_r")))
        known: Mapping[str, Any] = record.get("costs") or {}
        value = known.get(COSTS[row["metric"]])
        if fits and value is not None:
            measurements.append((float(value), another_base(trained, bases[0])))
    own = [each for each in measurements if not each[1]]
    return own or measurements


def _cost(
    row: Mapping[Any, Any],
    ours: Sequence[tuple[float, str]],
    plain: tuple[Mapping[Any, Any], Sequence[tuple[float, str]]] | None,
) -> Cell:
    value, metric = float(row["value"]), row["metric"]
    known = (
        row["method"], None, row["dataset"] or row["setting"], row["trained_on"], row["base"], metric,
        Number(value, None, 1),
    )  # fmt: skip
    if not ours:
        return Cell(*known, None, "not measured")
    got = over_seeds(each for each, _ in ours)
    other = next((why for _, why in ours if why), "")
    if metric == "trainable":  # printed in millions with two decimals
        word = "no verdict" if other else "agrees" if abs(got.mean - value) <= 0.005e6 else "differs"
        return Cell(*known, got, word, other, got.mean - value)
    ratios = ""
    if plain and plain[1] and row["method"] != "LoRA" and (base := fmean(each for each, _ in plain[1])):
        ratios = f"of LoRA's: {value / float(plain[0]['value']):.2f} in the paper, {got.mean / base:.2f} here"
    return Cell(*known, got, "no verdict", "; ".join(filter(None, [other, "another machine", ratios])))
