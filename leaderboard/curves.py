"""The numbers behind the figures: answers of one run, bootstrap bands.

Pure functions of arrays and records; `charts` draws what they return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uqharness.metrics.averaging import combine_draws, softmax_draws
from uqharness.metrics.metric import Floats
from uqharness.metrics.points import confidence, correct, expected_entropy, mutual_information
from uqharness.results.record import Record


@dataclass(frozen=True)
class Answers:
    """Answers of one run: averaged, and per draw if the draws are available."""

    row: str
    probs: Floats  # [D, C], NaN beyond a question's own choices
    gold: np.ndarray  # [D]
    draws: Floats | None = None  # [S, D, C]


def answers(record: Record, row: str, draws: int | None = None) -> Answers:
    """Return the answers of the first `draws` draws (None: all; 0: the posterior's mean) by the record's own rule."""
    wanted = record.draws if draws is None else min(draws, record.draws)
    logp = record.rows(wanted)  # [n, D, C]
    apart = softmax_draws(logp) if record.combine != "given" and len(logp) > 1 else None
    return Answers(row, combine_draws(logp, record.combine), record.gold, apart)


def band(bins: Mapping[str, Sequence[Any]], replicates: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
    """2.5 % and 97.5 % of each bin's accuracy when questions are resampled; NaN in empty bins.

    Within a bin only right and wrong matter, so resampling D questions is one multinomial draw over 2 x bins cells.
    """
    count = np.asarray(bins["count"], dtype=np.float64)
    right = np.rint(np.array([0.0 if a is None else a for a in bins["accuracy"]]) * count)
    cells = np.concatenate([right, count - right]) / count.sum()
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.multinomial(int(count.sum()), cells, size=replicates)  # [R, 2 bins]
    hits, misses = drawn[:, : len(count)], drawn[:, len(count) :]
    total = hits + misses
    share = np.where(total > 0, hits / np.maximum(total, 1), np.nan)
    ends = np.full((2, len(count)), np.nan)
    always, sometimes = (total > 0).all(axis=0), (total > 0).any(axis=0)
    ends[:, always] = np.quantile(share[:, always], (0.025, 0.975), axis=0)
    ends[:, sometimes & ~always] = np.nanquantile(share[:, sometimes & ~always], (0.025, 0.975), axis=0)
    return ends[0], ends[1]


def sure_shares(result: Answers, bins: int = 20) -> tuple[Floats, Floats, Floats]:
    """Edges of confidence, and which share of all questions is between two of them: answered right, and wrong."""
    edges, right, sure = np.linspace(0, 1, bins + 1), correct(result.probs, result.gold), confidence(result.probs)
    ends = [np.histogram(np.minimum(sure[which], 1.0), edges)[0] / len(right) for which in (right, ~right)]
    return edges, ends[0], ends[1]


def decomposition(result: Answers, most: int = 600) -> dict[str, np.ndarray] | None:
    """Aleatoric and epistemic part and whether it was right, of at most `most` questions, evenly spaced."""
    if result.draws is None:
        return None
    places = np.unique(np.linspace(0, len(result.gold) - 1, min(most, len(result.gold))).astype(int))
    return {
        "aleatoric": expected_entropy(result.draws, normalised=True)[places],
        "epistemic": mutual_information(result.draws, normalised=True)[places],
        "right": correct(result.probs, result.gold)[places],
    }
