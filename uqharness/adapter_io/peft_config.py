"""Turn an untrusted adapter_config.json of PEFT into a LoraConfig that contains names and no patterns.

PEFT takes `target_modules` as a regular expression where it is a string, and the keys of `rank_pattern` and
`alpha_pattern`, `exclude_modules` and `layers_pattern` as well; some expressions run for ever. The names of the tensors
say which modules have a LoRA and their shapes say of which rank, so no expression is needed. Fields that make PEFT
import a module or open another file are not passed on.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from peft import LoraConfig

from uqharness.errors import InputError
from uqharness.loose_json import check, shown

PREFIX = "base_model.model."
LAYERS = 4096  # of a base whose layers are replicated
_NAME = re.compile(r"[\w.\-]+")
_CHANGES_BASE = ("corda", "loftq", "lora_ga")
_UNSUPPORTED = ("megatron_config", "arrow_config", "monteclora_config", "kasa_config", "use_bdlora")
# About initialisation, training or PEFT itself; nothing of the trained function depends on them.
_IGNORED = (
    "auto_mapping corda_config eva_config inference_mode loftq_config lora_ga_config megatron_core peft_version "
    "runtime_config velora_config"
).split()
log = logging.getLogger("lm_eval.uqharness")


class _Needed(TypedDict):
    peft_type: str
    r: int
    lora_alpha: float


class PeftFile(_Needed, total=False):
    """The fields of adapter_config.json that are read."""

    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None
    lora_dropout: float
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    modules_to_save: list[str] | None
    target_parameters: list[str] | None
    trainable_token_indices: list[int] | dict[str, list[int]] | None
    layer_replication: list[list[int]] | None
    alora_invocation_tokens: list[int] | None
    init_lora_weights: bool | str
    bias: Literal["none", "all", "lora_only"]
    fan_in_fan_out: bool
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    use_qalora: bool
    qalora_group_size: int
    ensure_weight_tying: bool


def lora_config(content: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str) -> LoraConfig:
    """Return PEFT's configuration of an adapter from its file's content and its tensors' shapes."""
    if isinstance(kind := content.get("peft_type"), str) and kind != "LORA":
        raise InputError(f"{where}: peft_type is {shown(kind)}: only LoRA adapters can be read")
    file: dict[str, Any] = dict(check(dict(content), PeftFile, where))
    _check_values(file, where)
    ranks = _ranks(shapes, where)
    values = {key: value for key, value in file.items() if key in PeftFile.__annotations__}
    for key in ("peft_type", "exclude_modules", "layers_to_transform", "layers_pattern"):
        values.pop(key, None)
    values["target_modules"] = _targets(file, ranks, where)
    values["rank_pattern"] = _rank_pattern(file, ranks, where)
    values["alpha_pattern"] = _alpha_pattern(file, ranks, where)
    init = file.get("init_lora_weights", True)
    # The tensors replace the start values, except where these changed the base too.
    values["init_lora_weights"] = init if init == "olora" or str(init).startswith("pissa") else bool(init)
    known = {spec.name for spec in dataclasses.fields(LoraConfig)}
    if newer := [key for key in values if key not in known and values[key]]:
        raise InputError(f"{where}: {newer[0]} is not known to the PEFT that is installed: install a newer one")
    try:
        return LoraConfig(**{key: value for key, value in values.items() if key in known}, inference_mode=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: PEFT refuses it: {' '.join(str(error).split())[:300]}") from error


def _check_values(file: Mapping[str, Any], where: str) -> None:
    """Check what the types do not cover."""
    if file["r"] < 1:
        raise InputError(f"{where}: r: expected at least 1, got {file['r']}")
    if not 0 <= file.get("lora_dropout", 0.0) <= 1:
        raise InputError(f"{where}: lora_dropout: expected a probability, got {file['lora_dropout']}")
    for key in ("modules_to_save", "target_parameters", "trainable_token_indices"):
        for name in file.get(key) or ():
            if isinstance(name, str) and not _NAME.fullmatch(name):
                raise InputError(f"{where}: {key}: {shown(name)} is not a name; patterns are not run")
    for bounds in file.get("layer_replication") or ():
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= LAYERS:
            raise InputError(f"{where}: layer_replication: expected pairs of layers up to {LAYERS}, got {bounds[:9]}")
    init = file.get("init_lora_weights", True)
    if init in _CHANGES_BASE:
        raise InputError(
            f"{where}: init_lora_weights is {shown(init)}, which changes the base's own weights: save the adapter "
            "with path_initial_model_for_weight_conversion (PEFT), which makes it a plain LoRA"
        )
    if isinstance(init, str) and init.startswith("pissa") and not re.fullmatch(r"pissa(_niter_\d{1,3})?", init):
        raise InputError(f"{where}: init_lora_weights: expected pissa_niter_N, got {shown(init)}")
    if unsupported := [key for key in _UNSUPPORTED if file.get(key)]:
        raise InputError(f"{where}: {unsupported[0]} is set: adapters of that kind cannot be read")
    known = PeftFile.__annotations__
    other = [key for key, value in file.items() if value and key not in known and key not in _IGNORED]
    if other:
        log.warning("%s: unknown settings are ignored: %s", where, ", ".join(map(shown, sorted(other)[:9])))


def _ranks(shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, int | None]:
    """Return the modules that have LoRA tensors, with their ranks from the shapes of A."""
    ranks: dict[str, int | None] = {}
    for name, shape in shapes.items():
        module, lora, part = name.removeprefix(PREFIX).partition(".lora_")
        if not lora:
            continue
        if not _NAME.fullmatch(module):
            raise InputError(f"{where}: the tensor {shown(name)} beside it does not belong to a module")
        ranks.setdefault(module, None)
        if part.startswith(("A.", "embedding_A")) and len(shape):
            ranks[module] = shape[0]
    return ranks


def _targets(file: Mapping[str, Any], modules: Iterable[str], where: str) -> list[str] | None:
    """Return the file's own list if it selects the modules that have tensors, else the names of these modules."""
    listed = file.get("target_modules")
    if file.get("target_parameters"):  # their tensors are under the names of modules too
        if isinstance(listed, str):
            raise InputError(f"{where}: target_modules is a pattern beside target_parameters: write a list of names")
        return listed
    modules, narrowed = list(modules), file.get("exclude_modules") or file.get("layers_pattern")
    if isinstance(listed, list) and not narrowed and file.get("layers_to_transform") is None:
        ends = {next((suffix for suffix in _suffixes(module) if suffix in listed), None) for module in modules}
        if set(listed) == ends:
            return listed
    return sorted(modules)


def _rank_pattern(file: Mapping[str, Any], ranks: Mapping[str, int | None], where: str) -> dict[str, int]:
    """Ranks that differ from `r`, by the tensors' shapes."""
    pattern = _Literal(file.get("rank_pattern") or {})
    given = {module: pattern(module, file["r"]) for module in ranks}
    if not pattern.others and not file.get("target_parameters"):
        for module, rank in ranks.items():
            if rank not in (None, given[module]):
                raise InputError(
                    f"{where}: the rank of {module} is {given[module]}, its tensors have {rank}: copy the adapter again"
                )
    return _compressed({module: ranks[module] or given[module] for module in ranks}, file["r"])


def _alpha_pattern(file: Mapping[str, Any], modules: Iterable[str], where: str) -> dict[str, float]:
    """Alphas that differ from `lora_alpha`; no tensor says them, so that patterns cannot be resolved."""
    pattern = _Literal(file.get("alpha_pattern") or {})
    if pattern.others:
        raise InputError(
            f"{where}: alpha_pattern: {shown(pattern.others[0])} is a regular expression, which is not run: "
            "write the names of modules"
        )
    return _compressed({module: pattern(module, file["lora_alpha"]) for module in modules}, file["lora_alpha"])


class _Literal:
    """PEFT's pattern dictionary whose keys are names: a module has the value of the first that is an end of its name.

    `^` at its start makes a key the whole name. `others`: keys that are more than names.
    """

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self.ends: dict[str, tuple[int, Any]] = {}
        self.whole: dict[str, tuple[int, Any]] = {}
        self.others: list[str] = []
        for order, (key, value) in enumerate(patterns.items()):
            name = re.sub(r"\\([.\-])", r"\1", key.removeprefix("^").removesuffix("$"))
            if _NAME.fullmatch(name):
                (self.whole if key.startswith("^") else self.ends).setdefault(name, (order, value))
            else:
                self.others.append(key)

    def __call__(self, module: str, default: Any) -> Any:
        matches = [self.ends[suffix] for suffix in _suffixes(module) if suffix in self.ends]
        matches += [self.whole[module]] if module in self.whole else []
        return min(matches)[1] if matches else default


def _suffixes(module: str) -> list[str]:
    """`a.b.c` -> a.b.c, b.c, c"""
    parts = module.split(".")
    return [".".join(parts[k:]) for k in range(len(parts))]


def _compressed(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """{pattern: value} of the modules that differ from the default; one pattern where modules of a name agree."""
    last = {module: module.rpartition(".")[2] for module in values}
    kinds = Counter(name for _, name in {(value, last[module]) for module, value in values.items()})
    pairs = {last[module] if kinds[last[module]] == 1 else module: value for module, value in values.items()}
    longest = sorted(pairs, key=lambda name: -len(name))  # the first that matches counts
    return {re.escape(name): pairs[name] for name in longest if pairs[name] != default}
