"""The numbers in docs/toyworld.md are those of docs/data/toyworld.json, and those say what was run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from uqharness import demo

ROOT = Path(demo.__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "toyworld.json"
if not DATA.exists():
    pytest.skip("documentation is in a checkout only", allow_module_level=True)
SCALES = {"acc": 100, "ece": 100, "nll": 1}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int, str], dict]:
    return {(r["row"], r["draws"], r["task"]): r for r in json.loads(DATA.read_text(encoding="utf-8"))}


def tables() -> dict[str, list[list[str]]]:
    """{header line: rows of cells, without header and rule} of every table of the page."""
    text = (ROOT / "docs" / "toyworld.md").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.M)]
    return {b[0]: [[c.strip() for c in line.strip("|").split("|")] for line in b[2:]] for b in blocks}


def expected(row: dict, world: str | None) -> str:
    keep = [world in (None, w) for w in row["world"]]
    parts = []
    for metric, scale in SCALES.items():
        values, digits = scale * np.array(row[metric])[keep], 1 if scale == 100 else 3
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        parts.append(f"{values.mean():.{digits}f}{spread}")
    return " / ".join(parts)


@pytest.mark.parametrize("by_world", [False, True])
def test_every_number_of_the_tables(rows, by_world: bool) -> None:
    start = "| toyworld_uq | N | " if by_world else "| | N | "
    header, body = next((h, b) for h, b in tables().items() if h.startswith(start))
    columns = re.findall(r"(\w+) ACC / ECE / NLL", header)
    assert len(columns) == 3 and len(body) == len({key[:2] for key in rows})
    for name, draws, *cells in body:
        for column, cell in zip(columns, cells, strict=True):
            task, world = ("toyworld_uq", column) if by_world else (column, None)
            assert cell == expected(rows[name, int(draws), task], world), (name, draws, column)


def test_every_method_has_all_worlds_and_seeds(rows) -> None:
    suite = yaml.safe_load((ROOT / "uqharness" / "suites" / "toyworld.yaml").read_text(encoding="utf-8"))
    assert {*suite["methods"], "bbb", "tempscale", "mle-tuned", *demo.REFERENCES} == {key[0] for key in rows}
    assert {key[2] for key in rows} == set(demo.TASKS)
    for (name, _, _), row in rows.items():
        seeds = (0,) if name in demo.REFERENCES else (0, 1, 2)
        told = sorted(zip(row["world"], row["seed"], strict=True))
        assert told == [(f"w{world}", seed) for world in (1, 2, 3) for seed in seeds]
        assert all(len(row[metric]) == len(told) for metric in (*SCALES, "ece_floor", "brier", "auroc"))
    assert DATA.stat().st_size < 100_000


@pytest.mark.parametrize("kept", [None, ("mle", "oracle", "zero-shot")])
def test_the_report_is_printed_again_also_of_some_methods(rows, tmp_path: Path, kept: tuple[str, ...] | None) -> None:
    chosen = [row for (name, _, _), row in rows.items() if kept is None or name in kept]
    (tmp_path / "report.json").write_text(json.dumps(chosen))
    command = [sys.executable, "-m", "benchmarks.toyworld_report", "--show", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "toyworld.md").read_text(encoding="utf-8").splitlines()
    first = [line for line in done.stdout.split("\n\n")[0].splitlines() if line.startswith("| ")]
    verdicts = [line for line in done.stdout.splitlines() if "met: " in line or "met**: " in line]
    assert len(first) > 3 and set(first + verdicts) <= set(page)
    assert len(verdicts) == (0 if kept else 9)
    assert ("cannot be judged without blob, N = 10; ens, N = 3." in done.stdout) is bool(kept)


def test_no_method_beats_the_oracle(rows) -> None:
    for (name, draws, task), row in rows.items():
        assert np.mean(row["nll"]) >= np.mean(rows["oracle", 1, task]["nll"]), (name, draws, task)
