"""The reliability diagram: well-formed SVG whose bars are the bins' numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np

from uqharness.metrics.calibration import reliability_bins
from uqharness.plots.svg import BAR, OVER, SIZE, Panel, reliability_svg

NS = "{http://www.w3.org/2000/svg}"


def test_bars_are_the_accuracies_of_the_bins() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), 400)
    gold = rng.integers(0, 4, 400)  # over-confident: labels have nothing to do with the answers
    bins = reliability_bins(probs, gold)
    root = ET.fromstring(reliability_svg([Panel("MLE", "ACC 1", bins)], "a caption"))
    heights = [float(r.get("height", 0)) for r in root.iter(f"{NS}rect") if r.get("fill") == BAR][:-1]
    wanted = [SIZE * a for a, n in zip(bins["accuracy"], bins["count"], strict=True) if n]
    np.testing.assert_allclose(heights, wanted, atol=0.06)
    assert any(r.get("fill") == OVER for r in root.iter(f"{NS}rect"))


def test_names_are_text_and_never_markup() -> None:
    bins = reliability_bins(np.array([[0.9, 0.1]]), np.array([0]))
    svg = reliability_svg([Panel("<script>alert(1)</script>", "&", bins)] * 5, "<b>", columns=4)
    assert "<script>" not in svg
    assert ET.fromstring(svg).tag == f"{NS}svg"
