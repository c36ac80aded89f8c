"""A method whose noise depends on the input, as a reader of docs/plugin.md writes it.

B E(x) A x with E(x) ~ N(M(x), Ω(x)²) from a linear map of A x: C-LoRA (arXiv:2505.17773) without its KL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uqharness.engine.flipout import standard
from uqharness.engine.lora import InputTransform, LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.engine.prefixes import key64, normal
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, check_tensor, split_state
from uqharness.settings import Run
from uqharness.testing import check_method
from uqharness.training.data import ChoiceData
from uqharness.training.loop import Batch, choice_loss, fit_loop


def moments(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """M(x) and Ω(x) from z = A x: `[…, r]` -> two of `[…, r, r]`."""
    rank = z.shape[-1]
    mean, std = F.linear(z.float(), weight, bias).unflatten(-1, (2, rank, rank)).unbind(-3)
    return mean + torch.eye(rank, device=z.device), F.softplus(std - 2)


class Networks(Posterior):
    """A point for A and B, and a network for each layer; draws differ in the predictive's noise alone."""

    kind = "networks"

    def __init__(self, mean: Mapping[str, Tensor], train_seed: int, parts: Mapping[str, Tensor]) -> None:
        super().__init__(mean, train_seed)
        self.parts = {name: tensor.detach().float().cpu() for name, tensor in parts.items()}
        self.weight, self.bias = split_state(self.parts, self.mean, ".net_weight", ".net_bias")
        for name, bias in self.bias.items():
            rank = self.mean[name].shape[1]
            check_tensor(f"{name}.net_weight", self.weight[name], (2 * rank * rank, rank))
            check_tensor(f"{name}.net_bias", bias, (2 * rank * rank,))

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {}

    def state(self) -> Tensors:
        return self.parts

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Networks:
        return cls(mean, train_seed, state)


class Contextual(DrawAverage):
    kind = "contextual"
    draws_weights: ClassVar[bool] = False
    mean_is_plain = False
    posterior: Networks

    def inputs(self, seed: int) -> Mapping[str, InputTransform]:
        return {name: partial(self.mixed, name, seed) for name in self.posterior.weight}

    def mixed(self, name: str, seed: int, z: Tensor, draw: int | None, prefix: Tensor) -> Tensor:
        weight, bias = self.posterior.weight[name].to(z.device), self.posterior.bias[name].to(z.device)
        mean, std = moments(z, weight, bias)
        if draw is not None:
            key = key64("contextual", self.posterior.train_seed, seed, draw, name)
            mean = mean + std * normal(prefix, key, std[0, 0].numel()).view_as(std).to(std)
        return (mean.to(z.dtype) @ z[..., None])[..., 0]


class Undeclared(Contextual):
    """Its mean depends on the input, and it does not say so."""

    kind = "undeclared"
    mean_is_plain = True


class Context(nn.Module):
    """The network before a layer in training; without noise where the mean is scored in between."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * rank * rank, rank))
        self.bias = nn.Parameter(torch.zeros(2 * rank * rank))
        self.key: tuple[object, ...] = ()

    def forward(self, z: Tensor) -> Tensor:
        mean, std = moments(z, self.weight, self.bias)
        if torch.is_grad_enabled():
            mean = mean + std * standard(std, *self.key)
        return (mean.to(z.dtype) @ z[..., None])[..., 0]


@dataclass(frozen=True)
class CLoRA(Method):
    name: ClassVar[str] = "contextual"
    label: ClassVar[str] = "C-LoRA"
    paper: ClassVar[str] = "arXiv:2505.17773"
    summary: ClassVar[str] = "noise that depends on the input"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Networks,)
    predictives: ClassVar[tuple[type[Predictive], ...]] = (Contextual, Undeclared)
    declared: bool = True

    def fit(self, model: Any, data: ChoiceData, run: Run, source: Predictive | None = None) -> Predictive:
        stack = LoraStack(model)
        before = {name: Context(b.weight.shape[1]) for name, b in stack.layers.items() if ".lora_B." in name}
        own = {f"{name}.net_weight": context.weight for name, context in before.items()}
        own |= {f"{name}.net_bias": context.bias for name, context in before.items()}

        def loss(stack: LoraStack, batch: Batch) -> Tensor:
            for name, context in before.items():
                context.key = (run.seed, batch.micro, name)
            return choice_loss(stack, batch)

        groups = [{"params": stack.trained}, {"params": list(own.values())}]
        with stack.inputs(before):
            assert len(stack.trained) == len([p for p in model.parameters() if p.requires_grad])
            fit_loop(stack, data, run, loss=loss, groups=groups, extra=own, method=self, per_token=True)
        kind = Contextual if self.declared else Undeclared
        return kind(Networks(stack.mean(), run.seed, own))


def test_the_contract_holds_for_noise_that_depends_on_the_input() -> None:
    made = check_method(CLoRA)
    assert any(bool(tensor.any()) for tensor in made.posterior.parts.values())  # the networks were trained


def test_a_mean_that_depends_on_the_input_must_be_declared() -> None:
    with pytest.raises(AssertionError, match="mean_is_plain"):
        check_method(CLoRA, declared=False)
