"""One run as one record: `RunSummary` is the schema of a run, from the results file to the pages of the leaderboard.

The reader makes it here from one task of a results file. The cached table and published files are its columns
(`leaderboard.columns` derives the Arrow schema), tables and pages read its attributes. The answers are stored
separately: `leaderboard.board.Board.record` reads them when they are needed.

Results files are untrusted and are checked here, once. A contradictory file raises an `InputError`; a run whose numbers
are usable but unreliable gets a remark.

    for run in read_runs(["results"]):
        run.number("nll", 0), run.number("nll", run.draws)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import numpy as np

from uqharness.errors import InputError
from uqharness.loose_json import check, flatten, shown, text_of, value_of
from uqharness.metrics.metric import Floats
from uqharness.metrics.registry import METRICS
from uqharness.results.leakage import LIMIT
from uqharness.results.provenance import other_protocol
from uqharness.results.reading import Run, every_n, metrics, read_results, shift
from uqharness.results.record import RULES, digest
from uqharness.settings import UNRECORDED, fields_of

MAX_NAME, MAX_LINE, MAX_TEXT = 300, 4000, 2**16  # letters of a name, of a path or reason, of a value in a map
# Control characters, lone surrogates, and what turns the direction of the text around it.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
RUN_ID = re.compile(r"[0-9a-f]{16}")
ORACLE = "toyworld_oracle"
# Metrics that have one definition everywhere: a file made by another version of ours must agree in these.
STABLE = (
    *("acc", "nll", "brier", "ece", "ece10", "auroc", "aurc", "entropy", "entropy_norm"),
    *("mutual_information", "mutual_information_norm"),
)
UNDEFINED = ("auroc", "mutual_information", "mutual_information_norm")  # of a model that is always right, or one draw
TOLERANCE = 1e-6
ABOVE_ONE = 0.01  # on a log-likelihood, and on a sum of probabilities: half precision rounds
IN_TRAINING = "are also in the published training data"
# What may be remarked of a run, and what it means where a file does not give its own words.
REMARKS = {
    "leaked": "its adapter was fitted, tuned or selected on questions of this task: not ranked",
    "inert": "inert posterior: its draws do not change the answers, so every N equals N = 0",
    "shared": "some of its questions are also in the published training data",
    "trimmed": "evaluated on part of the questions (--limit): compared only with runs on the same ones",
    "elsewhere": "trained under another protocol than evaluated",
    "mismatch": "its file reports other numbers than its answers give",
    "range": "it contains probabilities above 1",
}
SUSPECT = ("mismatch", "range")  # such a run is shown and never ranked


# ---------------------------------------------------------------- what a results file says, as far as it is read


class Method(TypedDict, total=False):
    name: str | None
    label: str | None
    paper: str | None
    settings: dict[str, Any] | None


class Posterior(TypedDict, total=False):
    train_seed: int | None
    finite: int | None
    members: int | None


class Split(TypedDict, total=False):
    purpose: str
    split: str
    items: int
    hash: str | None


class Data(TypedDict, total=False):
    task: str | None
    splits: list[Split] | None


class Costs(TypedDict, total=False):
    seconds: float | None
    peak_memory_bytes: float | None
    trainable_parameters: float | None
    steps: int | None
    device: str | None


class AdapterRecord(TypedDict, total=False):
    """The record of an adapter folder; `source` is that of the adapter it was built on."""

    method: Method | None
    run: dict[str, Any] | None
    recipe: dict[str, Any] | None
    recipe_hash: str | None
    posterior: Posterior | None
    data: Data | None
    costs: Costs | None
    activity: dict[str, Any] | None
    imported: dict[str, Any] | None
    source: AdapterRecord | None


class Overlap(TypedDict):
    leaked: int
    natural: int
    items: int


class Shared(Overlap, total=False):
    natural_ids: list[int] | None


class OfSplit(TypedDict):
    shared: int


class Info(TypedDict, total=False):
    """The fields that our model adds to lm-eval's config."""

    adapter: str | None
    adapter_hash: str | None
    combine: str | None
    functions: float | None
    mean_is_member: bool | None
    base: str | None
    record: AdapterRecord | None
    leaks: dict[str, Shared | list[OfSplit] | None] | None


class Config(TypedDict, total=False):
    device: Any
    model_dtype: Any  # a torch.dtype where the results are those of `simple_evaluate`
    base_label: str | None
    uqharness: Info | None


# ---------------------------------------------------------------- the schema


def _here(default: Any = "") -> Any:
    """A field for the location of the run, which is not a column of a file."""
    return field(default=default, metadata={"column": False})


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One task of one results file: what was evaluated, how it was made, and every metric for each number of draws.

    Maps of texts hold values as on a command line (`loose_json.text_of`); `loose_json.value_of` gives the value back.
    """

    run_id: str  # 16 hex digits of the file's hash and the task; empty where the file is not known
    sha256: str
    task: str
    model: str  # lm-eval's name: bayeslora, hf …
    base: str
    method: str  # its label, or a name for a model without a record
    settings: dict[str, str]  # of the method
    recipe: dict[str, str]  # how it was trained, method apart
    recipe_hash: str | None
    trained_on: str | None
    seed: int | None
    labels_seen: int | None  # labelled items that were used to fit, tune or select, each counted once
    training_passes: int | None  # how many LoRAs were trained for it: an ensemble's members
    protocol: dict[str, str]
    protocol_hash: str
    items: int
    draws: int
    has_mean: bool  # whether N = 0 is there
    mean_taken: float | None  # draws a question has on average, where samples=auto stopped before the last
    combine: str
    finite: int | None  # draws there are of this posterior; None: any number
    mean_is_member: bool
    metrics: dict[str, Floats]  # each for the numbers of draws in `counts`
    without_shared: dict[str, float]  # `without_shared`
    remarks: dict[str, str]  # kind (`REMARKS`) -> what a reader must know before using these numbers
    date: float | None
    adapter: str
    adapter_hash: str
    train_seconds: float | None  # with those of the adapter it was built on
    peak_memory: float | None  # bytes
    trainable: float | None  # parameters
    passes: float | None  # forward passes for an answer
    eval_seconds: float | None
    device: str
    dtype: str
    adapter_record: dict[str, str]  # the record of its adapter without losses, flat: "source.method.name" …
    file: str = _here()  # as it is shown
    path: bytes = _here(b"")
    origin: str = _here("measured")  # measured, submitted, published
    reference: bool = _here(False)  # stands in a table of others, unranked

    @property
    def counts(self) -> range:
        """Return the available numbers of draws; 0 is the posterior's mean."""
        return range(0 if self.has_mean else 1, self.draws + 1)

    def number(self, metric: str, draws: int) -> float:
        """Return a metric of the first `draws` draws; NaN if an older file does not have it."""
        values = self.metrics.get(metric)
        return math.nan if values is None else float(values[draws - self.counts.start])

    def used(self, samples: int | None) -> int | None:
        """Return how many draws a row of `asked` uses (None: all); None if this run has fewer."""
        one = self.finite == 1 or (self.combine == "given" and samples != 0)
        if samples is None or (one and self.draws):  # a point is one row, whatever is asked; so is a combined answer
            return self.draws
        wanted = samples if self.finite is None else min(samples, self.finite)
        return None if wanted > self.draws or (wanted == 0 and not self.has_mean) else wanted

    @cached_property
    def row(self) -> tuple[str, str]:
        """Return the fields that identify its row of a table."""
        return self.method, as_text(self.settings)

    @cached_property
    def recipe_text(self) -> str:
        """Return the recipe as one text; of a batch only its size counts, as in `settings.recipe_hash`."""
        sizes = [value_of(self.recipe.get(key, "1")) for key in ("batch_size", "grad_accumulation")]
        if not all(type(size) is int and size < 2**31 for size in sizes):
            return as_text(self.recipe)
        return as_text({**self.recipe, "batch_size": str(sizes[0] * sizes[1]), "grad_accumulation": "1"})

    @property
    def column(self) -> tuple[str, str | None]:
        return self.task, self.trained_on

    @property
    def shift(self) -> str | None:
        """Return "id", "small" or "large"; None if unknown."""
        return shift(self.trained_on, self.task) if self.trained_on else None

    @property
    def suspect(self) -> tuple[str, ...]:
        """Return why its numbers are unreliable."""
        return tuple(REMARKS[kind] for kind in SUSPECT if kind in self.remarks)

    @property
    def leaked(self) -> bool:
        return "leaked" in self.remarks

    @property
    def inert(self) -> bool:
        return "inert" in self.remarks

    @property
    def kl_inactive(self) -> bool:
        """Return whether a std that is learned with a KL ended below twice its start."""
        start, end = (value_of(self.adapter_record.get(f"kl.std_{at}", "null")) for at in ("start", "end"))
        return isinstance(start, (int, float)) and isinstance(end, (int, float)) and end < 2 * start

    @property
    def training(self) -> str:
        """Return how it was trained: "recorded", "none" (a base alone), "oracle", "unknown"."""
        if self.adapter_record:
            return "recorded"
        if self.model == ORACLE:
            return "oracle"
        return "none" if not self.adapter and self.base not in ("", self.model) else "unknown"


def as_text(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(texts.items()))


def checked(run: RunSummary) -> RunSummary:
    """Return the run if every field fits the schema; otherwise raise an `InputError` that names the first."""
    for name, hint in hints().items():
        value = getattr(run, name)
        check(value, dict if name == "metrics" else hint, name)
        held = [value] if isinstance(value, str) else [*value, *value.values()] if isinstance(value, dict) else []
        limit = MAX_NAME if isinstance(value, str) else MAX_TEXT
        for text in held:
            if isinstance(text, str) and (len(text) > limit or UNWRITABLE.search(text)):
                raise InputError(f"{name} is not a short text: {plain_text(repr(text), 60)}")
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise InputError(f"{name} is {shown(value)}: not an integer of 64 bits")
    if (run.run_id or run.sha256) and not RUN_ID.fullmatch(run.run_id):  # it is part of a file's name on the site
        raise InputError(f"{plain_text(repr(run.run_id), 60)} is no id of a run")
    if run.combine not in RULES:
        raise InputError("it does not say how its draws are combined")
    for name, least in (("finite", 1), ("items", 1), ("draws", 0), ("labels_seen", 0), ("training_passes", 0)):
        value = getattr(run, name)
        if value is not None and value < least:
            raise InputError(f"{name} is {value}, less than {least}")
    if missing := {"acc", "nll", "brier"} - set(run.metrics):
        raise InputError(f"no numbers of {min(missing)}")
    for name, values in run.metrics.items():
        if values is None or len(values) != len(run.counts) or not len(values):
            raise InputError(f"{0 if values is None else len(values)} numbers of {name} for {len(run.counts)}")
        if np.isinf(values).any() or (name in STABLE and name not in UNDEFINED and np.isnan(values).any()):
            raise InputError(f"{name} is not a number")
    return run


@lru_cache(maxsize=4)
def hints(schema: type = RunSummary) -> dict[str, Any]:
    """Return name and type of each column."""
    types = get_type_hints(schema)
    return {f.name: types[f.name] for f in dataclasses.fields(schema) if f.metadata.get("column", True)}


def plain_text(text: str, limit: int = MAX_NAME) -> str:
    """Return text that any file format and terminal accepts: no lone surrogates or control characters, and short."""
    cut = text[:limit]
    clean = cut if cut.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)
    return clean if len(text) <= limit else f"{clean}…"


# ---------------------------------------------------------------- the reader


def read_runs(paths: Iterable[str | Path], more: Sequence[str] = ()) -> list[RunSummary]:
    """Return the runs of these results files and folders, each once; raise an `InputError` for an invalid one.

    `more` are additional metrics such as ece:bins=20.
    """
    runs = {(run.source, run.task): run for path in dict.fromkeys(paths) for run in read_results(path)}
    summaries = []
    for run in runs.values():
        try:
            summaries.append(summarise(run, more=more))
        except InputError as error:
            raise InputError(f"{run.source}: {run.task}: {error}") from error
    return summaries


def summarise(run: Run, sha256: str = "", more: Sequence[str] = ()) -> RunSummary:
    """Return the summary of a run; `sha256` is the hash of its file."""
    config: Config = check(run.config, Config, "config")
    info: Info = config.get("uqharness") or {}
    record: AdapterRecord = info.get("record") or {}
    refuse(run, info)
    draws, numbers = every_n(run.record, dict.fromkeys((*METRICS, *more)))
    trained, posterior, method = (record.get("run") or {}), record.get("posterior") or {}, record.get("method") or {}
    recipe, base = record.get("recipe") or trained, base_of(run, info)
    given = run.model_args
    adapter = info.get("adapter") or given.get("adapter") or given.get("peft")
    # A model without our record: the folder of a plain adapter, or zero-shot for a base.
    unrecorded = f"{last(adapter)} on {base}" if adapter else base if base == run.model else f"{base} (zero-shot)"
    settings = dict(method.get("settings") or {})
    if (built_on := (record.get("source") or {}).get("method")) is not None:  # another adapter: another row
        settings["on"] = built_on.get("label")
    without = without_shared(run, info)
    remarks = dict(remarks_of(run, info, {name: float(values[-1]) for name, values in numbers.items()}, without))
    taken = float(run.record.taken.mean())
    links = list(chain(record))
    return checked(
        RunSummary(
            run_id=hashlib.sha256(f"{sha256} {run.task}".encode()).hexdigest()[:16] if sha256 else "",
            sha256=sha256,
            task=run.task,
            model=run.model,
            base=base,
            method=str(method.get("label") or method.get("name") or unrecorded),
            settings=texts(settings),
            recipe=recipe_of(recipe),
            recipe_hash=record.get("recipe_hash"),
            trained_on=(record.get("data") or {}).get("task"),
            seed=posterior.get("train_seed", trained.get("seed")),
            labels_seen=labels_seen(links),
            training_passes=training_passes(links),
            protocol=texts(run.protocol),
            protocol_hash=run.protocol_hash,
            items=run.record.items,
            draws=run.record.draws,
            has_mean=run.record.has_mean,
            mean_taken=taken if taken < run.record.draws else None,
            combine=run.record.combine,
            finite=posterior.get("finite") if record else 1,
            mean_is_member=bool(info.get("mean_is_member")),
            metrics=numbers,
            without_shared=without,
            remarks=remarks,
            date=number_of(run.date, "date"),
            adapter=last(adapter or ""),
            adapter_hash=info.get("adapter_hash") or "",
            train_seconds=_cost(links, "seconds", sum),
            peak_memory=_cost(links, "peak_memory_bytes", max),
            trainable=_cost(links, "trainable_parameters", max),
            passes=info.get("functions"),
            eval_seconds=number_of(run.seconds, "total_evaluation_time_seconds"),
            device=str(config.get("device") or (record.get("costs") or {}).get("device") or ""),
            dtype=last(config.get("model_dtype") or recipe.get("dtype") or "", "."),
            adapter_record=flatten({**record, **learned_std(record)}, MAX_TEXT, skip=("training",)),
            file=plain_text(run.source, MAX_LINE),
        )
    )


def learned_std(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean std that the last training with a KL started and ended with, of the losses of every step."""
    courses = record.get("training")
    known = [course.get("kl") for course in courses if isinstance(course, dict)] if isinstance(courses, list) else []
    for kl in reversed(known):
        if isinstance(kl, dict) and isinstance(kl.get("std"), list) and len(kl["std"]) == 2:
            return {"kl": {"summed": kl.get("summed"), "std_start": kl["std"][0], "std_end": kl["std"][1]}}
    return {}


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: text_of(value) for key, value in values.items()}


def chain(record: AdapterRecord) -> Iterator[AdapterRecord]:
    """Return the adapter's record and those of the adapters that it was built on."""
    link: AdapterRecord | None = record
    while link:
        yield link
        link = link.get("source")


def recipe_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that change what is learned and differ from the defaults of older records."""
    recipe = {key: run[key] for key in fields_of("recipe") if key in run and run[key] != UNRECORDED.get(key)}
    if recipe.get("select", "last") == "last":  # then nothing was selected
        recipe = {key: value for key, value in recipe.items() if key not in ("select_split", "eval_every")}
    if isinstance(modules := recipe.get("target_modules"), list):
        recipe["target_modules"] = sorted(map(str, modules))
    if "base" in recipe:
        recipe["base"] = last(recipe["base"])
    return texts(recipe)


def labels_seen(links: Iterable[AdapterRecord]) -> int | None:
    """Return the number of items in all used splits; a split shared with the source counts once."""
    splits = [split for link in links for split in (link.get("data") or {}).get("splits") or ()]
    sizes = {split.get("hash") or (split.get("split"), split.get("purpose")): split.get("items", 0) for split in splits}
    return sum(sizes.values()) if splits else None


def training_passes(links: list[AdapterRecord]) -> int | None:
    """Return the number of trained LoRAs; fitting or tuning on top of one (0 steps) trains none."""
    trained = [link for link in links if (link.get("costs") or {}).get("steps") != 0]
    return sum((link.get("posterior") or {}).get("members") or 1 for link in trained) if links else None


def _cost(links: Iterable[AdapterRecord], name: str, together: Any) -> float | None:
    """Return the cost of an adapter, including that of the adapter that it was built on."""
    parts = [(link.get("costs") or {}).get(name) for link in links]
    known = [float(part) for part in parts if isinstance(part, (int, float))]
    return float(together(known)) if known else None


def base_of(run: Run, info: Mapping[str, Any] | None = None) -> str:
    """Return the base's own label if the results contain it, else the last part of its name."""
    info = run.config.get("uqharness") or {} if info is None else info
    record = info.get("record") or {}
    recipe = record.get("recipe") or record.get("run") or {}
    named = recipe.get("base") or info.get("base") or run.model_args.get("pretrained") or run.model
    return str(run.config.get("base_label") or last(named))


def last(path: Any, separator: str = "/") -> str:
    return str(path).rstrip(separator).rsplit(separator, 1)[-1]


def number_of(value: object, what: str) -> float | None:
    """Parse a number, which lm-eval sometimes writes as text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if value is not None and not math.isfinite(number):
        raise InputError(f"{what} is not a number: {plain_text(repr(value), 60)}")
    return None if value is None else number


# ---------------------------------------------------------------- is a result what it says to be?


def refuse(run: Run, info: Mapping[str, Any]) -> None:
    """Refuse a record that contradicts itself."""
    record, said = run.record, run.record.protocol
    if np.nanmax(record.logp) > ABOVE_ONE:
        raise InputError(f"a log-likelihood of {np.nanmax(record.logp):.6g}: no probability is above 1")
    if record.task not in ("", run.task):
        raise InputError(f"the record is of the task {plain_text(record.task, 60)}")
    rule = info.get("combine") or record.combine
    if rule != record.combine:
        raise InputError(f"the model combines draws by {plain_text(repr(rule), 20)}, the record by {record.combine}")
    if said.get("items", record.items) != record.items:
        raise InputError(f"its protocol has {plain_text(repr(said['items']), 20)} questions, its record {record.items}")
    if "documents" in said and said["documents"] != digest(record.doc_hashes):
        raise InputError("its questions are not those that its protocol was made of")
    if (rows := rows_of(said)) is not None and record.ids.max() >= rows:
        raise InputError(f"a question number {record.ids.max()} of a split of {rows}")


def remarks_of(
    run: Run, info: Info, computed: Mapping[str, float], without: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Return (kind, remark), each kind once."""
    record = info.get("record") or {}
    if leaked(info, run.task):
        yield "leaked", "fitted, tuned or selected on these questions"
    if (record.get("activity") or {}).get("inert") is True:
        yield "inert", REMARKS["inert"]
    if without:
        numbers = [
            f"{METRICS[name].label} {printed(name, computed[name])}, without them {printed(name, without[name])}"
            for name in ("acc", "nll", "ece")
            if name in without
        ]
        what = f"{run.record.items - int(without['items'])} of {run.record.items} questions {IN_TRAINING}"
        yield "shared", f"{what}: {'; '.join(numbers)}" if numbers else what
    if elsewhere := other_protocol(record, run.protocol.get("name")):
        yield "elsewhere", plain_text(elsewhere, 4 * MAX_NAME)
    counts = run.samples if isinstance(run.samples, dict) else {}
    wrong = [
        f"the file reports {name} = {value:.6g}, its answers give {computed[name]:.6g}"
        for name in STABLE
        if (value := run.reported.get(name)) is not None
        and not math.isnan(computed[name])
        and not abs(value - computed[name]) <= TOLERANCE * max(1.0, abs(computed[name]))
    ]
    if (used := counts.get("effective")) is not None and used != run.record.items:
        wrong.append(f"the file reports {plain_text(repr(used), 20)} questions, its record contains {run.record.items}")
    if wrong:
        yield "mismatch", "; ".join(wrong)
    total = np.nansum(np.exp(run.record.logp), axis=-1).max()
    if total > 1 + ABOVE_ONE:
        yield "range", f"the choices of a question have a probability of {total:.4g} together"
    known = [counts.get("original"), None if "keep" in run.record.protocol else rows_of(run.protocol)]
    largest = max((count for count in known if type(count) is int), default=0)
    if largest > run.record.items:
        yield "trimmed", f"{run.record.items} of {largest} questions"


def printed(metric: str, number: float) -> str:
    """Format a number with the digits and the scale of its metric in tables."""
    return f"{number * METRICS[metric].scale:.{METRICS[metric].decimals}f}"


def rows_of(protocol: Mapping[str, Any]) -> int | None:
    """The rows of the evaluated split, before a rule leaves some out."""
    rows = protocol.get("rows")
    if isinstance(rows, list) and len(rows) == 2 and all(type(n) is int for n in rows):
        return int(rows[1] - rows[0])
    return None


def leaked(info: Info, task: str) -> bool:
    """Return whether the adapter has seen questions of this task that are not in the published training data."""
    overlap = (info.get("leaks") or {}).get(task)
    if isinstance(overlap, dict):
        return overlap["leaked"] > 0 or overlap["natural"] > LIMIT * overlap["items"]
    return any(each["shared"] > 0 for each in overlap or ())  # of versions that did not tell the two apart


def without_shared(run: Run, info: Info) -> dict[str, float]:
    """Return the count and the metrics of the questions that are not in the published training data.

    Empty if it contains none.
    """
    overlap = (info.get("leaks") or {}).get(run.task)
    ids = overlap.get("natural_ids") if isinstance(overlap, dict) else None
    clean = ~np.isin(run.record.ids, np.array(ids or (), dtype=np.float64))
    if clean.all():
        return {}
    values = metrics(run.record.only(clean)) if clean.any() else {}
    known = {name: float(value) for name, value in values.items() if name in METRICS and math.isfinite(value)}
    return {"items": float(clean.sum()), **known}
