"""One results file -> its runs, their metrics for every number of draws, and what is wrong with it.

A task whose record cannot be used, or a file that is none of ours, becomes a problem with its reason; the other
tasks of that file stay. What can be used but not relied on is kept with a flag. Nothing here raises for a bad file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uqharness.errors import InputError
from uqharness.leaderboard.checks import (
    name_of,
    number_of,
    optional_name,
    plain_text,
    refuse,
    refuse_record,
    suspicions,
    whole_of,
)
from uqharness.leaderboard.table_sources import Shared, Source, base_of, describe, last, mapping, shown
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import Record, Run, content_of, every_n, packed_records, parse, read_run, shift

Row = dict[str, Any]
NUMBERS = tuple(METRICS)


@dataclass
class Found:
    """What one file holds; a run has its numbers of draws under "n", and each metric for each of them."""

    sha256: str = ""
    runs: list[Row] = field(default_factory=list)
    problems: list[Row] = field(default_factory=list)


def read_file(path: str) -> Found:
    """Everything that is in `path`; never raises for what is in it."""
    found, name = Found(), shown_path(path)
    try:
        content = content_of(path)
        found.sha256 = hashlib.sha256(content).hexdigest()
        data = parse(content, path)
        packed = list(packed_records(data))
    except InputError as error:
        found.problems.append(problem(name, "broken", without_path(error, path)))
        return found
    if not packed:
        found.problems.append(problem(name, "foreign", "no record of draws in it: not a result of a _uq task"))
    for task, values, record in packed:
        try:
            run = read_run(data, name, task, values, record)
            refuse(run)
            draws, columns = every_n(run.record)
            source = describe(run)
            numbers = {name: values.tolist() for name, values in columns.items()}
            row = {**run_row(run, source, data, found.sha256), "n": draws, **numbers}
            if row["run_id"] in {other["run_id"] for other in found.runs}:
                raise InputError("the file holds this task twice: the first counts")
            found.runs.append(row)
        except Exception as error:  # whatever a hostile file brings up
            found.problems.append(problem(name, "broken", error_line(error).removeprefix(f"{name}: {task}: "), task))
            continue
        wrong = list(suspicions(run, data, {name: values[-1] for name, values in columns.items()}))
        if "leaked" in json.loads(row["flags"]):
            found.problems.append(problem(name, "leaked", "fitted, tuned or selected on these questions", task))
        if source.shared:
            found.problems.append(problem(name, "shared", said_of(source.shared, row), task))
        row["flags"] = json.dumps([*json.loads(row["flags"]), *dict.fromkeys(kind for kind, _ in wrong)])
        found.problems += [problem(name, kind, reason, task) for kind, reason in wrong]
    return found


def said_of(shared: Shared, row: Row) -> str:
    """How many questions stand in the published training data too, and the metrics with and without them."""
    names = [name for name in ("acc", "nll", "ece") if name in shared.without]
    numbers = [
        f"{METRICS[name].label} {shown(name, row[name][-1])}, without them {shown(name, shared.without[name])}"
        for name in names
    ]
    what = f"{shared.count} of {shared.items} questions stand in the published training data too"
    return f"{what}: {'; '.join(numbers)}" if numbers else what


def record_in(path: str, task: str) -> Record:
    """The answers of every draw to one task of a file that is on the board."""
    data = parse(content_of(path), path)
    for name, values, packed in packed_records(data):
        if name == task:
            return read_run(data, path, name, values, packed).record
    raise InputError(f"{shown_path(path)} holds no {task} any more; build the board again")


def problem(file: str, kind: str, reason: object, task: str = "") -> Row:
    return {"file": file, "task": plain_text(task), "kind": kind, "reason": plain_text(str(reason))}


def error_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def without_path(error: InputError, path: str) -> str:
    """The message alone, for a list that names the file beside it."""
    return str(error).removeprefix(f"{path}: ")


def shown_path(path: str) -> str:
    return plain_text(path, 4000)


# ---------------------------------------------------------------- rows


def run_row(run: Run, source: Source, data: Mapping[str, Any], sha256: str) -> Row:
    """The run as one row of `Board.runs`; a value of a wrong type is an `InputError`."""
    info = mapping(run.config, "uqharness")
    record = mapping(info, "record")
    refuse_record(record)
    trained = mapping(record, "run")
    recipe = mapping(record, "recipe") or trained
    given = run.model_args
    return {
        **source_row(source),
        "run_id": hashlib.sha256(f"{sha256} {run.task}".encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "model": name_of(run.model, "model"),
        "base": name_of(base_of(run), "base"),
        "shift": shift(source.trained_on, run.task) if source.trained_on else None,
        "protocol_name": optional_name(run.protocol.get("name"), "protocol name"),
        "adapter": name_of(last(info.get("adapter") or given.get("adapter") or given.get("peft") or ""), "adapter"),
        "train_seconds": cost(record, "seconds", sum),
        "peak_memory": cost(record, "peak_memory_bytes", max),
        "trainable": cost(record, "trainable_parameters", max),
        "passes": number_of(info.get("functions"), "functions"),
        "device": name_of(run.config.get("device") or mapping(record, "costs").get("device") or "", "device"),
        "dtype": name_of(last(run.config.get("model_dtype") or recipe.get("dtype") or "", "."), "dtype"),
        "eval_seconds": number_of(data.get("total_evaluation_time_seconds"), "total_evaluation_time_seconds"),
        "record": json.dumps(record),
    }


def cost(record: Mapping[str, Any], name: str, together: Callable[[list[float]], float]) -> float | None:
    """What an adapter cost together with the one that it was built on: without that it would not be there."""
    parts: list[float] = []
    while record:
        part = number_of(mapping(record, "costs").get(name), f"costs.{name}")
        parts += [part] if part is not None else []
        record = mapping(record, "source")
    return together(parts) if parts else None


def source_row(source: Source) -> Row:
    flags = [kind for kind in ("leaked", "reference", "inert", "shared") if getattr(source, kind)]
    return {
        "file": source.file,
        "task": name_of(source.task, "task"),
        "method": name_of(source.method, "method"),
        "settings": source.row[1],
        "setup": source.setup_text,
        "trained_on": optional_name(source.trained_on, "trained on"),
        "protocol": json.dumps(dict(source.protocol)),
        "protocol_hash": source.protocol_hash,
        "recipe_hash": optional_name(source.recipe_hash, "recipe hash"),
        "seed": whole_of(source.seed, "seed"),
        "finite": whole_of(source.finite, "finite", 1),
        "draws": source.draws,
        "has_mean": source.has_mean,
        "combine": source.combine,
        "mean_is_member": source.mean_is_member,
        "items": source.items,
        "date": number_of(source.date, "date"),
        "adapter_hash": name_of(source.adapter_hash, "adapter hash"),
        "elsewhere": source.elsewhere,
        "mean_taken": source.mean_taken,
        "flags": json.dumps(flags),
    }


def main() -> None:
    """A JSON list of paths comes in, one JSON line per file goes out, in their order (see `store.read_all`)."""
    for path in json.load(sys.stdin):
        print(json.dumps(asdict(read_file(path))), flush=True)


if __name__ == "__main__":
    main()
