"""The simulation of ECE estimators: its estimators are those of the metrics, smECE is a slow quadrature's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ece_estimators
from uqharness.metrics.calibration import bin_probs, ece, ece_debiased

ROOT = Path(__file__).parents[2]


def test_the_simulation_of_ece_estimators_prints_every_table() -> None:
    words = [sys.executable, "-m", "benchmarks.ece_estimators", "--times", "2", "--sizes", "100"]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for estimator in ece_estimators.ESTIMATORS:
        assert f"| {estimator} |" in printed
    assert "| 2 | alike | 100 |" in printed and "| 4 | mixed | 100 |" in printed and "nan" not in printed


@pytest.mark.parametrize("n", [100, 3000])
def test_the_simulated_estimators_are_those_of_the_metrics(n: int) -> None:
    rng = np.random.default_rng(n)
    sure = 0.5 + 0.5 * rng.random(n)
    right = rng.random(n) < sure - 0.1
    probs, gold = np.stack([sure, 1 - sure], axis=1), (~right).astype(int)
    weights = np.ones((1, n), np.float32)
    estimate, slope = ece_estimators.estimates(sure, right.astype(float), weights)
    binned = bin_probs(probs, gold)
    assert estimate[0, :2] == pytest.approx([float(ece(binned)), float(ece_debiased(binned, clip=False))], abs=1e-6)
    assert estimate[1] == pytest.approx(estimate[0])
    # The derivative by a question's weight, with the noise of the bins held, as resampling does.
    step = 1e-3 / n
    moved, _ = ece_estimators.estimates(sure, right.astype(float), 1 + 1e3 * step * (np.arange(n) == 7)[None])
    assert (moved[1, 1] - moved[0, 1]) / step / 1e3 * n == pytest.approx(slope[7], rel=0.05, abs=1e-3)


def test_smooth_ece_is_the_fixed_point_of_a_reflected_gaussian_kernel() -> None:
    rng = np.random.default_rng(0)
    sure = 0.25 + 0.75 * rng.beta(2, 0.6, 400)
    right = (rng.random(400) < sure * 0.85).astype(float)
    cells = ece_estimators.sums(sure, right, np.ones((1, 400), np.float32)).sum(axis=1)
    value = ece_estimators.smooth(cells, steps=30)[0]
    grid = (np.arange(4000) + 0.5) / 4000

    def kernel(centre: float) -> np.ndarray:
        images = [2 * k + sign * centre for k in (-1, 0, 1) for sign in (-1, 1)]
        return sum(np.exp(-(((grid - image) / value) ** 2) / 2) for image in images) / (value * np.sqrt(2 * np.pi))

    smoothed = sum((y - c) * kernel(c) for c, y in zip(sure, right, strict=True)) / 400
    assert np.abs(smoothed).mean() == pytest.approx(value, rel=0.02)
