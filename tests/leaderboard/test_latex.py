"""LaTeX of tables and reproductions: what pdflatex sets, whatever names stand in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from made_results import result

from tests.leaderboard import test_reproduce
from uqharness.leaderboard import reproduce, reproduce_formats, table, table_formats
from uqharness.results.runs import read_runs
from uqharness.suite.schema import read, shipped

PAGE = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage[margin=1cm,paperwidth=60cm,paperheight=80cm]{geometry}
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def tables(tmp_path: Path) -> str:
    """Columns of a shift, and labels with every letter that has a command."""
    (tmp_path / "results").mkdir()
    labels = ["MLE", "".join(table_formats.TEX), "[x] \\input{y}", "*", "été – “λ”"]
    for k, label in enumerate(labels):
        result(tmp_path / "results", label, numbers=k, plain=False)
        result(tmp_path / "results", label, task="arc_challenge_uq", trained_on="arc_easy_uq", numbers=k)
    return table_formats.latex(table.build(read_runs([tmp_path / "results"]), ["acc", "ece", "nll"]))


def test_a_metric_is_named_once_and_a_long_head_stands_in_lines(tables: str) -> None:
    assert tables.count("ACC $\\uparrow$ &") == tables.count("NLL $\\downarrow$ &") == 1
    assert tables.count(r"\midrule") == 3
    assert r"\shortstack{arc\_challenge\_uq\\(trained on arc\_easy\_uq" in tables


@pytest.mark.full
def test_pdflatex_sets_every_layout(tables: str, tmp_path: Path) -> None:
    """Each suite's comparison without results, one with results and one of tested sentences, and a table."""
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed: apt-get install texlive-latex-base texlive-latex-recommended")
    suites = [suite for suite in map(read, shipped()) if suite.reproduces]
    reports = [reproduce.report(suite.title, suite.reproduces, [], []) for suite in suites]
    cells, claims = tmp_path / "cells", tmp_path / "claims"
    cells.mkdir(), claims.mkdir()
    for seed, right in enumerate((0.685, 0.69, 0.695)):
        test_reproduce.result(cells, "mle", "MLE", seed, right, 0.99)
    test_reproduce.laplace(claims, "map", 0.95, 0, 1000)
    test_reproduce.laplace(claims, "all", 0.75, 0, 1000)
    reports += [test_reproduce.make(cells), test_reproduce.make(claims, test_reproduce.FIGURE3)]
    texts = [tables, *map(reproduce_formats.latex, reports)]
    (tmp_path / "all.tex").write_text(PAGE % "\n\n\\clearpage\n".join(texts), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert b"Overfull" not in done.stdout
