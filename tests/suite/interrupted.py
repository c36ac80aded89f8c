"""Run a suite without interruption, killed, on Slurm and on Ray, and compare all answers and adapters byte for byte.

    python -m tests.suite.interrupted toyworld --out DIR
    python -m tests.suite.interrupted toyworld --out DIR --set steps=100 limit=60 --runs whole killed slurm ray

    whole    one worker, never interrupted
    killed   one worker; at each of KILLS the command and its worker get SIGKILL and the command is repeated: at least
             twice in each of training, checkpoint, fit, evaluation and write
    slurm    a Slurm of this machine (scripts/one-node-slurm.sh; root); jobs are preempted and requeued
    ray      a local Ray of two workers; one is killed in the middle of a cell

Prints a line for each kill and each run. Exit code 1: a run ended badly, a kill point was not reached, or bytes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.suite.dying import POINTS, kill_at, kill_group

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PENDING = "UQHARNESS_TEST_KILLS"  # the file with the kills to come, for the workers of a run
# What is interrupted: how many calls of the function (dying.POINTS) in one process come before each kill.
COUNTS = {"training": (30, 333), "checkpoint": (3, 40), "checkpoint's rename": (1, 9), "fit": (0, 0), "adapter": (0, 5),
          "evaluation": (1, 25), "results": (0, 9), "marker": (0, 7)}  # fmt: skip
KILLS = [[name, POINTS[name][0], count] for name, counts in COUNTS.items() for count in counts]
KILLS += [["fit", "uqharness.adapters.tempscale:best_temperature", 0], ["fit", "uqharness.adapters.tfb:TFB.search", 0]]


def command(suite: str, out: Path, *flags: str, module: str = "uqharness") -> list[str]:
    return [sys.executable, "-m", module, "suite", "run", suite, "--out", str(out), *flags]


def start(words: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command as the leader of its own group, with its output in a file."""
    with open(log, "ab") as file:
        kwargs = {"stdout": file, "stderr": file, "start_new_session": True, "cwd": ROOT}
        return subprocess.Popen(words, env={**os.environ, **environment}, **kwargs)  # type: ignore[call-overload]


def until(condition: Callable[[], T], process: subprocess.Popen[bytes], seconds: float = 900) -> T:
    """Wait for a true value of the condition while the run goes on; return it."""
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.1)
    return value


def in_training(out: Path) -> bool:
    return bool(list(out.glob("adapters/*.checkpoints/checkpoint-*")))


# -------------------------------------------------------------------- the runs


def whole(suite: str, out: Path, flags: list[str]) -> None:
    assert start(command(suite, out, *flags, "--jobs", "1"), out.with_suffix(".log")).wait() == 0


def killed(suite: str, out: Path, flags: list[str]) -> None:
    """Kill the command whenever it reaches a point of KILLS, start it again, and let it end when none is left."""
    words, log = command(suite, out, *flags, "--jobs", "1", module="tests.suite.interrupted"), out.with_suffix(".log")
    pending = out.with_suffix(".kills")
    if not pending.exists():
        pending.write_text(json.dumps(KILLS))
    while (code := start(words, log, **{PENDING: str(pending)}).wait()) == -signal.SIGKILL:
        print(f"killed; {done(out)} cells done; {len(json.loads(pending.read_text()))} kills left", flush=True)
    assert code == 0, f"exit code {code}"
    assert not (left := json.loads(pending.read_text())), f"not reached: {left}"


def await_kills(pending: Path) -> None:
    """From now on, kill this process and the command that started it at the first kill of each function to come."""
    kills = json.loads(pending.read_text())

    def kill(own: list[object]) -> None:
        pending.write_text(json.dumps([each for each in kills if each is not own]))
        print("killed in {}: {} after {} calls".format(*own), file=sys.__stderr__, flush=True)
        kill_group()

    for own in {each[1]: each for each in reversed(kills)}.values():
        kill_at(own[1], own[2], functools.partial(kill, own))


def slurm(suite: str, out: Path, flags: list[str]) -> None:
    """Preempt running jobs twice: once in a training, once when evaluations have begun."""
    flags = [*flags, "--on", "slurm", "--partition", "low", "--time", "60"]
    with slurm_cluster(out.with_name(f"{out.name}-cluster")):
        process = start(command(suite, out, *flags), out.with_suffix(".log"))
        until(lambda: in_training(out), process)
        preempt(process)
        until(lambda: list(out.glob("results/*")) and in_training(out), process)
        preempt(process)
        assert process.wait() == 0
    print(f"jobs that were requeued and started again: {requeued(out)}")
    assert requeued(out)


def ray(suite: str, out: Path, flags: list[str]) -> None:
    """Kill a worker in a training, and one after some cells are done."""
    process = start(command(suite, out, *flags, "--on", "ray", "--jobs", "2"), out.with_suffix(".log"))
    for cells in (0, 10):
        until(lambda: in_training(out) and done(out) >= cells, process)  # noqa: B023
        pid = kill_ray_worker(process)
        print(f"killed Ray's worker {pid}; {done(out)} cells done", flush=True)
    assert process.wait() == 0


RUNS = {"whole": whole, "killed": killed, "slurm": slurm, "ray": ray}


# -------------------------------------------------------------------- clusters of this machine


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[None]:
    """A controller and a daemon of this machine; SLURM_CONF names them."""
    script, before = str(ROOT / "scripts" / "one-node-slurm.sh"), dict(os.environ)
    os.environ.setdefault("UQHARNESS_SLURM_PORT", "17817")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([script, "start", str(folder)], check=True, stdout=subprocess.DEVNULL)
        yield
    finally:
        subprocess.run([script, "stop", str(folder)], check=True)
        os.environ.clear()
        os.environ |= before


def has_slurm() -> bool:
    return bool(shutil.which("slurmctld") and shutil.which("munged") and os.geteuid() == 0)


def preempt(process: subprocess.Popen[bytes]) -> None:
    """Run a job of higher priority on the whole machine."""
    subprocess.run(["sbatch", "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 3"], check=True)
    ask = ["squeue", "-h", "-o", "%T %P"]
    until(lambda: b"RUNNING high" in subprocess.run(ask, capture_output=True, check=True).stdout, process)


def requeued(out: Path) -> int:
    """The number of jobs that Slurm started more than once."""
    logs = (path.read_text() for path in (out / "slurm").glob("*_log.out"))
    return sum(text.count("Starting with JobEnvironment") > 1 for text in logs)


def kill_ray_worker(process: subprocess.Popen[bytes]) -> int:
    """Kill a worker of this run's Ray that is in the middle of a cell; return its process."""

    def children(parent: int, pattern: str) -> list[int]:
        done = subprocess.run(["pgrep", "-f", pattern, "-P", str(parent)], capture_output=True)
        return [int(word) for word in done.stdout.split()]

    def working() -> list[int]:
        return [pid for raylet in children(process.pid, "raylet/raylet") for pid in children(raylet, "ray::_ray_task")]

    (pid, *_) = until(working, process)
    os.kill(pid, signal.SIGKILL)
    return pid


# -------------------------------------------------------------------- what they give


def done(out: Path) -> int:
    from uqharness.suite.store import Store

    return list(Store(out).states().values()).count("done")


def contents(out: Path) -> dict[str, bytes]:
    """Return the answers of every draw and the tensors of every adapter, by name."""
    from tests.suite.tiny_suite import records
    from uqharness.suite.store import Store

    tensors = sorted(Store(out).out.glob("adapters/*/*.safetensors"))
    return {**records(out), **{str(path.relative_to(out)): path.read_bytes() for path in tensors}}


def compare(folder: Path, names: list[str]) -> bool:
    wanted, same = contents(folder / names[0]), True
    for name in names[1:]:
        got = contents(folder / name)
        differ = [key for key in {*wanted, *got} if wanted.get(key) != got.get(key)]
        records = sum(not key.endswith(".safetensors") for key in wanted)
        print(f"{name} and {names[0]}: {records} records, {len(wanted) - records} tensor files; {len(differ)} differ")
        print("".join(f"  {key}\n" for key in sorted(differ)[:20]), end="")
        same = same and not differ and records > 0
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="a shipped suite or a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder; a run that is complete there is not repeated")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="the first is compared with [all]")
    parser.add_argument("--set", nargs="+", default=[], help="as of `uqharness suite run`")
    parser.add_argument("--only", nargs="+", default=[], help="as of `uqharness suite run`")
    args = parser.parse_args()
    flags = [word for name in ("set", "only") if getattr(args, name) for word in (f"--{name}", *getattr(args, name))]
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.runs:
        if (complete := folder / f"{name}.complete").exists():
            continue
        began = time.monotonic()
        RUNS[name](args.suite, folder / name, flags)
        print(f"{name}: {done(folder / name)} cells done in {time.monotonic() - began:.0f} s", flush=True)
        complete.touch()
    return 0 if compare(folder, args.runs) else 1


# A run with kills is started as this module, and each of its workers imports it as its main module.
if __name__ == "__mp_main__" and PENDING in os.environ:
    await_kills(Path(os.environ[PENDING]))

if __name__ == "__main__":
    if sys.argv[1:2] == ["suite"]:
        from uqharness.cli import main as cli

        sys.exit(cli(sys.argv[1:]))
    sys.exit(main())
