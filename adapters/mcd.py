"""p(y | x) ≈ 1/N Σ_i p(y | x, A ∘ m_i / (1 − p)),  m_i ~ Bernoulli(1 − p)   (MC dropout, arXiv:1506.02142).

Trained as in the papers: a fresh mask per token on the LoRA's input (`nn.Dropout`), whatever `mask` says.
Evaluated with one mask per draw and layer on A's input columns, which is a draw of weights that all questions
share; `mask=token` is the classic kind, counter-based so that no batching changes it (`input_noise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from uqharness.engine.input_noise import key64, uniform53
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.loose_json import check
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, keyed_generator, split_state
from uqharness.settings import Run, check_ranges, option
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


class _DroppedFile(TypedDict):
    p: float
    mask: Literal["column", "token"]


class Dropped(Posterior):
    """Bernoulli masks on the inputs of every A. The mean is the network without masks."""

    kind = "dropout"

    def __init__(self, mean: Mapping[str, Tensor], train_seed: int, p: float, mask: str) -> None:
        super().__init__(mean, train_seed)
        self.p, self.mask = p, mask
        self.names = [name for name in self.mean if name.endswith(".lora_A.weight")]

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        if self.mask == "token":
            return {}
        return {
            name: torch.stack([self.mean[name] * self.columns(name, i, seed) for i in range(start, stop)])
            for name in self.names
        }

    def columns(self, name: str, draw: int, seed: int) -> Tensor:
        """m / (1 − p) of a draw: one factor per input column `[n]`."""
        generator = keyed_generator("draw", self.train_seed, seed, draw, name)
        kept = torch.rand(self.mean[name].shape[1], generator=generator) >= self.p
        return kept / (1.0 - self.p)

    def noisy_inputs(self) -> Sequence[str]:
        return self.names if self.mask == "token" else ()

    def input_factor(self, name: str, seed: int, draw: int, prefix: Tensor, width: int) -> Tensor:
        bits = uniform53(prefix, key64("mask", self.train_seed, seed, draw, name), width)
        return (bits >= round(self.p * 2**53)) / (1.0 - self.p)

    def settings(self) -> dict[str, Any]:
        return {"p": self.p, "mask": self.mask}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Dropped:
        split_state(state, mean)
        check(dict(settings), _DroppedFile, "uq_config.json: posterior")
        if not 0 <= settings["p"] < 1:
            raise InputError(f"uq_config.json: posterior: p: expected a number from 0 to below 1, got {settings['p']}")
        return cls(mean, train_seed, float(settings["p"]), settings["mask"])


@dataclass(frozen=True)
class MCDropout(Method):
    """LoRA trained with dropout, which stays on at evaluation."""

    name: ClassVar[str] = "mcd"
    label: ClassVar[str] = "MCD"
    paper: ClassVar[str] = "Gal and Ghahramani 2016, arXiv:1506.02142"
    summary: ClassVar[str] = "dropout at the LoRA's input, N masks at evaluation"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Dropped,)
    if_inert: ClassVar[str] = "train for more steps, or raise p"

    p: float = option(0.1, "dropout rate (BLoB and Me-LoRA papers: 0.1)", low=0, high=0.99)
    mask: Literal["column", "token"] = option(
        "column", "at evaluation: one mask per draw on A's columns, or fresh masks per token (no generation)"
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Posterior | None = None) -> Posterior:
        if run.lora_dropout not in (0.0, self.p):
            raise InputError(f"mcd drops with p={self.p}, lora_dropout is {run.lora_dropout}: give --set p=… alone")
        stack = LoraStack(model)
        set_dropout(model, stack.adapter, self.p)
        fit_loop(stack, data, run, method=self)
        return Dropped(stack.mean(), run.seed, self.p, self.mask)


def set_dropout(model: PeftModel, adapter: str, p: float) -> None:
    """PEFT's own dropout, with our p: it is part of the method, not of the run that methods share."""
    model.peft_config[adapter].lora_dropout = p  # type: ignore[attr-defined,unused-ignore]
    for module in model.modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_dropout:
            module.lora_dropout[adapter] = nn.Dropout(p)
