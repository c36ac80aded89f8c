"""The demo's plan: post-hoc methods build on the MLE cell of their seed, which comes first."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from uqharness import registry
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.commands import demo_report
from uqharness.commands.demo import Cell, add_arguments, divide, plan, train_cell
from uqharness.settings import Run, field_types

torch.set_num_threads(1)
SUITE = yaml.safe_load(files("uqharness.suites").joinpath("toyworld.yaml").read_text(encoding="utf-8"))


def cells(*flags: str) -> list[Cell]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan(parser.parse_args(flags), SUITE)


def test_all_is_every_installed_method_at_every_seed() -> None:
    found = cells("--all", "--seeds", "3")
    wanted = {f"{name}/seed{s}" for name in registry.methods() for s in range(3)} | {"oracle", "zero-shot"}
    assert {cell.name for cell in found} == wanted and len(found) == len(wanted)
    with_source = {cell.method for cell in found if cell.source}
    assert with_source == {name for name in registry.methods() if registry.get_method(name).uses_source}
    for method, settings in {**SUITE["methods"], **SUITE["others"]}.items():
        known = {**field_types(registry.get_method(method)), **field_types(Run)}
        assert set(settings) <= set(known), method


def test_no_cell_starts_before_its_source_is_done() -> None:
    left, running, done = cells("--all", "--seeds", "2"), [], set()
    while left or running:
        ready, left = divide(left, running)
        assert all(cell.source is None or cell.source in done for cell in ready)
        running += ready
        done.add(running.pop().name)  # any order
    assert {"laplace/seed1", "mle/seed0"} <= done
    assert all(cell.source is None for cell in cells("--methods", "laplace"))


def test_a_method_named_twice_is_one_cell() -> None:
    """Two would write the same folder at the same time."""
    found = [cell.name for cell in cells("--methods", "lap", "mle", "laplace", "mle")]
    assert sorted(found) == ["laplace/seed0", "mle/seed0", "oracle", "zero-shot"]


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
    told = [shlex.split(line) for line in lines if " uqharness " in line]
    assert [words[words.index("uqharness") + 2] for words in told[:2]] == ["my demo/results"] * 2


@pytest.mark.parametrize("there", [True, False])
def test_a_cell_is_trained_on_its_source_where_that_is_there(tmp_path: Path, there: bool) -> None:
    settings = {**SUITE["run"], "steps": 3}
    if there:
        train_cell(tmp_path, Cell("mle/seed1", "mle", 1, settings, None))
    scaled = train_cell(
        tmp_path, Cell("tempscale/seed1", "tempscale", 1, {**settings, "samples": 1}, None, "mle/seed1")
    )
    record = adapter_io.read_record(scaled)
    assert record is not None and bool(record["training"]) is not there
    if there:
        source = adapter_io.read_record(tmp_path / "adapters/mle/seed1")
        assert source is not None and record["recipe_hash"] == source["recipe_hash"]
        assert record["source"]["method"]["name"] == "mle" and record["run"]["seed"] == 1


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
    assert sent is signal.SIGKILL or said.splitlines()[-1] == "uqharness: terminated"
