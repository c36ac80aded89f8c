"""Every metric by name: fn(probs [D, C], gold [D]), or fn(draw_probs [S, D, C], gold) if `needs_draws`.

The one door to the metrics: point metrics live in `scores`, binned ones in `calibration`, and `intervals`.
Knows nothing of models, tasks or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from uqharness.errors import InputError
from uqharness.metrics.calibration import (
    BINS,
    bin_probs,
    classwise_ece,
    debias,
    ece,
    ece_debiased,
    ece_floor,
    ece_floor_mean,
    ece_torchmetrics,
    gap_noise,
    mce,
    reliability_bins,
)
from uqharness.metrics.intervals import BINNED_NAMES, NAMES, interval, stderr
from uqharness.metrics.points import (
    PROB_FLOOR,
    Floats,
    accuracy,
    accuracy_at_coverage,
    aurc,
    auroc_confidence,
    brier,
    brier_items,
    combine_draws,
    confidence,
    correct,
    expected_entropy,
    mutual_information,
    nll,
    nll_items,
    ood_auroc,
    pad,
    predicted,
    predictive_entropy,
    risk_at_coverage,
    risk_curve,
    softmax_draws,
)

__all__ = [
    "BINNED_NAMES",
    "BINS",
    "METRICS",
    "NAMES",
    "PROB_FLOOR",
    "Floats",
    "Metric",
    "accuracy",
    "accuracy_at_coverage",
    "aurc",
    "auroc_confidence",
    "bin_probs",
    "brier",
    "brier_items",
    "classwise_ece",
    "combine_draws",
    "compute_all",
    "confidence",
    "correct",
    "debias",
    "ece",
    "ece_debiased",
    "ece_floor",
    "ece_floor_mean",
    "ece_torchmetrics",
    "expected_entropy",
    "gap_noise",
    "interval",
    "mce",
    "mutual_information",
    "nll",
    "nll_items",
    "ood_auroc",
    "pad",
    "predicted",
    "predictive_entropy",
    "reliability_bins",
    "risk_at_coverage",
    "risk_curve",
    "softmax_draws",
    "stderr",
]

Value = Callable[[ArrayLike, ArrayLike], float]
Items = Callable[[ArrayLike, ArrayLike], Floats]


@dataclass(frozen=True)
class Metric:
    """One metric; tables print fn(...) * scale with `decimals`. `higher_is_better` None: neither."""

    name: str
    label: str
    fn: Value
    higher_is_better: bool | None
    per_item: Items | None = None
    needs_draws: bool = False
    decimals: int = 2
    scale: float = 1.0


def _mean(items: Items) -> Value:
    return lambda probs, gold: float(items(probs, gold).mean())


def _acc_items(probs: ArrayLike, gold: ArrayLike) -> Floats:
    return correct(probs, gold).astype(np.float64)


def _entropy(normalised: bool) -> Items:
    return lambda probs, gold: predictive_entropy(probs, normalised)


def _information(normalised: bool) -> Items:
    return lambda draw_probs, gold: mutual_information(draw_probs, normalised)


def _spread(name: str, label: str, items: Items, needs_draws: bool) -> Metric:
    return Metric(name, label, _mean(items), None, items, needs_draws, decimals=3)


_ALL = (
    Metric("acc", "ACC", accuracy, True, _acc_items, scale=100),
    Metric("nll", "NLL", nll, False, nll_items),
    Metric("ece", "ECE", ece, False, scale=100),
    Metric("brier", "Brier", brier, False, brier_items, decimals=3),
    Metric("ece10", "ECE (10 bins)", lambda probs, gold: ece(probs, gold, 10), False, scale=100),
    Metric("ece_torchmetrics", "ECE (torchmetrics)", ece_torchmetrics, False, scale=100),
    Metric("ece_debiased", "ECE (debiased)", ece_debiased, False, scale=100),
    Metric("ece_floor", "ECE floor", lambda probs, gold: ece_floor_mean(probs), None, scale=100),
    Metric("mce", "MCE", mce, False, scale=100),
    Metric("auroc", "AUROC", auroc_confidence, True, scale=100),
    Metric("aurc", "AURC", aurc, False, scale=100),
    _spread("entropy", "Entropy", _entropy(False), False),
    _spread("entropy_norm", "Entropy / log C", _entropy(True), False),
    _spread("mutual_information", "Mutual information", _information(False), True),
    _spread("mutual_information_norm", "Mutual information / log C", _information(True), True),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def compute_all(logp: ArrayLike, gold: ArrayLike, rule: str = "probs") -> dict[str, float]:
    """Every metric from the choices' log-likelihoods logp [S, D, C], with what sampling items alone does to it:
    `<name>_stderr`, or for ECE and MCE, which are biased, `<name>_low` and `_high` of a 95 % interval.

    NaN where a metric is undefined: what needs draws under rule "given", AUROC when every answer is right.
    """
    x = np.asarray(logp, dtype=np.float64)
    if x.ndim != 3:
        raise InputError(f"logp must be [S, D, C], found shape {x.shape}; add a leading axis for one draw")
    probs = combine_draws(x, rule)
    draws = None if rule == "given" else softmax_draws(x)
    out: dict[str, float] = {}
    for name, metric in METRICS.items():
        missing = metric.needs_draws and draws is None
        if name == "ece_floor":
            floor = ece_floor(probs)
            out |= {"ece_floor": floor["mean"], "ece_floor_q95": floor["q95"]}
            continue
        values = draws if metric.needs_draws and draws is not None else probs
        out[name] = float("nan") if missing else metric.fn(values, gold)
        if name in BINNED_NAMES:
            out[f"{name}_low"], out[f"{name}_high"] = interval(name, probs, gold)
        elif name in NAMES:
            out[f"{name}_stderr"] = float("nan") if missing else stderr(name, probs, gold, draws)
    return out
