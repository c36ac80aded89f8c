"""Results as tables, methods x datasets, recomputed from the answers of every draw.

One table holds only what may be ranked together: equal protocol (the evaluation) and equal recipe (the
training, method apart). Other results go to separate tables, with a note on the differences.
Reads results and metrics; knows no model. `table_formats` writes these as text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isnan, sqrt
from statistics import fmean
from typing import Any

from uqharness.leaderboard.table_sources import DEFAULTS, labels, newest
from uqharness.metrics.registry import METRICS, find
from uqharness.results.differences import of_protocols, of_recipes
from uqharness.results.runs import IN_TRAINING, RunSummary, printed

DEFAULT = ("acc", "ece", "nll")
ANY_RECIPE = "any"
EMBEDDED = "toyworld"  # how names of tasks of the embedded world begin
# Trained on -> seeds that a row needs for a rank: experiments whose rules were fixed before any run (`by_plan`).
PLANNED = {"arc_easy_small_cloze_uq": 3}  # uqharness/suite/shipped/real-small.prereg.md
SHIFTS = {"id": 0, "small": 1, "large": 2, None: 3}
# How a model came to be of which no adapter's record speaks (`RunSummary.training`).
UNTRAINED = {
    "recorded": "was trained in a way that is not known",
    "unknown": "was trained in a way that is not known",
    "none": "is the base, not trained here",
    "oracle": "knows the world's own probabilities, the best that any model can do",
}


def synthetic(task: str) -> bool:
    return task.startswith(EMBEDDED)


def titled_task(name: str) -> str:
    """A data set's name where it stands alone."""
    return f"{name} (synthetic)" if synthetic(name) else name


def titled_tasks(names: Iterable[str]) -> dict[str, str]:
    return {name: titled_task(name) for name in names}


@dataclass(frozen=True)
class Column:
    task: str
    trained_on: str | None
    shift: str | None
    items: int
    protocol_hash: str
    recipe_hash: str | None

    @property
    def synthetic(self) -> bool:
        return synthetic(self.task)

    @property
    def name(self) -> str:
        """The task; with what was trained on, where that is another task."""
        kind = f", {self.shift} shift" if self.shift in ("small", "large") else ""
        other = self.trained_on and self.trained_on.removesuffix("_test") != self.task.removesuffix("_test")
        return f"{self.task} (trained on {self.trained_on}{kind})" if other else self.task


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric over seeds: mean ± standard deviation (n − 1; None for one seed)."""

    values: Mapping[str, float]  # seed -> value
    mean: float
    std: float | None
    floor: float | None = None  # ECE's: what a calibrated predictor would show on as many items
    rank: int | None = None  # 1 best, 2 second
    leaked: bool = False  # evaluated on items that were fitted, tuned or selected on: not ranked
    reference: bool = False  # not trained by the recipe of the others, or in a way that is not known: not ranked
    suspect: bool = False  # its numbers are not to be relied on: not ranked
    compared: float | None = None  # what stands in for the mean when values are compared: ECE's debiased value
    runs: tuple[str, ...] = ()  # run ids, in the order of `values`


@dataclass
class Table:
    columns: list[Column]
    rows: list[tuple[str, int]]  # method, draws
    metrics: list[str]
    cells: dict[tuple[str, int, int], Cell]  # metric, row, column
    notes: list[str] = field(default_factory=list)
    auto: Mapping[int, float] = field(default_factory=dict)  # row -> draws that samples=auto took, on average


def build(
    runs: Sequence[RunSummary],
    metrics: Sequence[str] = DEFAULT,
    samples: Sequence[int | None] = (None,),
    across_recipes: bool = False,
) -> list[Table]:
    """Return tables in the order in which their first result was read, those of the embedded world last."""
    for name in metrics:
        find(name)
    notes: list[str] = []
    if across_recipes:  # then what the recipes differ in tells rows apart
        runs = [replace(s, settings={**s.recipe, **s.settings}, recipe_hash=s.recipe_hash and ANY_RECIPE) for s in runs]
    sources = newest(runs, notes)
    parts = comparable(sources, across_recipes)
    tables = [one_table(part, list(metrics), samples, labels(part)) for part in parts]
    for part, table in zip(parts[1:], tables[1:], strict=True):
        table.notes.insert(0, f"not comparable with table 1: {differences(parts[0], part)}")
    if tables:
        tables[0].notes += notes
    return tables


def comparable(sources: Sequence[RunSummary], across_recipes: bool) -> list[list[RunSummary]]:
    """Return one list per table: equal recipe, and equal protocol of each task; the embedded world comes last.

    Models whose training is not known join, unranked, where the protocol is theirs; so do `tuned_baselines`.
    """
    groups: dict[tuple[str, int], list[RunSummary]] = {}
    variants: dict[tuple[str, tuple[str, str | None]], list[Any]] = {}

    def place(source: RunSummary) -> None:
        setup = "" if across_recipes else source.recipe_text
        kinds = variants.setdefault((setup, source.column), [])
        kind = (source.protocol_hash, source.recipe_hash)
        if kind not in kinds:
            kinds.append(kind)
        groups.setdefault((setup, kinds.index(kind)), []).append(source)

    for source in sources:
        if source.recipe_hash and not source.reference:
            place(source)
    own = {key: list(part) for key, part in groups.items()}
    for source in (s for s in sources if not s.recipe_hash or s.reference):
        homes = [
            (key, trained_on)
            for key, part in own.items()
            for trained_on in dict.fromkeys(s.trained_on for s in part if _beside(source, s))
        ]
        for key, trained_on in homes:
            groups[key].append(replace(source, trained_on=trained_on, reference=True))
        if not homes:
            place(source)
    return sorted(groups.values(), key=lambda part: all(synthetic(s.task) for s in part))


def _beside(source: RunSummary, other: RunSummary) -> bool:
    """Return whether a model that is not ranked answered the same questions; one with a recipe: on the same base."""
    if source.recipe_hash and (source.trained_on, source.base) != (other.trained_on, other.base):
        return False
    return (source.task, source.protocol_hash) == (other.task, other.protocol_hash)


def one_table(
    sources: Sequence[RunSummary], metrics: list[str], samples: Sequence[int | None], names: Mapping[Any, str]
) -> Table:
    keys = list(dict.fromkeys(s.column for s in sources))
    first = {key: next(s for s in sources if s.column == key) for key in keys}
    keys.sort(key=lambda key: SHIFTS[first[key].shift])
    columns = [Column(*key, (s := first[key]).shift, s.items, s.protocol_hash, s.recipe_hash) for key in keys]
    filled: dict[tuple[str, int], dict[int, dict[str, RunSummary]]] = {}
    notes: list[str] = []
    for source in sources:
        for used in dict.fromkeys(source.used(n) for n in samples):
            if used is None:
                wanted = [n for n in samples if source.used(n) is None]
                notes += [_missing(source, names[source.row], n) for n in wanted if n is not None]
            else:
                row = filled.setdefault((names[source.row], used), {})
                row.setdefault(keys.index(source.column), {})[str(source.seed)] = source
    order = list(dict.fromkeys(names[s.row] for s in sources))
    rows = sorted(filled, key=lambda row: (order.index(row[0]), row[1]))
    cells = {}
    parts = [(i, j, dict(sorted(by_seed.items()))) for i, row in enumerate(rows) for j, by_seed in filled[row].items()]
    about = [standing(by_seed) for _, _, by_seed in parts]
    for name in metrics:
        for (i, j, by_seed), known in zip(parts, about, strict=True):
            cells[name, i, j] = cell(by_seed, name, rows[i][1], known)
    table = Table(columns, rows, metrics, cells, list(dict.fromkeys(notes)), stopped(filled, rows))
    table.notes += remarks(sources, names, rows, metrics)
    if len({s.recipe_text for s in sources if not s.reference}) > 1:
        table.notes.append("the adapters were trained by different recipes: nothing is marked as best")
    else:
        rank(table)
    return table


def stopped(filled: Mapping[Any, Any], rows: Sequence[tuple[str, int]]) -> dict[int, float]:
    """Rows with results of samples=auto: how many draws a question had on average."""
    every = {i: [s for by_seed in filled[row].values() for s in by_seed.values()] for i, row in enumerate(rows)}
    autos = {i: sources for i, sources in every.items() if any(s.mean_taken and s.draws == rows[i][1] for s in sources)}
    return {i: fmean([s.mean_taken or s.draws for s in sources]) for i, sources in autos.items()}


def remarks(
    sources: Sequence[RunSummary], names: Mapping[Any, str], rows: Sequence[tuple[str, int]], metrics: Sequence[str]
) -> list[str]:
    """Return notes on some of the cells."""
    notes = without(sources, names, metrics)
    for s in sources:
        if s.mean_is_member and (names[s.row], 0) in rows:
            notes.append(f"N = 0 of {names[s.row]} is its first member: it has no mean")
        if s.inert:
            notes.append(
                f"{names[s.row]} is an inert posterior: its draws do not change the answers, every N equals N = 0"
            )
        if s.leaked:
            notes.append(f"† {names[s.row]} was fitted, tuned or selected on items of {s.task}: not ranked")
        if s.mean_taken:
            taken = f"{s.mean_taken:.1f} draws a question, {s.draws} at most"
            notes.append(f"{names[s.row]} on {s.task}: samples=auto, {taken}")
        if "elsewhere" in s.remarks:
            notes.append(f"{names[s.row]} on {s.task}: {s.remarks['elsewhere']}")
        if "trimmed" in s.remarks:
            notes.append(f"{s.task}: {s.remarks['trimmed']} (--limit), compared only with results on the same ones")
        if s.suspect:
            notes.append(f"‡ {names[s.row]} on {s.task}: {'; '.join(s.suspect)}: not ranked")
        if s.reference:
            how = "was trained by a recipe of its own" if s.recipe_hash else UNTRAINED[s.training]
            notes.append(f"{names[s.row]} {how}: for reference, not ranked")
    cells: dict[Any, list[RunSummary]] = {}
    for s in sources:
        cells.setdefault((s.row, s.column), []).append(s)
    for group in cells.values():
        if why := by_plan(group):
            notes.append(f"{names[group[0].row]}: {why}; by a rule that was fixed before any run, it is not ranked")
    return list(dict.fromkeys(notes))


def by_plan(group: Collection[RunSummary]) -> str:
    """Return why the plan of an experiment lets a row's runs, one per seed, have no rank; no text where it does not."""
    first = next(iter(group))
    needed = PLANNED.get(first.trained_on or "", 0)
    if not needed or first.reference or not first.recipe_hash:
        return ""
    if len(group) < needed:
        return f"{len(group)} of {needed} training seeds"
    if all(run.inert for run in group):
        return "inert, its draws do not change the answers"
    return "KL inactive, its std ended below twice its start" if all(run.kl_inactive for run in group) else ""


def without(sources: Sequence[RunSummary], names: Mapping[Any, str], metrics: Sequence[str]) -> list[str]:
    """The questions that the published training data hold too, and the metrics of all draws without them."""
    groups: dict[tuple[str, str, float], list[RunSummary]] = {}
    for s in sources:
        if s.without_shared:
            groups.setdefault((names[s.row], s.task, s.items - s.without_shared["items"]), []).append(s)
    lines = []
    for (name, task, count), group in groups.items():
        known = {m: [s.without_shared[m] for s in group if m in s.without_shared] for m in metrics}
        numbers = ", ".join(f"{METRICS[m].label} {printed(m, fmean(values))}" for m, values in known.items() if values)
        what = f"{name} on {task}: {count:.0f} of {group[0].items} questions {IN_TRAINING}"
        lines.append(f"{what}; without them: {numbers}" if numbers else what)
    return lines


def standing(by_seed: Mapping[str, RunSummary]) -> dict[str, Any]:
    """Return the facts of a cell that hold for every metric: whether it may be ranked, and its runs."""
    sources = by_seed.values()
    marks = {kind: any(getattr(s, kind) for s in sources) for kind in ("leaked", "reference", "suspect")}
    marks["reference"] |= bool(by_plan(sources))
    return {**marks, "runs": tuple(s.run_id for s in sources)}


def cell(by_seed: Mapping[str, RunSummary], metric: str, draws: int, known: Mapping[str, Any]) -> Cell:
    def over_seeds(name: str) -> float:
        return fmean([source.number(name, draws) for source in by_seed.values()])

    values = {seed: source.number(metric, draws) for seed, source in by_seed.items()}
    centre = fmean(values.values())
    spread = deviation(values.values(), centre) if len(values) > 1 else None
    floor = over_seeds("ece_floor") if metric == "ece" else None
    twin = METRICS[metric].compared_by
    return Cell(values, centre, spread, floor, compared=over_seeds(twin) if twin else None, **known)


def deviation(values: Collection[float], centre: float) -> float:
    """With n - 1."""
    return sqrt(fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def rank(table: Table) -> None:
    """Mark the best and second of each column."""
    columns: dict[tuple[str, int], dict[int, Cell]] = {}
    for (name, i, j), cell in table.cells.items():
        columns.setdefault((name, j), {})[i] = cell
    for (name, j), column in columns.items():
        better, twin = METRICS[name].higher_is_better, METRICS[name].compared_by
        if better is None or twin == "":
            continue
        here = {i: c for i, c in column.items() if not (isnan(c.mean) or c.leaked or c.reference or c.suspect)}
        for i, place in places({i: c.mean for i, c in here.items()}, name).items():
            table.cells[name, i, j] = replace(here[i], rank=place)


def places(values: Mapping[int, float], metric: str) -> dict[int, int]:
    """1 for the best and 2 for the second of these values, by the digits that are shown: equal ones share a place."""
    known = METRICS[metric]
    shown = {i: round(value * known.scale, known.decimals) for i, value in values.items()}
    best = sorted(set(shown.values()), reverse=bool(known.higher_is_better))
    if len(best) < 2:  # nothing to choose from
        return {}
    return {i: best.index(number) + 1 for i, number in shown.items() if number in best[:2]}


def differences(one: Sequence[RunSummary], other: Sequence[RunSummary]) -> str:
    """Return what keeps these results apart from those of table 1, with the values of both."""
    reasons: dict[str, list[str]] = {}

    def note(what: str, differ: Mapping[str, tuple[str, str]]) -> None:
        reasons.setdefault(what, []).extend(f"{k} {here} (table 1: {first})" for k, (first, here) in differ.items())

    recorded = all(any(s.recipe_hash for s in part) for part in (one, other))
    if recorded and one[0].recipe_hash != ANY_RECIPE and one[0].recipe_text != other[0].recipe_text:
        if differ := of_recipes({**DEFAULTS, **one[0].recipe}, {**DEFAULTS, **other[0].recipe}):
            note("other recipe", {"base": differ["base"]} if "base" in differ else differ)
    # A model whose training is not known joins any table with its task and protocol: `comparable`.
    by_column = {(s.column if recorded else s.task): s for s in one}
    for run in {s.column: s for s in other}.values():
        match = by_column.get(run.column if recorded else run.task)
        if match is None:
            continue
        if match.protocol_hash != run.protocol_hash:
            hashes = {"protocol hash": (match.protocol_hash, run.protocol_hash)}
            note(f"other protocol on {run.task}", of_protocols(match.protocol, run.protocol) or hashes)
        elif recorded and match.recipe_hash != run.recipe_hash and match.recipe_text == run.recipe_text:
            what = "other training items" if _version(match) == _version(run) else "recipe hashes of two versions"
            note(f"{what} for {run.task}", {"recipe hash": (str(match.recipe_hash), str(run.recipe_hash))})
    if not reasons:
        first, here = (", ".join(dict.fromkeys(s.task for s in part)) for part in (one, other))
        return (
            f"other tasks: {here} (table 1: {first})" if first != here else "how one of them was trained is not known"
        )
    return "; ".join(f"{what}: {', '.join(differ)}" for what, differ in reasons.items())


def _version(source: RunSummary) -> str:
    """Of its recipe hash."""
    return str(source.recipe_hash).rpartition("-")[0]


def _missing(source: RunSummary, name: str, wanted: int) -> str:
    have = f"{source.draws} draws{'' if source.has_mean else ' and no row for the mean'}"
    return f"{name} on {source.task} holds {have}: evaluate again with samples={wanted} to have N = {wanted}"
