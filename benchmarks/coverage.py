"""Coverage and width of the 95 % intervals, bias of ECE plain and debiased: `python benchmarks/coverage.py`.

World: 4 choices, true probabilities q = softmax(2 z), z ~ N(0, I); the model says softmax(2 a z): a = 1 is
calibrated, a > 1 over-, a < 1 under-confident; "corner": calibrated but for confidences 0.6 … 0.8.
Truth: population values from 2 million questions with q known (mce: of the bins that the sample occupies).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from numpy.typing import NDArray

from uqharness.metrics import averaging, calibration, metric, points
from uqharness.metrics.metric import Answers
from uqharness.metrics.registry import METRICS

Array = NDArray[np.float64]
WORLDS = {"calibrated": 1.0, "mild": 1.3, "heavy": 3.0, "under": 0.7, "corner": -1.0}
# With the options of their bins.
BINNED = {"ece": (15,), "ece10": (10,), "ece_torchmetrics": (15, "torchmetrics"), "ece_debiased": (15,)}


def world(name: str, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """(model's probs [n, 4], true probs [n, 4])."""
    z = rng.normal(0.0, 2.0, (n, 4))
    a = WORLDS[name]
    p, q = (averaging.combine_draws(x[None], "given") for x in (abs(a) * z, z))
    if a < 0:  # between 0.6 and 0.8 the model is right only half as often as it says
        flip = np.isin(np.floor(p.max(axis=1) * 15), (9.0, 10.0, 11.0))
        q = np.where(flip[:, None], 0.5 * q + 0.125, q)
    return p, q


def sample(q: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """gold ~ q, [n]."""
    return np.minimum((q.cumsum(axis=1) < rng.random((len(q), 1))).sum(axis=1), q.shape[1] - 1)


def expected_gaps(b: calibration.Binned, chance: Array) -> Array:
    """theta_b with the true chance of being right in place of the outcome, [bins]."""
    return b.total(chance - b.confidence) / len(chance)


def truth(name: str, rng: np.random.Generator, n: int = 2_000_000) -> dict[str, float | Array]:
    """Population values of the metrics, from q instead of sampled answers."""
    p, q = world(name, n, rng)
    gold = sample(q, rng)
    answers = Answers.of(p, gold)
    chance = q[np.arange(n), points.predicted(p)]
    out: dict[str, float | Array] = {
        k: float(np.abs(expected_gaps(calibration.bins_of(answers, *options), chance)).sum())
        for k, options in BINNED.items()
    }
    b = calibration.bins_of(answers)
    out["mce"] = np.abs(expected_gaps(b, chance)) * n / np.maximum(b.counts, 1)
    out["acc"], out["entropy"] = float(chance.mean()), float(points.predictive_entropy(p).mean())
    logp = np.log(np.maximum(p, metric.PROB_FLOOR))
    out["nll"] = float(-(q * logp).sum(axis=1).mean())
    out["brier"] = float((p**2 - 2 * p * q + q).sum(axis=1).mean())
    out |= {name: float(METRICS[name].value(answers)) for name in ("auroc", "aurc")}
    return out


def measure(name: str, n: int, reps: int, true: dict[str, float | Array], rng: np.random.Generator) -> dict[str, Array]:
    """Per metric [coverage, truth below, truth above, mean width] of the 95 % interval over `reps`."""
    rows: dict[str, list[tuple[float, ...]]] = {k: [] for k in true}
    for _ in range(reps):
        p, q = world(name, n, rng)
        gold = sample(q, rng)
        answers = Answers.of(p, gold)
        occupied = calibration.bins_of(answers).counts > 0
        for key, value in true.items():
            target = float(np.max(value[occupied])) if isinstance(value, np.ndarray) else value
            low, high = METRICS[key].confidence_interval(answers)
            rows[key].append((low <= target <= high, target < low, target > high, high - low))
    return {k: np.nanmean(np.array(v, dtype=float), axis=0) for k, v in rows.items()}


def bias(name: str, n: int, reps: int, true: float, rng: np.random.Generator) -> tuple[float, float]:
    """Mean error of the plain and of the debiased ECE."""
    plain, debiased = [], []
    for _ in range(reps):
        p, q = world(name, n, rng)
        gold = sample(q, rng)
        b = calibration.bin_probs(p, gold)
        plain.append(float(calibration.ece(b)))
        debiased.append(float(calibration.ece_debiased(b)))
    return float(np.mean(plain)) - true, float(np.mean(debiased)) - true


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=1000)
    args = parser.parse_args()
    rng = np.random.Generator(np.random.Philox(1))
    warnings.simplefilter("ignore", RuntimeWarning)
    print("world       n     metric            truth  cover  below  above  width")
    for name in WORLDS:
        true = truth(name, rng)
        for n in (100, 300, 1000, 5000):
            for key, (cover, below, above, width) in measure(name, n, args.reps, true, rng).items():
                head = f"{name:10} {n:5}  {key:16} {np.max(true[key]):6.4f}"
                print(f"{head}  {cover:.3f}  {below:.3f}  {above:.3f}  {width:.4f}")
            one, two = bias(name, n, args.reps, float(np.max(true["ece"])), rng)
            print(f"{name:10} {n:5}  bias: ece {one:+.4f}, ece_debiased {two:+.4f}", flush=True)


if __name__ == "__main__":
    main()
