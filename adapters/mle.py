"""θ* = argmax_θ Σ log p(y | x, θ): plain LoRA (arXiv:2106.09685). One point, no uncertainty over weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.method import Method
from uqharness.posterior import Point, Posterior
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.settings import Run
    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class MLE(Method):
    """Maximum likelihood."""

    name: ClassVar[str] = "mle"
    label: ClassVar[str] = "MLE"
    paper: ClassVar[str] = "Hu et al. 2022, arXiv:2106.09685"
    summary: ClassVar[str] = "plain LoRA by maximum likelihood: one weight vector"
    passes: ClassVar[str] = "1 forward"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Point,)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        fit_loop(stack, data, run, method=self)
        return Point(stack.mean(), train_seed=run.seed)
