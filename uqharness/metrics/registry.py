"""All metrics by name, and their values from the answers of draws.

Built-ins and third parties register in the entry-point group `uqharness.metrics`: each
entry is a `Metric`, or a sequence of them. Knows nothing of models, tasks or files.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from uqharness import plugins
from uqharness.errors import InputError, did_you_mean
from uqharness.metrics.averaging import average, first_draws, first_in_orders
from uqharness.metrics.calibration import BINS, RULES, ece_metric
from uqharness.metrics.metric import Floats, Metric

AT_ONCE = 2**17  # numbers in an array: 1 MiB stays in the processor
log = logging.getLogger(__name__)

FIRST = ("acc", "nll", "ece", "brier")  # in lists, as in papers


class Metrics(dict[str, Metric]):
    """Metrics by name; `METRICS["ece:bins=20"]` is ECE with another option, which iteration does not list."""

    def __missing__(self, name: str) -> Metric:
        stem, *given = name.split(":")
        options = dict(option.partition("=")[::2] for option in given)
        bins, rule = options.pop("bins", str(BINS)), options.pop("rule", "right-closed")
        if stem != "ece" or not given:
            raise KeyError(name)
        if options or not bins.isdecimal() or not 1 <= int(bins) <= 1000 or rule not in RULES:
            raise InputError(
                f"cannot read {name!r}: ece takes bins=1 … 1000 and rule={' or '.join(RULES)}: ece:bins=20"
            )
        shown = ", ".join([f"{bins} bins", *([rule] if rule != "right-closed" else [])])
        return ece_metric(name, f"ECE ({shown})", f"ECE with {shown}.", int(bins), rule)


def installed() -> Metrics:
    """Return the metrics of all packages by name, built-ins first; log a warning for one that cannot be used."""
    metrics: dict[str, Metric] = {}
    for point in sorted(plugins.installed(plugins.METRICS).values(), key=lambda p: not plugins.built_in(p)):
        try:
            loaded = plugins.load(point)
            given = (loaded,) if isinstance(loaded, Metric) else tuple(loaded)
            if not all(isinstance(metric, Metric) for metric in given):
                raise TypeError("expected a Metric or a sequence of them")
        except (InputError, TypeError) as error:
            log.warning("%s is skipped: %s", plugins.describe(point), error)
            continue
        for metric in given:
            if metrics.setdefault(metric.name, metric) is not metric:
                log.warning("metric %s of %s is hidden by another of this name", metric.name, plugins.describe(point))
    return Metrics({name: metrics[name] for name in FIRST} | metrics)


METRICS = installed()


def find(name: str) -> Metric:
    """Return the metric of this name, with or without options; for an unknown name list the others."""
    try:
        return METRICS[name]
    except KeyError:
        known = ", ".join(METRICS)
        raise InputError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}; there are {known}") from None


def tested(name: str) -> Metric | None:
    """Return the metric whose paired test ranks this one, or None."""
    metric = find(name)
    if metric.compared_by is not None:
        return tested(metric.compared_by) if metric.compared_by else None
    return metric if metric.has_test else None


def compute_all(logp: ArrayLike, gold: ArrayLike, rule: str = "probs") -> dict[str, float]:
    """Every metric from the choices' log-likelihoods logp [S, D, C], with what sampling items alone does to it:
    `<name>_stderr`, or for ECE and MCE, which are biased, `<name>_low` and `_high` of a 95 % interval.

    NaN where a metric is undefined: what needs draws under rule "given", AUROC when every answer is right.
    """
    answers = average(logp, gold, rule)
    numbers: dict[str, float] = {}
    for name, metric in METRICS.items():
        numbers[name] = float(metric.value(answers))
        numbers |= {f"{name}_{end}": float(value) for end, value in metric.spread(answers).items()}
    return numbers


def every_n(
    logp: Floats, gold: ArrayLike, rule: str = "probs", has_mean: bool = True, names: Collection[str] | None = None
) -> tuple[list[int], dict[str, Floats]]:
    """Return the numbers of draws in logp [S + 1, D, C], 0 … S (1 … S without the mean's row), and each metric, [M]."""
    draws = len(logp) - 1
    if rule == "given" and draws > 1:
        raise InputError(f"{draws} draws under the rule 'given', which has one row; evaluate again")
    answers = average(logp if has_mean else logp[1:], gold, rule, first_draws(has_mean))
    values = {name: find(name).value(answers) for name in (METRICS if names is None else names)}
    return list(range(0 if has_mean else 1, draws + 1)), values


def in_orders(
    logp: Floats, gold: ArrayLike, rule: str, orders: Sequence[np.ndarray], names: Collection[str]
) -> dict[str, Floats]:
    """Return each metric of the first 1 … S draws logp [S, D, C] in each order, [O, S]."""
    at_once = max(AT_ONCE // logp.size, 1)
    parts = []
    for k in range(0, len(orders), at_once):
        answers = average(logp, gold, rule, first_in_orders(orders[k : k + at_once]))
        parts.append({name: find(name).value(answers) for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
