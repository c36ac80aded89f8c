"""θ* = argmax_θ Σ_n log p(y_n | x_n, θ) + log N(θ; 0, s² I)   (MAP: BLoB, arXiv:2406.11675, Sec. 4.1).

Per training item the prior's gradient is θ / (N s²): weight decay λ = 1 / (N s²), applied decoupled from
Adam's step (AdamW, arXiv:1711.05101): θ ← (1 − lr λ) θ. `weight_decay=1e-5`, the papers', is thus
s² = 1 / (N λ), 156 at N = 640, and at lr 1e-4 it takes 1e-9 of a weight per step: it has no effect, and MAP
with the papers' numbers is MLE. `prior_var` sets s² instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.posterior import Point, Posterior
from uqharness.settings import Run, option
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MAP(Method):
    """Maximum likelihood with a Gaussian prior on A and B."""

    name: ClassVar[str] = "map"
    label: ClassVar[str] = "MAP"
    paper: ClassVar[str] = "Wang et al. 2024, arXiv:2406.11675 (baseline)"
    summary: ClassVar[str] = "LoRA with decoupled weight decay: one weight vector"
    passes: ClassVar[str] = "1 forward"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Point,)

    weight_decay: float = option(1e-5, "λ of AdamW; 1e-5 as in the papers does nothing at lr 1e-4", low=0)
    prior_var: float | None = option(None, "s² of the prior N(0, s²), instead of λ = 1/(N s²)", low=1e-12)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_var is not None and self.weight_decay != type(self).weight_decay:
            raise InputError("weight_decay and prior_var exclude each other: give one")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        if run.weight_decay:
            raise InputError("map has its own weight_decay: give --set weight_decay=…, not --weight-decay")
        decay, variance = self.decay(len(data.train)), self.variance(len(data.train))
        log.info("map: weight decay %.3g, a prior variance of %.3g per weight", decay, variance)
        stack = LoraStack(model)
        fit_loop(stack, data, run, groups=[{"params": stack.trained, "weight_decay": decay}], method=self)
        return Point(stack.mean(), train_seed=run.seed)

    def decay(self, items: int) -> float:
        """Return λ for `items` training items."""
        return self.weight_decay if self.prior_var is None else 1.0 / (items * self.prior_var)

    def variance(self, items: int) -> float:
        """Return s² of the prior that corresponds to the decay."""
        decay = self.decay(items)
        return float("inf") if decay == 0 else 1.0 / (items * decay)
