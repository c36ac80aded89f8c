"""min_{μ, σ, A, B}  −E_q(s)[log p(D | s, A, B)] + KL[q(s) ‖ N(0, σp² I)],  W = W0 + B diag(s) A,  q(s) = N(μ, diag(σ²))
(ScalaBL: Samplawski et al. 2025, arXiv:2506.21408). μ and σ are r numbers each per layer: its "~1000 additional
parameters", 1,040 for q, v and the head of a 32-layer model at r = 8.

Our reading is of its abstract and the authors' code (BayesAdapt): LoRA's random A = U diag(μ) Vᵀ starts as Vᵀ with μ
its singular values, and B as 0; log μ and log σ are learned, σ starts as U(ε/√2, ε); one s for the whole batch; AdamW
takes the likelihood's gradient of everything, SGD the KL's of μ and σ, under BLoB's weights of the steps; the prior is
N(0, 1); ε, kl_lr and γ are those of its script scalabl-llama-all.sh. The code's KL is KL[p ‖ q] (`kl=code`), the
reverse of the bound's, which is the default here and in the code's other version (scalabl_td.py).
Not implemented: that version's flipout and its prior of variance 0.2 (`prior_std=0.447`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from uqharness.adapters.blob import BLoB
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, check_tensor, keyed_generator, noise, split_state, stored
from uqharness.settings import Run, option
from uqharness.training.loop import Batch, Learned, choice_loss, fit_loop, learning_rate

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


class Subspace(Posterior):
    """A_i = diag(s_i / μ) A with s_i = μ + σ ∘ z; the mean is the plain LoRA (B, A), which has diag(μ) in it."""

    kind = "subspace"
    symmetric = True

    def __init__(self, mean: Mapping[str, Tensor], relative: Mapping[str, Tensor], train_seed: int) -> None:
        super().__init__(mean, train_seed)
        self.relative = stored(relative)  # σ / μ  [r]
        for name, ratio in self.relative.items():
            if name not in self.mean:
                raise InputError(f"σ/μ of {name}: the mean has no such tensor")
            check_tensor(f"σ/μ of {name}", ratio, self.mean[name].shape[:1])

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {name: torch.stack([self.draw(name, i, seed) for i in range(start, stop)]) for name in self.relative}

    def draw(self, name: str, i: int, seed: int) -> Tensor:
        ratio = self.relative[name]
        return (1 + ratio * noise(self.train_seed, seed, i, name, ratio.shape))[:, None] * self.mean[name]

    def state(self) -> Tensors:
        return {f"{name}.relative_std": ratio for name, ratio in self.relative.items()}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Subspace:
        (relative,) = split_state(state, mean, ".relative_std")
        return cls(mean, relative, train_seed)


class Diagonal:
    """diag(s) between A and B: the input of B is multiplied by μ, in training by μ + σ ∘ z."""

    def __init__(self, a: nn.Linear, b: nn.Linear, log_mean: Tensor, log_std: Tensor) -> None:
        self.a, self.b = a, b
        self.log_mean, self.log_std = nn.Parameter(log_mean), nn.Parameter(log_std)
        self.z: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        s = self.log_mean.exp()
        # Scoring the mean in between must not see the last batch's noise.
        if self.z is not None and self.b.training:
            s = s + self.log_std.exp() * self.z
        return x * s.to(x.dtype)


@dataclass(frozen=True)
class ScalaBL(Method):
    """Variational inference over r numbers per layer."""

    name: ClassVar[str] = "scalabl"
    label: ClassVar[str] = "ScalaBL"
    paper: ClassVar[str] = "Samplawski et al. 2025, arXiv:2506.21408"
    summary: ClassVar[str] = "Gaussian over the diagonal s of B diag(s) A: r random numbers per layer"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Subspace,)
    if_inert: ClassVar[str] = "train for more steps, or raise kl_lr"

    prior_std: float = option(1.0, "σp of the prior N(0, σp²)", low=1e-6)
    eps: float = option(0.05, "σ starts as U(ε/√2, ε)", low=1e-6)
    kl: Literal["exact", "code"] = option("exact", "KL[q ‖ p], or the code's KL[p ‖ q]")
    kl_lr: float = option(0.1, "learning rate of the KL's SGD", low=0)
    gamma: float = option(8.0, "γ of BLoB's rescaled data set size", low=0.1)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        diagonals = self.start(stack, run.seed)
        schedule = BLoB(gamma=self.gamma)
        cycle = schedule.cycle(len(data.train), run.effective_batch)

        def loss(stack: LoraStack, batch: Batch) -> Tensor:
            self.set_noise(diagonals, batch, run.seed)
            return choice_loss(stack, batch)

        learned = self.learned(diagonals, schedule, cycle)

        def after_step(step: int) -> None:
            self.step(diagonals, learned.rate(step, run))

        own = {f"{name}.log_mean": d.log_mean for name, d in diagonals.items()}
        own |= {f"{name}.log_std": d.log_std for name, d in diagonals.items()}
        with stack.inputs({name.replace(".lora_A.", ".lora_B."): d for name, d in diagonals.items()}):
            fit_loop(
                stack,
                data,
                run,
                loss=loss,
                groups=[{"params": stack.trained}, {"params": list(own.values()), "weight_decay": 0.0}],
                after_step=after_step,
                extra=own,
                method=self,
                learned=learned,
            )
        return self.finish(stack, diagonals, run.seed)

    @torch.no_grad()
    def finish(self, stack: LoraStack, diagonals: Mapping[str, Diagonal], seed: int) -> Subspace:
        """Convert the adapter to the plain LoRA (B, diag(μ) A)."""
        stack.load({name: d.log_mean.exp()[:, None] * d.a.weight for name, d in diagonals.items()})
        return Subspace(stack.mean(), {name: (d.log_std - d.log_mean).exp() for name, d in diagonals.items()}, seed)

    # ---------------------------------------------------------------- the variational distribution

    @torch.no_grad()
    def start(self, stack: LoraStack, seed: int) -> dict[str, Diagonal]:
        """Replace A = U diag(μ) Vᵀ by Vᵀ; U is absorbed by B, which is 0."""
        diagonals = {}
        for name, layer in stack.layers.items():
            if ".lora_A." not in name:
                continue
            rank, width = layer.weight.shape
            if rank > width:
                raise InputError(f"{name} has rank {rank} and {width} inputs: take lora_r of at most {width}")
            _, s, vt = torch.linalg.svd(layer.weight.float().cpu(), full_matrices=False)
            layer.weight.copy_(vt)
            std = torch.empty(rank).uniform_(
                self.eps / math.sqrt(2), self.eps, generator=keyed_generator("scalabl std", seed, name)
            )
            device = layer.weight.device
            after = stack.layers[name.replace(".lora_A.", ".lora_B.")]
            diagonals[name] = Diagonal(layer, after, s.log().to(device), std.log().to(device))
        return diagonals

    def set_noise(self, diagonals: Mapping[str, Diagonal], batch: Batch, seed: int) -> None:
        """Draw z of a batch; it is valid until the end of its backward pass."""
        for name, d in diagonals.items():
            z = torch.randn(d.log_std.shape, generator=keyed_generator("noise", seed, batch.micro, name))
            d.z = z.to(d.log_std.device)

    # ---------------------------------------------------------------- the KL

    def learned(self, diagonals: Mapping[str, Diagonal], schedule: BLoB, cycle: int) -> Learned:
        """While σ is far below σp the KL's SGD adds ηλ to log σ at every step."""

        def rate(step: int, run: Run) -> float:
            return self.kl_lr * learning_rate(step, run) * schedule.kl_weight(step, cycle)

        def stds() -> dict[str, Tensor]:
            return {name: d.log_std.exp() for name, d in diagonals.items()}

        return Learned(stds, rate, lambda now: max(0.0, math.log(0.1 * self.prior_std / now)), cycle)

    def kl_value(self, log_mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the KL between q = N(μ, σ²) and p = N(0, σp²), summed."""
        ratio, offset = (2 * (log_std - math.log(self.prior_std))).exp(), log_mean.exp().square()
        if self.kl == "exact":
            return 0.5 * (ratio - ratio.log() - 1 + offset / self.prior_std**2).sum()
        return 0.5 * (1 / ratio + ratio.log() - 1 + offset / (2 * log_std).exp()).sum()

    def step(self, diagonals: Mapping[str, Diagonal], lr: float) -> None:
        """Apply SGD on the KL."""
        for d in diagonals.values():
            own = [d.log_mean, d.log_std]
            for p, gradient in zip(own, torch.autograd.grad(self.kl_value(*own), own), strict=True):
                p.data.add_(gradient, alpha=-lr)
