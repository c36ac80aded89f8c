"""min_{M, G, B}  −E_q(A)[log p(D | A, B)] + KL[q(A) ‖ N(0, σp²)],  q(A) = N(M, Ω²), Ω = G²
(BLoB, arXiv:2406.11675: Eq. 13, Algorithm 1, Appendix B.1).

AdamW takes the likelihood gradient of M and B. The KL's gradient is closed form and goes through SGD, with
G's likelihood gradient, as in the authors' code; both learning rates follow the run's schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uqharness.engine.flipout import Perturbation, perturb, standard
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.method import Method
from uqharness.posterior import Gaussian, Posterior, keyed_generator
from uqharness.settings import Run, option
from uqharness.training.base_model import uniform
from uqharness.training.loop import Batch, Learned, choice_loss, fit_loop, learning_rate

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


@dataclass
class Random:
    """One random matrix: N(mean, Ω²), Ω a function of scale and g."""

    name: str
    mean: Tensor
    g: nn.Parameter
    scale: float


@dataclass(frozen=True)
class BLoB(Method):
    """Mean and standard deviation of A by variational inference; B is a point. Table 8's rows: settings."""

    name: ClassVar[str] = "blob"
    label: ClassVar[str] = "BLoB"
    paper: ClassVar[str] = "Wang et al. 2024, arXiv:2406.11675"
    summary: ClassVar[str] = "Gaussian over LoRA's A, mean and std learned together"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Gaussian,)
    if_inert: ClassVar[str] = "train for more steps, or raise kl_lr"

    prior_std: float = option(0.2, "σp of the prior N(0, σp²)", low=1e-6)
    eps: float = option(0.05, "G starts as U(ε/√2, ε)", low=1e-6)
    kl_lr: float = option(0.01, "learning rate of the KL's SGD (0.002 for RoBERTa)", low=0)
    train_samples: int = option(1, "K: noise draws per training step", low=1, high=1000)
    flipout: Literal["example", "token", "none"] = option(
        "example", "fresh signs per question (paper), per token (authors' code), or one draw for the batch"
    )
    reweight: bool = option(True, "KL weights grow over a cycle of M steps (RW in Table 8); else 1/M")
    weights: Literal["code", "paper"] = option(
        "code",
        "the code's λ_i = 2^i/(2^(M+1) − 1), which sum to 1 per cycle as the paper's text asks, "
        "or its printed 2^i/(2^M − 1), which sum to 2",
    )
    rescale: bool = option(True, "M from the rescaled data set size (Eq. 71); else from the data set's own")
    gamma: float = option(8.0, "γ of Eq. 71", low=0.1)
    parameterization: Literal["square", "softplus"] = option("square", "Ω = G² (RP, Table 8), or log(1 + e^G)")
    asymmetric: bool = option(True, "only A is random (AB in Table 8); else A and B")
    std_scale_b: float = option(0.01, "B's G is scaled by this (starred rows of Table 8: G/100)", low=1e-6)
    std_optimizer: Literal["sgd", "shared"] = option(
        "sgd",
        "G's likelihood gradient: the KL's SGD (authors' code), or M's AdamW (Algorithm 1: one optimiser)",
    )
    mean_init: Literal["paper", "peft"] = option("paper", "M ~ U(±√(6/n)) (Algorithm 1), or PEFT's U(±√(1/n))")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        random = self.start(stack, run.seed)
        cycle = self.cycle(len(data.train), run.effective_batch)

        def loss(stack: LoraStack, batch: Batch) -> Tensor:
            total = []
            for k in range(self.train_samples):
                stack.perturb(self.perturbations(random, batch, k, run.seed))
                total.append(choice_loss(stack, batch))
            return torch.stack(total).mean()

        def after_step(step: int) -> None:
            self.step(random, self.kl_lr * learning_rate(step, run), self.kl_weight(step, cycle))

        shared = [{"params": [r.g for r in random], "weight_decay": 0.0}] if self.std_optimizer == "shared" else []
        try:
            fit_loop(
                stack,
                data,
                run,
                loss=loss,
                groups=[{"params": stack.trained}, *shared],
                after_step=after_step,
                extra={r.name: r.g for r in random},
                method=self,
                learned=self.learned(random, cycle),
                per_token=self.flipout == "token",
            )
        finally:
            stack.clear()
        return Gaussian(stack.mean(), {r.name: self.std(r).detach() for r in random}, train_seed=run.seed)

    # ---------------------------------------------------------------- the variational distribution

    @torch.no_grad()
    def start(self, stack: LoraStack, seed: int) -> list[Random]:
        """Initialise M and G as in Algorithm 1, line 1; Ω starts as U(ε/√2, ε)² whatever the parameterisation."""
        random = []
        for name, layer in stack.layers.items():
            is_a = ".lora_A." in name
            if not is_a and self.asymmetric:
                continue
            if is_a and self.mean_init == "paper":
                layer.weight.copy_(uniform(layer.weight, 6.0, "blob mean", seed, name))
            generator = keyed_generator("blob std", seed, name)
            g = torch.empty(layer.weight.shape).uniform_(self.eps / math.sqrt(2), self.eps, generator=generator)
            g = g if self.parameterization == "square" else g.square().expm1().log()
            scale = 1.0 if is_a else self.std_scale_b
            random.append(Random(name, layer.weight, nn.Parameter(g.to(layer.weight.device)), scale))
        return random

    def std(self, r: Random) -> Tensor:
        """Ω = (scale·G)², or scale·log(1 + e^G)."""
        g = r.g if r.scale == 1.0 else r.scale * r.g
        return g.square() if self.parameterization == "square" else r.scale * F.softplus(r.g)

    def perturbations(self, random: Sequence[Random], batch: Batch, k: int, seed: int) -> dict[str, Perturbation]:
        """Draw the noise of sample k of a batch; it is valid until the end of the backward pass (Eq. 12)."""
        key = (seed, batch.micro, k)
        noise = {r.name: standard(r.g, *key, r.name) * self.std(r) for r in random}
        return perturb(self.flipout, noise, batch.rows, len(batch.gold), *key)

    # ---------------------------------------------------------------- the KL

    def learned(self, random: Sequence[Random], cycle: int) -> Learned:
        """While Ω is far below σp the KL's SGD adds 4ηλ to Ω = G² (ηλ to log Ω for log(1 + e^G)) at every step."""

        def needed(now: float) -> float:
            wanted = max(0.1 * self.prior_std, now)
            return (wanted - now) / 4 if self.parameterization == "square" else math.log(wanted / now)

        def rate(step: int, run: Run) -> float:
            return self.kl_lr * learning_rate(step, run) * self.kl_weight(step, cycle)

        return Learned(lambda: {r.name: self.std(r) for r in random}, rate, needed, cycle)

    def cycle(self, items: int, batch_size: int) -> int:
        """M: steps of one KL cycle, from L* = 100·L0^(π/γ) (Eq. 71; π is the circle constant)."""
        size = 100 * items ** (math.pi / self.gamma) if self.rescale and self.reweight else items
        return max(1, math.floor(size / batch_size))

    def kl_weight(self, step: int, cycle: int) -> float:
        """λ of `step` (from 0), the i-th of M: 2^i / (2^(M+1) − 1) or 2^i / (2^M − 1), written without overflow."""
        if not self.reweight:
            return 1.0 / cycle
        i = step % cycle + 1
        if self.weights == "code":
            return 2.0 ** (i - cycle - 1) / (1.0 - 2.0 ** -(cycle + 1))
        return 2.0 ** (i - cycle) / (1.0 - 2.0**-cycle)

    def kl_gradients(self, random: Sequence[Random]) -> tuple[list[Tensor], list[Tensor]]:
        """∂KL/∂M = M/σp²;  ∂KL/∂G = (Ω/σp² − 1/Ω)·∂Ω/∂G, which is 2(Ω²/σp² − 1)/G for Ω = (sG)²  (Eq. 11)."""
        variance, scales = self.prior_std**2, [r.scale for r in random]
        mean: list[Tensor] = [r.mean for r in random]
        g: list[Tensor] = [r.g for r in random]
        of_mean = list(torch._foreach_div(mean, variance))
        if self.parameterization == "square":
            std = torch._foreach_mul(torch._foreach_pow(g, 2), [s * s for s in scales])
            excess = torch._foreach_mul(torch._foreach_pow(std, 2), 2.0 / variance)
            return of_mean, list(torch._foreach_div(torch._foreach_sub(excess, 2.0), g))
        std = tuple(self.std(r) for r in random)
        pull = torch._foreach_sub(torch._foreach_div(std, variance), torch._foreach_reciprocal(std))
        slope = torch._foreach_mul(torch._foreach_sigmoid(g), scales)
        return of_mean, [a * b for a, b in zip(pull, slope, strict=True)]

    @torch.no_grad()
    def step(self, random: Sequence[Random], lr: float, weight: float) -> None:
        """SGD without autograd: M ← M − η λ ∂KL/∂M;  G ← G − η (∂NLL/∂G + λ ∂KL/∂G)."""
        of_mean, of_g = self.kl_gradients(random)
        own: list[Tensor] = [r.g for r in random]
        torch._foreach_add_([r.mean for r in random], of_mean, alpha=-lr * weight)
        torch._foreach_mul_(of_g, weight)
        if self.std_optimizer == "sgd":
            torch._foreach_add_(of_g, [torch.zeros_like(g) if g.grad is None else g.grad for g in own])
        torch._foreach_add_(own, of_g, alpha=-lr)
