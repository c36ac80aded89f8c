"""q(θ) = N(θ_MAP, P⁻¹), P = λ I + F: a Gaussian around a trained LoRA from its curvature (Laplace-LoRA,
arXiv:2308.13111, Eqs. 6–14). Answers come from the linearised model: f(x) ~ N(f_MAP(x), J P⁻¹ Jᵀ).

λ maximises the Laplace evidence log p(D | θ_MAP) − ½ [log det P − log det λI + λ‖θ_MAP‖²]. Seen as a function of
log λ that is concave, so its one maximum is found by bisection where the paper takes 1,000 Adam steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine
from tqdm import tqdm

from uqharness.curvature.fisher import answer_rows, collect, jacobians, last_layer, split
from uqharness.curvature.laplace import STRUCTURES, Curvature, Tokens, collector
from uqharness.engine.engine import Rows
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError, RunError
from uqharness.loose_json import check, shown
from uqharness.method import Method
from uqharness.posterior import Posterior, Tensors, keyed_generator, noise
from uqharness.settings import Run, check_ranges, option
from uqharness.training.loop import collate, fit_loop

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

Predictive = Literal["joint", "indep", "probit", "bridge", "weights"]


class _LaplaceFile(TypedDict):
    structure: Literal["kron", "diag", "full"]
    layers: list[str]
    precision: list[float]
    predictive: Predictive
    mc_samples: int
    laplace: dict[str, Any]


class LaplacePosterior(Posterior):
    """N(mean, P⁻¹) over the layers in `precision`; the others are the mean."""

    kind = "laplace"
    symmetric = True

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        curvature: Curvature,
        precision: Mapping[str, float],
        train_seed: int,
        predictive: Predictive = "joint",
        mc_samples: int = 4096,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mean, train_seed)
        self.curvature, self.precision = curvature, dict(precision)
        self.predictive, self.mc_samples, self.report = predictive, mc_samples, dict(report or {})
        self.combine = "probs" if predictive == "weights" else "given"
        self._noise: dict[int, Tensor] = {}
        self._placed: dict[str, Curvature] = {"cpu": curvature}

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        """θ_i = mean + P^(−1/2) ε_i, one by one: a batched product would depend on the chunk in its last bits."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.precision}
        for i in range(start, stop):
            e = {name: noise(self.train_seed, seed, i, name, self.mean[name].shape) for name in self.precision}
            for name, step in self.curvature.root(e, self.precision).items():
                found[name].append(self.mean[name] + step)
        return {name: torch.stack(parts) for name, parts in found.items()}

    def given(self, stack: LoraStack, rows: Rows) -> Tensor:
        """log p(choice | question) of the linearised model, averaged over its Gaussian logits: `[K]`."""
        device = str(rows.input_ids.device)
        if device not in self._placed:
            self._placed[device] = self.curvature.to(rows.input_ids.device)
        # Jacobians of whole questions are held, all layers of them: as many questions at once as fit in 64 MiB.
        held = int(rows.choice.max() + 1) * sum(self.mean[name].numel() for name in self.precision)
        found = []
        for part in split(rows, max(1, 2**24 // held)):
            with torch.inference_mode(False), torch.enable_grad():  # the engine's tensors know no gradients
                part = Rows(**{name: tensor.clone() for name, tensor in vars(part).items()})
                f, j = jacobians(stack, list(self.precision), part, differences=self.predictive == "joint")
                covariance = self._placed[device].covariance(j, self.precision)
            for q, count in enumerate(part.question.bincount().tolist()):
                found.append(self.answer(f[q, :count], covariance[q, :count, :count]))
        return torch.cat(found)

    def answer(self, f: Tensor, covariance: Tensor) -> Tensor:
        """log p over one question's choices from its Gaussian logits `[C]`, `[C, C]`."""
        if not bool(covariance.isfinite().all()):
            raise RunError("the covariance of the answer logits is not finite: look for NaN in the adapter or the base")
        if self.predictive == "probit":
            return probit(f, covariance)
        if self.predictive == "bridge":
            return bridge(f, covariance)
        if self.predictive == "indep":
            covariance = covariance.diagonal().diag()
        return monte_carlo(f, covariance, self.standard(len(f)).to(f.device))

    def standard(self, choices: int) -> Tensor:
        """ξ of Eq. 14: `[mc_samples, C]`, the same for all questions, so an answer depends on nothing else.

        Scrambled Sobol points: 1,024 are closer to the integral than 100,000 pseudo-random ones (benchmarks/NOTES.md).
        """
        if choices not in self._noise:
            seed = keyed_generator("laplace", self.train_seed, choices).initial_seed()
            points = SobolEngine(choices, scramble=True, seed=seed).draw(self.mc_samples, dtype=torch.float64)
            self._noise[choices] = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
        return self._noise[choices]

    def open_form(self) -> Posterior:
        return (
            self
            if self.predictive == "weights"
            else LaplacePosterior(self.mean, self.curvature, self.precision, self.train_seed, "weights")
        )

    def state(self) -> Tensors:
        return self.curvature.state()

    def settings(self) -> dict[str, Any]:
        return {
            "structure": self.curvature.structure,
            "layers": list(self.precision),
            "precision": list(self.precision.values()),
            "predictive": self.predictive,
            "mc_samples": self.mc_samples,
            "laplace": self.report,
        }

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> LaplacePosterior:
        where = "uq_config.json: posterior"
        check(dict(settings), _LaplaceFile, where)
        layers, values = settings["layers"], settings["precision"]
        if len(layers) != len(values) or len(set(layers)) != len(layers) or not layers:
            raise InputError(f"{where}: {len(layers)} layers, {len(values)} precisions: expected one for each")
        if min(values) <= 0 or settings["mc_samples"] < 1:
            raise InputError(f"{where}: precision and mc_samples: expected positive numbers")
        if missing := [name for name in layers if name not in mean]:
            raise InputError(f"{where}: layers: {shown(missing[0], 120)} is not a tensor of the adapter")
        curvature = STRUCTURES[settings["structure"]].restore(state)
        curvature.check_shapes({name: mean[name].shape for name in layers})
        rest = {name: settings[name] for name in ("predictive", "mc_samples")}
        precision = dict(zip(layers, values, strict=True))
        return cls(mean, curvature, precision, train_seed, **rest, report=settings["laplace"])


# ---------------------------------------------------------------- Gaussian logits -> probabilities


def monte_carlo(f: Tensor, covariance: Tensor, standard: Tensor) -> Tensor:
    """log 1/S Σ_s softmax(f + L ξ_s), L Lᵀ the covariance (Eqs. 14, 17)."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    return (f + standard @ root.T).softmax(-1).mean(0).log()


def probit(f: Tensor, covariance: Tensor) -> Tensor:
    """log softmax(f / √(1 + π/8 diag Λ))  (Eq. 18)."""
    return (f / (1 + math.pi / 8 * covariance.diagonal()).sqrt()).log_softmax(-1)


def bridge(f: Tensor, covariance: Tensor) -> Tensor:
    """α_i = 1/Λ_ii (1 − 2/C + e^{f_i}/C² Σ_j e^{−f_j}), p = α / Σ α  (Eq. 20, in logarithms)."""
    count = len(f)
    flat = torch.full_like(f, math.log(max(1 - 2 / count, 1e-300)))
    grown = torch.logaddexp(flat, f + (-f).logsumexp(0) - 2 * math.log(count))
    return (grown - covariance.diagonal().clamp(min=1e-30).log()).log_softmax(-1)


# ---------------------------------------------------------------- the prior's precision


def best_precision(eigenvalues: Tensor, norm2: float, where: str) -> float:
    """λ with Σ s/(λ + s) = λ‖θ‖²: the evidence's stationary point in log λ, where it is concave."""

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
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def evidence(
    log_likelihood: float, curvature: Curvature, norms: Mapping[str, float], precision: Mapping[str, float]
) -> float:
    """log p(D | θ) − ½ [Σ log(1 + s/λ) + Σ λ‖θ‖²]  (Eq. 13)."""
    penalty = sum(precision[name] * norm2 for name, norm2 in norms.items())
    for name, s in curvature.spectra().items():
        penalty += float((s / (precision[name] if name else next(iter(precision.values())))).log1p().sum())
    return log_likelihood - 0.5 * penalty


# ---------------------------------------------------------------- the method


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
    predictive: Predictive = option(
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
        check_ranges(self)
        if self.structure == "full" and self.prior == "layer":
            raise InputError("prior=layer needs a Fisher that is block-diagonal: use structure=kron or diag")

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Posterior | None = None) -> Posterior:
        stack = LoraStack(model)
        if stack.unfoldable:
            raise InputError(f"laplace takes plain LoRA on linear layers, found {stack.unfoldable}")
        if source is None:
            fit_loop(stack, data, run)
        else:
            adopt(stack, source)
        stack.model.eval()
        names = list(stack.layers) if self.layers == "all" else last_layer(list(stack.layers))
        support = answer_rows(stack, names, data.train)
        sums = collector(self.structure, stack, names, self.rank, self.tokens, support)
        sample = None if self.fisher == "exact" else lambda k: keyed_generator("fisher", run.seed, k)
        likelihood = collect(stack, names, batches(stack, data, run), sums, sample)
        return self.posterior(stack.mean(), sums.finish(len(data.train)), names, likelihood, run)

    def posterior(
        self, mean: Tensors, curvature: Curvature, names: list[str], likelihood: float, run: Run
    ) -> LaplacePosterior:
        """Choose the prior's precision and say how good the approximation is."""
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
        return LaplacePosterior(mean, curvature, precision, run.seed, self.predictive, self.mc_samples, report)

    def precision(self, curvature: Curvature, norms: Mapping[str, float]) -> dict[str, float]:
        if self.prior_precision is not None:
            return dict.fromkeys(norms, self.prior_precision)
        spectra = curvature.spectra()
        if self.prior == "layer":
            return {name: best_precision(spectra[name], norm2, f" of {name}") for name, norm2 in norms.items()}
        return dict.fromkeys(norms, best_precision(torch.cat(list(spectra.values())), sum(norms.values()), ""))


def adopt(stack: LoraStack, source: Posterior) -> None:
    """Load a trained adapter's mean, where it has one."""
    if source.mean_is_member:
        raise InputError(f"laplace needs an adapter with one mean, found {source.finite} ensemble members: take one")
    stack.adopt(source.mean)


def batches(stack: LoraStack, data: ChoiceData, run: Run) -> Iterator[tuple[Rows, Tensor]]:
    """By length: a sum has no order, and padding costs.

    Choices keep rows of their own: a Kronecker factor is a sum over tokens, in which a shared prompt would count once.
    """
    device = next(iter(stack.parameters.values())).device
    train = sorted(data.train, key=lambda question: question.tokens)
    for start in tqdm(range(0, len(train), run.batch_size), desc="Fisher", unit="batch", leave=False):
        rows, gold = collate(train[start : start + run.batch_size], data)
        yield rows.to(device), gold
