"""`uqharness plot`: files of every kind, and refusals that leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made_results import result
from uqharness.cli import main

HEADS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "html": b"<!doctype html>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for method, draws in (("MLE", 1), ("BLoB", 4), ("_<script>$\\frac$", 2)):
        result(folder, method, 0, "arc_easy_uq", draws, finite=1 if draws == 1 else None)
    return folder


@pytest.mark.parametrize("suffix", HEADS)
def test_every_file_type_is_written_the_same_twice(suffix: str, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        assert main(["plot", "draws", str(folder), "--metric", "nll", "--out", str(file)]) == 0
    first, second = (file.read_bytes() for file in files)
    assert first == second and first.startswith(HEADS[suffix]) and len(os.listdir(tmp_path)) == 2
    if suffix == "html":
        assert b"<svg" in first and b"<script" not in first and b"BLoB" in first
        assert b"_&lt;script&gt;$\\frac$" in first  # as text


@pytest.mark.parametrize("kind", ["reliability", "risk-coverage", "tradeoff", "std-growth"])
def test_kinds_are_drawn(kind: str, folder: Path, tmp_path: Path) -> None:
    given = [] if kind == "std-growth" else [str(folder)]
    assert main(["plot", kind, *given, "--out", str(tmp_path / "fig.svg")]) == 0
    text = (tmp_path / "fig.svg").read_text()
    assert ("5,000 steps" if kind == "std-growth" else "BLoB") in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reliabilty", "R"], "did you mean reliability?"),
        (["draws"], "draws is made of results: name at least one folder"),
        (["std-growth", "R"], "takes no results"),
        (["cost", "R"], "`uqharness train` writes it into the adapter"),
        (["steps", "R"], "--stop-at STEP"),
        (["predictive", "R"], "--set predictive=NAME"),
        (["draws", "R", "--metric", "nlll"], "did you mean nll?"),
        (["draws", "R", "--samples", "3"], "draws takes none"),
        (["tradeoff", "R", "--samples", "x"], "give integers from 0"),
        (["tradeoff", "R", "--metric", "acc"], "--metric is for"),
        (["draws", "R", "--method", "BLoP"], "did you mean BLoB?"),
        (["draws", "R", "--task", "arc"], "these results hold arc_easy_uq"),
        (["draws", "nowhere"], "does not exist"),
        (["std-layers", "R"], "uq_config.json"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    words: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder) if word == "R" else word for word in words]
    assert main(["plot", *given, "--out", str(tmp_path / "fig.png")]) == 2
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 1 and not out and not list(tmp_path.iterdir())


def test_out_must_be_a_figure(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "draws", str(folder), "--out", str(tmp_path / "fig.jpg")]) == 2
    assert ".png, .pdf, .svg or .html" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from uqharness.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["plot", "std-growth", "--out", str(tmp_path / "fig.png")]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 2 and "pip install uqharness[plot]" in ended.stderr and not list(tmp_path.iterdir())
