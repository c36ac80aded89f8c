"""Every adapter on its own data set against each shifted one: numbers and texts for `uqharness ood` and the page Shift.

for name, pairs in tables(board.runs).items():       # one table: one base, recipe, protocol and pair of data sets
    rows, missing = compared(pairs, board.label, board.record, against="MLE")
    detection_table(rows), change_table(rows)         # (header, rows of texts)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean, stdev
from typing import Any

from uqharness.leaderboard.publish import Averaged
from uqharness.leaderboard.table import SHIFTS, synthetic
from uqharness.metrics.registry import find
from uqharness.results import ood
from uqharness.results.ood import CHANGES, Shift
from uqharness.results.record import Record
from uqharness.results.runs import RunSummary

SCORES = {"confidence": "confidence", "entropy": "entropy", "mutual_information": "MI"}
EXPLAINED = (
    "AUROC, AUPR: shifted questions are the positives, less confidence or more entropy or mutual information (MI) "
    "their sign; AUPR of chance is the share of shifted questions",
    "FPR95: share of shifted questions accepted where 95 % of the in-distribution ones are",
    "[…]: 95 % interval over questions of one adapter; ±: standard deviation over training seeds",
)
Pair = tuple[RunSummary, RunSummary]  # in distribution, shifted
Texts = tuple[list[str], list[list[str]]]  # header and rows


@dataclass(frozen=True)
class Row:
    """One adapter and one shifted set; `against`: how much more each metric changes than a reference's."""

    label: str
    shift: Shift
    against: Mapping[str, tuple[float, tuple[float, float]]]


def tables(runs: Sequence[RunSummary]) -> dict[str, list[Pair]]:
    """Return the pairs of runs by the name of their table, which holds only what may be compared."""
    groups: dict[tuple[str, tuple[object, ...]], list[Pair]] = {}

    def place(pair: Pair) -> tuple[object, ...]:
        return pair[0].reference, synthetic(pair[0].task), SHIFTS[pair[1].shift]

    for inside, shifted in sorted(ood.pairs(runs), key=place):
        name = f"{inside.task} → {shifted.task} ({shifted.shift} shift), {inside.base}"
        setting: tuple[object, ...] = (inside.recipe_hash, inside.protocol_hash, shifted.protocol_hash)
        beside = (key for key in groups if inside.reference and (key[0], key[1][1:]) == (name, setting[1:]))
        groups.setdefault(next(beside, (name, setting)), []).append((inside, shifted))
    named = {}
    for (name, setting), pairs in groups.items():
        others = [other for alike, other in groups if alike == name and other != setting]
        words = zip(
            ("recipe", "protocol", "protocol of the shifted set"), setting, zip(*others, strict=True), strict=False
        )
        differ = [f"{word} {value}" for word, value, of_others in words if set(of_others) != {value}]
        named[", ".join([name, *differ])] = pairs
    return named


def same_home(tables: Mapping[str, Sequence[Pair]], name: str) -> list[str]:
    """Return the tables whose adapters have the base, training and own data set of this one."""

    def home(pairs: Sequence[Pair]) -> tuple[object, ...]:
        run = pairs[0][0]
        return run.base, run.task, run.recipe_hash, run.protocol_hash

    return [other for other, pairs in tables.items() if home(pairs) == home(tables[name])]


def compared(
    pairs: Sequence[Pair],
    label: Callable[[RunSummary], str],
    record: Callable[[str], Record],
    metrics: Sequence[str] = CHANGES,
    draws: int | None = None,
    against: str | None = None,
) -> tuple[list[Row], list[RunSummary]]:
    """Return the rows of one table, and the shifted runs that cannot be averaged over so many draws.

    `against` is the label of a reference, which is compared with the adapters of its training seed.
    """
    shifts, missing = list[Shift](), list[RunSummary]()
    for inside, shifted in pairs:
        one, other = record(inside.run_id), record(shifted.run_id)
        lost = any(isinstance(each, Averaged) and draws not in (None, 0, each.averaged) for each in (one, other))
        shift = None if lost else ood.compare(inside, one, shifted, other, draws, metrics)
        if shift is None:
            missing.append(shifted)
        else:
            shifts.append(shift)

    def answers(shift: Shift) -> tuple[Record, Record]:
        return record(shift.inside.run_id), record(shift.shifted.run_id)

    reference = {shift.inside.seed: shift for shift in shifts if label(shift.inside) == against}
    rows = []
    for shift in shifts:
        other_shift = reference.get(shift.inside.seed, shift)
        paired = {} if other_shift is shift else ood.against(shift, answers(shift), other_shift, answers(other_shift))
        rows.append(Row(label(shift.inside), shift, paired))
    return rows, missing


# ---------------------------------------------------------------- as text


def flat(row: Row) -> dict[str, Any]:
    """Return every number of a row by name, in the metrics' own units."""
    s = row.shift
    out: dict[str, Any] = {
        "method": row.label,
        "samples": s.draws,
        "base": s.inside.base,
        "trained_on": s.inside.trained_on,
        "seed": s.inside.seed,
        "task": s.inside.task,
        "items": s.inside.items,
        "shifted": s.shifted.task,
        "shift": s.kind,
        "shifted_items": s.shifted.items,
    }
    for score in SCORES:
        d = s.detection.get(score)
        out[f"auroc_{score}"] = d and d.auroc
        out[f"auroc_{score}_low"], out[f"auroc_{score}_high"] = d.auroc_interval if d else (None, None)
        out[f"aupr_{score}"], out[f"fpr95_{score}"] = d and d.aupr, d and d.fpr95
    for name, c in s.changes.items():
        out |= {name: c.inside, f"{name}_shifted": c.shifted, f"{name}_change": c.difference}
        out[f"{name}_change_low"], out[f"{name}_change_high"] = c.interval
        more, interval = row.against.get(name, (None, (None, None)))
        out |= {f"{name}_change_against": more}
        out[f"{name}_change_against_low"], out[f"{name}_change_against_high"] = interval
    return {key: None if value is not None and value != value else value for key, value in out.items()}


def seeds_of(rows: Sequence[Row]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the numbers of every training seed by method and number of draws."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row.label, row.shift.draws), []).append(flat(row))
    return lines


def detection_table(rows: Sequence[Row]) -> Texts:
    """Return how well each score tells shifted questions: AUROC, AUPR and FPR95, in per cent."""
    header = [f"{kind} {name}" for kind in ("AUROC", "AUPR", "FPR95") for name in SCORES.values()]
    cells = []
    for (label, draws), seeds in seeds_of(rows).items():
        texts = [over_seeds(seeds, f"auroc_{score}", 100, 1, interval=True) for score in SCORES]
        texts += [over_seeds(seeds, f"{kind}_{score}", 100, 1) for kind in ("aupr", "fpr95") for score in SCORES]
        cells.append([label, str(draws), str(len(seeds)), *texts])
    return ["Method", "N", "Seeds", *header], cells


def change_table(rows: Sequence[Row], against: str = "… against") -> Texts:
    """Return metrics in distribution and under the shift, and their change; `against` heads that of a reference."""
    metrics, paired = {name: find(name) for name in rows[0].shift.changes}, any(row.against for row in rows)
    header = ["Method", "N", "Seeds"]
    for metric in metrics.values():
        unit = ", %" if metric.scale == 100 else ""
        header += [metric.label + unit, f"change of {metric.label}", *[against] * paired]
    cells = []
    for (label, draws), seeds in seeds_of(rows).items():
        texts = []
        for name, metric in metrics.items():
            form = (metric.scale, metric.decimals)
            both = [over_seeds(seeds, key, *form, spread=False) for key in (name, f"{name}_shifted")]
            changes = [f"{name}_change", *[f"{name}_change_against"] * paired]
            texts += [" → ".join(both), *(over_seeds(seeds, key, *form, interval=True, sign=True) for key in changes)]
        cells.append([label, str(draws), str(len(seeds)), *texts])
    return header, cells


def over_seeds(
    seeds: Sequence[Mapping[str, Any]],
    key: str,
    scale: float,
    decimals: int,
    *,
    interval: bool = False,
    sign: bool = False,
    spread: bool = True,
) -> str:
    """Format mean ± standard deviation, or a single value with its interval."""
    known = [line for line in seeds if line[key] is not None]
    if not known:
        return "–"

    def shown(value: float) -> str:
        return f"{value * scale:{'+' if sign else ''}.{decimals}f}"

    if len(known) > 1:
        values = [line[key] for line in known]
        return f"{shown(fmean(values))} ± {stdev(values) * scale:.{decimals}f}" if spread else shown(fmean(values))
    low, high = (known[0].get(f"{key}_{end}") if interval else None for end in ("low", "high"))
    return shown(known[0][key]) + (f" [{shown(low)}, {shown(high)}]" if low is not None and high is not None else "")


# ---------------------------------------------------------------- for figures

Spread = tuple[float, float | None]  # mean and standard deviation over training seeds


def detected(by_set: Mapping[str, Sequence[Row]], score: str) -> dict[str, dict[str, Spread]]:
    """{method: {shifted data set: AUROC}} of one score, as far as it is known."""
    values: dict[str, dict[str, list[float]]] = {}
    for data, rows in by_set.items():
        for row in rows:
            if score in row.shift.detection:
                values.setdefault(row.label, {}).setdefault(data, []).append(row.shift.detection[score].auroc)
    return _spreads(values)


def numbers(by_set: Mapping[str, Sequence[Row]], metric: str) -> dict[str, dict[str, Spread]]:
    """{method: {data set: a metric}} from the data set that was trained on to shifted ones."""
    values: dict[str, dict[str, dict[object, float]]] = {}
    for data, rows in by_set.items():
        for row in rows:
            s = row.shift
            of_label = values.setdefault(row.label, {})
            for task, run in ((s.inside.task, s.inside), (data, s.shifted)):
                of_label.setdefault(task, {})[s.inside.seed] = run.number(metric, s.draws)
    return _spreads({label: {k: list(v.values()) for k, v in of.items()} for label, of in values.items()})


def _spreads(values: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Spread]]:
    return {
        label: {data: (fmean(of), stdev(of) if len(of) > 1 else None) for data, of in by_data.items()}
        for label, by_data in values.items()
    }


def spread_table(values: Mapping[str, Mapping[str, Spread]], scale: float, decimals: int) -> Texts:
    """Return what a figure draws: mean ± standard deviation over training seeds on each data set."""
    data = list(dict.fromkeys(name for by_data in values.values() for name in by_data))

    def shown(mean: float, std: float | None) -> str:
        spread = "" if std is None else f" ± {std * scale:.{decimals}f}"
        return "–" if mean != mean else f"{mean * scale:.{decimals}f}{spread}"

    rows = [[label, *(shown(*of.get(name, (nan, None))) for name in data)] for label, of in values.items()]
    return ["Method", *data], rows
