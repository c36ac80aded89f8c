"""Base model + LoRA, W = W0 + (α / r) B A  (LoRA, arXiv:2106.09685, Sec. 4.1): load, inject, initialise.

PEFT initialises from the global generator; we draw A again from a keyed one, so a seed means the same adapter
whatever ran before. B = 0: training starts at the base model.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn

from uqharness.adapter_io import base_location
from uqharness.config import Run
from uqharness.errors import InputError, did_you_mean
from uqharness.posterior import keyed_generator


def build_model(run: Run) -> tuple[PeftModel, Any]:
    """The base with a fresh adapter, and its tokenizer."""
    base, tokenizer = load_base(run)
    return inject(base, run), tokenizer


def load_base(run: Run) -> tuple[nn.Module, Any]:
    """The base where and as the run wants it, and its tokenizer."""
    if not run.base:
        raise InputError("no base model: give --base with a folder, a hub id or toyworld")
    where, device = base_location(run.base), pick_device(run.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        base = transformers.AutoModelForCausalLM.from_pretrained(where, **_loading(run, device))
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = did_you_mean(run.base, ["toyworld"])
        raise InputError(f"base model {run.base} cannot be loaded{hint}: {reason}") from error
    if run.load_in_4bit or run.load_in_8bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    else:
        base = base.to(device)
    return base, tokenizer


def attach(base: nn.Module, folder: Path, run: Run) -> PeftModel:
    """A trained adapter on its base, trainable; rank, scaling and targets are what its own files say."""
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)  # type: ignore[arg-type,unused-ignore]
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"adapter {folder} does not fit base model {run.base}: give its own base ({reason})"
        ) from error
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = run.base
    return model


def inject(base: nn.Module, run: Run) -> PeftModel:
    """LoRA on the run's target modules, initialised from the run's seed."""
    check_targets(base, run.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=run.lora_r,
        lora_alpha=run.lora_alpha,  # type: ignore[arg-type,unused-ignore]
        lora_dropout=run.lora_dropout,
        target_modules="all-linear" if run.target_modules == ("all-linear",) else list(run.target_modules),
    )
    with torch.random.fork_rng():  # PEFT draws A too; ours replaces it
        model = get_peft_model(base, config)  # type: ignore[arg-type,unused-ignore]
    config.base_model_name_or_path = run.base  # get_peft_model writes the folder that the base was read from
    init_adapter(model, run.seed)
    return model


@torch.no_grad()
def init_adapter(model: PeftModel, seed: int) -> None:
    """A ~ U(±sqrt(1/n)), n its inputs (PEFT's default), from `seed` alone; B = 0."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.copy_(uniform(parameter, 1.0, "init", seed, name))
        elif ".lora_B." in name:
            parameter.zero_()


def uniform(like: Tensor, scale: float, *key: object) -> Tensor:
    """U(±sqrt(scale / n)) in the shape of A `[r, n]`, keyed."""
    bound = math.sqrt(scale / like.shape[1])
    return torch.empty(like.shape).uniform_(-bound, bound, generator=keyed_generator(*key))


def check_targets(base: nn.Module, targets: tuple[str, ...]) -> None:
    """Every wanted module exists and is a linear layer."""
    if targets == ("all-linear",):
        return
    kinds = {name: module for name, module in base.named_modules() if name}
    linear = {name.rsplit(".", 1)[-1] for name, module in kinds.items() if _is_linear(module)}
    for target in targets:
        matched = [module for name, module in kinds.items() if name == target or name.endswith(f".{target}")]
        if not matched or not any(_is_linear(module) for module in matched):
            problem = "is no linear layer" if matched else "does not exist"
            raise InputError(
                f"target module {target!r} {problem} in {type(base).__name__}{did_you_mean(target, linear)}; "
                f"it has: {', '.join(sorted(linear))}"
            )


def pick_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no GPU: use --device cpu")
    return torch.device(device)


def _is_linear(module: nn.Module) -> bool:
    # bitsandbytes' and other quantised linears keep the two numbers; GPT-2's Conv1D is the exception.
    named = hasattr(module, "in_features") and hasattr(module, "out_features")
    return named or type(module).__name__ == "Conv1D"


def _loading(run: Run, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`: precision and quantisation."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    name = ("bfloat16" if half else "float32") if run.dtype == "auto" else run.dtype
    dtype = getattr(torch, name)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options: dict[str, Any] = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    if run.load_in_4bit or run.load_in_8bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("4- and 8-bit bases need bitsandbytes, which is not installed: pip install bitsandbytes")
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=run.load_in_4bit, load_in_8bit=run.load_in_8bit, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": device}
    return options
