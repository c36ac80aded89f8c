"""Select the layers that get a LoRA: those that the run names, or the architecture's defaults.

Only layers of the language model and its output head count: the vision tower of a multimodal checkpoint has a
`q_proj` of its own, which no text passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from uqharness.engine.lora import HEADS, is_classifier
from uqharness.errors import InputError, did_you_mean
from uqharness.settings import ALL_LINEAR, AUTO, chosen_layers

# What PEFT's mapping leaves out: Phi-3 and Phi-4, and ModernBERT.
FUSED = {"phi3": ("qkv_proj",), "modernbert": ("Wqkv",)}


def architecture(base: nn.Module) -> str:
    """Return the model type of the language model."""
    config: Any = base.config
    return str(config.get_text_config(decoder=True).model_type)


def default_targets(base: nn.Module) -> tuple[str, ...]:
    """Return PEFT's default layers for the architecture (query and value projections) and the output head.

    BLoB and Laplace-LoRA adapt query, value and head. An architecture that PEFT's mapping does not have is adapted at
    its q_proj and v_proj; where there are none it is refused.
    """
    kind, linear = architecture(base), {name.rpartition(".")[2] for name in _linears(base)}
    mapped = PEFT_TARGETS.get(kind, ())
    for names in ([] if isinstance(mapped, str) else mapped, ("q_proj", "v_proj"), FUSED.get(kind, ())):
        if names and linear.issuperset(names):
            return (*names, *_head(base))
    raise InputError(
        f"no default target modules are known for {kind} ({type(base).__name__}): name them with --target-modules, "
        f"out of its linear layers: {', '.join(sorted(linear))}"
    )


def peft_targets(base: nn.Module, targets: tuple[str, ...], layers: str = "all") -> list[str] | str:
    """Return PEFT's target modules: the given names, in full if layers are chosen or the base is multimodal.

    Names are used instead of PEFT's `layers_to_transform`, which excludes everything outside of layers.
    """
    if targets == AUTO:
        targets = default_targets(base)
    check_targets(base, targets)
    every, low_rank = targets == ALL_LINEAR, head_targets(base, targets)
    lm_head = base.get_output_embeddings()  # type: ignore[operator]
    if layers == "all" and _is_text(base):
        return "all-linear" if every else list(targets)
    inside = _layer_prefixes(base, layers) if layers != "all" else ("",)
    wanted = {name: m for name, m in _linears(base).items() if every or any(_is_end(t, name) for t in targets)}
    head = [name for name, module in wanted.items() if module is lm_head or name in low_rank]
    names = [name for name in wanted if name.startswith(inside) and name not in head]
    if not names and layers != "all":
        raise InputError(f"layers {layers} have none of {', '.join(targets)}: give other layers, or remove --layers")
    # PEFT leaves the head out of all-linear as well.
    return names if every else names + head


def fresh_modules(base: nn.Module) -> list[str]:
    """Return modules that the checkpoint lacks (a pooler), which are trained in full like the head."""
    modules = {name.rpartition(".")[0] for name in getattr(base, "uq_fresh", ())}
    return sorted(module for module in modules if not module.startswith(HEADS))


def head_targets(base: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the layers of a classification head that `targets` names; [] if a target is also outside of it.

    PEFT ignores a LoRA in what it trains in full, so a pooler that the checkpoint lacks is refused.
    """
    if not is_classifier(base):
        return []
    fresh, layers = tuple(fresh_modules(base)), list[str]()
    for target in targets:
        ends = [name for name, _ in base.named_modules() if name == target or name.endswith(f".{target}")]
        if ends and fresh and all(name.startswith(fresh) for name in ends):
            raise InputError(
                f"target module {target!r} is not in the checkpoint, so it is drawn from the seed and trained in full: "
                "remove it"
            )
        layers += ends if all(name.startswith(HEADS) for name in ends) else []
    return layers


def _layer_prefixes(base: nn.Module, layers: str) -> tuple[str, ...]:
    """Return the name prefixes of the chosen layers."""
    config: Any = base.config
    count: int = config.get_text_config(decoder=True).num_hidden_layers
    modules = _language_modules(base)
    stacks = [name for name, module in modules if isinstance(module, nn.ModuleList) and len(module) == count]
    if not stacks:
        raise InputError(f"{type(base).__name__} has no list of {count} layers: remove --layers")
    return tuple(f"{stacks[0]}.{number}." for number in chosen_layers(layers, count) or range(count))


def check_targets(base: nn.Module, targets: tuple[str, ...]) -> None:
    """Refuse target modules that do not exist or are not linear layers."""
    if targets == ALL_LINEAR:
        return
    linear, kinds = _linears(base), dict(_language_modules(base))
    for target in targets:
        if any(_is_end(target, name) for name in linear):
            continue
        problem = "is no linear layer" if any(_is_end(target, name) for name in kinds) else "does not exist"
        names = {name.rpartition(".")[2] for name in linear}
        raise InputError(
            f"target module {target!r} {problem} in {type(base).__name__}{did_you_mean(target, names)}; "
            f"it has: {', '.join(sorted(names))}"
        )


def _head(base: nn.Module) -> tuple[str, ...]:
    """Return the name of the output head, () if it is not a linear layer."""
    head, linear = base.get_output_embeddings(), _linears(base)  # type: ignore[operator]
    names = [name for name, module in linear.items() if module is head]
    last = [name.rpartition(".")[2] for name in names]
    unique = sum(_is_end(end, name) for end in last for name in linear) == 1
    return tuple(last if unique else names)


def _linears(base: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers by name; quantised ones keep both numbers, GPT-2's Conv1D does not."""
    return {
        name: module
        for name, module in _language_modules(base)
        if type(module).__name__ == "Conv1D" or (hasattr(module, "in_features") and hasattr(module, "out_features"))
    }


def _language_modules(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the modules of the language model by their full names."""
    if _is_text(base):
        yield from ((name, module) for name, module in base.named_modules() if name)
        return
    decoder, head = base.get_decoder(), base.get_output_embeddings()  # type: ignore[operator]
    if decoder is None or decoder is base or not _is_text(decoder):
        raise InputError(
            f"{type(base).__name__} has more than a language model, which cannot be separated from the rest: "
            "give a base that is a language model alone"
        )
    inside = {id(module) for module in [*decoder.modules(), head]}
    yield from ((name, module) for name, module in base.named_modules() if id(module) in inside)


def _is_text(model: nn.Module) -> bool:
    """Return whether the model is a language model alone."""
    config: Any = model.config
    return config.get_text_config() is config


def _is_end(target: str, name: str) -> bool:
    """Return whether PEFT matches the module `name` with `target`."""
    return name == target or name.endswith(f".{target}")
