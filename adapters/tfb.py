"""max σ  such that  score(A' + E ∘ Ω, B') stays within ε of score(A', B'),   Ω_ij = σ / d_i
(TFB, training-free Bayesianisation: Shi et al. 2024, arXiv:2412.05723). B = U diag(d) Vᵀ, B' = U diag(d), A' = Vᵀ A.

B'A' = BA, so the mean stays the same function; the update's noise U (d ∘ E ∘ Ω) has std σ along each direction of B:
Cov[vec ΔW] = (α/r)² σ² (I ⊗ U Uᵀ). Directions in which B is 0 (an untrained layer) get none.

Defaults are those of the authors' script (bayesian-peft, scripts/tfblora/mle.sh): the NLL of pseudo-labels, which are
the mean's own answers, may change by 0.3 % of itself; 10 draws, σ from 0.015, 5 halvings. Their code also divides the
change by the number of items (`per=item`), so that 500 items allow 150 %. Our departures: the noise is the same at
every σ (common random numbers); the bracket moves by doubling if it does not contain the answer; the last σ that
passed is taken (theirs: the last that failed); only a deterioration counts; the anchor items are the tuning split.
Not implemented: other families of noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import Predictive
from uqharness.errors import InputError, RunError
from uqharness.method import Method
from uqharness.posterior import Gaussian, Point, Posterior, Tensors
from uqharness.settings import Run, option
from uqharness.training.loop import check_tune, fit_loop, tune_table

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TFB(Method):
    """The largest noise, in the SVD basis of B, that the answers tolerate."""

    name: ClassVar[str] = "tfb"
    label: ClassVar[str] = "TFB"
    paper: ClassVar[str] = "Shi et al. 2024, arXiv:2412.05723"
    summary: ClassVar[str] = "Gaussian around any trained LoRA: the largest std that keeps the tuning score"
    passes: ClassVar[str] = "N + 1 forwards"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Gaussian,)
    if_inert: ClassVar[str] = "allow more: a larger tolerance, score=acc or per=item"
    uses_tune: ClassVar[bool] = True
    uses_source: ClassVar[bool] = True

    score: Literal["nll", "acc"] = option("nll", "score that must not get worse on the tuning split")
    labels: Literal["pseudo", "gold"] = option("pseudo", "the mean's own answers, or the labels")
    tolerance: float | None = option(
        None, "ε: of the NLL relative to the mean's, of the accuracy absolute; none: 0.003 and 0.01", low=0
    )
    per: Literal["set", "item"] = option("set", "item: the NLL's change is divided by the number of items (their code)")
    samples: int = option(10, "draws that are averaged in the search", low=1, high=10_000)
    sigma: float = option(0.015, "σ where the search starts", low=1e-9)
    halvings: int = option(5, "steps of the bisection (of log σ, in a bracket of one doubling)", low=0, high=100)
    min_items: int = option(10, "fewer tuning items than this are refused", low=1)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Posterior:
        check_tune(self.name, data, self.min_items)
        stack = LoraStack(model)
        if stack.unfoldable:
            raise InputError(f"tfb takes plain LoRA on linear layers, found {stack.unfoldable}")
        if source is None:
            fit_loop(stack, data, run, method=self)
        elif source.mean_is_member:
            raise InputError(f"tfb needs an adapter with one mean, found {source.finite} ensemble members: take one")
        else:
            stack.adopt(source.posterior.mean)
        stack.model.eval()
        rotated, inverse = rotate(stack.mean())
        stack.load(rotated)
        before, score = self.scorer(model, data, rotated, inverse, run.seed)
        limit = self.allowed(before, len(data.tune))
        sigma, tried = self.search(lambda value: worse(self.score, score(value), before) <= limit)
        data.record["tfb"] = {"sigma": sigma, self.score: [before, score(sigma)], "allowed": limit, "tried": tried}
        log.info("tfb: σ = %.4g, %s %.4f, at most %.4f worse", sigma, self.score, before, limit)
        return Gaussian(rotated, spread(rotated, inverse, sigma), run.seed)

    def allowed(self, before: float, items: int) -> float:
        """Return how much worse the score may get."""
        if self.score == "acc":
            return 0.01 if self.tolerance is None else self.tolerance
        return before * (0.003 if self.tolerance is None else self.tolerance) * (items if self.per == "item" else 1)

    def scorer(
        self, model: PeftModel, data: ChoiceData, mean: Tensors, inverse: Tensors, seed: int
    ) -> tuple[float, Callable[[float], float]]:
        """Return the mean's score, and the score as a function of σ; every σ uses the same noise."""
        table = tune_table(Engine(model, Point(mean, seed), 1), data)  # [Q, C]
        gold = torch.tensor([q.gold for q in data.tune]) if self.labels == "gold" else table.argmax(-1)

        def of(table: Tensor) -> float:
            if self.score == "acc":
                return float((table.argmax(-1) == gold).double().mean())
            return -float(table.gather(1, gold[:, None]).mean())

        def at(sigma: float) -> float:
            posterior = Gaussian(mean, spread(mean, inverse, sigma), seed)
            return of(tune_table(Engine(model, posterior, self.samples, mean=False), data))

        return of(table), at

    def search(self, fine: Callable[[float], bool]) -> tuple[float, list[list[float]]]:
        """Return the largest allowed σ: double or halve until it is bracketed, then bisect its logarithm."""
        tried: list[list[float]] = []

        def ask(sigma: float) -> bool:
            tried.append([sigma, float(fine(sigma))])
            return bool(tried[-1][1])

        low = high = self.sigma
        if ask(self.sigma):
            while ask(high := 2 * low):
                low = high
                if len(tried) > 30:
                    raise RunError(f"tfb: σ = {low:.3g} does not make the {self.score} worse: is the adapter trained?")
        else:
            while not ask(low := high / 2):
                high = low
                if len(tried) > 30:
                    raise RunError(f"tfb: no σ down to {low:.3g} keeps the {self.score}: allow more (tolerance)")
        for _ in range(self.halvings):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if ask(middle) else (low, middle)
        return low, tried


def worse(score: str, now: float, before: float) -> float:
    return before - now if score == "acc" else now - before


def rotate(mean: Tensors) -> tuple[Tensors, Tensors]:
    """Return (A', B') for every pair, and 1/d by A's name; 0 where B has no direction."""
    rotated, inverse = dict(mean), {}
    for name, a in mean.items():
        other = name.replace(".lora_A.", ".lora_B.")
        if ".lora_A." not in name or other not in mean:
            continue
        b = mean[other].double()  # [m, r]
        u, d, vt = torch.linalg.svd(b, full_matrices=False)  # [m, k], [k], [k, r]
        rank = len(d)  # fewer than r where the layer has fewer outputs
        rotated[other], rotated[name] = torch.zeros_like(b), torch.zeros_like(a.double())
        rotated[other][:, :rank], rotated[name][:rank] = u * d, vt @ a.double()
        inverse[name] = torch.zeros(len(a), dtype=torch.float64)
        positive = d > 1e-6 * d.max()
        inverse[name][:rank][positive] = 1 / d[positive]
    return {name: tensor.float() for name, tensor in rotated.items()}, inverse


def spread(mean: Tensors, inverse: Tensors, sigma: float) -> Tensors:
    """Ω_ij = σ / d_i."""
    return {name: (sigma * row).float()[:, None].expand_as(mean[name]).contiguous() for name, row in inverse.items()}
