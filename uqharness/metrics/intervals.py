"""Standard errors and confidence intervals over items, for questions sampled from a population of questions.

acc: Wilson 1927. auroc: DeLong et al. 1988 on the logit scale. aurc: infinitesimal jackknife. Means: t.
ece: a bound on the L1 norm of a normal mean (see `ece_interval`). mce: Clopper & Pearson 1934 per bin.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from uqharness.errors import InputError
from uqharness.metrics.calibration import BINS, Binned, bin_items, bin_items_torchmetrics, ece_debiased
from uqharness.metrics.points import (
    Bools,
    Floats,
    brier_items,
    confidence,
    correct,
    midranks,
    mutual_information,
    nll_items,
    predictive_entropy,
    risk_curve,
    tie_groups,
)

Interval = tuple[float, float]
# Share of an ECE lower tail's error spent on ruling out gaps that the data exclude.
SCREEN = 0.2

ITEMS: dict[str, Callable[..., Floats]] = {
    "acc": lambda probs, gold, draws: correct(probs, gold).astype(np.float64),
    "nll": lambda probs, gold, draws: nll_items(probs, gold),
    "brier": lambda probs, gold, draws: brier_items(probs, gold),
    "entropy": lambda probs, gold, draws: predictive_entropy(probs),
    "entropy_norm": lambda probs, gold, draws: predictive_entropy(probs, normalised=True),
    "mutual_information": lambda probs, gold, draws: mutual_information(draws),
    "mutual_information_norm": lambda probs, gold, draws: mutual_information(draws, normalised=True),
}
BINNED: dict[str, Callable[[Floats, Bools], Binned]] = {
    "ece": lambda conf, right: bin_items(conf, right, BINS),
    "ece10": lambda conf, right: bin_items(conf, right, 10),
    "ece_debiased": lambda conf, right: bin_items(conf, right, BINS),
    "ece_torchmetrics": lambda conf, right: bin_items_torchmetrics(conf, right, BINS),
}
NAMES = (*ITEMS, *BINNED, "mce", "auroc", "aurc")
# Biased upwards by sampling, so estimate ± stderr does not cover: these are reported with their intervals.
BINNED_NAMES = (*BINNED, "mce")


def stderr(name: str, probs: ArrayLike, gold: ArrayLike, draw_probs: ArrayLike | None = None) -> float:
    """Standard error of metric `name` over items (delta method for ece and mce); NaN where undefined."""
    if name in ITEMS:
        items = _items(name, probs, gold, draw_probs)
        return float(items.std(ddof=1) / np.sqrt(len(items))) if len(items) > 1 else float("nan")
    conf, right = confidence(probs), correct(probs, gold)
    if name in BINNED:
        return ece_stderr(BINNED[name](conf, right))
    if name == "mce":
        return mce_stderr(bin_items(conf, right))
    if name == "auroc":
        return delong(conf, right)[1]
    if name == "aurc":
        return aurc_stderr(conf, right)
    raise _unknown(name)


def interval(
    name: str, probs: ArrayLike, gold: ArrayLike, level: float = 0.95, draw_probs: ArrayLike | None = None
) -> Interval:
    """(low, high) of metric `name`, covers its true value with probability `level`; NaN if undefined."""
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, found {level}; 0.95 is usual")
    conf, right = confidence(probs), correct(probs, gold)
    if name == "acc":
        return wilson(int(right.sum()), len(right), level)
    if name in ITEMS:
        return mean_interval(_items(name, probs, gold, draw_probs), level)
    if name in BINNED:
        low, high = ece_interval(BINNED[name](conf, right), level)
        # The debiased value must lie inside its own interval; lowering the end only adds coverage.
        return (min(low, ece_debiased(probs, gold)), high) if name == "ece_debiased" else (low, high)
    if name == "mce":
        return mce_interval(bin_items(conf, right), level)
    if name == "auroc":
        return auroc_interval(conf, right, level)
    if name == "aurc":
        return aurc_interval(conf, right, level)
    raise _unknown(name)


def _unknown(name: str) -> InputError:
    return InputError(f"no interval for metric {name!r}; choose one of {', '.join(NAMES)}")


def _items(name: str, probs: ArrayLike, gold: ArrayLike, draw_probs: ArrayLike | None) -> Floats:
    if name.startswith("mutual_information") and draw_probs is None:
        raise InputError(f"{name} needs draw_probs [S, D, C], found None; pass the softmax of each draw")
    return ITEMS[name](probs, gold, draw_probs)


def _z(level: float) -> float:
    return float(ndtri(0.5 + level / 2))


def mean_interval(items: Floats, level: float) -> Interval:
    """mean ± t_{n-1} s / sqrt(n), not below 0: every metric that uses it is non-negative."""
    n = len(items)
    if n < 2:
        return float("nan"), float("nan")
    half = float(stdtrit(n - 1, 0.5 + level / 2) * items.std(ddof=1) / np.sqrt(n))
    return max(float(items.mean()) - half, 0.0), float(items.mean()) + half


def wilson(hits: int, n: int, level: float) -> Interval:
    """Score interval of a proportion (Wilson 1927)."""
    z, p = _z(level), hits / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(float((centre - half) / scale), 0.0), min(float((centre + half) / scale), 1.0)


def clopper_pearson(hits: Floats, n: Floats, tail: float) -> tuple[Floats, Floats]:
    """Exact bounds of proportions, each end missed with at most `tail` (Clopper & Pearson 1934)."""
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1e-9), n - hits + 1, tail), 0.0)
    high = np.where(hits < n, betaincinv(hits + 1, np.maximum(n - hits, 1e-9), 1 - tail), 1.0)
    return np.asarray(low), np.asarray(high)


def delong(conf: Floats, right: Bools) -> tuple[float, float]:
    """(AUROC, standard error) from the placements of each item among the other class (DeLong et al. 1988)."""
    a, b = conf[right], conf[~right]
    if len(a) < 2 or len(b) < 2:
        ranks = midranks(conf)[right].sum() - len(a) * (len(a) + 1) / 2
        return float(ranks / (len(a) * len(b))) if len(a) and len(b) else float("nan"), float("nan")
    ranks = midranks(conf)
    above = (ranks[right] - midranks(a)) / len(b)
    below = 1 - (ranks[~right] - midranks(b)) / len(a)
    return float(above.mean()), float(np.sqrt(above.var(ddof=1) / len(a) + below.var(ddof=1) / len(b)))


def auroc_interval(conf: Floats, right: Bools, level: float) -> Interval:
    """expit(logit A ± z se / (A (1 - A))); at A = 0 or 1, Clopper-Pearson with the smaller class as n."""
    area, se = delong(conf, right)
    if np.isnan(se):
        return (float("nan"), float("nan")) if np.isnan(area) else (0.0, 1.0)
    if area in (0.0, 1.0):
        n = np.array([float(min(right.sum(), (~right).sum()))])
        low, high = clopper_pearson(area * n, n, (1 - level) / 2)
        return float(low[0]), float(high[0])
    centre, half = np.log(area / (1 - area)), _z(level) * se / (area * (1 - area))
    low_, high_ = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return float(low_), float(high_)


def aurc_influence(conf: Floats, right: Bools) -> Floats:
    """Influence of each item on A = E_t[R(t)], R(t) = P(wrong | conf >= t), [D]:

    IF_i = R(conf_i) - A + E_t[1[conf_i >= t] (wrong_i - R(t)) / P(conf >= t)], averaged within ties.
    """
    n, k = len(conf), np.arange(1, len(conf) + 1)
    risk = risk_curve(conf, right)
    group, size = tie_groups(conf)
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    tail = np.cumsum((1 / k)[::-1])[::-1]  # sum_{j >= k} 1/j
    risk_tail = np.cumsum((risk / k)[::-1])[::-1]
    mean_in_group = [np.add.reduceat(v, start) / size for v in (risk, tail, risk_tail)]
    own, weight, loss = (m[group] for m in mean_in_group)
    return np.asarray(own - risk.mean() + (~right) * weight - loss) if n else np.empty(0)


def aurc_stderr(conf: Floats, right: Bools) -> float:
    """Standard deviation of `aurc_influence` / sqrt(n)."""
    n = len(conf)
    return float(aurc_influence(conf, right).std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def aurc_interval(conf: Floats, right: Bools, level: float) -> Interval:
    """exp(log A ± t se / A); without errors [0, p (1 - log p)], p Wilson's bound of the error rate."""
    n, area = len(conf), float(risk_curve(conf, right).mean())
    if n < 2:
        return float("nan"), float("nan")
    if area == 0.0:
        rate = 1 - wilson(n, n, level)[0]
        return 0.0, float(min(rate * (1 - np.log(rate)), 1.0))
    factor = float(np.exp(stdtrit(n - 1, 0.5 + level / 2) * aurc_stderr(conf, right) / area))
    return area / factor, min(area * factor, 1.0)


def ece_stderr(b: Binned) -> float:
    """sqrt((E d^2 - ECE^2) / n), d = correct - confidence: exact where every gap's sign is certain."""
    d2, value = np.mean((b.right - b.confidence) ** 2), np.abs(b.gaps).sum()
    return float(np.sqrt(max(d2 - value**2, 0.0) / len(b.right)))


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


def _bin_rates(b: Binned) -> tuple[Floats, Floats, Floats]:
    """(items, right answers, mean confidence) of the occupied bins."""
    used = b.counts > 0
    n = b.counts[used]
    return n, b.total(b.right.astype(np.float64))[used], b.total(b.confidence)[used] / n


def mce_stderr(b: Binned) -> float:
    """sqrt(acc_b (1 - acc_b) / n_b) of the bin with the largest gap."""
    n, hits, conf = _bin_rates(b)
    i = int(np.argmax(np.abs(hits / n - conf)))
    p = hits[i] / n[i]
    return float(np.sqrt(p * (1 - p) / n[i]))


def mce_interval(b: Binned, level: float) -> Interval:
    """[max_b low_b, max_b high_b] from Clopper-Pearson bounds of acc_b: the largest gap of the occupied bins.

    The lower end needs all bins at once (Šidák 1967); the upper only the bin whose true gap is the largest,
    and only the side that this gap is on. One bin with a single item is enough for a high end near 1.
    """
    n, hits, conf = _bin_rates(b)
    tail = (1 - level) / 2
    joint = (1 - (1 - tail) ** (1 / len(n))) / 2
    low, high = clopper_pearson(hits, n, joint)
    floor = np.maximum(np.maximum(low - conf, conf - high), 0.0).max()
    low, high = clopper_pearson(hits, n, tail)
    ceiling = np.maximum(np.abs(low - conf), np.abs(high - conf)).max()
    return float(floor), float(min(ceiling, 1.0))
