"""As a user would: the commands, on real data and a real tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from uqharness.results.reading import read_results


def command(
    words: list[str], env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
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
    argv = [
        "--model_args",
        "adapter=blob,samples=3",
        "--tasks",
        "arc_easy_cloze_uq",
        "--limit",
        "50",
        "--output_path",
        "results",
    ]
    evaluated = command(["uqharness", "eval", *argv, "--batch_size", "8"], offline_hub, tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    (run,) = read_results(tmp_path / "results")
    assert (run.record.items, run.record.draws, run.record.has_mean) == (50, 3, True)
    assert next((tmp_path / "results").iterdir()).name == "blob"
    assert run.config["uqharness"]["leaks"] == {}
    assert 0.0 < run.metrics()["acc"] < 0.7


BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("streamlit", "plotly"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_training_and_evaluation_run_without_streamlit_and_plotly(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    blocked = {"PYTHONPATH": str(tmp_path)}
    check = subprocess.run(
        [sys.executable, "-c", "import streamlit"], env={**os.environ, **blocked}, capture_output=True, text=True
    )
    assert check.returncode == 1 and "No module named 'streamlit'" in check.stderr
    train = [
        "uqharness",
        "train",
        "blob",
        "--base",
        "toyworld",
        "--task",
        "toyworld_uq",
        "--out",
        "blob",
        "--steps",
        "2",
    ]
    for words in (
        train,
        ["lm_eval", "--model", "bayeslora", "--model_args", "adapter=blob,samples=2", "--tasks", "toyworld_uq"]
        + ["--limit", "8", "--output_path", "results"],
        ["uqharness", "table", "results", "--samples", "0,2"],
    ):
        done = command(words, blocked, tmp_path)
        assert done.returncode == 0, done.stderr
    assert "BLoB" in done.stdout
