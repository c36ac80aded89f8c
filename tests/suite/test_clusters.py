"""Suites on a real Slurm of one node and a real local Ray: preempted, killed, and equal to the local numbers.

`.ci/full` runs what needs the packages submitit and ray; some of it also needs slurm-wlm, munge and root.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite.interrupted import (
    command,
    contents,
    has_slurm,
    in_training,
    kill_ray_worker,
    preempt,
    requeued,
    slurm_cluster,
    start,
    until,
)
from tests.suite.tiny_suite import make_world
from uqharness.cli import main
from uqharness.suite.clusters import SlurmOptions, sbatch_script, stages
from uqharness.suite.plan import make
from uqharness.suite.schema import read

LONG = ("--set", "steps=120", "save_every=20")
needs_submitit = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="submitit is not installed")
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("clusters"))


@pytest.fixture(scope="module")
def local(world: Path) -> Path:
    assert run(world, "local", "--jobs", "2").wait() == 0
    return world / "local"


def run(world: Path, out: str, *flags: str) -> subprocess.Popen[bytes]:
    return start(command(str(world / "tiny.yaml"), world / out, *LONG, *flags), world / f"{out}.log")


def test_groups_are_trainings_with_their_evaluations_in_stages(world: Path) -> None:
    made = make(read(world / "tiny.yaml"))
    kinds = [[[made.cells[name].kind for name in group] for group in stage] for stage in stages(made.cells)]
    trained = ["train", "evaluate", "evaluate"]
    assert sorted(kinds[0]) == [["evaluate"] * 2, trained, trained] and kinds[1] == [trained] * 2
    done_before = {name: cell for name, cell in made.cells.items() if cell.kind == "evaluate"}
    assert len(stages(done_before)) == 1 and stages({}) == []


@pytest.mark.full
@needs_submitit
def test_the_script_asks_for_what_the_flags_say() -> None:
    options = SlurmOptions("low", "me", 30, "gpu:1", 4)
    text = sbatch_script(options, 7, Path("out"))
    for line in ("partition=low", "account=me", "time=30", "gres=gpu:1", "array=0-6%4", "requeue"):
        assert f"#SBATCH --{line}" in text, text


@pytest.mark.parametrize("runner, package", [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_refused_before_anything_runs(
    runner: str, package: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    words = ["suite", "run", str(world / "tiny.yaml"), "--out", str(tmp_path), "--on", runner]
    for flags in ([], ["--dry-run"] * (runner == "slurm")):
        assert main([*words, *flags]) == 2
        assert f"--on {runner} needs {package}: pip install uqharness[{runner}]" in capsys.readouterr().err


@pytest.mark.full
@needs_submitit
def test_a_controller_that_is_not_there_is_refused_before_anything_runs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["suite", "run", str(world / "tiny.yaml"), "--out", str(tmp_path / "out"), "--on", "slurm"]
    assert main(command) == 2
    assert "the controller does not answer: slurm_load_partitions: Unable to contact" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(command) == 2
    assert "sbatch is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapters").exists()


@pytest.mark.full
@needs_ray
def test_an_address_that_does_not_answer_is_refused_before_anything_runs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["suite", "run", str(world / "tiny.yaml"), "--out", str(tmp_path), "--on", "ray"]
    for address in ("127.0.0.1:9", "nowhere"):
        assert main([*command, "--address", address]) == 2
        assert f"no cluster answers at {address}" in capsys.readouterr().err
    assert not (tmp_path / "adapters").exists()


@pytest.mark.full
@needs_ray
def test_a_local_ray_that_does_not_start_is_said_in_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    assert main(["suite", "run", str(world / "tiny.yaml"), "--out", str(tmp_path), "--on", "ray"]) == 2
    assert "no cluster answers at this machine: The current node timed out" in capsys.readouterr().err


@pytest.mark.full
@needs_submitit
def test_slurm_with_a_preempted_job_gives_the_local_numbers(world: Path, local: Path) -> None:
    if not has_slurm():
        pytest.skip("needs root, slurm-wlm and munge: apt-get install slurm-wlm munge")
    with slurm_cluster(world / "cluster"):
        process = run(world, "slurm", "--on", "slurm", "--partition", "low", "--time", "30")
        until(lambda: in_training(world / "slurm"), process)
        preempt(process)
        assert process.wait(timeout=3600) == 0
    assert requeued(world / "slurm")
    assert contents(world / "slurm") == contents(local)


@pytest.mark.full
@needs_ray
def test_ray_with_a_killed_worker_gives_the_local_numbers(world: Path, local: Path) -> None:
    process = run(world, "ray", "--on", "ray", "--jobs", "2")
    until(lambda: in_training(world / "ray"), process)
    kill_ray_worker(process)
    assert process.wait(timeout=3600) == 0
    assert contents(world / "ray") == contents(local)
