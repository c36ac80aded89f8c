"""Predictives: p(y | x) ≈ 1/S Σ_s p(y | x, θ_s), θ_s ~ q (BLoB, arXiv:2406.11675, Eq. 1), and other ways to answer.

    DrawAverage(posterior, rule)            S rows, averaged as probabilities (default) or logits
    Tempered(inner, temperature, …)         one row: the inner predictive's average at a temperature
    curvature.linearised.Linearised         one row: the linearised model, averaged over its Gaussian logits

The lm-eval model, the exporter and the record use the predictive; nothing else depends on how a method answers.

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
    """Compute answers to questions from a posterior.

    Attributes:
        posterior: the distribution over weights; its mean is the PEFT part of the adapter folder, and answers at
            `samples=0` (member 0 if `mean_is_member`).
        rule: how the rows of a record are averaged: `probs`, `logits`, or `given` for one row that is already combined.
        whole_questions: an answer needs all choices of its question in one batch.
        stops_early: `samples=auto` is allowed; its bound is on averaged probabilities.
        finite: the number of different draws; None if unlimited.
        mean_is_member: the mean is a stand-in, one of the members.
        draws_weights: draws differ in weights; otherwise only in the transforms of layer inputs.
        mean_is_plain: the mean is the PEFT part alone; otherwise its function also has the transforms of layer inputs.

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
    mean_is_plain: bool = True

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior

    def inputs(self, seed: int) -> Mapping[str, InputTransform]:
        """Return transforms of layer inputs that are part of the functions, by the name of the layer's tensor.

        A transform maps `(x [R, T, n], draw, prefix [R, T])` to a tensor like x; draw is None for the mean, and
        `engine.prefixes.normal` turns hashes of prefixes into noise. (`LoraStack.inputs` in training passes x alone.)
        """
        return {}

    @property
    def finite(self) -> int | None:
        return self.posterior.finite

    @property
    def mean_is_member(self) -> bool:
        return self.posterior.mean_is_member

    def rows(self, samples: int) -> int:
        """Return the number of rows of a record for this many samples, without the mean's row."""
        return min(1, samples)

    @abstractmethod
    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        """Return the engine that computes these answers. how: arguments of `Engine`."""

    @abstractmethod
    def open_form(self) -> Predictive:
        """Return the predictive for requests without choices: likelihoods of open-ended texts, and generation."""

    def exportable(self) -> Posterior:
        """Return a posterior whose draws are weights only, for servers that support PEFT only."""
        return self.open_form().exportable()

    def settings(self) -> dict[str, Any]:
        """Return the settings that `restore` needs besides the posterior (stored in uq_config.json)."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, source: Any, settings: Mapping[str, Any]) -> Predictive:
        """The inverse of `settings`. source: the restored posterior, or the predictive that `inner` describes."""

    def record(self) -> dict[str, Any]:
        """Return its entry in the adapter folder's record."""
        plain = {} if self.mean_is_plain else {"mean_is_plain": False}
        return {"kind": self.kind, "rule": self.rule, **plain, **self.settings()}


class _DrawsFile(TypedDict):
    rule: Literal["probs", "logits"]


class DrawAverage(Predictive):
    """The average over draws of the posterior, one row of a record for each.

    Args:
        posterior: source of the draws.
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

    def __init__(self, posterior: Posterior, rule: str = "probs") -> None:
        super().__init__(posterior)
        self.rule = rule
        self.stops_early = rule == "probs"

    def rows(self, samples: int) -> int:
        return self.posterior.usable(samples)

    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        how["auto"] = how.get("auto") if self.stops_early else None
        if how.get("pairs") and samples and not self.draws_weights:
            raise InputError(f"{self.kind}: noise on inputs has no mirrored pairs: remove sampling=antithetic")
        inputs = {} if self.mean_is_plain and not samples else self.inputs(seed)
        how |= {"weights": self.draws_weights, "inputs": inputs, "rule": self.rule}
        return Engine(model, self.posterior, samples, seed, **how)

    def open_form(self) -> Predictive:
        return self

    def exportable(self) -> Posterior:
        if not (self.draws_weights and self.mean_is_plain):
            what = f"{self.kind} draws transform layer inputs and cannot be exported as weights"
            raise InputError(f"{what}: evaluate the adapter with bayeslora")
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
        inner: the predictive whose answer is scaled.
        temperature: T; above 1 the answers are less confident than the inner's.
        samples: draws of the inner that are averaged, independent of the evaluation's `samples`.
        seed: seed of those draws.

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
        self.mean_is_plain = inner.mean_is_plain

    def inputs(self, seed: int) -> Mapping[str, InputTransform]:
        return self.inner.inputs(seed)

    def engine(self, model: PeftModel, samples: int = 10, seed: int = 0, **how: Any) -> Engine:
        same = {name: how[name] for name in ("tokens", "autocast") if name in how}
        inner: Engine | None = None

        def combined(rows: Rows) -> Tensor:
            nonlocal inner
            inner = inner or self.inner.engine(model, self.samples, self.seed, mean=False, **same)
            table = (inner.score(rows).average(rows) / self.temperature).log_softmax(-1)  # [Q, C]
            return table[rows.question.cpu(), rows.choice.cpu()]

        how |= {"inputs": {} if self.mean_is_plain else self.inputs(seed), "rule": self.rule, "auto": None}
        return Engine(model, self.posterior, samples, seed, combined=combined, **how)

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
    """Return the result of a method as a predictive; wrap a posterior in the average over its draws."""
    return made if isinstance(made, Predictive) else DrawAverage(made)
