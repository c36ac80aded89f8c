"""p(y | x) = softmax_y(log p̄(y | x) / T),  T = argmin_T −Σ_n log p(y_n | x_n) over the tuning split
(temperature scaling: Guo et al. 2017, arXiv:1706.04599, Sec. 4.2).

p̄ is the choice probabilities of any predictive, averaged over its draws by its own rule. With one weight vector
log p̄ differs from the logits by a constant, so this is Guo's; averages have no logits, so T acts after averaging.
Accuracy cannot change. The NLL is convex in 1/T, so its one minimum is the root of the derivative,
where the paper uses conjugate gradients. Not implemented: vector and matrix scaling. The tuning split must be new to
`source` too: an adapter that was trained on it is overconfident there, and T becomes too low.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive, Tempered
from uqharness.method import Method
from uqharness.posterior import Point
from uqharness.registry import maker_of
from uqharness.settings import Run, option
from uqharness.training.loop import check_tune, fit_loop, tune_table

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

LOWEST, HIGHEST = 0.01, 100.0  # of T: where all tuning answers are right the NLL falls for ever as T goes to 0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TempScale(Method):
    """One temperature on top of any adapter."""

    name: ClassVar[str] = "tempscale"
    label: ClassVar[str] = "TS"
    paper: ClassVar[str] = "Guo et al. 2017, arXiv:1706.04599"
    summary: ClassVar[str] = "one temperature, fitted on the tuning split, on any adapter's averaged answer"
    passes: ClassVar[str] = "those of its source with `samples` draws, + 1 forward"
    predictives: ClassVar[tuple[type[Predictive], ...]] = (Tempered, DrawAverage)
    uses_tune: ClassVar[bool] = True
    uses_source: ClassVar[bool] = True

    samples: int = option(10, "draws of the source that are averaged, here and at evaluation", low=1, high=10_000)
    min_items: int = option(10, "fewer tuning items than this are refused", low=1)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Predictive | None = None) -> Predictive:
        check_tune(self.name, data, self.min_items)
        stack = LoraStack(model)
        if source is None:
            fit_loop(stack, data, run, method=self)
            source = DrawAverage(Point(stack.mean(), run.seed))
        else:
            maker_of(source.posterior)  # what no installed method can restore is refused before the work
            stack.adopt(source.posterior.mean)
        stack.model.eval()
        engine = source.engine(model, self.samples, mean=False)
        logp = tune_table(engine, data)  # [Q, C]
        gold = torch.tensor([q.gold for q in data.tune])
        temperature = best_temperature(logp, gold)
        if temperature in (LOWEST, HIGHEST):
            log.warning("tempscale: the best temperature on %d items is beyond %g", len(gold), temperature)
        before, after = nll(logp, gold, 1.0), nll(logp, gold, temperature)
        log.info("tempscale: T = %.4g, tuning NLL %.4f -> %.4f", temperature, before, after)
        data.record["tempscale"] = {"temperature": temperature, "items": len(gold), "nll": [before, after]}
        return Tempered(source, temperature, self.samples)


def nll(logp: Tensor, gold: Tensor, temperature: float) -> float:
    return float(-(logp / temperature).log_softmax(-1).gather(1, gold[:, None]).mean())


def best_temperature(logp: Tensor, gold: Tensor) -> float:
    """Return the T at which d NLL / d(1/T) = Σ_n E_p[log p̄] − log p̄(gold) changes its sign; −inf: no such choice."""
    finite = logp.double().clamp(min=-1e30)

    def slope(log_t: float) -> float:
        p = (finite / math.exp(log_t)).softmax(-1)
        return float(((p * finite).sum(-1) - finite.gather(1, gold[:, None])[:, 0]).sum())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(low) <= 0:  # surer is better, even here
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    from scipy.optimize import brentq  # half a second, so not before it is needed

    return math.exp(brentq(slope, low, high, xtol=1e-15))
