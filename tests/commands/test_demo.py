"""The demo is a suite: which rows it has, what it refuses, and that its workers end with it."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uqharness import registry
from uqharness.cli import main
from uqharness.commands import demo, demo_report
from uqharness.suite.plan import Plan


def planned(*flags: str) -> Plan:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.planned(parser.parse_args(flags))


def test_all_is_every_installed_method_at_every_seed() -> None:
    made = planned("--all", "--seeds", "3")
    wanted = {(name, s) for name in registry.methods() for s in range(3)} | {("oracle", None), ("zero-shot", None)}
    assert {(entry.method, entry.seed) for entry in made.entries} == wanted
    with_source = {cell.spec["method"] for cell in made.cells.values() if cell.kind == "train" and cell.source}
    assert with_source == {name for name in registry.methods() if registry.get_method(name).uses_source}


def test_the_rows_are_the_papers_unless_others_are_asked_for() -> None:
    made = planned()
    assert {entry.method for entry in made.entries} == {*demo.REFERENCES, *demo.PAPERS}
    assert {cell.spec["limit"] for cell in made.cells.values() if cell.kind == "evaluate"} == {1500}
    quick = planned("--quick", "--limit", "0")
    assert {entry.method for entry in quick.entries} == {*demo.REFERENCES, "mle", "blob"}
    assert {cell.spec["run"]["steps"] for cell in quick.cells.values() if cell.kind == "train"} == {300}
    assert {cell.spec["limit"] for cell in quick.cells.values() if cell.kind == "evaluate"} == {None}
    alone = planned("--methods", "laplace")
    assert all(cell.source is None for cell in alone.cells.values() if cell.kind == "train")


def test_a_method_named_twice_is_one_row() -> None:
    made = planned("--methods", "lap", "mle", "laplace", "mle")
    assert sorted({entry.method for entry in made.entries}) == ["laplace", "mle", "oracle", "zero-shot"]


@pytest.mark.parametrize("flag, value", [("--seeds", "0"), ("--workers", "0"), ("--limit", "-1"), ("--out", "file")])
def test_bad_numbers_and_places_are_refused_before_anything_runs(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["demo", flag, value]) == 2
    assert capsys.readouterr().err.startswith(f"uqharness: {flag} {value}: ") and not Path("demo").exists()


def test_the_commands_that_the_demo_ends_with_can_be_pasted() -> None:
    lines = demo_report._next(Path("my demo"), []).splitlines()
    commands = [shlex.split(line) for line in lines if " uqharness " in line]
    assert [words[words.index("uqharness") + 2] for words in commands[:2]] == ["my demo/results"] * 2


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are read from /proc")
@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_workers_end_when_the_demo_is_killed(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uqharness", "demo", "--out", str(tmp_path / "demo"), "--methods", "mle"]
    with subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.PIPE, text=True) as process:
        try:
            while not list(tmp_path.glob("demo/logs/*.txt")) and process.poll() is None:
                time.sleep(0.05)  # until a worker has begun its cell
            workers = children(process.pid)
            assert workers and all(map(runs, workers))
            process.send_signal(sent)
            said = process.communicate(timeout=30)[1]
            assert process.returncode == code, said
            limit = time.monotonic() + 20
            while (left := list(filter(runs, workers))) and time.monotonic() < limit:
                time.sleep(0.05)
        finally:
            process.kill()
            for pid in filter(runs, workers):
                os.kill(pid, signal.SIGKILL)
    assert not left
    assert sent is signal.SIGKILL or said.splitlines()[-1].startswith("uqharness: terminated; finished cells stay in")
