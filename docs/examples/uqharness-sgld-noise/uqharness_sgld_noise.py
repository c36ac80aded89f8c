"""θ_{t+1} = θ_t − η ∇NLL(θ_t) + √(2 η T / N) ξ_t,  ξ_t ~ N(0, I)   (SGLD: Welling and Teh 2011, Eq. 4).

Late iterates are draws of a tempered posterior; K of them, evenly spaced, are kept. The gradient step is the run's
AdamW instead of plain SGD, so this is the heuristic variant: enough to show what a plugin looks like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.method import Method
from uqharness.posterior import Members, Posterior, keyed_generator
from uqharness.settings import Run, option
from uqharness.training.loop import fit_loop, learning_rate

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class SGLDNoise(Method):
    """Snapshots of a noisy training run, averaged with equal weight."""

    name: ClassVar[str] = "sgld-noise"
    label: ClassVar[str] = "SGLD"
    paper: ClassVar[str] = "Welling and Teh 2011, ICML"
    summary: ClassVar[str] = "K late iterates of a training run with Langevin noise"
    passes: ClassVar[str] = "K forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Members,)

    snapshots: int = option(5, "K: iterates that are kept", low=1)
    burn_in: float = option(0.5, "fraction of the steps before the first of them", low=0, high=0.99)
    temperature: float = option(0.1, "T: 1 is the posterior, 0 is plain training", low=0)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        keep = self.kept_steps(run.steps)
        # Own parameters live in the checkpoints, so a resumed run still has its early snapshots.
        snapshots = {
            f"{k}/{name}": nn.Parameter(p.detach().clone()) for k in keep for name, p in stack.parameters.items()
        }

        @torch.no_grad()
        def after_step(step: int) -> None:
            scale = math.sqrt(2 * run.lr * learning_rate(step, run) * self.temperature / len(data.train))
            for name, p in stack.parameters.items():
                xi = torch.randn(p.shape, generator=keyed_generator("sgld", run.seed, step, name))
                p.add_(xi.to(p.device), alpha=scale)
                if step in keep:
                    snapshots[f"{step}/{name}"].copy_(p)

        fit_loop(stack, data, run, after_step=after_step, extra=snapshots, method=self)
        members = [{name: snapshots[f"{k}/{name}"] for name in stack.parameters} for k in keep]
        return Members(members, train_seed=run.seed)

    def kept_steps(self, steps: int) -> list[int]:
        """Evenly spaced after the burn-in; the last step is one of them."""
        first = math.floor(self.burn_in * steps)
        count = min(self.snapshots, steps - first)
        return sorted({steps - 1 - round(i * (steps - first) / count) for i in range(count)})
