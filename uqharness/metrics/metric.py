"""`Metric`, and the `Answers` that it is computed from.

A `Metric` is one definition: formula, direction, interval, paired test, and one sentence of meaning. A formula maps
`Answers` to a number, over any leading axes: one set of draws and the first 1, 2 … N draws are the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqharness.errors import InputError
from uqharness.metrics.intervals import UNDEFINED, Interval, mean_interval, mean_stderr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
P = ParamSpec("P")
T = TypeVar("T")

# -log of it is 708.4: a choice that was given probability zero costs this much, large but finite.
PROB_FLOOR = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Draws:
    """Probabilities of single draws, p [S, D, C], 0 where a question has no such choice, NaN in a draw not taken.

    `mean` averages values [S, D, …] over the draws that each entry of the leading axes consists of: […, D, …].
    """

    p: Floats
    mean: Callable[[Floats], Floats]

    @cached_property
    def average(self) -> Floats:
        """Return probabilities averaged over draws, […, D, C]."""
        return self.mean(self.p)

    @classmethod
    def of(cls, p: ArrayLike) -> Draws:
        """Draws p […, S, D, C] with NaN where a question has no such choice; all values NaN: a draw not taken."""
        each = np.asarray(p, dtype=np.float64)
        if each.ndim < 3:
            raise InputError(f"draws must be [..., S, D, C]: found shape {each.shape}; add an axis for one draw")
        axis, absent = each.ndim - 3, np.isnan(each)
        filled = np.where(absent & ~absent.all(axis=-1, keepdims=True), 0.0, each)
        return cls(filled, lambda values: mean_of_taken(values, axis))


@dataclass(frozen=True)
class Answers:
    """Answers to D questions: p […, D, C], 0 where `mask` [D, C] is false, and the right ones, gold [D].

    >>> import numpy as np
    >>> answers = Answers.of([[0.7, 0.2, 0.1], [0.5, 0.5, np.nan]], gold=[0, 1])
    >>> answers.p.tolist(), answers.mask.sum(axis=1).tolist()
    ([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [3, 2])
    """

    p: Floats
    gold: Ints
    mask: Bools
    draws: Draws | None = None  # None: the draws were combined before, or are not known
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, p: ArrayLike, gold: ArrayLike, mask: ArrayLike | None = None, draws: ArrayLike | None = None
    ) -> Answers:
        """Check p […, D, C] (NaN where a question has no such choice, or a mask), gold [D], draws […, S, D, C]."""
        values, raw = np.asarray(p, dtype=np.float64), np.asarray(gold)
        if values.ndim < 2 or values.size == 0:
            raise InputError(f"probs must be [..., D, C]: found shape {values.shape}; use pad() for rows")
        d, c = values.shape[-2:]
        g = raw.astype(np.int64)
        if g.shape != (d,):
            raise InputError(f"need probs [..., D, C] and gold [D]: found {values.shape} and {g.shape}")
        present = ~np.isnan(values.reshape(-1, d, c)[0]) if mask is None else np.asarray(mask, dtype=bool)
        bad = (g != raw) | (g < 0) | (g >= c)
        if bad.any() or not present[np.arange(d), g].all():
            what = f"{raw[bad][0]} of {c}" if bad.any() else "one that its question lacks"
            raise InputError(f"gold must index a present choice: found {what}; check the labels")
        values = np.where(present, values, 0.0)
        total = values.sum(axis=-1)
        if not np.allclose(total, 1.0, atol=1e-3) or values.min() < 0:
            worst = total.ravel()[np.argmax(np.abs(total.ravel() - 1.0))]
            raise InputError(f"rows of probs must be distributions: found a sum of {worst:.6g}; apply a softmax")
        return cls(values, g, present, None if draws is None else Draws.of(draws))


def mean_of_taken(values: Floats, axis: int = 0) -> Floats:
    """Return the mean over an axis of draws; NaN stands for a draw that was not taken."""
    taken = ~np.isnan(values)
    return np.asarray(np.where(taken, values, 0.0).sum(axis) / np.maximum(taken.sum(axis), 1))


def once(fn: Callable[Concatenate[Answers, P], T]) -> Callable[Concatenate[Answers, P], T]:
    """Cache a function of `Answers` per instance, so that metrics share sorts, bins and logarithms."""

    @wraps(fn)
    def remembered(answers: Answers, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (fn, args, tuple(sorted(kwargs.items())))
        if key not in answers.memo:
            answers.memo[key] = fn(answers, *args, **kwargs)
        value: T = answers.memo[key]
        return value

    return remembered


# A metric's values for several runs on the same questions, [R], and their covariance over questions, [R, R].
Paired = tuple[Floats, Floats]


@dataclass(frozen=True)
class Metric:
    """One metric; give `items` (a value per question, whose mean it is) or `formula`, and the rest where it applies.

    >>> import numpy as np
    >>> from uqharness.metrics.metric import Metric
    >>> def margin(a):
    ...     ordered = np.sort(a.p, axis=-1)
    ...     return ordered[..., -1] - ordered[..., -2]
    >>> metric = Metric("margin", "Margin", "How far the first choice is ahead of the second.", items=margin)
    >>> round(float(metric([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], [0, 1])), 3)
    0.3
    """

    name: str
    label: str
    meaning: str
    formula: Callable[[Answers], Floats] | None = None  # -> […]
    items: Callable[[Answers], NDArray[Any]] | None = None  # -> […, D]
    higher_is_better: bool | None = None  # None: neither
    interval: Callable[[Answers, float], Interval] | None = None  # of one set of draws, at a level
    stderr: Callable[[Answers], float] | None = None
    biased: bool = False  # by sampling, so that value ± stderr does not cover: the interval is reported instead
    beside: Mapping[str, Callable[[Answers], float]] = field(default_factory=dict)  # more numbers, by name's end
    paired: Callable[[Sequence[Answers]], Paired] | None = None  # for the paired test; of `items`: their means
    exact_test: Callable[[Floats], Floats] | None = None  # p-values [M, M] of single runs with items [M, D]
    compared_by: str | None = None  # the metric whose value ranks this one; "": nothing ranks it; None: its own
    option_of: str = ""  # the metric that this one is with other options
    needs_draws: bool = False
    console: bool = False  # has a row in the table that lm-eval prints
    decimals: int = 2
    scale: float = 1.0  # tables print value * scale

    def __call__(
        self, p: ArrayLike, gold: ArrayLike, mask: ArrayLike | None = None, draws: ArrayLike | None = None
    ) -> Floats:
        """Return the metric of p […, D, C], one value for each entry of the leading axes."""
        return self.value(Answers.of(p, gold, mask, draws))

    def value(self, answers: Answers) -> Floats:
        """Return one value for each entry of the leading axes, NaN without the draws that it needs."""
        if self.needs_draws and answers.draws is None:
            return np.full(answers.p.shape[:-2], np.nan)
        if self.formula is not None:
            return np.asarray(self.formula(answers), dtype=np.float64)
        return self.per_item(answers).mean(axis=-1)

    def per_item(self, answers: Answers) -> Floats:
        """Return a value for each question, […, D]."""
        if self.items is None:
            raise InputError(f"{self.name} has no values of single questions: it is a metric of all of them together")
        if self.needs_draws and answers.draws is None:
            raise InputError(f"{self.name} needs draws [S, D, C]: found None; pass the softmax of each draw")
        return np.asarray(self.items(answers), dtype=np.float64)

    def spread(self, answers: Answers) -> dict[str, float]:
        """Return the numbers reported beside the value of one set of draws, by name suffix."""
        low_high = self.confidence_interval(answers) if self.biased else ()
        numbers = (*low_high, *([] if self.biased or not self.has_interval else [self.standard_error(answers)]))
        return dict(zip(self.ends, (*numbers, *(fn(answers) for fn in self.beside.values())), strict=True))

    @property
    def ends(self) -> tuple[str, ...]:
        """Return the names in `spread`."""
        own = ("low", "high") if self.biased else ("stderr",) if self.has_interval else ()
        return (*own, *self.beside)

    @property
    def has_interval(self) -> bool:
        return self.interval is not None or self.items is not None

    @property
    def has_test(self) -> bool:
        return self.higher_is_better is not None and (self.paired is not None or self.items is not None)

    def standard_error(self, answers: Answers) -> float:
        """Return the standard error over questions; NaN where it is not defined."""
        if self.stderr is not None:
            return self.stderr(answers)
        if self.items is None or (self.needs_draws and answers.draws is None):
            return float("nan")
        return mean_stderr(self.per_item(answers))

    def confidence_interval(self, answers: Answers, level: float = 0.95) -> Interval:
        """Return (low, high), which covers the true value with probability `level`; NaN where it is not defined."""
        if not 0 < level < 1:
            raise InputError(f"level must be between 0 and 1: found {level}; 0.95 is usual")
        if self.needs_draws and answers.draws is None:
            return UNDEFINED
        if self.interval is not None:
            return self.interval(answers, level)
        return UNDEFINED if self.items is None else mean_interval(self.per_item(answers), level)
