"""Suites on a real Slurm of one node and a real local Ray: preempted, killed, and equal to the local numbers.

`.ci/full` runs the long ones: they need slurm-wlm, munge and root, and the packages submitit and ray.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.suite.tiny_suite import make_world, records
from uqharness.cli import main
from uqharness.suite.clusters import SlurmOptions, sbatch_script, stages
from uqharness.suite.plan import make
from uqharness.suite.schema import read

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A controller and a daemon of this machine, in SLURM_CONF."""
    if not (shutil.which("slurmctld") and shutil.which("munged") and os.geteuid() == 0):
        pytest.skip("needs root, slurm-wlm and munge: apt-get install slurm-wlm munge")
    folder, script = tmp_path_factory.mktemp("slurm"), str(ROOT / "scripts" / "one-node-slurm.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UQHARNESS_SLURM_PORT", "17817")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        subprocess.run([script, "start", str(folder)], check=True)
        yield
        subprocess.run([script, "stop", str(folder)], check=True)


def run(world: Path, out: str, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uqharness", "suite", "run", str(world / "tiny.yaml"), "--out", str(world / out)]
    return subprocess.Popen([*command, *LONG, *flags], cwd=ROOT)


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.1)


def in_training(out: Path) -> bool:
    return bool(list(out.glob("adapters/*.checkpoints/checkpoint-*")))


def test_groups_are_trainings_with_their_evaluations_in_stages(world: Path) -> None:
    made = make(read(world / "tiny.yaml"))
    found = [[[made.cells[name].kind for name in group] for group in stage] for stage in stages(made.cells)]
    trained = ["train", "evaluate", "evaluate"]
    assert sorted(found[0]) == [["evaluate"] * 2, trained, trained] and found[1] == [trained] * 2
    done_before = {name: cell for name, cell in made.cells.items() if cell.kind == "evaluate"}
    assert len(stages(done_before)) == 1 and stages({}) == []


@needs_submitit
def test_the_script_asks_for_what_the_flags_say() -> None:
    options = SlurmOptions("low", "me", 30, "gpu:1", 4)
    text = sbatch_script(options, 7, Path("out"))
    for line in ("partition=low", "account=me", "time=30", "gres=gpu:1", "array=0-6%4", "requeue"):
        assert f"#SBATCH --{line}" in text, text


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
@needs_submitit
def test_slurm_with_a_preempted_job_gives_the_local_numbers(world: Path, local: Path, slurm: None) -> None:
    with run(world, "slurm", "--on", "slurm", "--partition", "low", "--time", "30") as process:
        until(lambda: in_training(world / "slurm"))
        subprocess.run(["sbatch", "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 3"], check=True)
        until(lambda: b"RUNNING high" in states())
        assert process.wait(timeout=900) == 0
    logs = [path.read_text() for path in (world / "slurm" / "slurm").glob("*_log.out")]
    assert any(text.count("Starting with JobEnvironment") > 1 for text in logs)  # requeued and started again
    assert records(world / "slurm") == records(local)


def states() -> bytes:
    return subprocess.run(["squeue", "-h", "-o", "%T %P"], capture_output=True, check=True).stdout


@pytest.mark.full
@needs_ray
def test_ray_with_a_killed_worker_gives_the_local_numbers(world: Path, local: Path) -> None:
    with run(world, "ray", "--on", "ray", "--jobs", "2") as process:
        until(lambda: in_training(world / "ray"))
        workers = subprocess.run(["pgrep", "-f", "ray::_ray_task", "-P", str(raylet(process.pid))], capture_output=True)
        pids = [int(word) for word in workers.stdout.split()]
        assert pids
        os.kill(pids[0], signal.SIGKILL)
        assert process.wait(timeout=900) == 0
    assert records(world / "ray") == records(local)


def raylet(pid: int) -> int:
    """The process of Ray that starts the workers of this driver."""
    found = subprocess.run(["pgrep", "-f", "raylet/raylet", "-P", str(pid)], capture_output=True, check=True)
    return int(found.stdout.split()[0])
