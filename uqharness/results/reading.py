"""Read results, recompute their metrics, and compare only comparable ones.

The answers of two results are comparable when their protocol hashes are equal: the same documents, prompts and answer
strings in the same order, scored the same way (`require_comparable`). How the model was trained is not in that hash;
neither are settings of a metric, file paths and the model itself. Tables and ranks also keep recipes apart:
`leaderboard.table.comparable`.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from uqharness import loose_json
from uqharness.errors import InputError
from uqharness.loose_json import text_of
from uqharness.metrics import registry as formulas
from uqharness.metrics.metric import Floats
from uqharness.results.differences import of_protocols
from uqharness.results.record import Record, claimed, digest, unpack
from uqharness.settings import parse_model_args

# The budget of one results file. MMLU with 100 draws has 100 MB, 5.6 million answers and a few thousand JSON values.
MAX_BYTES = 256 * 2**20
MAX_ANSWERS = 2**26  # items x (draws + 1) x choices, over all tasks
MAX_JSON_VALUES = 2**20

# lm-eval prints a row for each key that does not end in _stderr: hence the name.
RECORD = "uq_record_stderr"
# What a model may do to a prompt, by lm-eval's argument names; values that mean "as usual" do not count.
MODEL_ARGS = ("add_bos_token", "prefix_token_id", "truncation", "max_length")
AS_USUAL = ("", "none", "false")


@dataclass(frozen=True)
class Run:
    """One task of one lm-eval results file (or of the dict of `simple_evaluate`)."""

    source: str
    task: str
    record: Record
    config: dict[str, Any]  # lm-eval's: model, model_args, seeds, and what get_model_info adds
    protocol: dict[str, Any]  # the record's, with the model's own settings where they change the prompt
    protocol_hash: str
    reported: dict[str, float] = field(default_factory=dict)  # lm-eval's numbers, "acc", "acc_stderr" ...
    date: float | None = None
    seconds: float | str | None = None  # of the evaluation
    samples: dict[str, Any] | None = None  # lm-eval's "n-samples" of the task

    @property
    def model(self) -> str:
        return str(self.config.get("model", ""))

    @property
    def model_args(self) -> dict[str, Any]:
        return parse_model_args(self.config.get("model_args"))

    def metrics(self, draws: int | None = None) -> dict[str, float]:
        return metrics(self.record, draws)


def metrics(record: Record, draws: int | None = None) -> dict[str, float]:
    """Return every metric from a record's first n draws (None: all; 0: the posterior mean), by its own rule."""
    return formulas.compute_all(record.rows(draws), record.gold, record.combine)


def every_n(record: Record, names: Collection[str] | None = None) -> tuple[list[int], dict[str, Floats]]:
    """Return the available numbers of draws, 0 (the mean) or 1 … S, and metrics (None: every one) for each of them."""
    return formulas.every_n(record.logp, record.gold, record.combine, record.has_mean, names)


def model_protocol(config: Mapping[str, Any]) -> dict[str, str]:
    """Return BOS and truncation settings if they were set, because they change the model's prompt."""
    given = parse_model_args(config.get("model_args"))
    return {key: str(given[key]) for key in MODEL_ARGS if str(given.get(key, "")).lower() not in AS_USUAL}


def read_results(source: str | Path | Mapping[str, Any]) -> list[Run]:
    """Return the runs with a record in a results file, a folder of them, or the dict of `simple_evaluate`."""
    if isinstance(source, Mapping):
        return _runs([("results", source)], "the results given")
    if not os.path.exists(source):
        raise InputError(f"{source} does not exist; give a results_*.json of lm-eval or a folder of them")
    path = Path(source)
    files = sorted(path.rglob("results_*.json")) if path.is_dir() else [path]
    return _runs(((str(file), parse(content_of(file), str(file))) for file in files), str(path))


def content_of(path: str | Path) -> bytes:
    """Return the bytes of a results file; all such files are read through this function."""
    return loose_json.read_bytes(path, MAX_BYTES)


def parse(content: bytes, where: str) -> Mapping[str, Any]:
    """Return the content of a results file, checked against the budget before anything large is made of it."""
    if not content.strip():
        raise InputError(f"{where}: empty file; was the evaluation interrupted? Evaluate again")
    if content.startswith(b"PAR1"):
        raise InputError(
            f"{where}: a Parquet file, as `uqharness publish` writes; give the results_*.json it was made of"
        )
    # At least as many as there are values: packed arrays are base64, which has none of these characters.
    values = sum(map(content.count, (b",", b"[", b"{")))
    if values > MAX_JSON_VALUES:
        raise InputError(f"{where}: {values:,} JSON values; at most {MAX_JSON_VALUES:,} are read")
    data = loose_json.parse(content, where)
    if not isinstance(data, Mapping) or not isinstance(data.get("results"), Mapping):
        raise InputError(
            f'{where}: not a results file of lm-eval: it has no "results"; give a results_*.json or a folder of them'
        )
    answers = sum(claimed(packed) for _, _, packed in packed_records(data))
    if answers > MAX_ANSWERS:
        raise InputError(
            f"{where}: {answers:,} answers (items x draws x choices); at most {MAX_ANSWERS:,} are read: "
            "evaluate fewer tasks at once, or fewer draws"
        )
    return data


def _runs(contents: Iterable[tuple[str, Mapping[str, Any]]], where: str) -> list[Run]:
    runs = [read_run(data, name, *packed) for name, data in contents for packed in packed_records(data)]
    if not runs:
        raise InputError(f"no record of draws in {where}: run a _uq task (uqharness tasks) with --output_path")
    return runs


def packed_records(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield (task, lm-eval's values, packed record) of each task that has a record."""
    for task, values in (data.get("results") or {}).items():
        for key, packed in values.items() if isinstance(values, Mapping) else ():
            if key.partition(",")[0] == RECORD:
                yield task, values, packed


def read_run(data: Mapping[str, Any], source: str, task: str, values: Mapping[str, Any], packed: Any) -> Run:
    try:
        if not isinstance(packed, Mapping):
            raise InputError(f"the record is a {type(packed).__name__}, not an object; evaluate again")
        record = unpack(packed)
    except InputError as error:
        raise InputError(f"{source}: {task}: {error}") from error
    config = dict(data.get("config") or {})
    extra = model_protocol(config)
    protocol = {**record.protocol, "model": extra} if extra else record.protocol
    written = packed.get("metrics")  # those that lm-eval does not print
    numbers = dict(written) if isinstance(written, Mapping) else {}
    numbers |= {key.partition(",")[0]: value for key, value in values.items() if "," in key}
    numbers = {name: float(value) for name, value in numbers.items() if type(value) in (int, float)}
    samples = data.get("n-samples")
    return Run(
        source,
        task,
        record,
        config,
        protocol,
        digest(protocol),
        numbers,
        data.get("date"),
        data.get("total_evaluation_time_seconds"),
        samples.get(task) if isinstance(samples, Mapping) else None,
    )


def require_comparable(runs: Sequence[Run | Record]) -> str:
    """Return the protocol hash that all share; otherwise raise an error that names fields and values."""
    if not runs:
        raise InputError("nothing to compare; give at least one result")
    first = runs[0]
    for other in runs[1:]:
        if other.protocol_hash != first.protocol_hash:
            one, two = ({key: text_of(value) for key, value in run.protocol.items()} for run in (first, other))
            differ = [f"{key} ({left} and {right})" for key, (left, right) in of_protocols(one, two).items()]
            raise InputError(
                f"{_name(first)} and {_name(other)} are not comparable; they differ in "
                f"{', '.join(differ)}: evaluate both in the same way"
            )
    return first.protocol_hash


def _name(run: Run | Record) -> str:
    return f"{run.task} of {run.source}" if isinstance(run, Run) else run.task or "a record"


# ---------------------------------------------------------------- shifts


@lru_cache(maxsize=1)
def shifts() -> dict[str, dict[str, list[str]]]:
    """Return tasks/shifts.yaml: {trained on: {shift: [evaluated on]}}."""
    import yaml  # only here: reading results needs none of it

    return dict(yaml.safe_load(files("uqharness.tasks").joinpath("shifts.yaml").read_text(encoding="utf-8")))


def shift(trained_on: str, evaluated_on: str) -> str | None:
    """ "id", "small" or "large" for a pair of tasks, None if not listed; `_test` counts as the same."""
    source, target = trained_on.removesuffix("_test"), evaluated_on.removesuffix("_test")
    if source == target:
        return "id"
    return next((name for name, tasks in shifts().get(source, {}).items() if target in tasks), None)


# ---------------------------------------------------------------- keeping it

HINT = (
    "uqharness: the answers of every draw were not kept; add --output_path DIR to keep them "
    "(uqharness table DIR computes all metrics from there)"
)


def is_kept(argv: Sequence[str]) -> bool:
    """Return whether this command saves its results: false for lm-eval's and ours without an output path."""
    program = Path(argv[0]).parts[-2:] if argv else ()
    command = program[-1:] in (("lm_eval",), ("lm-eval",)) or program == ("lm_eval", "__main__.py")
    command |= program[-1:] == ("uqharness",) and list(argv[1:2]) == ["eval"]
    named = any(arg.partition("=")[0] in ("--output_path", "-o", "--config", "-C") for arg in argv)
    return named or not command


@lru_cache(maxsize=1)
def say_if_not_kept() -> None:
    """Print a note at exit, after lm-eval's table, if the command does not save the record."""
    if not is_kept(sys.argv):
        atexit.register(print, HINT, file=sys.stderr)
