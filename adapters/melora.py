"""min  −E_q(C)[log p(D | B C A)] + 1/(2(σp + ε)²) (‖M A‖² + ‖Ω |A|‖²) − Σ_ij log Ω_ij,   C ~ N(M, Ω²), Ω = H²
(Me-LoRA, anonymous, under double-blind review: Sec. 3, Eq. 8, Table 7). W = W0 + B C A, C of size r × r.

AdamW takes the likelihood's gradient of A, B, M and H, SGD the KL's (closed form) of M, A and H; C is drawn once per
batch. ε ~ U(0, 1) is drawn anew at every step. The printed Eq. 8 treats Q = C A as independent with std Ω|A|, which
is wrong (its std is sqrt(Ω² A²), its columns are correlated), and sums log Ω over C: `kl=exact` is the KL of C itself.
The paper does not specify, so our choice: M = I, H ~ U(0.05/√2, 0.05) as BLoB's G, the KL's weight 1 / #mini-batches,
and Adam's ε, which is the run's (`adam_eps`, 1e-6 as in BLoB's code). The paper keeps the checkpoint that is best on
validation: --select best:acc --eval-every 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uqharness.engine.flipout import Perturbation, perturb, standard
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


class CorePosterior(Posterior):
    """A_i = C_i A with C_i = M + Ω ∘ E_i; the mean is the plain LoRA (B, M A)."""

    kind = "core"
    symmetric = True

    def __init__(self, mean: Mapping[str, Tensor], train_seed: int, parts: Mapping[str, Tensor]) -> None:
        super().__init__(mean, train_seed)
        self.parts = stored(parts)
        inner, core_mean, core_std = split_state(self.parts, self.mean, ".inner", ".core_mean", ".core_std")
        if not set(inner) == set(core_mean) == set(core_std):
            odd = sorted((set(inner) & set(core_mean) & set(core_std)) ^ (set(inner) | set(core_mean) | set(core_std)))
            raise InputError(f"{odd[0]}: inner, core_mean and core_std are needed, one of them is missing")
        self.names = list(core_std)
        for name in self.names:
            rank = self.mean[name].shape[0]
            check_tensor(f"{name}.inner", inner[name], self.mean[name].shape)
            check_tensor(f"{name}.core_mean", core_mean[name], (rank, rank))
            check_tensor(f"{name}.core_std", core_std[name], (rank, rank), low=0)

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {name: torch.stack([self.draw(name, i, seed) for i in range(start, stop)]) for name in self.names}

    def draw(self, name: str, i: int, seed: int) -> Tensor:
        std = self.parts[f"{name}.core_std"]
        core = self.parts[f"{name}.core_mean"] + std * noise(self.train_seed, seed, i, name, std.shape)
        return core @ self.parts[f"{name}.inner"]

    def state(self) -> Tensors:
        return self.parts

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> CorePosterior:
        return cls(mean, train_seed, state)


class Core:
    """C between A and B: the input of B goes through M, in training also through E ∘ Ω."""

    def __init__(self, a: nn.Linear, b: nn.Linear, h: Tensor) -> None:
        self.a, self.b = a, b
        self.m = nn.Parameter(torch.eye(len(h), device=a.weight.device))
        self.h = nn.Parameter(h.to(a.weight.device))
        self.noise: Perturbation | None = None

    def __call__(self, x: Tensor) -> Tensor:
        # Scoring the mean in between must not see the last batch's noise.
        if self.noise is not None and self.b.training:
            return self.noise(x, self.m)
        return F.linear(x, self.m.to(x.dtype))


@dataclass(frozen=True)
class MeLoRA(Method):
    """Variational inference over an r × r matrix between B and A."""

    name: ClassVar[str] = "melora"
    label: ClassVar[str] = "Me-LoRA"
    paper: ClassVar[str] = "Me-LoRA: Memory-Efficient Bayesian Low-Rank Adaptation (anonymous, under review)"
    summary: ClassVar[str] = "Gaussian over a small matrix C in B C A"
    passes: ClassVar[str] = "N + 1 forwards"
    suggests: ClassVar[Mapping[str, Any]] = {
        "warmup": 0.02,
        "lora_dropout": 0.1,
        "target_modules": ("q_proj", "v_proj"),
    }
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (CorePosterior,)
    if_inert: ClassVar[str] = "train for more steps, or raise kl_lr"

    kl: Literal["printed", "exact"] = option("printed", "the KL: Eq. 8 as printed, or that of C itself")
    prior_std: float = option(0.2, "σp", low=1e-6)
    prior_noise: bool = option(True, "the prior's std is σp + ε, ε ~ U(0, 1) at every step (Sec. 3.3)")
    kl_lr: float = option(1e-4, "learning rate of the KL's SGD", low=0)
    eps: float = option(0.05, "H starts as U(ε/√2, ε), as BLoB's G (ours: the paper does not say)", low=1e-6)
    std_optimizer: Literal["adamw", "sgd"] = option(
        "adamw", "H's likelihood gradient: AdamW (Table 7), or the KL's SGD (as in BLoB's code)"
    )
    flipout: Literal["none", "example", "token"] = option("none", "fresh signs per question or token")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        stack = LoraStack(model)
        cores = self.start(stack.layers, run.seed)
        weight = min(1.0, run.effective_batch / len(data.train))

        def loss(stack: LoraStack, batch: Batch) -> Tensor:
            self.set_noise(cores, batch, run.seed)
            return choice_loss(stack, batch)

        def after_step(step: int) -> None:
            self.step(cores, self.kl_lr * learning_rate(step, run), weight, self.sigma(run.seed, step))

        means = {f"{name}.m": c.m for name, c in cores.items()}
        roots = {f"{name}.h": c.h for name, c in cores.items()}
        own = [*means.values(), *(roots.values() if self.std_optimizer == "adamw" else [])]
        before_b = {name.replace(".lora_A.", ".lora_B."): core for name, core in cores.items()}
        with stack.inputs(before_b):
            fit_loop(
                stack,
                data,
                run,
                loss=loss,
                groups=[{"params": stack.trained}, {"params": own, "weight_decay": 0.0}],
                after_step=after_step,
                extra=means | roots,
                method=self,
                learned=self.learned(cores, weight),
                per_token=self.flipout == "token",
            )
        return self.finish(stack, cores, run.seed)

    @torch.no_grad()
    def finish(self, stack: LoraStack, cores: Mapping[str, Core], seed: int) -> CorePosterior:
        """Convert the adapter to the plain LoRA (B, M A)."""
        parts: Tensors = {}
        for name, core in cores.items():
            parts[f"{name}.inner"] = core.a.weight.detach().clone()
            parts[f"{name}.core_mean"], parts[f"{name}.core_std"] = core.m.detach(), core.h.square()
        stack.load({name: core.m @ core.a.weight for name, core in cores.items()})
        return CorePosterior(stack.mean(), seed, parts)

    # ---------------------------------------------------------------- the variational distribution

    def start(self, layers: Mapping[str, nn.Linear], seed: int) -> dict[str, Core]:
        """Return M = I and H, one pair for each (A, B), by A's name."""
        cores = {}
        for name, layer in layers.items():
            if ".lora_A." in name:
                h = torch.empty(layer.weight.shape[0], layer.weight.shape[0])
                generator = keyed_generator("melora std", seed, name)
                h.uniform_(self.eps / math.sqrt(2), self.eps, generator=generator)
                cores[name] = Core(layer, layers[name.replace(".lora_A.", ".lora_B.")], h)
        return cores

    def set_noise(self, cores: Mapping[str, Core], batch: Batch, seed: int) -> None:
        """Draw E ∘ Ω of a batch; it is valid until the end of its backward pass."""
        key = (seed, batch.micro)
        noise = {name: standard(core.h, *key, name) * core.h.square() for name, core in cores.items()}
        for name, perturbation in perturb(self.flipout, noise, batch.rows, len(batch.gold), *key).items():
            cores[name].noise = perturbation

    # ---------------------------------------------------------------- the KL

    def learned(self, cores: Mapping[str, Core], weight: float) -> Learned:
        """While Ω is far below the prior's std the KL's SGD adds 4ηλ to Ω = H² at every step, as in BLoB."""
        prior = self.prior_std + 0.5 * self.prior_noise  # E[σp + ε]

        def rate(step: int, run: Run) -> float:
            return self.kl_lr * learning_rate(step, run) * weight

        def stds() -> Tensors:
            return {name: core.h.square() for name, core in cores.items()}

        return Learned(stds, rate, lambda now: max(0.0, 0.1 * prior - now) / 4)

    def sigma(self, seed: int, step: int) -> float:
        """Return σp + ε of a step."""
        if not self.prior_noise:
            return self.prior_std
        return self.prior_std + float(torch.rand((), generator=keyed_generator("melora prior", seed, step)))

    def kl_value(self, m: Tensor, std: Tensor, a: Tensor, sigma: float) -> Tensor:
        """Eq. 8 with σ = σp + ε, or KL[N(M, Ω²) ‖ N(0, σ²)]."""
        if self.kl == "printed":
            spread = (m @ a).square().sum() + (std @ a.abs()).square().sum()
            return spread / (2 * sigma**2) - std.log().sum()
        spread = m.square().sum() + std.square().sum()
        return spread / (2 * sigma**2) - (std / sigma).log().sum() - 0.5 * m.numel()

    def kl_gradients(self, m: Tensor, h: Tensor, a: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the KL's gradients of M, H and A, of one layer or of a stack of layers."""
        std = h.square()
        if self.kl == "exact":
            return m / sigma**2, 2 * h * (std / sigma**2 - 1 / std), torch.zeros_like(a)
        size, q, q_std = a.abs(), m @ a, std @ a.abs()
        of_std = q_std @ size.mT / sigma**2 - 1 / std
        of_a = (m.mT @ q + a.sign() * (std.mT @ q_std)) / sigma**2
        return q @ a.mT / sigma**2, 2 * h * of_std, of_a

    @torch.no_grad()
    def step(self, cores: Mapping[str, Core], lr: float, weight: float, sigma: float) -> None:
        """SGD on weight · KL, and on the likelihood for H where that is not AdamW's; layers of a shape at once."""
        groups: dict[object, list[Core]] = {}
        for core in cores.values():
            groups.setdefault((core.a.weight.shape, core.a.weight.device), []).append(core)
        for group in groups.values():
            m, h, a = [c.m for c in group], [c.h for c in group], [c.a.weight for c in group]
            stacked = torch.stack(list(m)), torch.stack(list(h)), torch.stack(list(a))  # [L, …]
            of_m, of_h, of_a = self.kl_gradients(*stacked, sigma)
            if self.std_optimizer == "sgd":
                torch._foreach_add_(list(h), [torch.zeros_like(p) if p.grad is None else p.grad for p in h], alpha=-lr)
            for own, gradient in ((m, of_m), (h, of_h), (a, of_a)):
                torch._foreach_add_(list(own), list(gradient.unbind()), alpha=-lr * weight)
