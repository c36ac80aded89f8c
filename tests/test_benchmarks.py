"""The benchmarks finish and print every row; what they measure is not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    for word in ("BLoB", "Me-LoRA", "KFAC fit, q,v,", "KFAC fit, q,v,head", "joint answers", "N = 10"):
        assert word in names, word


def test_the_gpu_benchmark_runs_anywhere(tmp_path: Path) -> None:
    words = ("--shape", "tiny", "--device", "cpu", "--times", "1", "--batch", "2")
    printed = run("benchmarks.gpu", *words, "--json", str(tmp_path / "lines.json"))
    lines = json.loads((tmp_path / "lines.json").read_text())
    assert len(lines) == 9 and all(f"| {line['what']} |" in printed for line in lines)
    assert all(line["seconds"] > 0 and line["peak_gib"] > 0 for line in lines)
