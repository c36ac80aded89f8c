"""How an adapter answers: p(y | x) ≈ 1/S Σ_s p(y | x, θ_s), θ_s ~ q (BLoB, arXiv:2406.11675, Eq. 1), or otherwise.

    DrawAverage(posterior, rule)            S rows, averaged as probabilities (default) or logits
    Tempered(inner, temperature, …)         one row: the inner predictive's average at a temperature
    curvature.linearised.Linearised         one row: the linearised model, averaged over its Gaussian logits

The lm-eval model, the exporter and the record ask the predictive, and nothing else knows how a method answers.

A predictive whose noise depends on the input (C-LoRA) is a `DrawAverage` with `inputs`: a transform for each layer
whose input varies, which gets the input itself, the draw and a hash of each token's prefix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict

from peft import PeftModel
from torch import Tensor

from uqharness.engine.engine import Engine
from uqharness.engine.lora import InputTransform
from uqharness.engine.rows import Rows
from uqharness.errors import InputError
from uqharness.loose_json import check
from uqharness.posterior import Posterior

WHERE = "uq_config.json: predictive"


class Predictive(ABC):
    """How a posterior answers questions.

    Attributes:
        posterior: what varies; its mean is the PEFT part of the adapter folder, and answers at `samples=0` (member 0
            where `mean_is_member`).
        rule: how the rows of a record are averaged: `probs`, `logits`, or `given` for one row that is combined already.
        whole_questions: an answer needs all choices of its question in one batch.
        stops_early: `samples=auto` is allowed; its bound is on averaged probabilities.
        finite: how many different draws there are, None for as many as one likes.
        mean_is_member: the mean is a stand-in, one of the members.
        draws_weights: draws differ in weights; else only in what happens to layers' inputs.

    Example:
        >>> from uqharness.posterior import Members
        >>> ensemble = DrawAverage(Members([{}, {}, {}], train_seed=0), rule="logits")
        >>> ensemble.rows(10), ensemble.mean_is_member, ensemble.stops_early
        (3, True, False)
        >>> Tempered(ensemble, temperature=1.5, samples=3).record()["inner"]
        {'kind': 'draws', 'rule': 'logits'}
    """

    kind: ClassVar[str]
    rule: str = "given"
    whole_questions: ClassVar[bool] = True
    stops_early: bool = False
    draws_weights: ClassVar[bool] = True

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior

    @property
    def finite(self) -> int | None:
        return self.posterior.finite

    @property
    def mean_is_member(self) -> bool:
        return self.posterior.mean_is_member

    def rows(self, samples: int) -> int:
        """Rows of a record for this many samples, beside the mean's."""
        return min(1, samples)

    @abstractmethod
    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        """What runs the model for these answers. how: as `Engine`'s arguments of the same names."""

    @abstractmethod
    def open_form(self) -> Predictive:
        """The predictive that answers what has no choices: likelihoods of open-ended texts, and generation."""

    def exportable(self) -> Posterior:
        """The posterior whose draws are weights and nothing else, for servers that know PEFT alone."""
        return self.open_form().exportable()

    def settings(self) -> dict[str, Any]:
        """What `restore` needs beside the posterior (goes to uq_config.json)."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, source: Any, settings: Mapping[str, Any]) -> Predictive:
        """The inverse of `settings`. source: the restored posterior, or the predictive that `inner` describes."""

    def record(self) -> dict[str, Any]:
        """What the adapter folder says of it."""
        return {"kind": self.kind, "rule": self.rule, **self.settings()}


class _DrawsFile(TypedDict):
    rule: Literal["probs", "logits"]


class DrawAverage(Predictive):
    """The average over draws of the posterior, one row of a record for each.

    Args:
        posterior: where the draws come from.
        rule: `probs` averages the softmax over a question's choices, `logits` the log-probabilities before it.

    Example:
        >>> from uqharness.engine.lora import LoraStack
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.posterior import Gaussian
        >>> from uqharness.testing import tiny_adapter
        >>> model = tiny_adapter()
        >>> mean = LoraStack(model).mean()
        >>> posterior = Gaussian(mean, {n: t * 0 + 0.1 for n, t in mean.items() if "lora_A" in n}, train_seed=0)
        >>> rows = make_rows([[([5, 6, 7], [1]), ([5, 6, 7], [2])]], max_length=16)
        >>> scores = DrawAverage(posterior).engine(model, samples=4).score(rows)
        >>> scores.average(rows).exp().sum().round(decimals=6).item()
        1.0
    """

    kind = "draws"
    whole_questions = False
    mean_is_plain: ClassVar[bool] = True  # the mean's function is its weights, without `inputs`

    def __init__(self, posterior: Posterior, rule: str = "probs") -> None:
        super().__init__(posterior)
        self.rule = rule
        self.stops_early = rule == "probs"

    def inputs(self, seed: int) -> Mapping[str, InputTransform]:
        """Transforms of layers' inputs that belong to the functions, by the name of the layer's tensor.

        A transform maps `(x [R, T, n], draw, prefix [R, T])` to x's like; draw is None for the mean.
        """
        return {}

    def rows(self, samples: int) -> int:
        return self.posterior.usable(samples)

    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        how["auto"] = how.get("auto") if self.stops_early else None
        inputs = {} if self.mean_is_plain and not samples else self.inputs(seed)
        how |= {"weights": self.draws_weights, "inputs": inputs, "rule": self.rule}
        return Engine(model, self.posterior, samples, seed, **how)

    def open_form(self) -> Predictive:
        return self

    def exportable(self) -> Posterior:
        return self.posterior

    @classmethod
    def restore(cls, source: Posterior, settings: Mapping[str, Any]) -> DrawAverage:
        check(dict(settings), _DrawsFile, WHERE)
        return cls(source, settings["rule"])


class _TemperedFile(TypedDict):
    temperature: float
    samples: int
    seed: int


class Tempered(Predictive):
    """softmax(log p̄ / T), p̄ the inner predictive's averaged answer from its first `samples` draws.

    Args:
        inner: whose answer is scaled.
        temperature: T; above 1 the answers are less sure than the inner's.
        samples: draws of the inner that are averaged, whatever an evaluation asks for.
        seed: of those draws.

    Example:
        >>> from uqharness.engine.lora import LoraStack
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.posterior import Point
        >>> from uqharness.testing import tiny_adapter
        >>> model = tiny_adapter()
        >>> plain = DrawAverage(Point(LoraStack(model).mean(), train_seed=0))
        >>> rows = make_rows([[([5, 6, 7], [1]), ([5, 6, 7], [2])]], max_length=16)
        >>> def surest(predictive):
        ...     return predictive.engine(model).score(rows).average(rows).exp().max().item()
        >>> surest(Tempered(plain, temperature=2.0)) < surest(plain)
        True
    """

    kind = "tempered"

    def __init__(self, inner: Predictive, temperature: float, samples: int = 10, seed: int = 0) -> None:
        super().__init__(inner.posterior)
        self.inner, self.temperature, self.samples, self.seed = inner, temperature, samples, seed

    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        same = {name: how[name] for name in ("tokens", "autocast") if name in how}
        inner: Engine | None = None

        def combined(rows: Rows) -> Tensor:
            nonlocal inner
            inner = inner or self.inner.engine(model, self.samples, self.seed, mean=False, **same)
            table = (inner.score(rows).average(rows) / self.temperature).log_softmax(-1)  # [Q, C]
            return table[rows.question.cpu(), rows.choice.cpu()]

        return Engine(model, self.posterior, samples, seed, combined=combined, rule=self.rule, **{**how, "auto": None})

    def open_form(self) -> Predictive:
        return self.inner.open_form()

    def settings(self) -> dict[str, Any]:
        own = {"temperature": self.temperature, "samples": self.samples, "seed": self.seed}
        return {**own, "inner": self.inner.record()}

    @classmethod
    def restore(cls, source: Predictive, settings: Mapping[str, Any]) -> Tempered:
        check(dict(settings), _TemperedFile, WHERE)
        if not settings["temperature"] > 0 or settings["samples"] < 1 or settings["seed"] < 0:
            raise InputError(f"{WHERE}: temperature, samples and seed: expected > 0, >= 1 and >= 0")
        return cls(source, float(settings["temperature"]), settings["samples"], settings["seed"])


def as_predictive(made: Posterior | Predictive) -> Predictive:
    """What a method made, as a predictive: a posterior alone answers by the average over its draws."""
    return made if isinstance(made, Predictive) else DrawAverage(made)
