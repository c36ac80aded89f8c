"""The benchmarks finish and print every row; what they measure is not tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_quick_benchmark_prints_and_writes_every_row(tmp_path: Path) -> None:
    printed = run("benchmarks.run", "--quick", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(set(row) == {"row", "peer", "goal", "value", "low", "high", "holds"} for row in rows)
    assert all(f"| {row['row']} | {row['peer']} |" in printed and row["low"] <= row["value"] for row in rows)
    names = " ".join(row["row"] for row in rows)
    for word in (
        "BLoB",
        "Me-LoRA",
        "KFAC fit, q,v,",
        "KFAC fit, q,v,head",
        "joint answers",
        "N = 10",
        "`lm_eval --model hf,peft=`",
    ):
        assert word in names, word


def test_the_gpu_benchmark_runs_anywhere(tmp_path: Path) -> None:
    """As `benchmarks/gpu.sh` runs it on a card, on a tiny shape and a CPU."""
    out = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    words = "--shape tiny --device cpu --times 1 --batch 2 --steps 5 --limit 10".split()
    done = subprocess.run(["bash", "benchmarks/gpu.sh", *words], cwd=ROOT, env=out, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert not saved["failed"] and set(saved["seconds"]) == {"path", "precision", "speed", "4bit"}
    assert [len(saved[part]) for part in ("speed", "4bit")] == [9, 6]
    for line in [*saved["speed"], *saved["4bit"]]:
        assert f"| {line['what']} |" in done.stdout and line["seconds"] > 0 and line["peak_gib"] > 0
    # Rounding moves bf16, and 4 bit more; the draws themselves are the same.
    half, four, spread = (saved["precision"][name]["mean"] for name in ("bfloat16", "4bit", "float32"))
    assert 0 < half < four and half < 0.1 * spread
    assert saved["path"]["largest difference of a draw's log p to the CPU's"] == 0  # here both are the CPU


def test_a_part_of_the_gpu_benchmark_that_fails_stops_no_other(tmp_path: Path) -> None:
    words = ("--shape", "tiny", "--device", "cpu", "--base", str(tmp_path / "none"), "--json", str(tmp_path / "x.json"))
    flags = gpu.parser().parse_args([*words, "--seconds", "60"])
    report = gpu.Report(flags, torch.device("cpu"))
    done: list[str] = []

    def broken() -> None:
        raise RuntimeError("no kernel for this card")

    report.part("speed", broken)
    report.part("path", lambda: done.append("path"))
    report.start -= 61
    report.part("4bit", lambda: done.append("4bit"))
    saved = json.loads((tmp_path / "x.json").read_text())
    assert done == ["path"] and saved["failed"]["speed"] == "RuntimeError: no kernel for this card"
    assert saved["failed"]["4bit"] == "left out: begun after 60.0 s"


def test_without_real_weights_the_real_rows_are_skipped_with_the_reason(tmp_path: Path) -> None:
    environment = {**os.environ, "UQHARNESS_REAL_MODELS": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.run", "--only", "real"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "real: skipped: no real weights" in done.stdout and "0 of 0 goals" in done.stdout
