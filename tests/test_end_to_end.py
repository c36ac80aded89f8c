"""As a user would: the commands, on real data and a real tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from uqharness.results.reading import read_results


def command(
    words: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, **(env or {})}
    return subprocess.run([sys.executable, "-m", *words], env=environment, cwd=cwd, text=True, capture_output=True)


def test_a_real_model_trains_and_evaluates_on_arc(
    offline_hub: dict[str, str], tiny_real_model: Path, tmp_path: Path
) -> None:
    base = ["--base", str(tiny_real_model), "--task", "arc_easy_cloze_uq", "--out", "blob", "--steps", "3"]
    small = ["--target-modules", "q_proj", "v_proj", "--device", "cpu"]
    trained = command(["uqharness", "train", "blob", *base, *small], offline_hub, tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "lm_eval --model bayeslora" in trained.stdout
    # " B" is one piece of this tokenizer and " A" are two: its letters are not on equal terms.
    letters = [*base, *small, "--task", "arc_easy_uq", "--out", "letters"]
    lettered = command(["uqharness", "train", "blob", *letters], offline_hub, tmp_path)
    assert lettered.returncode == 2 and "splits the answer letter 'A' into 2 tokens" in lettered.stderr
    asked = [
        "--model_args",
        "adapter=blob,samples=3",
        "--tasks",
        "arc_easy_cloze_uq",
        "--limit",
        "50",
        "--output_path",
        "results",
    ]
    evaluated = command(["uqharness", "eval", *asked, "--batch_size", "8"], offline_hub, tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    (run,) = read_results(tmp_path / "results")
    assert (run.record.items, run.record.draws, run.record.has_mean) == (50, 3, True)
    assert next((tmp_path / "results").iterdir()).name == "blob"
    assert run.config["uqharness"]["leaks"] == {}
    assert 0.0 < run.metrics()["acc"] < 0.7
