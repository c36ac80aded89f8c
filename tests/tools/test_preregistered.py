"""The tests that real-small.prereg.md fixed before any run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.made_results import result
from tools import preregistered
from uqharness.results.reading import read_results


def test_the_interval_is_that_of_both_sources_of_chance() -> None:
    """Closed form of the bootstrap's variance; the third seed is the other two's mean, so that seeds add little."""
    generator = np.random.default_rng(1)
    difference = generator.normal(-0.2, 1.0, (3, 500)) + np.array([[-0.3], [0.3], [0.0]])
    mean, low, high, p = preregistered.compare(difference, resamples=4000)
    assert mean == pytest.approx(difference.mean())
    seeds, items = difference.shape
    between, within = difference.mean(1).var() / seeds, difference.mean(0).var() / items
    both = (difference - difference.mean(0) - difference.mean(1, keepdims=True) + mean).var() / (seeds * items)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(between + within + both), rel=0.08)
    assert p > 0.05 and low < 0 < high
    assert preregistered.compare(difference - 2, resamples=4000)[3] == pytest.approx(2 / 4001)


def test_verdicts() -> None:
    words = preregistered.verdict
    assert words(-0.2, -0.1, 0.01) == "better" and words(0.01, 0.2, 0.01) == "worse"
    assert words(-0.2, -0.1, 0.06) == "better, not after Holm's correction"
    assert words(-0.04, 0.05, 1) == "equivalent" and words(-0.06, 0.01, 1) == "cannot be told"


def test_rows_come_from_the_cells_and_few_seeds_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("mle", "MLE", 0), ("mle", "MLE", 1), ("blob", "BLoB", 0), ("blob", "BLoB", 1), ("ens", "ENS", 0)]
    losses: dict[str, list[float]] = {}
    (tmp_path / "cells").mkdir()
    for k, (row, label, seed) in enumerate(rows):
        folder = tmp_path / "results" / f"cell{k}"
        folder.mkdir(parents=True)
        path = result(folder, label, seed)
        cell = {"name": f"tiny/{row}/arc_easy_uq/seed{seed} on arc_easy_uq", "kind": "evaluate"}
        (tmp_path / "cells" / f"cell{k}.json").write_text(json.dumps(cell))
        losses.setdefault(row, []).append(read_results(path)[0].metrics()["nll"])
    preregistered.main([str(tmp_path), "--task", "arc_easy_uq", "--against", "mle", "--resamples", "200"])
    text = capsys.readouterr().out
    difference = np.mean(losses["blob"]) - np.mean(losses["mle"])
    assert f"| blob | 2 | {np.mean(losses['blob']):.3f} | {difference:+.3f} |" in text
    assert f"| ens | 1 | {losses['ens'][0]:.3f} | | | | not compared |" in text
    with pytest.raises(SystemExit, match="no finished cell of bbb"):
        preregistered.main([str(tmp_path), "--task", "arc_easy_uq", "--against", "bbb"])
