"""q(θ) = N(θ_MAP, P⁻¹), and the linearised model's answers: f(x) ~ N(f_MAP(x), J P⁻¹ Jᵀ)  (Laplace-LoRA,
arXiv:2308.13111, Eqs. 12–20; Laplace Redux, arXiv:2106.14806).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from peft import PeftModel
from torch import Tensor
from torch.quasirandom import SobolEngine

from uqharness.curvature.fisher import jacobians, split
from uqharness.curvature.laplace import STRUCTURES, Curvature
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import WHERE, DrawAverage, Predictive
from uqharness.engine.rows import Rows
from uqharness.errors import InputError, RunError
from uqharness.loose_json import check, shown
from uqharness.posterior import Posterior, Tensors, keyed_generator, noise

Integral = Literal["joint", "indep", "probit", "bridge"]


class _LaplaceFile(TypedDict):
    structure: Literal["kron", "diag", "full"]
    layers: list[str]
    precision: list[float]
    laplace: dict[str, Any]


class LaplacePosterior(Posterior):
    """N(mean, P⁻¹) over the layers in `precision`; the others are the mean.

    Args:
        curvature: F of P = λ I + F.
        precision: λ of each layer.
        report: numbers on the approximation, for the record.
    """

    kind = "laplace"
    symmetric = True

    def __init__(
        self,
        mean: Mapping[str, Tensor],
        curvature: Curvature,
        precision: Mapping[str, float],
        train_seed: int,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mean, train_seed)
        self.curvature, self.precision, self.report = curvature, dict(precision), dict(report or {})

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        """θ_i = mean + P^(−1/2) ε_i, one by one: a batched product would depend on the chunk in its last bits."""
        drawn: dict[str, list[Tensor]] = {name: [] for name in self.precision}
        for i in range(start, stop):
            e = {name: noise(self.train_seed, seed, i, name, self.mean[name].shape) for name in self.precision}
            for name, step in self.curvature.root(e, self.precision).items():
                drawn[name].append(self.mean[name] + step)
        return {name: torch.stack(parts) for name, parts in drawn.items()}

    def state(self) -> Tensors:
        return self.curvature.state()

    def settings(self) -> dict[str, Any]:
        return {
            "structure": self.curvature.structure,
            "layers": list(self.precision),
            "precision": list(self.precision.values()),
            "laplace": self.report,
        }

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> LaplacePosterior:
        where = "uq_config.json: posterior"
        check(dict(settings), _LaplaceFile, where)
        layers, values = settings["layers"], settings["precision"]
        if len(layers) != len(values) or len(set(layers)) != len(layers) or not layers:
            raise InputError(f"{where}: {len(layers)} layers, {len(values)} precisions: expected one for each")
        if min(values) <= 0:
            raise InputError(f"{where}: precision: expected positive numbers")
        if missing := [name for name in layers if name not in mean]:
            raise InputError(f"{where}: layers: {shown(missing[0], 120)} is not a tensor of the adapter")
        curvature = STRUCTURES[settings["structure"]].restore(state)
        curvature.check_shapes({name: mean[name].shape for name in layers})
        precision = dict(zip(layers, values, strict=True))
        return cls(mean, curvature, precision, train_seed, report=settings["laplace"])


class _LinearisedFile(TypedDict):
    integral: Integral
    mc_samples: int


class Linearised(Predictive):
    """The softmax averaged over the Gaussian logits of the linearised model: one row, whatever `samples` is.

    Its draws of weights (`open_form`) answer requests without choices.

    Args:
        posterior: a Gaussian with a curvature.
        integral: how the average is taken: Monte Carlo with the joint covariance of a question's logits or with its
            diagonal (`indep`), probit, or Laplace bridge.
        mc_samples: quasi-random logit draws of `joint` and `indep`.

    Example:
        >>> from uqharness.curvature.laplace import Diag
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.testing import tiny_adapter
        >>> model = tiny_adapter()
        >>> mean = LoraStack(model).mean()
        >>> fisher = Diag({name: torch.ones_like(tensor) for name, tensor in mean.items()})
        >>> posterior = LaplacePosterior(mean, fisher, dict.fromkeys(mean, 1.0), train_seed=0)
        >>> rows = make_rows([[([5, 6, 7], [1]), ([5, 6, 7], [2])]], max_length=16)
        >>> Linearised(posterior, "probit").engine(model).score(rows).draws.exp().sum().round(decimals=6).item()
        1.0
    """

    kind = "linearised"
    posterior: LaplacePosterior

    def __init__(self, posterior: LaplacePosterior, integral: Integral = "joint", mc_samples: int = 4096) -> None:
        super().__init__(posterior)
        self.integral, self.mc_samples = integral, mc_samples
        self._points: dict[int, Tensor] = {}

    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        stack, placed = LoraStack(model), dict[str, Curvature]()

        def combined(rows: Rows) -> Tensor:
            device = rows.input_ids.device
            if str(device) not in placed:
                placed[str(device)] = self.posterior.curvature.to(device)
            return self.answers(stack, rows, placed[str(device)])

        return Engine(model, self.posterior, samples, seed, combined=combined, rule=self.rule, **{**how, "auto": None})

    def answers(self, stack: LoraStack, rows: Rows, curvature: Curvature) -> Tensor:
        """Return log p(choice | question) of the rows' continuations: `[K]`."""
        # Jacobians of whole questions are held, all layers of them: as many questions at once as fit in 64 MiB.
        precision = self.posterior.precision
        held = int(rows.choice.max() + 1) * sum(self.posterior.mean[name].numel() for name in precision)
        parts = []
        for part in split(rows, max(1, 2**24 // held)):
            with torch.inference_mode(False), torch.enable_grad():  # the engine's tensors know no gradients
                part = Rows(**{name: tensor.clone() for name, tensor in vars(part).items()})
                f, j = jacobians(stack, list(precision), part, differences=self.integral == "joint")
                covariance = curvature.covariance(j, precision)
            for q, count in enumerate(part.question.bincount().tolist()):
                parts.append(self.answer(f[q, :count], covariance[q, :count, :count]))
        return torch.cat(parts)

    def answer(self, f: Tensor, covariance: Tensor) -> Tensor:
        """Return log p over one question's choices from its Gaussian logits `[C]`, `[C, C]`."""
        if not bool(covariance.isfinite().all()):
            raise RunError("the covariance of the answer logits is not finite: check the adapter and the base for NaN")
        if self.integral == "probit":
            return probit(f, covariance)
        if self.integral == "bridge":
            return bridge(f, covariance)
        if self.integral == "indep":
            covariance = covariance.diagonal().diag()
        return monte_carlo(f, covariance, self.standard(len(f)).to(f.device))

    def standard(self, choices: int) -> Tensor:
        """Return ξ of Eq. 14: `[mc_samples, C]`, the same for all questions, so answers do not depend on batching.

        Scrambled Sobol points: 1,024 are closer to the integral than 100,000 pseudo-random ones (benchmarks/NOTES.md).
        """
        if choices not in self._points:
            seed = keyed_generator("laplace", self.posterior.train_seed, choices).initial_seed()
            points = SobolEngine(choices, scramble=True, seed=seed).draw(self.mc_samples, dtype=torch.float64)
            self._points[choices] = torch.special.ndtri(points.clamp(1e-12, 1 - 1e-12))
        return self._points[choices]

    def open_form(self) -> Predictive:
        return DrawAverage(self.posterior)

    def settings(self) -> dict[str, Any]:
        return {"integral": self.integral, "mc_samples": self.mc_samples}

    @classmethod
    def restore(cls, source: Any, settings: Mapping[str, Any]) -> Linearised:
        check(dict(settings), _LinearisedFile, WHERE)
        if settings["mc_samples"] < 1:
            raise InputError(f"{WHERE}: mc_samples: expected a positive number")
        if not isinstance(source, LaplacePosterior):
            raise InputError(f"{WHERE}: a {source.kind} posterior has no curvature to linearise with")
        return cls(source, settings["integral"], settings["mc_samples"])


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
