"""min_{μ, ρ, B}  −1/N Σ_n E_q[log p(y_n | x_n, A, B)] + λ Σ_l KL_l,  q(A) = N(μ, log(1 + e^ρ)²)
(Bayes by Backprop, arXiv:1505.05424, Eq. 2 and 3; on LoRA's A: BLoB, arXiv:2406.11675, Sec. 2.2 and 4.1).

Bayesian-Torch's defaults, which the BLoB paper says it uses: μ ~ N(0, 0.1²), ρ ~ N(−3, 0.1²), prior N(0, 1), KL in
closed form, one draw of weights for the whole batch, everything by one AdamW. Its `kl_div` is the *mean* over a layer's
weights, and its README adds the sum of the layers' means, divided by the batch size, to the loss: `kl_reduce=mean`.
`kl_reduce=sum` is the bound itself: KL_l the sum over a layer's weights and λ = 1/N (BLoB's Eq. 70 gives the KL
1 / #mini-batches beside a batch's summed log-likelihood; `kl_weight=batches` puts that beside the mean).
BLoB's Tables 1 and 8 share one BBB row and do not say which of the two it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uqharness.engine.flipout import Perturbation, perturb, standard
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.posterior import Gaussian, Posterior, keyed_generator
from uqharness.settings import Run, option
from uqharness.training.loop import Batch, Learned, choice_loss, fit_loop, learning_rate

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class BBB(Method):
    """Mean and standard deviation of A by variational inference, the straightforward way."""

    name: ClassVar[str] = "bbb"
    label: ClassVar[str] = "BBB"
    paper: ClassVar[str] = "Blundell et al. 2015, arXiv:1505.05424"
    summary: ClassVar[str] = "Gaussian over LoRA's A by Bayes by Backprop"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Gaussian,)

    on: Literal["A", "AB"] = option("A", "which matrices are random (BLoB paper: A)")
    mu_init: Literal["library", "lora"] = option("library", "μ starts as N(0, 0.1²), or as LoRA's A")
    rho: float = option(-3.0, "ρ starts as N(this, 0.1²); std = log(1 + e^ρ)")
    prior: Literal["gaussian", "mixture"] = option(
        "gaussian", "N(0, prior_std²), closed-form KL; or Blundell's scale mixture, Monte Carlo KL"
    )
    prior_std: float = option(1.0, "std of the Gaussian prior, and of the mixture's wide part", low=1e-6)
    narrow_std: float = option(math.exp(-6), "std of the mixture's narrow part (Blundell: e^−6 to e^−8)", low=1e-12)
    pi: float = option(0.5, "weight of the mixture's wide part (Blundell: 1/4, 1/2 or 3/4)", low=0.01, high=0.99)
    kl_reduce: Literal["mean", "sum"] = option(
        "mean",
        "a layer's KL is the mean over its weights, and counts 1/batch size (Bayesian-Torch); or the sum (the bound)",
    )
    kl_weight: Literal["items", "batches"] = option(
        "items", "kl_reduce=sum: it counts 1/N beside the mean loss (Eq. 70), or 1/#mini-batches (BLoB's code)"
    )
    flipout: Literal["none", "example", "token"] = option("none", "fresh signs per question or token")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_reduce == "mean" and self.kl_weight != "items":
            raise InputError(
                f"kl_weight is {self.kl_weight} and kl_reduce mean: the mean counts 1 / batch size, as in the library; "
                "remove kl_weight, or give kl_reduce=sum"
            )

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        rho = self.start(stack, run.seed)
        weight = self.weight(len(data.train), run.effective_batch)

        def loss(stack: LoraStack, batch: Batch) -> Tensor:
            noise = self.noise(rho, batch, run.seed)
            stack.perturb(self.perturbations(rho, noise, batch, run.seed))
            means = {name: stack.layers[name].weight for name in rho}
            return choice_loss(stack, batch) + weight * self.kl(means, rho, noise)

        try:
            fit_loop(
                stack,
                data,
                run,
                loss=loss,
                groups=[{"params": stack.trained}, {"params": list(rho.values()), "weight_decay": 0.0}],
                extra=rho,
                method=self,
                learned=self.learned(rho, weight),
                per_token=self.flipout == "token",
            )
        finally:
            stack.clear()
        std = {name: F.softplus(r).detach() for name, r in rho.items()}
        return Gaussian(stack.mean(), std, train_seed=run.seed)

    # ---------------------------------------------------------------- the variational distribution

    @torch.no_grad()
    def start(self, stack: LoraStack, seed: int) -> dict[str, nn.Parameter]:
        """Return ρ of every random matrix and initialise μ as Bayesian-Torch does; B stays 0: the start is the base."""
        rho = {}
        for name, layer in stack.layers.items():
            if ".lora_A." in name or self.on == "AB":
                e = torch.randn(layer.weight.shape, generator=keyed_generator("bbb rho", seed, name))
                rho[name] = nn.Parameter((self.rho + 0.1 * e).to(layer.weight.device))
            if ".lora_A." in name and self.mu_init == "library":
                generator = keyed_generator("bbb mu", seed, name)
                layer.weight.copy_(0.1 * torch.randn(layer.weight.shape, generator=generator))
        return rho

    def noise(self, rho: Mapping[str, Tensor], batch: Batch, seed: int) -> dict[str, Tensor]:
        """Draw E ~ N(0, I) of a forward; it is valid until the end of its backward pass."""
        return {name: standard(r, seed, batch.micro, name) for name, r in rho.items()}

    def perturbations(
        self, rho: Mapping[str, Tensor], noise: Mapping[str, Tensor], batch: Batch, seed: int
    ) -> dict[str, Perturbation]:
        """x ↦ (E ∘ log(1 + e^ρ)) x beside μ x: the reparameterisation."""
        parts = {name: e * F.softplus(rho[name]) for name, e in noise.items()}
        return perturb(self.flipout, parts, batch.rows, len(batch.gold), seed, batch.micro)

    # ---------------------------------------------------------------- the KL

    def learned(self, rho: Mapping[str, Tensor], weight: float) -> Learned:
        """AdamW moves ρ by at most the learning rate at a step, whatever the KL's weight."""

        def rate(step: int, run: Run) -> float:
            return weight * run.lr * learning_rate(step, run)

        def needed(now: float) -> float:
            wanted = max(0.1 * self.prior_std, now)
            return weight * (math.log(math.expm1(wanted)) - math.log(math.expm1(now)))

        return Learned(lambda: {name: F.softplus(r) for name, r in rho.items()}, rate, needed)

    def weight(self, items: int, batch: int) -> float:
        """Return λ, the weight of the KL relative to the mean loss of a batch."""
        if self.kl_reduce == "mean":
            return 1.0 / batch
        return 1.0 / items if self.kl_weight == "items" else min(1.0, batch / items)

    def kl(self, means: Mapping[str, Tensor], rho: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        """Σ_l KL_l of q and p, or for the mixture its one-sample estimate log q(w) − log p(w) at the draw."""
        parts = [self.layer_kl(means[name], F.softplus(r), noise[name]) for name, r in rho.items()]
        sizes = [r.numel() if self.kl_reduce == "mean" else 1 for r in rho.values()]
        return torch.stack([part / size for part, size in zip(parts, sizes, strict=True)]).sum()

    def layer_kl(self, mean: Tensor, std: Tensor, e: Tensor) -> Tensor:
        """Return the KL of one layer, summed over its weights."""
        if self.prior == "gaussian":
            return gaussian_kl(mean, std, self.prior_std)
        w = mean + std * e
        wide = log_normal(w, self.prior_std) + math.log(self.pi)
        narrow = log_normal(w, self.narrow_std) + math.log1p(-self.pi)
        return (log_normal(std * e, std) - torch.logaddexp(wide, narrow)).sum()


def gaussian_kl(mean: Tensor, std: Tensor, prior_std: float) -> Tensor:
    """Return KL[N(mean, std²) ‖ N(0, prior_std²)], summed."""
    ratio = std / prior_std
    return 0.5 * (ratio.square() + (mean / prior_std).square() - 1.0).sum() - ratio.log().sum()


def log_normal(x: Tensor, std: Tensor | float) -> Tensor:
    """Return log N(x; 0, std²), elementwise."""
    std = torch.as_tensor(std, device=x.device)
    return -0.5 * (x / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
