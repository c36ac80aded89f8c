"""Check the arguments of `--model bayeslora`; refuse unknown ones with a suggestion."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from uqharness.adapter_io.folder import read_config
from uqharness.errors import InputError, instead
from uqharness.settings import MAX_DRAWS, boolean, count_of

# What HFLM hands on to transformers' from_pretrained and people do use.
_LOADING = (
    "load_in_4bit load_in_8bit bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant "
    "llm_int8_threshold quantization_config attn_implementation device_map low_cpu_mem_usage use_safetensors "
    "variant token cache_dir local_files_only max_memory use_kernels"
).split()
_SWITCHES = (
    "load_in_4bit load_in_8bit bnb_4bit_use_double_quant low_cpu_mem_usage use_safetensors local_files_only use_kernels"
).split()
SAMPLING = ("independent", "antithetic")
AUTO_DRAWS = 10  # of samples=auto at most: the N of the papers


def check_arguments(cls: type, adapter: str, base: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return HFLM's arguments with parsed booleans; refuse those unknown to `cls`, HFLM and transformers."""
    ours = [n for n in inspect.signature(cls).parameters if n != "kwargs"]
    theirs = [n for n in inspect.signature(HFLM).parameters if n not in ("kwargs", "pretrained", "peft", "delta")]
    known = [*ours, *theirs, *_LOADING]
    if habit := instead({**kwargs, **({"adapter": adapter} if adapter else {}), **({"base": base} if base else {})}):
        raise InputError(habit)
    if not adapter:
        raise InputError("bayeslora has no adapter: add adapter=DIR to --model_args, a folder or hub:user/name")
    for name in kwargs:
        if name not in known:
            close = next(iter(difflib.get_close_matches(name, known, 1)), None)
            hint = f"did you mean {close}?" if close else f"bayeslora's own are {', '.join(ours)}"
            raise InputError(f"bayeslora has no argument {name!r}: {hint}")
    check_values(kwargs)
    # HFLM's source has its annotations as text.
    kinds = {
        n: str(getattr(p.annotation, "__name__", p.annotation)) for n, p in inspect.signature(HFLM).parameters.items()
    }
    switches = {*_SWITCHES, *(n for n, kind in kinds.items() if kind.replace(" ", "") in ("bool", "bool|None"))}
    return {name: switch(name, value) if name in switches else value for name, value in kwargs.items()}


def switch(name: str, value: object) -> bool | None:
    """Parse a boolean of `--model_args`; lm-eval itself parses only `true` and `false`."""
    return None if value is None or str(value).lower() == "none" else boolean(name, value)


def whole_number(name: str, value: object, low: int = 0, high: int = 2**53) -> int:
    """Parse a count of `--model_args`, which may be text."""
    number = count_of(str(value), low, high) if type(value) in (int, str) else None
    if number is None:
        raise InputError(f"{name}={value!r:.60}: must be an integer from {low} to {high:,}")
    return number


def check_values(kwargs: Mapping[str, Any]) -> None:
    """Refuse values that HFLM accepts but fails on later or never finishes with."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    if (backend := given.get("backend", "causal")) not in ("default", "causal"):
        raise InputError(f"backend={str(backend)[:60]!r}: bayeslora takes causal language models; remove it")
    for name in ("softmax_dtype", "mixed_precision_dtype"):
        kind = given.get(name, torch.float32)
        kind = getattr(torch, kind.removeprefix("torch."), None) if isinstance(kind, str) else kind
        if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise InputError(f"{name}={str(given[name])[:60]!r}: give float32, bfloat16 or float16")
    for name, high in (("max_length", 2**20), ("max_batch_size", 99_999)):
        if name in given:
            whole_number(name, given[name], 1, high)
    size = str(given.get("batch_size", "1"))
    if not (size.partition(":")[0] == "auto" or count_of(size, 1, 99_999)):
        raise InputError(f"batch_size={size[:60]!r}: must be an integer from 1 to 99999, auto or auto:N")


def sampling_asked(sampling: str, alias: str | None) -> str:
    """Return the way of drawing; `alias` is the value of `draws=`, the argument's former name."""
    if alias is not None and sampling not in ("independent", alias):
        raise InputError(f"draws={alias} and sampling={sampling}: draws is an alias of sampling; give one of them")
    if (wanted := alias or sampling) not in SAMPLING:
        raise InputError(f"sampling={wanted!r}: choose {' or '.join(SAMPLING)}")
    return wanted


def draws_asked(samples: object, tolerance: float | str, sampling: str) -> tuple[int, float | None]:
    """Return (largest number of draws, tolerance of `samples=auto`)."""
    if sampling == "antithetic" and samples == "auto":
        raise InputError("samples=auto needs independent draws: remove sampling=antithetic, or give a number")
    if samples != "auto":
        return whole_number("samples", samples, 0, MAX_DRAWS), None
    try:
        moves = float(tolerance)
    except ValueError:
        moves = math.nan
    if not 0 < moves < 1:
        raise InputError(f"tolerance={tolerance}: must be a probability between 0 and 1")
    return AUTO_DRAWS, moves


def recorded_base(folder: Path, record: dict[str, Any] | None) -> str:
    """Return the base model that an adapter was trained on, from our record or PEFT's."""
    name = record["base"].get("name") if record else read_config(folder).base_model_name_or_path
    if not name:
        raise InputError(f"{folder} does not name its base model: add base=MODEL")
    return str(name)


def with_gguf(base: str, gguf_file: str | None) -> str:
    """Return `base=FOLDER,gguf_file=x.gguf` as one name, FOLDER/x.gguf."""
    if gguf_file is None:
        return base
    if base.lower().endswith(".gguf"):
        if Path(base).name != Path(gguf_file).name:
            raise InputError(
                f"gguf_file={gguf_file}: the base is {base} already: give base=FOLDER, or remove gguf_file"
            )
        return base
    return f"{base.rstrip('/')}/{gguf_file}"
