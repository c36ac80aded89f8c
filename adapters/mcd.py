"""p(y | x) ≈ 1/N Σ_i p(y | x, A ∘ m_i / (1 − p)),  m_i ~ Bernoulli(1 − p)   (MC dropout, arXiv:1506.02142).

Trained as in the papers: a fresh mask per token on the LoRA's input (`nn.Dropout`), whatever `mask` says.
Evaluated with one mask per draw and layer on A's input columns, which is a draw of weights that all questions
share; `mask=token` is the classic variant, counter-based so that batching does not change it (`engine/prefixes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from uqharness.engine.lora import InputTransform, LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.engine.prefixes import key64, uniform53
from uqharness.errors import InputError
from uqharness.loose_json import check
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, keyed_generator, split_state
from uqharness.settings import Run, option
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


class _DroppedFile(TypedDict):
    p: float


class Dropped(Posterior):
    """Bernoulli masks on the columns of every A, one for each draw. The mean is the network without masks."""

    kind = "dropout"

    def __init__(self, mean: Mapping[str, Tensor], train_seed: int, p: float) -> None:
        super().__init__(mean, train_seed)
        self.p = p
        self.names = [name for name in self.mean if name.endswith(".lora_A.weight")]

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {
            name: torch.stack([self.mean[name] * self.columns(name, i, seed) for i in range(start, stop)])
            for name in self.names
        }

    def columns(self, name: str, draw: int, seed: int) -> Tensor:
        """Return m / (1 − p) of a draw: one factor per input column `[n]`."""
        generator = keyed_generator("draw", self.train_seed, seed, draw, name)
        mask = torch.rand(self.mean[name].shape[1], generator=generator) >= self.p
        return mask / (1.0 - self.p)

    def settings(self) -> dict[str, Any]:
        return {"p": self.p}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Dropped:
        split_state(state, mean)
        check(dict(settings), _DroppedFile, "uq_config.json: posterior")
        if not 0 <= settings["p"] < 1:
            raise InputError(f"uq_config.json: posterior: p: expected a number from 0 to below 1, got {settings['p']}")
        return cls(mean, train_seed, float(settings["p"]))


class TokenMasks(DrawAverage):
    """The average over masks on every token of the inputs of every A: x_t ↦ x_t ∘ m(draw, tokens ≤ t) / (1 − p)."""

    kind = "token masks"
    draws_weights: ClassVar[bool] = False
    posterior: Dropped

    def inputs(self, seed: int) -> dict[str, InputTransform]:
        return {name: partial(self.masked, name, seed) for name in self.posterior.names}

    def masked(self, name: str, seed: int, x: Tensor, draw: int | None, prefix: Tensor) -> Tensor:
        """Return the layer's input in a draw: `[R, T, n]`; the mean has no masks."""
        if draw is None:
            return x
        p, key = self.posterior.p, key64("mask", self.posterior.train_seed, seed, draw, name)
        bits = uniform53(prefix, key, x.shape[-1])  # [R, T, n]
        return x * ((bits >= round(p * 2**53)) / (1.0 - p)).to(x.dtype)

    def exportable(self) -> Posterior:
        raise InputError(
            "masks per token are noise on inputs, which no weights can hold: evaluate the adapter with bayeslora, or "
            "train with a mask per draw (mask=column of mcd)"
        )


@dataclass(frozen=True)
class MCDropout(Method):
    """LoRA trained with dropout, which stays on at evaluation."""

    name: ClassVar[str] = "mcd"
    label: ClassVar[str] = "MCD"
    paper: ClassVar[str] = "Gal and Ghahramani 2016, arXiv:1506.02142"
    summary: ClassVar[str] = "dropout at the LoRA's input, N masks at evaluation"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Dropped,)
    predictives: ClassVar[tuple[type[Predictive], ...]] = (DrawAverage, TokenMasks)
    if_inert: ClassVar[str] = "train for more steps, or raise p"

    p: float = option(0.1, "dropout rate (BLoB and Me-LoRA papers: 0.1)", low=0, high=0.99)
    mask: Literal["column", "token"] = option(
        "column", "at evaluation: one mask per draw on A's columns, or fresh masks per token (no generation)"
    )

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Predictive:
        if run.lora_dropout not in (0.0, self.p):
            raise InputError(f"mcd drops with p={self.p}, lora_dropout is {run.lora_dropout}: give --set p=… alone")
        stack = LoraStack(model)
        # PEFT's own dropout: p belongs to the method and not to the shared run settings.
        model.peft_config[stack.adapter].lora_dropout = self.p  # type: ignore[attr-defined,unused-ignore]
        for module in model.modules():
            if isinstance(module, LoraLayer) and stack.adapter in module.lora_dropout:
                module.lora_dropout[stack.adapter] = nn.Dropout(self.p)
        fit_loop(stack, data, run, method=self)
        posterior = Dropped(stack.mean(), run.seed, self.p)
        return TokenMasks(posterior) if self.mask == "token" else DrawAverage(posterior)
