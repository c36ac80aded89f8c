"""Every metric for N = 0 (the posterior's mean), 1 … S draws of one record, all N at once.

The formulas are those of `metrics`, whose functions take one N at a time (the slow twin in the tests); here the mean
over the first N draws is a cumulative sum, and the N share each sort, logarithm and count.  M numbers of draws:
p [C, M, D] combined probabilities, 0 where a question has no such choice (choices first: sums over them are quick).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from uqharness.errors import InputError
from uqharness.metrics.calibration import BINS, bin_items_torchmetrics, binomial_mad, debias, sum_mad
from uqharness.metrics.registry import METRICS, PROB_FLOOR, Floats
from uqharness.results.reading import Record

Columns = dict[str, Floats]
AT_ONCE = 2**17  # numbers in an array: 1 MiB stays in the processor
PARTS = {"entropy", "entropy_norm", "mutual_information", "mutual_information_norm"}


def every_n(record: Record, metrics: Collection[str] = tuple(METRICS)) -> tuple[list[int], Columns]:
    """The numbers of draws there are, and each of these metrics for every one of them, [M]."""
    if record.combine == "given" and record.draws > 1:
        raise InputError(f"{record.draws} draws under the rule 'given', which has one row; evaluate again")
    log_p = log_softmax(record.logp if record.has_mean else record.logp[1:], record.choices)
    counts = list(range(0 if record.has_mean else 1, record.draws + 1))
    return counts, of_rows(record, [(log_p, np.exp(log_p))], record.has_mean, metrics)


def in_orders(record: Record, orders: Sequence[np.ndarray], metrics: Collection[str]) -> Columns:
    """Each of these metrics of the first 1 … S draws in each order, [O, S]."""
    log_p = log_softmax(record.logp[1:], record.choices)  # [C, S, D]
    rows = np.exp(log_p)
    once = max(AT_ONCE // log_p.size, 1)
    parts = []
    for k in range(0, len(orders), once):
        some = orders[k : k + once]
        # Only this rule reads the logarithms.
        mixed = [log_p[:, order] for order in some] if record.combine == "logits" else [log_p] * len(some)
        each = [(logs, rows[:, order]) for logs, order in zip(mixed, some, strict=True)]
        parts.append(of_rows(record, each, False, metrics))
    return {name: np.concatenate([part[name] for part in parts]).reshape(len(orders), -1) for name in metrics}


def log_softmax(logp: Floats, choices: np.ndarray) -> Floats:
    """[C, R, D] of [R, D, C], -inf where a question has no such choice."""
    log_p = np.ascontiguousarray(logp.transpose(2, 0, 1), dtype=np.float64)
    present = np.arange(len(log_p))[:, None, None] < choices  # [C, 1, D]
    log_p[~np.broadcast_to(present, log_p.shape)] = -np.inf
    log_p -= log_p.max(axis=0)
    log_p -= np.log(np.exp(log_p).sum(axis=0))
    return log_p


def of_rows(
    record: Record, ordered: Sequence[tuple[Floats, Floats]], has_mean: bool, metrics: Collection[str]
) -> Columns:
    """The metrics of the first draws of each of these log-probabilities and their exp [C, R, D], after each other."""
    mean = np.concatenate([first_n(rows, has_mean) for _, rows in ordered], axis=1)
    p = mean
    if record.combine == "logits":
        p = np.concatenate([logits_mean(log_p, has_mean) for log_p, _ in ordered], axis=1)
    out = of_answers(p, record.gold, metrics)
    if not PARTS.isdisjoint(metrics):
        entropy = entropies(p)  # [M, D]
        gain = np.full_like(entropy, np.nan)
        if record.combine != "given":
            of_means = np.split(entropy if p is mean else entropies(mean), len(ordered))
            gain = np.concatenate([information(r, h, has_mean) for (_, r), h in zip(ordered, of_means, strict=True)])
        log_choices = np.log(np.maximum(record.choices, 2))
        for name, values in (("entropy", entropy), ("mutual_information", gain)):
            out |= {name: values.mean(axis=1), f"{name}_norm": (values / log_choices).mean(axis=1)}
    if missing := set(metrics) - set(out):
        raise NotImplementedError(f"metrics without a fast form: {sorted(missing)}")
    return {name: out[name] for name in metrics}


def logits_mean(log_p: Floats, has_mean: bool) -> Floats:
    """softmax of the mean of the first log-probabilities, [C, M, D]."""
    present = ~np.isneginf(log_p).all(axis=1, keepdims=True)  # [C, 1, D]
    log_mean = np.where(present, first_n(np.where(present, log_p, 0.0), has_mean), -np.inf)
    p = np.exp(log_mean - log_mean.max(axis=0))
    return np.asarray(p / p.sum(axis=0))


def first_n(rows: Floats, has_mean: bool) -> Floats:
    """Means over the first 1 … S draws, [C, M, D] from [C, R, D]; the mean's own row stands before them.

    NaN where samples=auto took no draw: then these are means over that many at most.
    """
    out, start = rows.copy(), int(has_mean)
    taken = ~np.isnan(rows[0])  # [R, D]
    if not taken.all():
        out[:, ~taken] = 0.0
    for n in range(start + 1, rows.shape[1]):
        out[:, n] += out[:, n - 1]
    out[:, start:] /= np.cumsum(taken[start:], axis=0)
    return out


def entropies(p: Floats) -> Floats:
    """-sum_c p_c log p_c, [M, D] from [C, M, D]."""
    return np.asarray(np.maximum(-(p * np.log(np.maximum(p, PROB_FLOOR))).sum(axis=0), 0.0))


def information(rows: Floats, of_mean: Floats, has_mean: bool) -> Floats:
    """H[mean of N draws] - mean of their H, [M, D]; 0 where all draws say the same."""
    gain, start = of_mean - first_n(entropies(rows)[None], has_mean)[0], int(has_mean)
    alike = (rows[:, start:] == rows[:, start : start + 1]).all(axis=0) | np.isnan(rows[0, start:])
    same = np.logical_and.accumulate(alike)
    gain[start:][same] = 0.0
    gain[:start] = 0.0
    return np.maximum(gain, 0.0)


def of_answers(p: Floats, gold: np.ndarray, metrics: Collection[str]) -> Columns:
    """What depends on the combined probabilities alone, [M] each from [C, M, D]; what takes long only if asked for."""
    conf, answer = p[0].copy(), np.zeros(p.shape[1:], dtype=np.int64)  # [M, D]
    for c in range(1, len(p)):  # the first of equal ones stays
        np.copyto(answer, c, where=p[c] > conf)
        np.maximum(conf, p[c], out=conf)
    right, n = answer == gold, p.shape[2]
    p_gold = p[gold, :, np.arange(n)].T  # [M, D]
    out = {
        "acc": right.mean(axis=1),
        "nll": -np.log(np.maximum(p_gold, PROB_FLOOR)).mean(axis=1),
    }
    if "brier" in metrics:
        out["brier"] = ((p**2).sum(axis=0) - p_gold**2 + (p_gold - 1) ** 2).mean(axis=1)
    if "ece10" in metrics:
        out["ece10"] = np.abs(Bins.of(conf, right, 10).gaps).sum(axis=1)
    if "ece_torchmetrics" in metrics:
        out["ece_torchmetrics"] = torchmetrics(conf, right)
    bins = Bins.of(conf, right, BINS)
    size = bins.counts.clip(1)
    chance, gaps = np.clip(bins.conf / size, 0.0, 1.0), bins.gaps
    noise = binomial_mad(bins.counts, chance) / n, bins.counts * chance * (1 - chance) / n**2
    out["ece"] = np.abs(gaps).sum(axis=1)
    out["ece_debiased"] = np.clip(debias(gaps, *noise).sum(axis=1), 0.0, 1.0)
    out["ece_floor"] = sum_mad(bins.counts, bins.conf, bins.variance).sum(axis=1) / n
    out["mce"] = (np.abs(gaps) * n / size).max(axis=1)
    if not {"auroc", "aurc"}.isdisjoint(metrics):
        out["auroc"], out["aurc"] = by_confidence(conf, right)
    return out


@dataclass(frozen=True)
class Bins:
    """Sums over the items of each equal-width bin, [M, bins]; `gaps` are (right - conf) / D."""

    counts: Floats
    conf: Floats
    variance: Floats
    gaps: Floats

    @staticmethod
    def of(conf: Floats, right: np.ndarray, bins: int) -> Bins:
        m, n = conf.shape
        edges = np.linspace(0.0, 1.0, bins + 1)
        index = np.clip(np.searchsorted(edges, conf.ravel(), side="left") - 1, 0, bins - 1)
        index += np.repeat(np.arange(m) * bins, n)

        def total(values: Floats | None) -> Floats:
            found = np.bincount(index, None if values is None else values.ravel(), m * bins)
            return np.asarray(found.reshape(m, bins), dtype=np.float64)

        capped = np.minimum(conf, 1.0)
        gaps = total(right - conf) / n
        return Bins(total(None), total(capped), total(capped * (1 - capped)), gaps)


def torchmetrics(conf: Floats, right: np.ndarray) -> Floats:
    """`ece_torchmetrics`: float32 sums in the order of the items, and a bin of its own for confidence 1."""
    m, n = conf.shape
    low = np.minimum(conf.astype(np.float32), np.float32(1)).ravel()
    index = bin_items_torchmetrics(conf.ravel(), right.ravel()).index + np.repeat(np.arange(m) * (BINS + 1), n)
    sums = np.zeros((3, m * (BINS + 1)), dtype=np.float32)
    for row, values in zip(sums, (np.ones_like(low), low, right.ravel().astype(np.float32)), strict=True):
        np.add.at(row, index, values)
    count, total, hits = sums.reshape(3, m, BINS + 1)
    some = np.maximum(count, np.float32(1))
    gaps = np.abs(hits / some - total / some) * (count / count.sum(axis=1, keepdims=True))
    return np.asarray(gaps.sum(axis=1, dtype=np.float32), dtype=np.float64)


def by_confidence(conf: Floats, right: np.ndarray) -> tuple[Floats, Floats]:
    """(AUROC, AURC), [M] each, from one sort; equal confidences share their rank and their expected risk."""
    m, n = conf.shape
    order = np.argsort(-conf, axis=1, kind="stable")
    conf, right = np.take_along_axis(conf, order, 1), np.take_along_axis(right, order, 1)
    new = np.ones((m, n), dtype=bool)
    new[:, 1:] = conf[:, 1:] != conf[:, :-1]
    group = np.cumsum(new.ravel()) - 1  # groups of ties, counted through all rows
    size = np.bincount(group)
    before = np.cumsum(size) - size
    rank = (before + (size + 1) / 2)[group].reshape(m, n) - np.arange(m)[:, None] * n  # 1 the most confident
    risk = (np.bincount(group, ~right.ravel()) / size)[group].reshape(m, n).cumsum(axis=1) / np.arange(1, n + 1)
    hits = right.sum(axis=1)
    misses = n - hits
    wins = ((n + 1 - rank) * right).sum(axis=1) - hits * (hits + 1) / 2
    pairs = hits * misses
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan), risk.mean(axis=1)
