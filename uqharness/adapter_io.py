"""The adapter folder: a valid PEFT adapter (the posterior's mean) with our posterior and record beside it.

    adapter_config.json  adapter_model.safetensors   what PEFT reads: the mean
    posterior.safetensors  uq_config.json            what `draws` needs, and everything needed to make it again
    uq_splits.json  README.md                        fingerprints of the items it has seen; model card

Writing is all or nothing: the folder is made beside its place and renamed in. Knows files, not training.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from uqharness import registry
from uqharness.atomic import finish_folder, folder_beside, place_folder
from uqharness.errors import InputError
from uqharness.leakage import SPLITS
from uqharness.leakage import read_splits as read_splits
from uqharness.posterior import Point, Posterior, Tensors

SCHEMA = 1
RECORD, POSTERIOR = "uq_config.json", "posterior.safetensors"
MEAN, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def fetch(adapter: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local folder of an adapter: a path, or a repository on the hub (downloaded into its cache)."""
    path = Path(adapter).expanduser()
    if path.is_dir():
        return path
    name = str(adapter)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"adapter={name}: no such folder. Give a folder written by `uqharness train`, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"adapter={name}: neither a folder nor a repository that the hub has ({reason})") from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """Our record of an adapter; None for a plain PEFT adapter."""
    path = folder / RECORD
    if not path.exists():
        return None
    record = _read_json(path)
    schema = record.get("schema")
    if schema != SCHEMA:
        raise InputError(f"{path}: schema version {schema!r}, this uqharness reads {SCHEMA}: install the newer one")
    for key in ("method", "posterior", "base"):
        if not isinstance(record.get(key), dict):
            raise InputError(f"{path}: no {key!r} in the record: the file is damaged, train or download again")
    return record


def load_posterior(folder: Path) -> tuple[Posterior, dict[str, Any] | None]:
    """The posterior of an adapter folder and its record. A plain PEFT LoRA is a point: one draw."""
    if not (folder / PEFT_CONFIG).exists():
        raise InputError(f"{folder}: no {PEFT_CONFIG}: this is not an adapter folder")
    record = read_record(folder)
    mean = read_tensors(folder / MEAN)
    if not any(".lora_" in name for name in mean):
        raise InputError(f"{folder / MEAN}: no LoRA tensors among its {len(mean)}: only LoRA adapters can be read")
    if record is None:
        config = _read_json(folder / PEFT_CONFIG)
        return Point({n: t for n, t in mean.items() if not of_base(n, config)}, train_seed=0), None
    state = read_tensors(folder / POSTERIOR) if (folder / POSTERIOR).exists() else {}
    settings = record["posterior"]
    method = registry.get_method(record["method"]["name"], package=record["method"].get("package"))
    try:
        return method.restore(mean, state, settings, int(settings["train_seed"])), record
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: posterior and record do not fit together ({error!r}): copy it again") from error


def save_adapter(
    out: Path,
    model: PeftModel,
    posterior: Posterior,
    record: Mapping[str, Any],
    splits: list[dict[str, Any]] | None = None,
) -> None:
    """Write the whole folder, or nothing. `record` comes without schema and posterior."""
    save_folder(out, model.peft_config[model.active_adapter], posterior, record, splits)


def save_folder(
    out: Path,
    config: PeftConfig,
    posterior: Posterior,
    record: Mapping[str, Any],
    splits: list[dict[str, Any]] | None = None,
) -> None:
    """`save_adapter` without a model: PEFT's configuration is all that is needed of one."""
    full = {"schema": SCHEMA, **record, "posterior": posterior_record(posterior)}
    with folder_beside(out) as temporary:
        save_peft(temporary, config, posterior.mean)
        if state := posterior.state():
            save_file({k: v.contiguous() for k, v in state.items()}, temporary / POSTERIOR, {"format": "pt"})
        (temporary / RECORD).write_text(json.dumps(full, indent=2, sort_keys=True) + "\n")
        (temporary / SPLITS).write_text(json.dumps({"splits": splits or []}) + "\n")
        (temporary / "README.md").write_text(model_card(full))
        finish_folder(temporary)
        place_folder(temporary, out)


def save_peft(folder: Path, config: PeftConfig, tensors: Tensors) -> None:
    """Write the two files that PEFT reads."""
    config = copy.copy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / MEAN, {"format": "pt"})


def posterior_record(posterior: Posterior) -> dict[str, Any]:
    return {
        "kind": posterior.kind,
        "finite": posterior.finite,
        "combine": posterior.combine,
        "mean_is_member": posterior.mean_is_member,
        "train_seed": posterior.train_seed,
        **posterior.settings(),
    }


def targets(config: PeftConfig) -> list[str]:
    """The target modules of a LoRA configuration, which PEFT keeps as a set or as a pattern."""
    found = getattr(config, "target_modules", None) or ()
    return [found] if isinstance(found, str) else sorted(found)


def content_hash(folder: Path) -> str:
    """What the adapter's numbers depend on, as 16 hex digits (its name and card do not matter)."""
    digest = hashlib.sha256()
    for name in (PEFT_CONFIG, MEAN, POSTERIOR, RECORD):
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.exists() else b""))
    return digest.hexdigest()[:16]


def base_location(name: str) -> str:
    """Where transformers finds a base model; `toyworld` is the one that comes with this package."""
    if name != "toyworld":
        return name
    from uqharness import toyworld

    return str(toyworld.base_path())


def check_fits(model: PeftModel, posterior: Posterior, record: Mapping[str, Any] | None, base: str) -> None:
    """The adapter's tensors are those of the model, and the base is the one it was trained on."""
    state = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    missing = [name for name in posterior.mean if name not in state]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(posterior.mean)} adapter tensors have no place in {base}: {missing[0]}"
        )
    if lacking := [name for name in state if name not in posterior.mean]:
        raise InputError(
            f"{len(lacking)} of {len(state)} tensors that {PEFT_CONFIG} asks for are not in the adapter: "
            f"{lacking[0]}: copy it again"
        )
    wrong = [name for name, tensor in posterior.mean.items() if tuple(tensor.shape) != state[name]]
    if wrong:
        found = tuple(posterior.mean[wrong[0]].shape)
        raise InputError(f"{wrong[0]} is {found} in the adapter and {state[wrong[0]]} in {base}: give its own base")
    recorded = (record or {}).get("base", {}).get("fingerprint")
    if recorded and recorded != (found_print := base_fingerprint(model.get_base_model())):
        name = (record or {})["base"].get("name")
        raise InputError(f"base {base} ({found_print}) is not the one recorded, {name} ({recorded}): give base={name}")


def base_fingerprint(model: torch.nn.Module) -> str:
    """A checksum of the base that survives dtype and 4/8-bit loading: its vectors and first embedding rows."""
    digest = hashlib.sha256()
    foreign = (".lora_", ".uq_", "modules_to_save.")
    picked = {
        name.replace("base_layer.", "").replace("original_module.", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 and not any(part in name for part in foreign)
    }
    tensors = [picked[name] for name in sorted(picked)]
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None:
        tensors.append(embeddings.weight.detach()[:4])
    for tensor in tensors:
        if not tensor.is_meta:
            digest.update(tensor.bfloat16().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_card(record: Mapping[str, Any]) -> str:
    """README.md of an adapter, for the hub."""
    method, base = record["method"], record["base"]
    data, costs = record.get("data") or {}, record.get("costs") or {}
    settings = ", ".join(f"{k}={v}" for k, v in sorted(method.get("settings", {}).items())) or "defaults"
    imported = record.get("imported")
    origin = f"Trained with {imported['tool']}, imported by" if imported else "Trained with"
    return f"""---
base_model: {json.dumps(base.get("name"))}
library_name: peft
tags: [uqharness, bayesian-lora, {method["name"]}]
---
# {method.get("label", method["name"])} adapter of {base.get("name")}

{origin} [uqharness]({record.get("homepage", "https://pypi.org/project/uqharness/")}) on `{data.get("task")}`: \
method `{method["name"]}` ({method.get("paper", "")}), {settings}; seed {record["posterior"]["train_seed"]}, \
{costs.get("steps")} steps. PEFT loads the posterior's mean; the draws are averaged by

    lm_eval --model bayeslora --model_args adapter=THIS_FOLDER,samples=10 --tasks {data.get("task")}

Everything needed to make it again is in `{RECORD}`.
"""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}): train or download again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(content).__name__}")
    return content


def of_base(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor in a PEFT LoRA's file is a weight of the base, which PEFT saves along for some layers."""
    module, _, kind = name.removeprefix("base_model.model.").rpartition(".")
    if ".lora_" in name or "trainable_tokens" in name or kind != "weight":  # biases are trained, or not saved
        return False
    parts = module.split(".")
    parents = [".".join(parts[: n + 1]) for n in range(len(parts))]
    whole = config.get("modules_to_save") or ()
    return not any(parent.endswith(str(saved)) for parent in parents for saved in whole)


def base_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the base that lie in an adapter's file."""
    config = _read_json(folder / PEFT_CONFIG)
    return {name: tensor for name, tensor in read_tensors(folder / MEAN).items() if of_base(name, config)}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        other = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "nothing"
        raise InputError(f"{path.name} is missing in {path.parent} (found {other}): only safetensors are read")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}): train or download again") from error
