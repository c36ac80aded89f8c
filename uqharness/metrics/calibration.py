"""ECE = sum_b n_b/n |acc_b - conf_b| over bins of confidence (Naeini et al. 2015; Guo et al. 2017).

Bins are right-closed, (lo, hi]; confidence 1.0 is in the last bin and 0.0 in the first. With n_b/n inside the
bars, ECE = sum_b |g_b|, g_b = 1/n sum_{i in b} (correct_i - confidence_i), which is what is computed below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, ndtr, ndtri, xlog1py, xlogy

from uqharness.errors import InputError
from uqharness.metrics.intervals import Interval, clopper_pearson
from uqharness.metrics.metric import Answers, Bools, Floats, Ints, Metric, Paired, once
from uqharness.metrics.points import confidence, correct, jsonable, right, sure

BINS = 15
# Share of an ECE lower tail's error spent on ruling out gaps that the data exclude.
SCREEN = 0.2


@dataclass(frozen=True)
class Binned:
    """Items in bins: confidence […, D], right […, D], index […, D] in 0 … len(edges) - 2, edges [bins + 1]."""

    confidence: Floats
    right: Bools
    index: Ints
    edges: Floats

    @property
    def items(self) -> int:
        return self.index.shape[-1]

    @cached_property
    def places(self) -> Ints:
        """Return the flat index of each item's bin among the bins of all leading entries."""
        rows = self.index.reshape(-1, self.items)
        return (rows + np.arange(len(rows))[:, None] * (len(self.edges) - 1)).ravel()

    def total(self, values: Floats | None) -> Floats:
        """Sum of values […, D] in each bin (None: their number), […, bins]."""
        shape = *self.index.shape[:-1], len(self.edges) - 1
        sums = np.bincount(self.places, None if values is None else values.ravel(), minlength=int(np.prod(shape)))
        return np.asarray(sums.reshape(shape), dtype=np.float64)

    @cached_property
    def counts(self) -> Floats:
        return self.total(None)

    @cached_property
    def mean_confidence(self) -> Floats:
        """conf_b, in [0, 1], […, bins]; 0 in empty bins."""
        return np.clip(self.total(self.confidence) / np.maximum(self.counts, 1), 0.0, 1.0)

    @cached_property
    def gaps(self) -> Floats:
        """g_b = 1/n sum_{i in b} (correct_i - confidence_i), […, bins]."""
        return self.total(self.right - self.confidence) / self.items


def bin_items(conf: Floats, hits: Bools, bins: int = BINS, equal_mass: bool = False) -> Binned:
    """Equal-width bins, or bins between quantiles of confidence: equal confidences always share one bin."""
    if bins < 1:
        raise InputError(f"bins must be at least 1: found {bins}; papers use 15 (BLoB) or 10 (Laplace-LoRA)")
    edges = np.linspace(0.0, 1.0, bins + 1)
    if equal_mass:
        edges = np.unique(np.quantile(conf, edges, method="inverted_cdf"))
        edges = np.repeat(edges, 2) if len(edges) == 1 else edges
    # Clipped from above too: a float32 softmax can return 1 + 1e-7.
    index = np.clip(np.searchsorted(edges, conf, side="left") - 1, 0, len(edges) - 2)
    return Binned(conf, hits, index.astype(np.int64), edges)


def bin_items_torchmetrics(conf: Floats, hits: Bools, bins: int = BINS) -> Binned:
    """torchmetrics 1.9's bins: float32, left-closed [lo, hi), and confidence 1.0 in a bin of its own."""
    # torch.linspace counts from both ends, with a float32 step and one rounding per edge (fused multiply-add,
    # which float64 reproduces); np.linspace differs by an ulp on 6 of the 16 edges.
    step, i = float(np.float32(1) / np.float32(bins)), np.arange(bins + 1)
    edges = np.where(i < (bins + 1) // 2, step * i, 1 - step * (bins - i)).astype(np.float32)
    low = np.minimum(conf.astype(np.float32), np.float32(1))
    index = np.searchsorted(edges, low, side="right") - 1
    return Binned(conf, hits, index.astype(np.int64), np.append(edges, edges[-1:]).astype(np.float64))


RULES = {"right-closed": bin_items, "torchmetrics": bin_items_torchmetrics}


def bin_probs(p: ArrayLike, gold: ArrayLike, bins: int = BINS, equal_mass: bool = False) -> Binned:
    """`bin_items` of the most probable choice of each question."""
    return bin_items(confidence(p), correct(p, gold), bins, equal_mass)


@once
def bins_of(answers: Answers, bins: int = BINS, rule: str = "right-closed") -> Binned:
    """The most probable choice of each question in equal-width bins, by one of `RULES`."""
    return RULES[rule](sure(answers), right(answers), bins)


def ece(b: Binned) -> Floats:
    """sum_b |g_b|, in [0, 1]; biased upwards by sampling (see `ece_floor`, `ece_debiased`)."""
    return np.asarray(np.abs(b.gaps).sum(axis=-1))


def ece_torchmetrics(b: Binned) -> Floats:
    """MulticlassCalibrationError(norm="l1") of torchmetrics 1.9: its float32 sums over its bins (to 6e-8)."""
    low = np.minimum(b.confidence.astype(np.float32), np.float32(1)).ravel()
    place, shape, bins = b.places, b.index.shape[:-1], len(b.edges) - 1
    sums = np.zeros((3, int(np.prod(shape)) * bins), dtype=np.float32)
    for row, values in zip(sums, (np.ones_like(low), low, b.right.ravel().astype(np.float32)), strict=True):
        np.add.at(row, place, values)  # one after the other in float32, as scatter_add does
    count, conf, hits = sums.reshape(3, *shape, bins)
    some = np.maximum(count, np.float32(1))
    gaps = np.abs(hits / some - conf / some) * (count / count.sum(axis=-1, keepdims=True))
    return np.asarray(gaps.sum(axis=-1, dtype=np.float32), dtype=np.float64)


def mce(b: Binned) -> Floats:
    """max_b |acc_b - conf_b| over the occupied bins (Naeini et al. 2015)."""
    return np.asarray((np.abs(b.gaps) * b.items / np.maximum(b.counts, 1)).max(axis=-1))


def reliability_bins(p: ArrayLike, gold: ArrayLike, bins: int = BINS, equal_mass: bool = False) -> dict[str, list[Any]]:
    """The reliability diagram as JSON-able lists lo, hi, count, confidence, accuracy; None in empty bins."""
    b = bin_probs(p, gold, bins, equal_mass)
    n = np.where(b.counts > 0, b.counts, np.nan)
    return {
        "lo": b.edges[:-1].tolist(),
        "hi": b.edges[1:].tolist(),
        "count": b.counts.astype(int).tolist(),
        "confidence": jsonable(b.total(b.confidence) / n),
        "accuracy": jsonable(b.total(b.right.astype(np.float64)) / n),
    }


def ece_floor(b: Binned) -> Floats:
    """The mean ECE of a calibrated model with these confidences, in closed form (see `sum_mad`)."""
    conf = np.minimum(b.confidence, 1.0)
    return np.asarray(sum_mad(b.counts, b.total(conf), b.total(conf * (1 - conf))).sum(axis=-1) / b.items)


def ece_floor_draws(conf: Floats, draws: int = 1000, seed: int = 0, bins: int = BINS) -> Floats:
    """ECEs [draws] of a calibrated model with confidences [D]: correct_i ~ Bernoulli(confidence_i).

    Labels drawn from the model's own probabilities (consistency resampling; Bröcker & Smith 2007).
    """
    conf = np.minimum(conf, 1.0)
    rng = np.random.Generator(np.random.Philox(seed))
    b = bin_items(conf, np.ones(len(conf), dtype=bool), bins)
    order = np.argsort(b.index, kind="stable")
    used, starts = np.unique(b.index[order], return_index=True)
    threshold = conf[order].astype(np.float32)[:, None]
    expected = b.total(conf)[used][:, None]
    out = np.empty(draws)
    chunk = max(1, 1_000_000 // len(conf))  # 4 MB of uniforms at a time
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        # Items sorted by bin: the hits of a bin are contiguous rows, [D, draws] -> [bins, draws].
        hits = rng.random((len(conf), size), dtype=np.float32) < threshold
        ends = [*starts[1:], len(conf)]
        right = np.stack([hits[i:j].sum(axis=0, dtype=np.int32) for i, j in zip(starts, ends, strict=True)])
        out[start : start + size] = np.abs(right - expected).sum(axis=0) / len(conf)
    return out


def sum_mad(n: Floats, mean: Floats, variance: Floats) -> Floats:
    """E|X - mean| of a sum X of n Bernoullis of unequal chances, with this mean and variance; any shape.

    That of Binomial(n, mean / n), which is the largest there is (Hoeffding 1956), times the ratio of the standard
    deviations: within 0.2 % of the exact value (tests), where the mean of 1000 drawn ECEs is within 1 %.
    """
    p = np.clip(mean / np.maximum(n, 1), 0.0, 1.0)
    largest = n * p * (1 - p)
    return np.asarray(binomial_mad(n, p) * np.sqrt(variance / np.where(largest > 0, largest, 1.0)))


def binomial_mad(n: Floats, p: Floats) -> Floats:
    """E|X - np| = 2 m C(n, m) p^m (1-p)^(n-m+1), m = floor(np) + 1, X ~ Binomial(n, p) (De Moivre 1730)."""
    m = np.minimum(np.floor(n * p) + 1, n)
    choose = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
    return np.asarray(2 * m * np.exp(choose + xlogy(m, p) + xlog1py(n - m + 1, -p)))


def ece_debiased(b: Binned, clip: bool = True) -> Floats:
    """sum_b (|g_b| - sqrt(2) E0|g_b| exp(-g_b^2 / (2 s_b^2))), clipped at 0 (the weight is ours, see below).

    |g_b| overshoots because of its noise, the bias that Kumar et al. 2019 (section 5) take off squared gaps.
    E0|g_b| and s_b are its mean and standard deviation if the bin is calibrated, Binomial(n_b, conf_b). It is
    taken off only where the gap could be noise: if g_b ~ N(0, s_b^2), E exp(-g_b^2 / (2 s_b^2)) = 2^-1/2, so
    the sum has mean 0 if calibrated (before the clip), and each term tends to |g_b| as the gap grows.
    In between it errs low. Measured at n = 100 / 1000 (benchmarks/coverage.py), plain ECE -> this: calibrated
    +10.8 / +3.4 -> +1.7 / +0.5 points; true ECE of 6.0 points +5.6 / +0.7 -> -2.8 / -1.1.
    """
    value = debias(b.gaps, *gap_noise(b)).sum(axis=-1)
    return np.asarray(np.clip(value, 0.0, 1.0) if clip else value)


def gap_noise(b: Binned) -> tuple[Floats, Floats]:
    """(E0|g_b|, s_b^2): mean size and variance of each bin's gap if the bin is calibrated, […, bins] each."""
    n, p = b.items, b.mean_confidence
    return binomial_mad(b.counts, p) / n, b.counts * p * (1 - p) / n**2


def debias(gaps: Floats, size: Floats, variance: Floats) -> Floats:
    """The terms of `ece_debiased`, [..., bins], from gaps and `gap_noise`."""
    weight = np.exp(-(gaps**2) / (2 * np.maximum(variance, 1e-300)))
    return np.asarray(np.abs(gaps) - np.sqrt(2) * size * weight)


def paired_debiased(runs: Sequence[Answers]) -> Paired:
    """`ece_debiased`, not clipped, of each run [R], and its covariance [R, R] over questions, in closed form.

    Each question moves the gap of its bin, and each gap its term of the sum. The standard deviation is exact
    where gaps are clear (three of their own or more), and up to 1.6 times too large where they are noise. That of
    resampled questions is nearer there, and too small between the two (docs/decisions/ece-estimator.md).
    """
    binned, items = [bins_of(answers) for answers in runs], len(runs[0].gold)
    moves = np.stack([debiased_slopes(b)[b.index] * (b.right - b.confidence) for b in binned])  # [R, D]
    moves -= moves.mean(axis=1, keepdims=True)
    covariance = moves @ moves.T / (items * max(items - 1, 1))
    return np.array([ece_debiased(b, clip=False) for b in binned]), covariance


def debiased_slopes(b: Binned) -> Floats:
    """Derivative of each term of `debias` by its gap, the noise being held, [bins]."""
    size, variance = gap_noise(b)
    v = np.maximum(variance, 1e-300)
    return np.asarray(np.sign(b.gaps) + np.sqrt(2) * size * b.gaps / v * np.exp(-(b.gaps**2) / (2 * v)))


def ece_interval(b: Binned, level: float) -> Interval:
    """Interval of the binned ECE t = sum_b |theta_b|, theta_b = E[(correct - confidence) 1_b], T = sum |g_b|.

    Upper end: with the signs sigma of theta, T >= sigma . g, mean t and variance (E d^2 - t^2) / n; so t is
    at most the larger root of (t - T)^2 = z^2 (E d^2 - t^2) / n, for any theta, whatever T's bias.
    Lower end: T overshoots t by sum_b s_b h(theta_b / s_b) on average, h(u) = E|u + Z| - |u|, at most
    sqrt(2/pi) and 0 where the gap is clear. h is taken at the smallest |theta_b| in g_b ± k s_b, where k
    makes all bins hold together with probability 1 - SCREEN * tail (Berger & Boos 1994, for a nuisance
    parameter); the rest of the tail pays for T's spread. Coverage is measured by benchmarks/coverage.py.
    """
    n, gaps, tail = len(b.right), b.gaps, (1 - level) / 2
    value = float(np.abs(gaps).sum())
    # The noise seen and the noise expected of a calibrated bin: three right answers out of three show none.
    seen, expected = (b.right - b.confidence) ** 2, np.clip(b.confidence * (1 - b.confidence), 0.0, None)
    d2 = max(float(seen.mean()), float(expected.mean()))
    z2 = float(ndtri(1 - tail)) ** 2 / n
    root = np.sqrt(max(value**2 - (1 + z2) * (value**2 - z2 * d2), 0.0))
    high = (value + root) / (1 + z2)
    s = np.sqrt(np.maximum(b.total(seen), b.total(expected))) / n
    used = s > 0
    s, size = s[used], np.abs(gaps[used])
    if not len(s):
        return value, value
    k = float(ndtri(1 - SCREEN * tail / (2 * len(s))))
    u = np.maximum(size / s - k, 0.0)
    folded = 2 * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi) + u * (1 - 2 * ndtr(-u))  # E|u + Z|
    spread = np.sqrt((s**2 * (1 + u**2 - folded**2)).sum())
    low = value - (s * (folded - u)).sum() - float(ndtri(1 - (1 - SCREEN) * tail)) * spread
    return max(float(low), 0.0), min(max(float(high), value), 1.0)


def mce_interval(b: Binned, level: float) -> Interval:
    """[max_b low_b, max_b high_b] from Clopper-Pearson bounds of acc_b: the largest gap of the occupied bins.

    The lower end needs all bins at once (Šidák 1967); the upper only the bin whose true gap is the largest,
    and only the side that this gap is on. One bin with a single item is enough for a high end near 1.
    """
    used = b.counts > 0
    n, conf = b.counts[used], b.total(b.confidence)[used] / b.counts[used]
    hits = b.total(b.right.astype(np.float64))[used]
    tail = (1 - level) / 2
    joint = (1 - (1 - tail) ** (1 / len(n))) / 2
    low, high = clopper_pearson(hits, n, joint)
    floor = np.maximum(np.maximum(low - conf, conf - high), 0.0).max()
    low, high = clopper_pearson(hits, n, tail)
    ceiling = np.maximum(np.abs(low - conf), np.abs(high - conf)).max()
    return float(floor), float(min(ceiling, 1.0))


def ece_metric(name: str, label: str, meaning: str, bins: int = BINS, rule: str = "right-closed") -> Metric:
    """ECE with options: the number of bins, and whose bins."""
    return Metric(
        name,
        label,
        meaning,
        formula=lambda a: (ece_torchmetrics if rule == "torchmetrics" else ece)(bins_of(a, bins, rule)),
        higher_is_better=False,
        interval=lambda a, level: ece_interval(bins_of(a, bins, rule), level),
        biased=True,
        compared_by="ece_debiased" if name == "ece" else "",
        option_of="" if name == "ece" else "ece",
        console=name == "ece",
        scale=100,
    )


def debiased_interval(answers: Answers, level: float) -> Interval:
    """`ece_interval`; the debiased value must lie inside, and lowering the end only adds coverage."""
    low, high = ece_interval(bins_of(answers), level)
    return min(low, float(ece_debiased(bins_of(answers)))), high


METRICS = (
    ece_metric("ece", "ECE", "Expected calibration error: how far confidence is from accuracy, averaged over 15 bins."),
    ece_metric("ece10", "ECE (10 bins)", "ECE with 10 bins, as Laplace-LoRA reports it.", bins=10),
    ece_metric(
        "ece_torchmetrics",
        "ECE (torchmetrics)",
        "ECE with the bins of torchmetrics, which BLoB's code uses.",
        rule="torchmetrics",
    ),
    Metric(
        "ece_debiased",
        "ECE (debiased)",
        "ECE less what sampling so few questions adds to it.",
        formula=lambda a: ece_debiased(bins_of(a)),
        higher_is_better=False,
        interval=debiased_interval,
        biased=True,
        paired=paired_debiased,
        console=True,
        scale=100,
    ),
    Metric(
        "ece_floor",
        "ECE floor",
        "ECE that a calibrated model with the same confidences would show on as many questions.",
        formula=lambda a: ece_floor(bins_of(a)),
        # Its 95 % quantile: an ECE below it shows no miscalibration.
        beside={"q95": lambda a: float(np.quantile(ece_floor_draws(sure(a)), 0.95))},
        scale=100,
    ),
    Metric(
        "mce",
        "MCE",
        "The largest distance between confidence and accuracy in one of 15 bins.",
        formula=lambda a: mce(bins_of(a)),
        higher_is_better=False,
        interval=lambda a, level: mce_interval(bins_of(a), level),
        biased=True,
        compared_by="",
        scale=100,
    ),
)
