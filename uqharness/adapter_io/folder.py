"""The adapter folder: a valid PEFT adapter (the posterior's mean) with our posterior and record beside it.

    adapter_config.json  adapter_model.safetensors   the posterior's mean, as PEFT reads it
    posterior.safetensors  uq_config.json            tensors of the draws; predictive, settings and provenance
    uq_splits.json  README.md                        fingerprints of the items that it has seen; model card

A folder is written beside its destination and renamed into place. This module knows files, not training.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from uqharness import registry
from uqharness.adapter_io import hub, model_card
from uqharness.adapter_io.peft_config import lora_config
from uqharness.atomic import finish_folder, folder_beside, place_folder, sha256_of
from uqharness.engine.lora import HEADS, saved_tensors
from uqharness.engine.predictive import DrawAverage, Predictive, as_predictive
from uqharness.errors import InputError, did_you_mean
from uqharness.loose_json import check, read_object, shown
from uqharness.posterior import Point, Posterior, Tensors
from uqharness.results.leakage import SPLITS
from uqharness.results.leakage import read_splits as read_splits
from uqharness.training.base_model import known_warnings, settle_tying
from uqharness.training.fingerprint import base_fingerprint

SCHEMA = 2  # 1: the record lists no tensors; 2: first without `predictive`
RECORD, POSTERIOR = "uq_config.json", "posterior.safetensors"
MEAN, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
CARD = "README.md"
FILES = (PEFT_CONFIG, MEAN, POSTERIOR, RECORD, SPLITS, CARD)  # of an adapter folder; no other file is read or pushed
_HEAD = re.compile(r"\.(classifier|score)(\.out_proj)?\.weight$")  # of a sequence classifier
JSON_LIMIT = 16 * 2**20  # bytes of a configuration or record


class _Tensor(TypedDict):
    dtype: str
    shape: list[int]


class _File(TypedDict):
    sha256: str
    tensors: dict[str, _Tensor]


class _MethodName(TypedDict):
    name: str


class _Method(_MethodName, total=False):
    label: str
    paper: str
    package: str | None
    settings: dict[str, Any]


class _Posterior(TypedDict):  # what else its class needs, that class checks
    kind: str
    train_seed: int


class _Predictive(TypedDict):  # what else its class needs, that class checks
    kind: str


class _Base(TypedDict, total=False):
    name: str | None
    fingerprint: str | None


class _RecordNeeds(TypedDict):
    schema: int
    method: _Method
    posterior: _Posterior
    base: _Base


class RecordFile(_RecordNeeds, total=False):
    """Checked fields of uq_config.json. `files` exists from schema 2 on; see `with_predictive` for `predictive`."""

    files: dict[str, _File]
    predictive: _Predictive
    run: dict[str, Any]
    recipe: dict[str, Any] | None
    recipe_hash: str | None
    data: dict[str, Any] | None
    costs: dict[str, Any] | None
    source: dict[str, Any] | None
    imported: dict[str, Any] | None


# ---------------------------------------------------------------- finding


def fetch(adapter: str | os.PathLike[str]) -> Path:
    """Return an adapter's local folder: a path, a repository in the hub's cache, or `hub:user/name`, downloaded.

    A name without `hub:` never leaves this machine, so that a mistyped path cannot become a stranger's adapter.
    """
    name = str(adapter)
    if name.startswith(hub.PREFIX):
        return hub.download(name.removeprefix(hub.PREFIX), FILES)
    path = Path(name).expanduser()
    if path.is_dir():
        return Path(os.path.abspath(path))  # no library takes an absolute path for a hub id
    if path.exists():
        raise InputError(f"adapter={name} is a file: give the folder that contains {PEFT_CONFIG}")
    is_hub_id = re.fullmatch(r"[\w][\w.-]*/[\w.-]+", name) and not path.is_absolute()
    cached = hub.cached(name, FILES) if is_hub_id else None
    if cached is None:
        siblings = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        other = f", and not in the hub's cache; for an adapter of the hub give hub:{name}" if is_hub_id else ""
        raise InputError(f"adapter={name}: no such folder{hint}{other or '; give a folder of `uqharness train`'}")
    return cached


# ---------------------------------------------------------------- reading


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return our record of an adapter; None for a plain PEFT adapter."""
    path = folder / RECORD
    if not path.exists():
        if (folder / POSTERIOR).exists():
            raise InputError(f"{folder}: {POSTERIOR} without {RECORD}: the adapter is incomplete; copy it again")
        return None
    record = read_object(path, JSON_LIMIT)
    schema = record.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise InputError(f"{path}: schema version {shown(schema)}, this uqharness reads {SCHEMA}: install a newer one")
    check(record, RecordFile, str(path))
    if schema >= 2 and "files" not in record:
        raise InputError(f"{path}: 'files' is missing; the file is damaged or incomplete")
    return record


def read_config(folder: Path) -> LoraConfig:
    """Return PEFT's configuration of an adapter, with modules and ranks from its tensors; no pattern is run."""
    if not (folder / PEFT_CONFIG).exists():
        raise InputError(f"{folder}: no {PEFT_CONFIG}: this is not an adapter folder")
    content = read_object(folder / PEFT_CONFIG, JSON_LIMIT)
    shapes = {name: tensor["shape"] for name, tensor in tensors_of(folder / MEAN).items()}
    return lora_config(content, shapes, str(folder / PEFT_CONFIG))


def load_predictive(folder: Path) -> tuple[Predictive, dict[str, Any] | None]:
    """Return the predictive of an adapter folder and its record. A plain PEFT LoRA is a point: one draw."""
    config = read_config(folder)
    record = read_record(folder)
    if record and "files" in record:
        check_files(folder, record.pop("files"))
    mean = read_tensors(folder / MEAN)
    if not any(".lora_" in name for name in mean):
        raise InputError(f"{folder / MEAN}: no LoRA tensors among its {len(mean)}: only LoRA adapters can be read")
    if broken := next((name for name, tensor in mean.items() if not bool(tensor.isfinite().all())), None):
        raise InputError(f"{folder / MEAN}: {shown(broken)} holds NaN or infinity: train again")
    if record is None:
        whole = config.modules_to_save
        return DrawAverage(Point({n: t for n, t in mean.items() if not of_base(n, whole)}, train_seed=0)), None
    state = read_tensors(folder / POSTERIOR) if (folder / POSTERIOR).exists() else {}
    try:
        predictive = restore(record, mean, state)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{folder}: posterior and record do not match ({reason}): copy it again") from error
    if record["schema"] == 1:
        check_complete(folder, predictive.posterior, record)
    return predictive, record


def restore(record: Mapping[str, Any], mean: Tensors, state: Tensors) -> Predictive:
    """Return the predictive that a record describes, with the posterior from these tensors.

    A method that builds on any adapter keeps that adapter's posterior: `restored_by` names the method that reads it.
    """
    if "predictive" not in record:
        record, state = with_predictive(record, state)
    settings = record["posterior"]
    makers = [registry.get_method(record["method"]["name"], package=record["method"].get("package"))]
    if "restored_by" in settings:
        makers.append(registry.get_method(str(settings["restored_by"])))
    posteriors = {cls.kind: cls for cls in makers[-1].posteriors}
    if settings["kind"] not in posteriors:
        known, kind = ", ".join(posteriors), shown(settings["kind"])
        raise InputError(f"method {makers[-1].name} makes posteriors of kind {known}; the record says {kind}")
    posterior = posteriors[settings["kind"]].restore(mean, state, settings, settings["train_seed"])
    predictives = {cls.kind: cls for maker in makers for cls in maker.predictives}

    def restored(settings: Any, where: str) -> Predictive:
        check(settings, _Predictive, where)
        if settings["kind"] not in predictives:
            known, kind = ", ".join(predictives), shown(settings["kind"])
            raise InputError(f"method {makers[0].name} answers by {known}; the record says {kind}")
        source = restored(settings["inner"], f"{where}: inner") if "inner" in settings else posterior
        return predictives[settings["kind"]].restore(source, settings)

    return restored(record["predictive"], f"{RECORD}: predictive")


class _OldDropout(TypedDict):
    mask: Literal["column", "token"]


class _OldTempered(TypedDict):
    temperature: float
    samples: int
    seed: int
    source: dict[str, Any]


def with_predictive(record: Mapping[str, Any], state: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return a record with `predictive`; older records have this information in their posterior."""
    old = record["posterior"]
    posterior = {key: old[key] for key in old if key not in ("combine", "predictive", "mc_samples", "mask")}
    predictive: dict[str, Any] = {"kind": "draws", "rule": old.get("combine", "probs")}
    if old["kind"] == "tempscale":
        check(dict(old), _OldTempered, f"{RECORD}: posterior")
        check(old["source"], _Posterior, f"{RECORD}: posterior: source")
        if other := next((name for name in state if not name.startswith("source.")), None):
            raise InputError(f"{POSTERIOR} has {shown(other, 120)}, which does not belong to this adapter")
        state = {name.removeprefix("source."): tensor for name, tensor in state.items()}
        inner, state = with_predictive({"posterior": old["source"]}, state)
        own = {key: old[key] for key in ("temperature", "samples", "seed")}
        posterior, predictive = inner["posterior"], {"kind": "tempered", **own, "inner": inner["predictive"]}
    elif old["kind"] == "laplace" and old.get("predictive") != "weights":
        own = {"integral": old.get("predictive"), "mc_samples": old.get("mc_samples")}
        predictive = {"kind": "linearised", **own}
    elif "mask" in old:
        check(dict(old), _OldDropout, f"{RECORD}: posterior")
        predictive["kind"] = "token masks" if old["mask"] == "token" else "draws"
    return {**record, "posterior": posterior, "predictive": predictive}, state


def tensors_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return {name: {"dtype", "shape"}} of a safetensors file, from its header."""
    with _whole(path), safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in sorted(file.keys())}  # noqa: SIM118
        return {name: {"dtype": part.get_dtype(), "shape": list(part.get_shape())} for name, part in parts.items()}


def check_files(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse safetensors files or tensors that differ from those that the record lists."""
    for name in sorted({MEAN, POSTERIOR, *listed}):
        path, file = folder / name, listed.get(name)
        if file is None:
            if path.exists():
                raise InputError(f"{path}: not part of this adapter: its record does not list it; remove it")
            continue
        if name not in (MEAN, POSTERIOR):
            raise InputError(f"{folder / RECORD}: files: {shown(name)} is not a file of an adapter; copy it again")
        tensors, expected = tensors_of(path), file["tensors"]
        for what, names in (
            ("missing", [tensor for tensor in expected if tensor not in tensors]),
            ("not listed in the record", [tensor for tensor in tensors if tensor not in expected]),
            ("of another shape or type", [t for t in tensors if t in expected and tensors[t] != dict(expected[t])]),
        ):
            if names:
                raise InputError(
                    f"{path}: {len(names)} of its {len(expected)} tensors {'are' if len(names) > 1 else 'is'} {what}: "
                    f"{shown(names[0], 120)}; copy the adapter again"
                )
        if (own := sha256_of(path)) != file["sha256"]:
            raise InputError(
                f"{path}: not the file that the record lists: SHA-256 {own[:16]}…, "
                f"recorded {shown(file['sha256'][:16])}…; copy the adapter again"
            )


def check_complete(folder: Path, posterior: Posterior, record: Mapping[str, Any]) -> None:
    """Refuse an incomplete posterior of schema 1, which lists no tensors.

    A method that varies one matrix of each LoRA (lora_A, lora_B) varies it in every layer.
    """
    if posterior.kind not in ("gaussian", "core", "subspace", "lowrank"):  # others check their own tensors
        return
    varied = set(posterior.draws(0, 1, 0))
    settings = record["method"].get("settings", {})
    both = settings.get("asymmetric") is False or settings.get("on") == "AB"  # BLoB and BBB of A and B
    matrices = {name.rpartition(".lora_")[2] for name in varied} or {"A.weight"}
    matrices |= {"B.weight"} if both or posterior.kind == "lowrank" else set()
    missing = [name for name in posterior.mean if name.rpartition(".lora_")[2] in matrices and name not in varied]
    if missing:
        where = folder / POSTERIOR
        problem = f"{len(missing)} tensors are missing" if where.exists() else f"{POSTERIOR} is missing"
        raise InputError(
            f"{folder}: {problem}: nothing says how {missing[0]} varies between draws; copy the adapter again"
        )


# ---------------------------------------------------------------- writing


def save_adapter(
    out: Path,
    model: PeftModel,
    made: Posterior | Predictive,
    record: Mapping[str, Any],
    splits: list[dict[str, Any]] | None = None,
) -> None:
    """Write the whole folder, or nothing. `record` comes without schema, posterior and predictive."""
    save_folder(out, model.peft_config[model.active_adapter], made, record, splits)


def save_folder(
    out: Path,
    config: PeftConfig,
    made: Posterior | Predictive,
    record: Mapping[str, Any],
    splits: list[dict[str, Any]] | None = None,
) -> None:
    """Save an adapter from PEFT's configuration, without a model."""
    predictive = as_predictive(made)
    posterior = predictive.posterior
    full = {"schema": SCHEMA, **record, "posterior": posterior_record(posterior, record["method"]["name"])}
    full["predictive"] = predictive.record()
    with folder_beside(out) as temporary:
        save_peft(temporary, config, posterior.mean)
        if state := posterior.state():
            save_file({k: v.contiguous() for k, v in state.items()}, temporary / POSTERIOR, {"format": "pt"})
        paths = [temporary / name for name in (MEAN, POSTERIOR) if (temporary / name).exists()]
        full["files"] = {path.name: {"sha256": sha256_of(path), "tensors": tensors_of(path)} for path in paths}
        (temporary / RECORD).write_text(json.dumps(full, indent=2, sort_keys=True) + "\n")
        (temporary / SPLITS).write_text(json.dumps({"splits": splits or []}) + "\n")
        (temporary / CARD).write_text(str(model_card.make(full)))
        finish_folder(temporary)
        place_folder(temporary, out)


def save_peft(folder: Path, config: PeftConfig, tensors: Tensors) -> None:
    """Write the two files that PEFT reads."""
    config = copy.copy(config)
    config.inference_mode = True
    for name, value in vars(config).items():
        if isinstance(value, set):  # its order is that of this process's string hashes
            setattr(config, name, sorted(value))
    config.save_pretrained(str(folder))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / MEAN, {"format": "pt"})


def posterior_record(posterior: Posterior, method: str) -> dict[str, Any]:
    """Return the record's entry of a posterior, with the method that reads it if another method saves it."""
    own = {name: getattr(posterior, name) for name in ("kind", "finite", "mean_is_member", "train_seed")}
    if method in registry.methods() and type(posterior) not in registry.get_method(method).posteriors:
        own["restored_by"] = registry.maker_of(posterior)
    return {**own, **posterior.settings()}


def classes(folder: Path, record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the classes of a sequence classifier's adapter, in the order of its logits; () for a language model's.

    A plain PEFT adapter has no names of them: they are numbers there.
    """
    if names := ((record or {}).get("data") or {}).get("classes"):
        return tuple(check(names, list[str], f"{folder / RECORD}: data: classes"))
    if record is not None or read_config(folder).task_type != "SEQ_CLS":
        return ()
    heads = [tensor["shape"][0] for name, tensor in tensors_of(folder / MEAN).items() if _HEAD.search(name)]
    if not heads:
        raise InputError(f"{folder / MEAN}: a sequence classifier's adapter without its head: save both with PEFT")
    return tuple(map(str, range(heads[-1])))


def content_hash(folder: Path) -> str:
    """Return a hash of everything that the adapter's numbers depend on, as 16 hex digits (not of name and card)."""
    digest = hashlib.sha256()
    for name in (PEFT_CONFIG, MEAN, POSTERIOR, RECORD):
        path = folder / name
        digest.update(name.encode() + (path.read_bytes() if path.exists() else b""))
    return digest.hexdigest()[:16]


def attach(base: nn.Module, folder: Path, name: str, trainable: bool = False) -> PeftModel:
    """Put a trained adapter on its base, called `name`; rank, scaling and targets come from its own files."""
    check_base_weights(base, folder)
    try:
        with known_warnings():
            model = PeftModel.from_pretrained(  # `config`: PEFT would run the patterns of the folder's own file
                base,
                str(folder),
                is_trainable=trainable,
                config=read_config(folder),  # type: ignore[arg-type,unused-ignore]
            )
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"adapter {folder} does not match base model {name}: {reason}; give its own base") from error
    model.peft_config[model.active_adapter].base_model_name_or_path = name
    settle_tying(model)
    return model


@torch.no_grad()
def check_base_weights(base: nn.Module, folder: Path) -> None:
    """Refuse an adapter whose file contains weights that differ from the base's, which PEFT would overwrite."""
    parameters = dict(base.named_parameters(remove_duplicate=False))
    whole, path = read_config(folder).modules_to_save, folder / MEAN
    with _whole(path), safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys() if of_base(name, whole)}  # noqa: SIM118
    for name, saved in weights.items():
        own = parameters.get(name.removeprefix("base_model.model.").replace(".base_layer.", "."))
        if own is None or own.shape != saved.shape or not own.is_floating_point():
            shape = "does not have" if own is None else f"has as {own.dtype} {list(own.shape)}"
            why = f"which the base {shape}"
        elif torch.equal(saved.to(own), own):
            continue
        else:
            off = float((saved.to(own).float() - own.float()).abs().max())
            why = f"which differs from the base's by up to {off:.2g}"
        raise InputError(
            f"{folder} holds the base weight {name} {list(saved.shape)}, {why}: give the base that it was trained on, "
            "or save the adapter with save_embedding_layers=False"
        )


def check_fits(model: PeftModel, posterior: Posterior, record: Mapping[str, Any] | None, base: str) -> None:
    """Refuse an adapter whose tensors are not those of the model, or that was trained on another base."""
    state = {name: tuple(t.shape) for name, t in saved_tensors(model).items()}
    missing = [name for name in posterior.mean if name not in state]
    if missing:
        raise InputError(f"{len(missing)} of {len(posterior.mean)} adapter tensors are not in {base}: {missing[0]}")
    if lacking := [name for name in state if name not in posterior.mean]:
        raise InputError(
            f"{len(lacking)} of {len(state)} tensors that {PEFT_CONFIG} asks for are not in the adapter: "
            f"{lacking[0]}: copy it again"
        )
    wrong = [name for name, tensor in posterior.mean.items() if tuple(tensor.shape) != state[name]]
    if wrong:
        shape = tuple(posterior.mean[wrong[0]].shape)
        raise InputError(f"{wrong[0]} is {shape} in the adapter and {state[wrong[0]]} in {base}: give its own base")
    recorded = (record or {}).get("base", {}).get("fingerprint")
    if recorded and recorded != (own := base_fingerprint(model.get_base_model())):
        name = (record or {})["base"].get("name")
        raise InputError(f"base {base} ({own}) is not the one recorded, {name} ({recorded}): give base={name}")


def of_base(name: str, whole: Sequence[str] | None) -> bool:
    """Return whether a tensor in a PEFT LoRA's file is a weight of the base, which PEFT saves along for some layers.

    whole: `modules_to_save`, whose weights are the adapter's. So are those below a LoRA in a classification head.
    """
    module, _, kind = name.removeprefix("base_model.model.").rpartition(".")
    if ".lora_" in name or "trainable_tokens" in name or kind != "weight":  # biases are trained, or not saved
        return False
    parts = module.split(".")
    if parts[0] in HEADS and parts[-1] == "base_layer":
        return False
    parents = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return not any(parent.endswith(saved) for parent in parents for saved in whole or ())


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file."""
    with _whole(path):
        return load_file(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn errors of reading a safetensors file into one-line errors."""
    if not path.is_file():
        other = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "nothing"
        raise InputError(f"{path.name} is missing in {path.parent} (found {other}): only safetensors are read")
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a complete safetensors file ({reason}): train or download again") from error
