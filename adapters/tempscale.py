"""p(y | x) = softmax_y(log p̄(y | x) / T),  T = argmin_T −Σ_n log p(y_n | x_n) over the tuning split
(temperature scaling: Guo et al. 2017, arXiv:1706.04599, Sec. 4.2).

p̄ is the choice probabilities of any posterior, averaged over its draws as it says itself. With one weight vector
log p̄ differs from the logits by a constant, so this is Guo's; averages have no logits, so T acts after averaging.
Accuracy cannot change. The NLL is convex in 1/T, so its one minimum is found by bisection on the derivative's sign,
where the paper takes conjugate gradients. Left out: vector and matrix scaling. The tuning split must be new to
`source` too: an adapter that was trained on it looks surer there than it should, and T comes out too low.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor

from uqharness.adapter_io.folder import posterior_record
from uqharness.engine.engine import Engine, Rows
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.loose_json import check, shown
from uqharness.method import Method
from uqharness.posterior import Point, Posterior, Tensors
from uqharness.registry import get_method, methods
from uqharness.settings import Run, check_ranges, option
from uqharness.training.loop import averaged, check_tune, fit_loop, tune_table

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

LOWEST, HIGHEST = 0.01, 100.0  # of T: where all tuning answers are right the NLL falls for ever as T goes to 0
log = logging.getLogger(__name__)


class _SourceFile(TypedDict):
    restored_by: str
    train_seed: int


class _ScaledFile(TypedDict):
    temperature: float
    samples: int
    seed: int
    source: _SourceFile


class Scaled(Posterior):
    """The combined answer of `source` at a temperature; its draws are those of `source`."""

    kind = "tempscale"
    combine = "given"

    def __init__(self, source: Posterior, temperature: float, samples: int, train_seed: int, seed: int = 0) -> None:
        super().__init__(source.mean, train_seed)
        self.source, self.temperature, self.samples, self.seed = source, temperature, samples, seed
        self.finite, self.mean_is_member = source.finite, source.mean_is_member
        self.method = restorer(source)
        self._engine: Engine | None = None

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return self.source.draws(start, stop, seed)

    def given(self, stack: LoraStack, rows: Rows) -> Tensor:
        if self._engine is None or self._engine.model is not stack.model:
            self._engine = Engine(stack.model, self.source, self.samples, self.seed, mean=False)
        table = (averaged(self._engine, rows) / self.temperature).log_softmax(-1)  # [Q, C]
        return table[rows.question.cpu(), rows.choice.cpu()]

    def open_form(self) -> Posterior:
        return self.source.open_form()

    def state(self) -> Tensors:
        return {f"source.{name}": tensor for name, tensor in self.source.state().items()}

    def settings(self) -> dict[str, Any]:
        nested = {"restored_by": self.method, **posterior_record(self.source)}
        return {"temperature": self.temperature, "samples": self.samples, "seed": self.seed, "source": nested}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Scaled:
        where = "uq_config.json: posterior"
        check(dict(settings), _ScaledFile, where)
        if not settings["temperature"] > 0 or settings["samples"] < 1 or settings["seed"] < 0:
            raise InputError(f"{where}: temperature, samples and seed: expected > 0, >= 1 and >= 0")
        nested = settings["source"]
        if other := next((name for name in state if not name.startswith("source.")), None):
            raise InputError(f"posterior.safetensors has {shown(other, 120)}, which this adapter has no place for")
        own = {name.removeprefix("source."): tensor for name, tensor in state.items()}
        source = get_method(nested["restored_by"]).restore(mean, own, nested, nested["train_seed"])
        return cls(source, float(settings["temperature"]), settings["samples"], train_seed, settings["seed"])

    def missing(self) -> list[str]:
        return self.source.missing()


@dataclass(frozen=True)
class TempScale(Method):
    """One temperature on top of any adapter."""

    name: ClassVar[str] = "tempscale"
    label: ClassVar[str] = "TS"
    paper: ClassVar[str] = "Guo et al. 2017, arXiv:1706.04599"
    summary: ClassVar[str] = "one temperature, fitted on the tuning split, on any adapter's averaged answer"
    passes: ClassVar[str] = "those of its source with `samples` draws, + 1 forward"
    posteriors: ClassVar[tuple[type[Posterior], ...]] = (Scaled,)
    uses_tune: ClassVar[bool] = True
    uses_source: ClassVar[bool] = True

    samples: int = option(10, "draws of the source that are averaged, here and at evaluation", low=1, high=10_000)
    min_items: int = option(10, "with fewer tuning items than this there is no telling T", low=1)

    def __post_init__(self) -> None:
        check_ranges(self)

    def fit(self, model: PeftModel, data: ChoiceData, run: Run, source: Posterior | None = None) -> Posterior:
        check_tune(self.name, data, self.min_items)
        stack = LoraStack(model)
        if source is None:
            fit_loop(stack, data, run, method=self)
            source = Point(stack.mean(), run.seed)
        else:
            stack.adopt(source.mean)
        stack.model.eval()
        engine = Engine(model, source, self.samples, mean=False)
        logp = tune_table(engine, data)  # [Q, C]
        gold = torch.tensor([q.gold for q in data.tune])
        temperature = best_temperature(logp, gold)
        if temperature in (LOWEST, HIGHEST):
            log.warning("tempscale: the best temperature on %d items is beyond %g", len(gold), temperature)
        before, after = nll(logp, gold, 1.0), nll(logp, gold, temperature)
        log.info("tempscale: T = %.4g, tuning NLL %.4f -> %.4f", temperature, before, after)
        data.record["tempscale"] = {"temperature": temperature, "items": len(gold), "nll": [before, after]}
        return Scaled(source, temperature, self.samples, run.seed)


def nll(logp: Tensor, gold: Tensor, temperature: float) -> float:
    return float(-(logp / temperature).log_softmax(-1).gather(1, gold[:, None]).mean())


def best_temperature(logp: Tensor, gold: Tensor) -> float:
    """The T at which d NLL / d(1/T) = Σ_n E_p[log p̄] − log p̄(gold) changes its sign; −inf: no such choice."""
    finite = logp.double().clamp(min=-1e30)

    def slope(log_t: float) -> float:
        p = (finite / math.exp(log_t)).softmax(-1)
        return float(((p * finite).sum(-1) - finite.gather(1, gold[:, None])[:, 0]).sum())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(low) <= 0:  # surer is better, even here
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def restorer(source: Posterior) -> str:
    """An installed method that restores posteriors of this class: what makes a nested record readable."""
    known = methods()
    for name in sorted(known, key=lambda name: name != "mle"):  # points are the most common
        try:
            if type(source) in get_method(name).posteriors:
                return name
        except InputError as error:
            log.debug("%s", error)
    raise InputError(f"no installed method restores {source.kind} posteriors: register the one that made this adapter")
