"""LoRA layers that take stacked draws: h ↦ W0 h + B_s A_s h for all draws s at once.

PEFT injects the adapter. We only convert its `lora_A` / `lora_B` linears into `DrawLinear`, so quantised bases,
device maps, rsLoRA and rank patterns are handled by PEFT. Draws are folded into the batch, draw-major:
inputs are `[S·B, T, in]` and rows `s·B … (s+1)·B` see draw s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from uqharness.engine.flipout import Perturbation
from uqharness.errors import InputError

# What happens to a layer's input in a draw (None: the mean): (x [R, T, n], draw, hash of each prefix [R, T]) -> like x.
InputTransform = Callable[[Tensor, "int | None", Tensor], Tensor]
HEADS = ("classifier", "score")  # of sequence classifiers, as PEFT knows them
# PEFT layers whose forward does not run `lora_B(lora_A(x))`: they read the weights themselves.
_READS_WEIGHTS = ("ParamWrapper", "MultiheadAttention", "Embedding", "_ConvNd", "Conv1d", "Conv2d", "Conv3d")


class DrawLinear(nn.Linear):
    """A linear that uses `stack[s]` for the s-th block of its batch, or its own weight without a stack."""

    stack: Tensor | None  # [S, out, in]
    perturbation: Perturbation | None
    transform: Callable[[Tensor], Tensor] | None  # what is done to the input first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.transform is None else self.transform(x)
        if self.perturbation is not None:
            return self.perturbation(x, self.weight, self.bias)
        if self.stack is None:
            y = F.linear(x, self.weight, self.bias)
        else:
            blocks = x.reshape(self.stack.shape[0], -1, x.shape[-1])  # [S, B·T, in]
            y = torch.bmm(blocks, self.stack.transpose(1, 2)).view(*x.shape[:-1], -1)
            y = y if self.bias is None else y + self.bias
        return y

    @staticmethod
    def convert(linear: nn.Linear) -> DrawLinear:
        """Convert a linear in place; parameters, hooks and the module tree do not change."""
        linear.__class__ = DrawLinear
        draw_linear = cast(DrawLinear, linear)
        draw_linear.stack = draw_linear.perturbation = draw_linear.transform = None
        return draw_linear


@dataclass(frozen=True)
class FoldedInput:
    """A transform of a layer's folded input, whose block s belongs to draw `draws[s]` (None: the mean)."""

    transform: InputTransform
    draws: Sequence[int | None]
    prefixes: Mapping[tuple[int, int], Tensor]  # by the shape of what the layer sees

    def __call__(self, x: Tensor) -> Tensor:
        blocks = x.view(len(self.draws), -1, *x.shape[1:])  # [S, R, T, n]
        prefix = self.prefixes[blocks.shape[1], blocks.shape[2]].to(x.device)
        # One block at a time: random integers for each entry take eight bytes.
        return torch.cat([self.transform(block, draw, prefix) for draw, block in zip(self.draws, blocks, strict=True)])


class LoraStack:
    """All trained LoRA tensors of a PEFT model, by the names under which PEFT saves them.

    Args:
        model: a PEFT model with exactly one active adapter; its `lora_A` and `lora_B` become `DrawLinear`s in place.

    Example:
        >>> from uqharness.testing import tiny_adapter
        >>> stack = LoraStack(tiny_adapter())
        >>> [name.removeprefix("base_model.model.model.layers.0.self_attn.") for name in stack.mean()][:2]
        ['q_proj.lora_A.weight', 'q_proj.lora_B.weight']
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.adapter = _only_adapter(model)
        self.parameters = {**_adapter_parameters(model, self.adapter), **frozen_head(model)}
        self.layers: dict[str, DrawLinear] = {}
        self.unfoldable: str | None = None  # why draws cannot share one forward, in words
        suffix = f".{self.adapter}"
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                self.unfoldable = self.unfoldable or _why_unfoldable(module, self.adapter)
                if is_classifier(model.get_base_model()):
                    _with_places(module)
            elif name.endswith((f".lora_A{suffix}", f".lora_B{suffix}")) and isinstance(module, nn.Linear):
                self.layers[f"{name.removesuffix(suffix)}.weight"] = DrawLinear.convert(module)
        if not self.parameters:
            raise InputError("the model has no LoRA tensors: give an adapter with target modules that the base has")

    @property
    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that training may change."""
        return [parameter for parameter in self.parameters.values() if parameter.requires_grad]

    @property
    def device(self) -> torch.device:
        """Return the device of the first tensor, where rows are put."""
        return next(iter(self.parameters.values())).device

    def mean(self) -> dict[str, Tensor]:
        """Return all tensors that PEFT saves of the adapter, as fp32 copies on the CPU."""
        return {name: tensor.detach().float().cpu().clone() for name, tensor in saved_tensors(self.model).items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy weights into the adapter; any subset of its names is allowed."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._parameter(name).copy_(tensor)

    def adopt(self, mean: Mapping[str, Tensor]) -> None:
        """Load a trained adapter's complete mean; refuse missing names and other shapes."""
        theirs = {name: tuple(tensor.shape) for name, tensor in mean.items()}
        ours = {name: tuple(tensor.shape) for name, tensor in self.mean().items()}
        for name in {**ours, **theirs}:
            if theirs.get(name) != ours.get(name):
                shape, place = theirs.get(name, "missing"), ours.get(name, "none")
                raise InputError(
                    f"the adapter does not fit the base: {name} is {shape} in the adapter and {place} in the model: "
                    "give the base, rank and target modules that it was trained with"
                )
        self.load(mean)

    @contextmanager
    def functions(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Run batches of S·B rows through S weight vectors inside this context; `tensors` are `[S, …]`."""
        try:
            for name, tensor in tensors.items():
                self.layers[name].stack = tensor
            yield
        finally:
            for layer in self.layers.values():
                layer.stack = None

    @contextmanager
    def inputs(self, transforms: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Transform the inputs of these layers inside this context (token masks, a matrix before B).

        transforms: functions or modules of a layer's input alone, by the name of the layer's tensor. Parameters of
            a module stay its own: they do not become part of the PEFT model.
        """
        if transforms and self.unfoldable:
            raise InputError(f"{self.unfoldable} layers read their weights: their input cannot be changed")
        try:
            for name, transform in transforms.items():
                vars(self.layers[name])["transform"] = transform  # `layer.transform = module` would register it
            yield
        finally:
            for name in transforms:
                self.layers[name].transform = None

    @contextmanager
    def weights(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put `tensors` into the adapter inside this context (for layers that read their weights)."""
        before = {name: self._parameter(name).detach().clone() for name in tensors}
        try:
            self.load(tensors)
            yield
        finally:
            self.load(before)

    def perturb(self, perturbations: Mapping[str, Perturbation]) -> None:
        """Add flipout noise until `clear`, which must come after the backward pass."""
        for name, perturbation in perturbations.items():
            self.layers[name].perturbation = perturbation

    def clear(self) -> None:
        for layer in self.layers.values():
            layer.perturbation = None

    def why_one_by_one(self, names: Iterable[str]) -> str | None:
        """Return why draws of these tensors cannot share one forward; None if they can."""
        whole = next((f"trained {name}" for name in names if name not in self.layers), None)
        return self.unfoldable or whole

    def on_device(self, name: str, tensor: Tensor) -> Tensor:
        """Return a draw's tensor on the layer's device and in its type."""
        parameter = self._parameter(name)
        return tensor.to(device=parameter.device, dtype=parameter.dtype)

    def _parameter(self, name: str) -> nn.Parameter:
        if name not in self.parameters:
            raise InputError(
                f"the posterior has a tensor {name} that the adapter lacks: check that it belongs to this base model"
            )
        return self.parameters[name]


def is_classifier(model: nn.Module) -> bool:
    """Return whether a base model is a sequence classifier of transformers."""
    return type(model).__name__.endswith("ForSequenceClassification")


def saved_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Return the tensors of an adapter by their names in its folder: PEFT's, and those of `frozen_head`."""
    state = get_peft_model_state_dict(model, adapter_name=_only_adapter(model), save_embedding_layers=False)
    return {**state, **frozen_head(model)}


def frozen_head(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the weights below a LoRA in a classification head, which a checkpoint of an encoder lacks."""
    start = tuple(f"base_model.model.{head}" for head in HEADS)
    return {name: p for name, p in model.named_parameters() if name.startswith(start) and ".base_layer." in name}


def _with_places(layer: LoraLayer) -> None:
    """Show inputs without places `[R, n]` (a pooler's, a classification head's) to the layer's LoRA as `[R, 1, n]`."""
    if getattr(layer, "uq_places", False):
        return
    layer.uq_places = True

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        module.uq_flat = args[0].ndim == 2  # type: ignore[assignment]
        return (args[0].unsqueeze(1), *args[1:]) if module.uq_flat else args

    def remove(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return output.squeeze(1) if module.uq_flat else output

    layer.register_forward_pre_hook(add)
    layer.register_forward_hook(remove)


def _only_adapter(model: PeftModel) -> str:
    active = model.active_adapters
    if len(active) != 1:
        raise InputError(f"exactly one active adapter is supported, found {len(active)}: {', '.join(active)}")
    return active[0]


def _adapter_parameters(model: PeftModel, adapter: str) -> dict[str, nn.Parameter]:
    """Trained parameters by their saved name; refuses those whose values are elsewhere."""
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        whole = f".modules_to_save.{adapter}."
        if ".uq_" in name or f".{adapter}" not in name or (".lora_" not in name and whole not in name):
            continue
        if whole in name:
            trained[name.replace(whole, ".", 1)] = parameter
            continue
        if parameter.is_meta or type(parameter.data).__name__ == "DTensor":
            raise InputError(f"{name} is offloaded or sharded: load the adapter on one device (no offload, no tp_plan)")
        saved = name.replace(f".{adapter}", "", 1)
        # PEFT saves DoRA's magnitude under the name it had before it became a module.
        trained[saved.removesuffix(".weight") if "lora_magnitude_vector" in saved else saved] = parameter
    return trained


def _why_unfoldable(module: LoraLayer, adapter: str) -> str | None:
    if adapter in getattr(module, "lora_variant", {}):
        return type(module.lora_variant[adapter]).__name__.removesuffix("LinearVariant")
    kinds = {cls.__name__ for cls in type(module).__mro__}
    return next((kind for kind in _READS_WEIGHTS if kind in kinds), None)
