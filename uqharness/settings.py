"""Settings as frozen dataclasses: their fields are the command-line flags, the YAML keys and the record.

`Run` has the settings shared by all methods; every method is its own dataclass. This module names no method.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from uqharness.errors import InputError, did_you_mean

T = TypeVar("T")
MAX_DRAWS = 10_000  # of a record, an evaluation or an export
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
AUTO, ALL_LINEAR = ("auto",), ("all-linear",)  # target modules: the architecture's, every linear layer but the head
Role = Literal["recipe", "data", "seed", "speed", "io"]


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    role: Role = "recipe",
    trainer: str | None = None,
) -> Any:
    """Declare a dataclass field: its help text, the closed range of its values, its role, and the field of
    `transformers.TrainingArguments` that it sets, if there is one.

    `recipe` changes what is learned; `data` does so by the items it trains on; `seed` is what rows average over;
    `speed` gives the same numbers to rounding; `io` is where a run writes and how it resumes.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "role": role, "trainer": trainer})


@dataclass(frozen=True)
class Run:
    """Settings that the trainings of all methods share. Defaults: BLoB paper, Table 3 (Llama2-7B); ε is its code's."""

    base: str = option("", "base model: a folder, a GGUF file, a hub id, or 'toyworld'")
    task: str = option("", "multiple-choice lm-eval task with a training split", role="data")
    out: str = option("", "folder for the adapter; until it is there, checkpoints are in OUT.checkpoints", role="io")
    steps: int = option(5000, "optimiser steps", low=1, high=10**8, trainer="max_steps")
    stop_at: int = option(0, "end after this many steps, on the schedule of all steps (0: all)", low=0, high=10**8)
    lr: float = option(1e-4, "learning rate", low=0, trainer="learning_rate")
    batch_size: int = option(4, "questions per forward", low=1, high=65536, trainer="per_device_train_batch_size")
    grad_accumulation: int = option(
        1, "forwards per optimiser step", low=1, high=65536, trainer="gradient_accumulation_steps"
    )
    apply_chat_template: bool = option(False, "use the tokenizer's chat template, as lm-eval does")
    system_instruction: str = option("", "the system message, or the first lines without a chat template")
    num_fewshot: int | None = option(None, "examples before each question (None: the task's own)", low=0, high=99)
    fewshot_as_multiturn: bool = option(True, "with a chat template: examples as turns of the chat, not in one message")
    max_length: int = option(300, "tokens of a prompt; longer ones lose tokens on the left", low=2, high=2**20)
    lora_r: int = option(8, "LoRA rank", low=1, high=16384)
    lora_alpha: float = option(16, "LoRA alpha; the update is scaled by alpha / r")
    lora_dropout: float = option(0.0, "dropout at the LoRA input", low=0, high=0.999)
    target_modules: tuple[str, ...] = option(
        AUTO,
        "modules that get a LoRA; auto: query, value and output head by the architecture's names (q_proj v_proj "
        "lm_head), all-linear: every linear layer but the head",
    )
    layers: str = option("all", "layers whose target modules get one: all, last:K, or numbers from 0 (20-29, 0,8-11)")
    schedule: Literal["linear", "constant"] = option("linear", "learning rate after the warm-up")
    warmup: float = option(0.06, "warm-up as a fraction of the steps", low=0, high=1)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", low=0)
    adam_eps: float = option(1e-6, "AdamW's ε (bayesian-peft: 1e-6; Laplace-LoRA's code: 1e-8)", low=1e-30)
    seed: int = option(
        0, "seed of initialisation, data order, dropout and noise", low=0, high=2**32 - 1, role="seed", trainer="seed"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "precision of the base; auto: bfloat16 on a GPU that has it, else float32. The LoRA is float32",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "device of the training; select a GPU with CUDA_VISIBLE_DEVICES", role="speed"
    )
    load_in_4bit: bool = option(False, "quantise the base to 4 bit (bitsandbytes)")
    load_in_8bit: bool = option(False, "quantise the base to 8 bit (bitsandbytes)")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, more time", role="speed")
    cache_prefix: float = option(
        0.0, "GiB for states below the first LoRA: later epochs start there (0: off)", low=0, high=2**16, role="speed"
    )
    cache_prefix_dir: str = option(
        "", "also store these states in a file in this folder, for other commands", role="io"
    )
    group_by_length: bool = option(False, "batches of questions of about the same length: less padding")
    eval_every: int = option(0, "score the selection split every K steps (0: never)", low=0)
    select: Literal["last", "best:nll", "best:acc"] = option("last", "the step whose weights are saved")
    select_split: str = option("train[-20%]", "split that --select uses: train[-20%], train[-500] or tune")
    tune_fraction: float = option(
        0.1, "part of train for tuning if the task has no spare split", low=0, high=0.9, role="data"
    )
    record_every: int = option(0, "record the std of each layer every K steps (0: never)", low=0, role="io")
    save_every: int = option(0, "checkpoint every K steps (0: none)", low=0, role="io")
    resume: bool = option(False, "continue from the newest complete checkpoint of OUT", role="io")
    report_to: tuple[str, ...] = option((), "loggers of the Trainer: tensorboard, wandb, trackio", role="io")

    @property
    def checkpoints(self) -> Path | None:
        """Return the checkpoint folder, beside the adapter's folder, which is written only as a whole."""
        return Path(f"{self.out.rstrip('/')}.checkpoints") if self.out else None

    @property
    def last_step(self) -> int:
        """Return the step at which training ends; its schedule may be longer."""
        return self.stop_at or self.steps

    @property
    def effective_batch(self) -> int:
        """Return the number of questions per optimiser step, over all processes of an `accelerate launch`."""
        return self.batch_size * self.grad_accumulation * int(os.environ.get("WORLD_SIZE", "1"))

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.load_in_4bit and self.load_in_8bit:
            raise InputError("load_in_4bit and load_in_8bit are both set: choose one")
        if not self.target_modules:
            raise InputError("target_modules is empty: name at least one module, for example q_proj")
        for word in (*AUTO, *ALL_LINEAR):
            if word in self.target_modules and len(self.target_modules) > 1:
                raise InputError(f"target_modules has {word} beside names: give {word} alone, or names alone")
        chosen_layers(self.layers)
        if (self.save_every or self.resume) and not self.out:
            raise InputError("save_every and resume need a place for checkpoints: give --out")
        if self.cache_prefix_dir and not self.cache_prefix:
            raise InputError("cache_prefix_dir is set without a budget: give --cache-prefix GIB")
        if self.stop_at > self.steps:
            raise InputError(f"stop_at is {self.stop_at}: there are {self.steps} steps; give at most as many")
        if self.select != "last" and not self.eval_every:
            raise InputError(f"select={self.select} without eval_every: give the interval in steps (--eval-every)")


def count_of(text: str, low: int, high: int) -> int | None:
    """Return the integer that `text` spells in ASCII digits; None if it is not one or out of range."""
    spelled = text.isascii() and text.isdigit() and len(text) <= 18  # "²" is a digit to Python as well
    return int(text) if spelled and low <= int(text) <= high else None


def chosen_layers(text: str, count: int | None = None) -> list[int] | None:
    """Return the layers that `all`, `last:K` or `0,8-11` selects of `count`; None: all. Unknown count: check syntax."""
    if text == "all":
        return None
    most = 10**6
    spans: list[tuple[int, int]] = []
    if text.startswith("last:"):
        if number := count_of(text.removeprefix("last:"), 1, most):
            spans.append(((count or most) - number, (count or most) - 1))
    else:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            ends = count_of(first, 0, most), count_of(last if dash else first, 0, most)
            if ends[0] is None or ends[1] is None or ends[0] > ends[1]:
                spans = []
                break
            spans.append((ends[0], ends[1]))
    if not spans:
        raise InputError(f"layers is {_shown(text)}: give all, last:K, or numbers from 0 as in 20-29 or 0,8-11")
    if count is None:
        return []
    if any(first < 0 or last >= count for first, last in spans):
        raise InputError(f"layers is {text}: the base has {count} layers, numbered 0 to {count - 1}")
    return sorted({number for first, last in spans for number in range(first, last + 1)})


def is_main_process() -> bool:
    """Return whether this process writes, among those of an `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def check_ranges(settings: Any) -> None:
    """Refuse numbers that are not finite or outside the range that their field declares."""
    for spec in dataclasses.fields(settings):
        check_range(spec, getattr(settings, spec.name))


def check_range(spec: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a number outside the range that its field declares; other values pass."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = spec.metadata.get("low"), spec.metadata.get("high")
    below, above = low is not None and value < low, high is not None and value > high
    if below or above or (isinstance(value, float) and not math.isfinite(value)):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        raise InputError(f"{spec.name} is {_shown(value)}: it must be {' and '.join(bounds or ['finite'])}")


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Check type and range of some fields of `cls`."""
    kinds = field_types(cls)
    for spec in dataclasses.fields(cls):
        if spec.name in values:
            check_range(spec, convert(kinds[spec.name], values[spec.name], spec.name))


def _shown(value: Any) -> str:
    """Format a value for a message: one line of limited length."""
    text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) >> 200 else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def convert(kind: Any, value: Any, name: str) -> Any:
    """Convert a value from a flag, YAML or JSON to the type that the field declares."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or str(value).lower() in ("none", "null"):
            return None
        return convert(next(k for k in inner if k is not type(None)), value, name)
    if origin is Literal:
        if value not in inner:
            names = ", ".join(map(str, inner))
            raise InputError(f"{name} is {value!r}{did_you_mean(str(value), map(str, inner))}: choose one of {names}")
        return value
    if origin is tuple:
        if not isinstance(value, (str, list, tuple)):
            raise InputError(f"{name} is {value!r}: it must be a list")
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(convert(inner[0], part.strip() if isinstance(part, str) else part, name) for part in parts if part)
    if kind is bool:
        return boolean(name, value)
    try:
        number = kind(value) if kind is not int or isinstance(value, (int, str)) else int(str(value))
    except (TypeError, ValueError):
        wanted = {float: "a number", int: "an integer"}.get(kind, kind.__name__)
        raise InputError(f"{name} is {_shown(value)}: it must be {wanted}") from None
    return int(number) if kind is int else number


def boolean(name: str, value: object) -> bool:
    """Parse true or false from a flag, a file or `--model_args`, possibly as text."""
    word = str(value).strip().lower()
    if word not in (*TRUE, *FALSE):
        raise InputError(f"{name} is {value!r}: it must be true or false (or yes/no, on/off, 1/0)")
    return word in TRUE


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return a settings object from loose values; refuse unknown names with a suggestion."""
    kinds = field_types(cls)
    for name in values:
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise InputError(f"unknown setting {name!r}{did_you_mean(name, kinds)}; {cls.__name__} has: {known}")
    return cls(**{name: convert(kinds[name], value, name) for name, value in values.items()})


def field_types(cls: type) -> dict[str, Any]:
    """Return {field: type}, without class variables."""
    hints = typing.get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(cls)}


def add_flags(parser: argparse.ArgumentParser, cls: type, skip: Sequence[str] = ()) -> None:
    """Add one flag per field; flags that are not given stay absent, so that files and suggestions apply."""
    kinds = field_types(cls)
    for spec in dataclasses.fields(cls):
        if spec.name in skip:
            continue
        names = list(dict.fromkeys([f"--{spec.name.replace('_', '-')}", f"--{spec.name}"]))
        shown = " ".join(spec.default) if isinstance(spec.default, tuple) else spec.default
        text = f"{spec.metadata.get('help', '')} [{shown}]".replace("%", "%%")
        common: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS, "help": text}
        if kinds[spec.name] is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(kinds[spec.name]) is tuple:
            parser.add_argument(*names, nargs="+", metavar="X", **common)
        else:
            parser.add_argument(*names, metavar=spec.name.rsplit("_", 1)[-1].upper(), **common)


def from_flags(namespace: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Return the fields of `cls` that were given on the command line."""
    return {name: getattr(namespace, name) for name in field_types(cls) if hasattr(namespace, name)}


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file of settings."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(values or {}, dict):
        raise InputError(f"{path} holds a {type(values).__name__}: it must hold settings as `name: value`")
    return dict(values or {})


def parse_set(items: Iterable[str]) -> dict[str, str]:
    """Parse `--set key=value …` as a dictionary."""
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {item!r} is not key=value")
        pairs[name.strip().replace("-", "_")] = value.strip()
    return pairs


def parse_model_args(given: Any) -> dict[str, Any]:
    """Return lm-eval's model_args, a dict or `a=b,c=d`, as a dict."""
    if isinstance(given, Mapping):
        return dict(given)
    pairs = (part.partition("=") for part in str(given or "").split(",") if part.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def resolve_run(suggests: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Run, dict[str, dict[str, Any]]]:
    """Return the run settings (given, else suggested, else default) and the overridden suggestions."""
    run = build(Run, {**suggests, **given})
    wanted = build(Run, suggests)
    overridden = {
        name: {"suggested": as_json(getattr(wanted, name)), "used": as_json(getattr(run, name))}
        for name in suggests
        if getattr(wanted, name) != getattr(run, name)
    }
    return run, overridden


def as_json(value: Any) -> Any:
    """Return settings as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spec.name: as_json(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    return [as_json(v) for v in value] if isinstance(value, (tuple, list)) else value


def fields_of(*roles: Role) -> tuple[str, ...]:
    """Return the run settings that have one of these roles."""
    return tuple(spec.name for spec in dataclasses.fields(Run) if spec.metadata["role"] in roles)


# What the files of an adapter that is built on say, and no setting can change.
OF_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules", "layers")
FREE = frozenset(fields_of("io", "speed"))  # may differ between a run and the one that resumes it
# What a record without the key was trained with: the setting was not there yet.
PROMPTS: Mapping[str, Any] = {
    "apply_chat_template": False,
    "system_instruction": "",
    "num_fewshot": None,
    "fewshot_as_multiturn": True,
}
UNRECORDED: Mapping[str, Any] = {
    "adam_eps": 1e-8,
    "weight_decay": 0.0,
    "group_by_length": False,
    "layers": "all",
    "stop_at": 0,
    **PROMPTS,
}
HASH_VERSION = 2  # 1 (16 digits alone): without adam_eps and weight_decay


def recipe_hash(run: Run, data_record: Mapping[str, Any]) -> str:
    """Return `v2-` and 16 hex digits that identify a training without method and seed; only equals are ranked."""
    splits = [split for split in data_record.get("splits", ()) if split["purpose"] == "fit"]
    fitted = [split.get("prompts", split["fingerprints"]) for split in splits]  # see decisions/no-hidden-leaks.md
    recipe = {name: as_json(getattr(run, name)) for name in fields_of("recipe")}
    for name in ("batch_size", "grad_accumulation"):  # their product counts, over all processes
        del recipe[name]
    recipe |= {
        "base": Path(run.base).name if Path(run.base).exists() else run.base,
        "target_modules": sorted(run.target_modules),
        "lora_alpha": float(run.lora_alpha),
        "effective_batch": run.effective_batch,
        "data": [run.task, digest(fitted)],
    }
    form = data_record.get("form")
    for name, off in PROMPTS.items():  # the form says it all; without one, what differs from what always was
        if form or recipe[name] == off:
            del recipe[name]
    if form and any(form.values()):
        recipe["form"] = dict(form)
    if run.select == "last":  # then nothing was selected
        del recipe["select_split"], recipe["eval_every"]
    for name in ("layers", "stop_at"):  # as in recipes from before there was a choice
        if recipe[name] == UNRECORDED[name]:
            del recipe[name]
    return f"v{HASH_VERSION}-{digest(recipe)}"


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
