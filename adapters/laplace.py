"""q(θ) = N(θ_MAP, P⁻¹), P = λ I + F: a Gaussian around a trained LoRA from its curvature (Laplace-LoRA,
arXiv:2308.13111, Eqs. 6–14). Answers come from the linearised model: f(x) ~ N(f_MAP(x), J P⁻¹ Jᵀ).

λ maximises the Laplace evidence log p(D | θ_MAP) − ½ [log det P − log det λI + λ‖θ_MAP‖²]. As a function of
log λ it is concave, so its one maximum is found by root search where the paper takes 1,000 Adam steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from uqharness.curvature.fisher import answer_rows, collect, last_layer
from uqharness.curvature.laplace import Curvature, Tokens, collector
from uqharness.curvature.linearised import LaplacePosterior, Linearised
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.engine.rows import Rows
from uqharness.errors import InputError, RunError
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, keyed_generator
from uqharness.settings import Run, option
from uqharness.training.loop import collate, fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData


@dataclass(frozen=True)
class Laplace(Method):
    """A Laplace approximation of any trained LoRA."""

    name: ClassVar[str] = "laplace"
    label: ClassVar[str] = "LAP"
    paper: ClassVar[str] = "Yang et al. 2024, arXiv:2308.13111"
    summary: ClassVar[str] = "Gaussian around a trained LoRA from its Kronecker-factored Fisher; after training"
    passes: ClassVar[str] = "1 forward, C − 1 backwards"
    suggests: ClassVar[Mapping[str, Any]] = {
        "lr": 5e-5,
        "warmup": 0.0,
        "lora_dropout": 0.1,
        "weight_decay": 0.0,
        "batch_size": 8,
        "steps": 10_000,
        "adam_eps": 1e-8,
    }
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (LaplacePosterior,)
    predictives: ClassVar[tuple[type[Predictive], ...]] = (Linearised, DrawAverage)
    uses_source: ClassVar[bool] = True

    structure: Literal["kron", "diag", "full"] = option("kron", "of the Fisher; full: small adapters only")
    layers: Literal["all", "last"] = option(
        "all", "all LoRA layers (LA), or those of the output head, else of the last decoder layer (LLLA)"
    )
    fisher: Literal["exact", "mc"] = option(
        "exact", "expectation over the answer choices, or one sampled label per question"
    )
    prior: Literal["scalar", "layer"] = option("scalar", "one prior precision, or one for each A and each B")
    prior_precision: float | None = option(None, "λ; none: by marginal likelihood", low=1e-30)
    predictive: Literal["joint", "indep", "probit", "bridge", "weights"] = option(
        "joint",
        "Monte Carlo with the joint covariance of the answer logits, with its diagonal, probit, Laplace bridge, "
        "or draws of weights",
    )
    mc_samples: int = option(4096, "quasi-random logit draws of joint and indep", low=1, high=2**20)
    rank: int = option(64, "eigenvectors kept of each Kronecker factor; the error bound is recorded", low=1)
    tokens: Tokens = option(
        "sum",
        "Kronecker factors over tokens: summed as in the authors' code, expand (input factor per token), reduce",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure == "full" and self.prior == "layer":
            raise InputError("prior=layer needs a Fisher that is block-diagonal: use structure=kron or diag")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Predictive:
        stack = LoraStack(model)
        if stack.unfoldable:
            raise InputError(f"laplace takes plain LoRA on linear layers, found {stack.unfoldable}")
        if source is None:
            fit_loop(stack, data, run)
        else:
            adopt(stack, source.posterior)
        stack.model.eval()
        names = list(stack.layers) if self.layers == "all" else last_layer(list(stack.layers))
        support = answer_rows(stack, names, data.train)
        sums = collector(self.structure, stack, names, self.rank, self.tokens, support)
        sample = None if self.fisher == "exact" else lambda k: keyed_generator("fisher", run.seed, k)
        likelihood = collect(stack, names, batches(stack, data, run), sums, sample)
        posterior = self.posterior(stack.mean(), sums.finish(len(data.train)), names, likelihood, run)
        if self.predictive == "weights":
            return DrawAverage(posterior)
        return Linearised(posterior, self.predictive, self.mc_samples)

    def posterior(
        self, mean: Tensors, curvature: Curvature, names: list[str], likelihood: float, run: Run
    ) -> LaplacePosterior:
        """Choose the prior's precision and report the quality of the approximation."""
        norms = {name: float(mean[name].double().square().sum()) for name in names}
        precision = self.precision(curvature, norms)
        report = {
            "log_likelihood": likelihood,
            "log_evidence": evidence(likelihood, curvature, norms, precision),
            "parameters": sum(mean[name].numel() for name in names),
            "dropped_trace": max(curvature.lost.values(), default=0.0),
            # P̂ ≼ P ≼ (1 + e) P̂: low rank never understates a variance, and overstates it by 1 + e at most
            "variance_error_bound": max(curvature.dropped.get(n, 0.0) / p for n, p in precision.items()),
        }
        return LaplacePosterior(mean, curvature, precision, run.seed, report)

    def precision(self, curvature: Curvature, norms: Mapping[str, float]) -> dict[str, float]:
        if self.prior_precision is not None:
            return dict.fromkeys(norms, self.prior_precision)
        spectra = curvature.spectra()
        if self.prior == "layer":
            return {name: best_precision(spectra[name], norm2, f" of {name}") for name, norm2 in norms.items()}
        return dict.fromkeys(norms, best_precision(torch.cat(list(spectra.values())), sum(norms.values()), ""))


def adopt(stack: LoraStack, source: Posterior) -> None:
    """Load a trained adapter's mean; refuse ensembles."""
    if source.mean_is_member:
        raise InputError(f"laplace needs an adapter with one mean, found {source.finite} ensemble members: take one")
    stack.adopt(source.mean)


def batches(stack: LoraStack, data: ChoiceData, run: Run) -> Iterator[tuple[Rows, Tensor]]:
    """Return batches sorted by length, which reduces padding; a sum does not depend on the order.

    Every choice has its own row: a Kronecker factor is a sum over tokens, in which a shared prompt would count once.
    """
    train = sorted(data.train, key=lambda question: question.tokens)
    for start in tqdm(range(0, len(train), run.batch_size), desc="Fisher", unit="batch", leave=False):
        rows, gold = collate(train[start : start + run.batch_size], data)
        yield rows.to(stack.device), gold


# ---------------------------------------------------------------- the prior's precision


def best_precision(eigenvalues: Tensor, norm2: float, where: str) -> float:
    """Return λ with Σ s/(λ + s) = λ‖θ‖²: the evidence's stationary point in log λ, where it is concave."""

    def slope(log_precision: float) -> float:
        precision = math.exp(log_precision)
        return float((eigenvalues / (precision + eigenvalues)).sum()) - precision * norm2

    low, high = -60.0, 60.0
    if not (slope(low) > 0 > slope(high)):
        reason = "its Fisher is 0" if float(eigenvalues.sum()) < 1e-20 else f"‖θ‖² is {norm2:.3g}"
        raise RunError(
            f"the marginal likelihood{where} has no maximum over the prior precision ({reason}): train the adapter "
            "for longer, or set prior_precision"
        )
    from scipy.optimize import brentq  # half a second, so not before it is needed

    return math.exp(brentq(slope, low, high, xtol=1e-13))


def evidence(
    log_likelihood: float, curvature: Curvature, norms: Mapping[str, float], precision: Mapping[str, float]
) -> float:
    """Return log p(D | θ) − ½ [Σ log(1 + s/λ) + Σ λ‖θ‖²]  (Eq. 13)."""
    penalty = sum(precision[name] * norm2 for name, norm2 in norms.items())
    for name, s in curvature.spectra().items():
        penalty += float((s / (precision[name] if name else next(iter(precision.values())))).log1p().sum())
    return log_likelihood - 0.5 * penalty
