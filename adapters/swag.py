"""θ̃ = θ̄ + 1/√2 Σ_diag^½ z₁ + 1/√(2(K−1)) D z₂,  z₁, z₂ ~ N(0, I)
(SWAG: Maddox et al. 2019, arXiv:1902.02476, Eq. 1 and Algorithm 1; of LoRA: Onal et al. 2024, arXiv:2405.03425).

θ̄ and Σ_diag are the mean and the variance of the snapshots of the trajectory's last part; the columns of D are the last
K deviations θ_i − θ̄_i from the mean so far. z₂ is one vector for all tensors: that part is joint over the parameters.
Maddox's defaults: a snapshot per epoch, K = 20, and a constant learning rate while averaging (start=0.5 is ours). The
run has one schedule: `schedule=constant` is suggested and applies after the warm-up; with another one the snapshots
are too close together, and a warning says so. The optimiser is the run's AdamW (Maddox: SGD). The variance is summed as
squared deviations, because subtracting θ̄² from the mean of θ² would lose precision in fp32.
Not implemented: a separate learning rate for the averaging part, ensembles of SWAGs (MultiSWAG), scaling of the
covariance.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, check_tensor, keyed_generator, noise, split_state, stored
from uqharness.settings import Run, option
from uqharness.training.loop import fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

log = logging.getLogger(__name__)


class LowRank(Posterior):
    """N(mean, ½ diag(std²) + 1/(2(K−1)) D Dᵀ), D of K columns that run over all tensors."""

    kind = "lowrank"
    symmetric = True

    def __init__(
        self, mean: Mapping[str, Tensor], std: Mapping[str, Tensor], columns: Mapping[str, Tensor], train_seed: int
    ) -> None:
        super().__init__(mean, train_seed)
        self.std = stored(std)
        self.columns = stored(columns)  # [K, ...]
        counts = {len(t) if t.ndim else 0 for t in self.columns.values()}
        if set(self.std) != set(self.columns) or len(counts) != 1 or min(counts) < 2:
            raise InputError(f"every tensor needs a std and the same K >= 2 deviations, found K = {sorted(counts)}")
        self.count = counts.pop()
        for name, t in self.std.items():
            if name not in self.mean:
                raise InputError(f"std of {name}: the mean has no such tensor")
            check_tensor(f"std of {name}", t, self.mean[name].shape, low=0)
            check_tensor(f"deviations of {name}", self.columns[name], (self.count, *self.mean[name].shape))

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        drawn: dict[str, list[Tensor]] = {name: [] for name in self.std}
        for i in range(start, stop):
            joint = keyed_generator("low rank", self.train_seed, seed, i)
            z2 = torch.randn(self.count, generator=joint) / math.sqrt(2 * (self.count - 1))
            for name, std in self.std.items():
                z1 = noise(self.train_seed, seed, i, name, std.shape)
                step = std * z1 / math.sqrt(2) + torch.tensordot(z2, self.columns[name], 1)
                drawn[name].append(self.mean[name] + step)
        return {name: torch.stack(parts) for name, parts in drawn.items()}

    def state(self) -> Tensors:
        own = {f"{name}.std": t for name, t in self.std.items()}
        return own | {f"{name}.columns": t for name, t in self.columns.items()}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> LowRank:
        std, columns = split_state(state, mean, ".std", ".columns")
        return cls(mean, std, columns, train_seed)


class Moments:
    """Running mean, sum of squared deviations and last deviations of each tensor, as parameters: checkpoints keep
    them, so a resumed run has its early snapshots. How many there were follows from the step."""

    def __init__(self, tensors: Mapping[str, Tensor], rank: int) -> None:
        self.rank = rank
        self.mean = {name: nn.Parameter(torch.zeros_like(t)) for name, t in tensors.items()}
        self.square = {name: nn.Parameter(torch.zeros_like(t)) for name, t in tensors.items()}
        self.columns = {name: nn.Parameter(t.new_zeros(rank, *t.shape)) for name, t in tensors.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        kinds = {"mean": self.mean, "square": self.square, "columns": self.columns}
        return {f"{kind}/{name}": p for kind, parts in kinds.items() for name, p in parts.items()}

    @torch.no_grad()
    def add(self, n: int, tensors: Mapping[str, Tensor]) -> None:
        """Add snapshot number n, from 0 (Welford's update)."""
        for name, theta in tensors.items():
            before = theta - self.mean[name]
            self.mean[name].add_(before / (n + 1))
            after = theta - self.mean[name]
            self.square[name].add_(before * after)
            self.columns[name][n % self.rank].copy_(after)  # the oldest goes; their order does not matter

    def posterior(self, count: int, mean: Tensors, train_seed: int) -> LowRank:
        std = {name: (p.detach().clamp(min=0) / count).sqrt() for name, p in self.square.items()}
        columns = {name: p.detach()[: min(count, self.rank)] for name, p in self.columns.items()}
        return LowRank(mean, std, columns, train_seed)


@dataclass(frozen=True)
class SWAG(Method):
    """A Gaussian with the moments of the last iterates of training."""

    name: ClassVar[str] = "swag"
    label: ClassVar[str] = "SWAG"
    paper: ClassVar[str] = "Maddox et al. 2019, arXiv:1902.02476; Onal et al. 2024, arXiv:2405.03425"
    summary: ClassVar[str] = "Gaussian, diagonal plus low rank, over the last part of the training trajectory"
    passes: ClassVar[str] = "N + 1 forwards"
    suggests: ClassVar[Mapping[str, Any]] = {"schedule": "constant"}
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (LowRank,)
    if_inert: ClassVar[str] = "take snapshots over more steps (--steps, start), or at a higher --lr"

    start: float = option(0.5, "fraction of the steps before the first snapshot", low=0, high=0.99)
    every: int = option(0, "steps between snapshots (0: one epoch)", low=0)
    rank: int = option(20, "K: deviations that are kept", low=2, high=1000)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        steps = self.snapshots(run, len(data.train))
        if run.stop_at:
            raise InputError("swag averages the end of its training: remove --stop-at, or give as many --steps")
        if run.select != "last":
            raise InputError(f"swag averages the end of training, select is {run.select}: use --select last")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("swag keeps its moments in one process: run it without accelerate launch")
        if run.schedule != "constant":
            log.warning("swag: the learning rate falls while snapshots are taken: --schedule constant is SWAG's")
        stack = LoraStack(model)
        trained = {name: p for name, p in stack.parameters.items() if p.requires_grad}
        moments = Moments(trained, min(self.rank, len(steps)))
        fit_loop(
            stack, data, run, after_step=self.watch(steps, moments, trained), extra=moments.parameters(), method=self
        )
        stack.load(moments.mean)
        data.record["swag"] = {"snapshots": len(steps), "first_step": steps[0], "last_step": steps[-1]}
        return moments.posterior(len(steps), stack.mean(), run.seed)

    def watch(self, steps: list[int], moments: Moments, tensors: Mapping[str, Tensor]) -> Callable[[int], None]:
        number = {step: n for n, step in enumerate(steps)}

        def after_step(step: int) -> None:
            if step + 1 in number:
                moments.add(number[step + 1], tensors)

        return after_step

    def snapshots(self, run: Run, items: int) -> list[int]:
        """Return the steps after which a snapshot is taken, at equal distances back from the last step."""
        every = self.every or math.ceil(items / run.effective_batch)
        steps = list(range(run.steps, math.floor(self.start * run.steps), -every))[::-1]
        if len(steps) < 2:
            raise InputError(
                f"swag needs at least 2 snapshots, found {len(steps)}: one every {every} steps in the last "
                f"{1 - self.start:.0%} of {run.steps}; set every, start or more --steps"
            )
        return steps
