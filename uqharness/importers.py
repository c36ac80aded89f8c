"""Convert checkpoints of the papers' code to a PEFT configuration and a posterior. Knows files, not models.

bayesian-peft (BLoB, arXiv:2406.11675) wraps a PEFT model in another, so every name starts with `base_model.model`
twice; its std is Ω = ρ² where its `--bayes-eps` was ≥ 0, else log(1 + e^ρ), and that setting is not stored.
laplace-lora (arXiv:2308.13111) saves a plain PEFT adapter every so many steps, and no factors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor

from uqharness.adapter_io.folder import JSON_LIMIT, MEAN, PEFT_CONFIG, read_tensors
from uqharness.adapter_io.peft_config import PREFIX, lora_config
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.errors import InputError
from uqharness.loose_json import read_object
from uqharness.posterior import Gaussian, Members, Point, Tensors

RHO = ".lora_A_rho"
# PEFT stores the base's own embeddings beside a LoRA on the output head; they are not the adapter's.
_OF_THE_BASE = re.compile(r"(^|\.)(lm_head|embed_tokens)\.(base_layer\.)?(weight|bias)$")
_MEMBER, _STEP = re.compile(r"adapter_(\d+)"), re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint: its tool, its method and the tensors that were removed."""

    tool: str
    protocol: str
    method: str
    config: LoraConfig
    predictive: Predictive
    folder: Path
    details: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(
    folder: Path,
    *,
    eps: float | None = None,
    step: int | None = None,
    members: int | None = None,
    average: str = "probs",
    train_seed: int = 0,
) -> Imported:
    """Read a checkpoint of bayesian-peft or laplace-lora, detected by its files."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give the one with {PEFT_CONFIG}, or with step_… folders")
    if _numbered(folder, _STEP) or _STEP.fullmatch(folder.name):
        _unused("laplace-lora", eps=eps, members=members)
        return laplace_lora(folder, step, train_seed)
    if not (folder / PEFT_CONFIG).exists():
        raise InputError(f"{folder}: neither {PEFT_CONFIG} nor step_… folders: not a checkpoint that can be imported")
    _unused("bayesian-peft", step=step)
    return bayesian_peft(folder, eps, members, average, train_seed)


def bayesian_peft(folder: Path, eps: float | None, members: int | None, average: str, train_seed: int) -> Imported:
    """Read MLE, MAP, MCD (one vector), BLoB (`lora_A_rho`) or ENS (`adapter_1/` … beside the root's member 0)."""
    weights, dropped = undouble(read_raw(folder), folder)
    config = read_config(folder, weights)
    rho = {name: tensor for name, tensor in weights.items() if RHO in name}
    mean = {name: tensor for name, tensor in weights.items() if name not in rho}
    check_pairs(mean, folder)
    details: dict[str, Any] = {"dropped": dropped}
    others = ensemble_folders(folder, members)
    predictive = DrawAverage(Point(mean, train_seed))
    method = "mle"
    if rho and others:
        raise InputError(f"{folder} holds both {RHO[1:]} and adapter_… folders: give a checkpoint of one method")
    if rho:
        method, details["eps"] = "blob", _eps(eps, folder)
        predictive = DrawAverage(Gaussian(mean, standard_deviations(rho, mean, _eps(eps, folder), folder), train_seed))
    else:
        _unused(f"{folder}, which has no {RHO[1:]},", eps=eps)
    if others:
        method, details["members"] = "ens", 1 + len(others)
        ensemble = Members([mean, *(_member(each, config, mean) for each in others)], train_seed)
        predictive = DrawAverage(ensemble, average)
    return Imported("bayesian-peft", "bayesian-peft", method, config, predictive, folder, details)


def laplace_lora(folder: Path, step: int | None, train_seed: int) -> Imported:
    """Read the plain PEFT adapter of one step: the requested one, else the last."""
    steps = _numbered(folder, _STEP)
    if own := _STEP.fullmatch(folder.name):
        if step not in (None, int(own[1])):
            raise InputError(f"{folder} is step {own[1]}, --step says {step}: give the folder above, or remove --step")
        chosen, number = folder, int(own[1])
    else:
        number = max(steps) if step is None else step
        if number not in steps:
            raise InputError(f"{folder} has no step_{number}: it has {', '.join(f'step_{n}' for n in sorted(steps))}")
        chosen = steps[number]
    mean, dropped = drop_base(read_raw(chosen))
    config = read_config(chosen, mean)
    check_pairs(mean, chosen)
    details = {"step": number, "dropped": dropped}
    return Imported(
        "laplace-lora", "laplace-lora", "mle", config, DrawAverage(Point(mean, train_seed)), chosen, details
    )


# ---------------------------------------------------------------- files


def read_config(folder: Path, tensors: Mapping[str, Tensor]) -> LoraConfig:
    """Read PEFT's own file; the tensors' names define which modules have a LoRA."""
    path = folder / PEFT_CONFIG
    if not path.exists():
        raise InputError(f"{folder}: no {PEFT_CONFIG}: it was not saved completely; copy it again")
    return lora_config(read_object(path, JSON_LIMIT), {name: t.shape for name, t in tensors.items()}, str(path))


def read_raw(folder: Path) -> Tensors:
    """Read the tensors of one folder as fp32. A .bin file is not opened, because it can execute code."""
    binary = folder / "adapter_model.bin"
    if not (folder / MEAN).exists() and binary.exists():
        raise InputError(
            f"{binary}: only safetensors are read: load it where you trust it and write its tensors to {MEAN} "
            "(safetensors.torch.save_file)"
        )
    return {name: tensor.float() for name, tensor in read_tensors(folder / MEAN).items()}


def undouble(tensors: Tensors, folder: Path) -> tuple[Tensors, list[str]]:
    """`base_model.model.base_model.model.x` -> `base_model.model.x`, as PEFT names it; with the removed names."""
    lora, dropped = drop_base(tensors)
    named = {name.removeprefix(PREFIX): tensor for name, tensor in lora.items() if name.startswith(2 * PREFIX)}
    if not named:
        some = next(iter(tensors), "nothing")
        hint = " is a plain PEFT adapter, which needs no import" if PREFIX in some else ""
        raise InputError(
            f"{folder}{hint}: none of its {len(tensors)} tensors is named {2 * PREFIX}… as bayesian-peft does ({some})"
        )
    if len(named) != len(lora):
        other = next(name for name in lora if not name.startswith(2 * PREFIX))
        raise InputError(f"{folder}: {other} is not named as bayesian-peft does, {len(named)} others are")
    return named, dropped


def drop_base(tensors: Tensors) -> tuple[Tensors, list[str]]:
    dropped = sorted(name for name in tensors if _OF_THE_BASE.search(name))
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}, dropped


def check_pairs(mean: Tensors, folder: Path) -> None:
    """Refuse anything but complete pairs of A and B with equal ranks."""
    names = {name for name in mean if re.search(r"\.lora_[AB]\.weight$", name)}
    if not names:
        raise InputError(f"{folder / MEAN}: none of its {len(mean)} tensors belongs to a LoRA: not a LoRA checkpoint")
    if other := sorted(set(mean) - names):
        raise InputError(f"{folder / MEAN}: {other[0]} is not part of a LoRA: only LoRA checkpoints can be imported")
    for name in sorted(names):
        twin = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        if twin not in mean:
            raise InputError(f"{folder / MEAN}: {name} without {twin}: it was not saved completely; copy it again")
        a, b = (mean[name], mean[twin]) if ".lora_A." in name else (mean[twin], mean[name])
        if a.ndim != b.ndim or a.ndim < 2 or a.shape[0] != b.shape[1]:
            raise InputError(f"{folder / MEAN}: {name} and {twin} are of different ranks: copy it again")


# ---------------------------------------------------------------- BLoB and ensembles


def standard_deviations(rho: Tensors, mean: Tensors, eps: float, folder: Path) -> Tensors:
    """Return Ω = ρ² (eps ≥ 0) or log(1 + e^ρ) (eps < 0) of every A."""
    by_name = {re.sub(rf"{re.escape(RHO)}.*$", ".lora_A.weight", name): tensor for name, tensor in rho.items()}
    wanted = {name for name in mean if ".lora_A." in name}
    if set(by_name) != wanted:
        odd = sorted(set(by_name) ^ wanted)
        raise InputError(
            f"{folder / MEAN}: {len(by_name)} {RHO[1:]} for {len(wanted)} lora_A ({odd[0]}): copy it again"
        )
    return {name: tensor.square() if eps >= 0 else F.softplus(tensor) for name, tensor in by_name.items()}


def _eps(eps: float | None, folder: Path) -> float:
    if eps is None:
        raise InputError(
            f"{folder} holds {RHO[1:]}, whose meaning depends on a setting that is not stored: add --eps with the "
            "--bayes-eps of its training (0.05 in the authors' scripts: std = rho²; negative: softplus)"
        )
    return eps


def ensemble_folders(folder: Path, members: int | None) -> list[Path]:
    """Return `adapter_1`, `adapter_2` …; refuse gaps or another number than requested."""
    numbered = _numbered(folder, _MEMBER)
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        names = ", ".join(f"adapter_{k}" for k in sorted(numbered))
        raise InputError(f"{folder} holds the members {names} beside its own: some are missing, copy it again")
    if members not in (None, 1 + len(numbered)):
        raise InputError(f"{folder} holds {1 + len(numbered)} members, --members says {members}: copy it again")
    return [numbered[k] for k in sorted(numbered)]


def _member(folder: Path, config: LoraConfig, first: Tensors) -> Tensors:
    tensors, _ = undouble(read_raw(folder), folder)
    other = read_config(folder, tensors)
    for name in ("r", "lora_alpha", "use_rslora", "target_modules"):
        ours, theirs = _listed(getattr(config, name)), _listed(getattr(other, name))
        if ours != theirs:
            raise InputError(f"{folder}: {name} is {theirs}, that of member 0 is {ours}: they must be equal")
    check_pairs(tensors, folder)
    if odd := sorted(set(tensors) ^ set(first)):
        raise InputError(f"{folder}: member 0 and this one do not hold the same tensors ({odd[0]}): copy it again")
    if wrong := [name for name in tensors if tensors[name].shape != first[name].shape]:
        raise InputError(f"{folder}: {wrong[0]} has another shape than in member 0: check that both are of one run")
    return tensors


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    names = ((pattern.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {int(match[1]): path for match, path in names if match}


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, Sequence)) and not isinstance(value, str) else value


def _unused(what: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name} has no meaning for {what}: remove it")
