"""Cells as jobs of Slurm (submitit) and as tasks of Ray. Both are optional extras and imported only here.

The suite's folder must be on a shared file system; cells record their result in it, and a job that is
killed, preempted or out of time is run again.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uqharness.errors import InputError
from uqharness.suite.plan import Cell
from uqharness.suite.runners import Graph, Work, gpus
from uqharness.suite.store import Store

# -------------------------------------------------------------------- Slurm


@dataclass(frozen=True)
class SlurmOptions:
    """Options of sbatch."""

    partition: str | None = None
    account: str | None = None
    time: int = 60  # minutes; the job is requeued 90 s before and goes on from its checkpoints
    gres: str | None = None
    max_parallel: int = 64

    def parameters(self) -> dict[str, Any]:
        """Return the options by submitit's names."""
        given = {"partition": self.partition, "account": self.account, "gres": self.gres}
        shared = {"time": self.time, "array_parallelism": self.max_parallel, "job_name": "uqharness-suite"}
        own = {"cpus_per_task": 1, "additional_parameters": {"requeue": True}, "stderr_to_stdout": True}
        return {**{name: value for name, value in given.items() if value}, **shared, **own}


class SlurmTask:
    """A training with its evaluations, one after the other, so that a job loads its base once."""

    def __init__(self, work: Work, out: str) -> None:
        self.work, self.out = work, out

    def __call__(self, names: list[str]) -> None:
        store = Store(self.out)
        cells = store.read().cells
        for name in names:
            if all(store.is_done(needed) for needed in cells[name].needs):
                self.work(self.out, name)

    def checkpoint(self, names: list[str]) -> Any:
        """Let submitit queue the task again if it is preempted or out of time; finished cells stay finished."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, names)


def stages(cells: Mapping[str, Cell]) -> list[list[list[str]]]:
    """Return groups of cells, one job each, in stages; cells of a stage depend only on earlier stages."""
    depth: dict[str, int] = {}
    groups: dict[str, list[str]] = {}
    for name, cell in cells.items():  # each after those that it needs
        train = name if cell.kind == "train" else cell.source or f"without training {cell.spec['run']['base']}"
        if cell.kind == "train":
            depth[train] = 1 + max((depth[needed] for needed in cell.needs if needed in depth), default=-1)
        depth.setdefault(train, 0)
        groups.setdefault(train, []).append(name)
    stages: list[list[list[str]]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for train, names in groups.items():
        stages[depth[train]].append(names)
    return stages


def sbatch_script(options: SlurmOptions, jobs: int, out: Path) -> str:
    """Return the script that submitit would pass to sbatch, without the command."""
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"python -m submitit.core._submit {out / 'slurm'}"
    return str(_make_sbatch_string(command, out / "slurm", map_count=jobs, **options.parameters()))


def slurm(graph: Graph, options: SlurmOptions, work: Work, tell: Callable[[Cell], None], pause: float = 5.0) -> None:
    """Submit all cells as job arrays, one for each stage, and wait for them. Ctrl-C leaves the jobs as they are."""
    import submitit

    store, folder, waits = graph.store, graph.store.out / "slurm", None
    jobs: list[str] = []
    for groups in stages(graph.left):
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000)
        parameters = options.parameters()
        executor.update_parameters(**parameters, **({"dependency": f"afterany:{waits}"} if waits else {}))
        submitted = executor.map_array(SlurmTask(work, str(store.out)), groups)
        waits = submitted[0].job_id.partition("_")[0]
        jobs.append(waits)
    while graph.left:
        time.sleep(pause)
        queued = _queued(jobs)
        states = store.states()
        for cell in [cell for cell in graph.left.values() if states.get(cell.hash) in ("done", "failed")]:
            if cell.hash in graph.left:
                graph.begin(cell)
                graph.end(cell.hash)
                tell(cell)
        if not queued:
            time.sleep(pause)  # a file system may show the last cell later than the queue
            states = store.states()
            for cell in [c for c in graph.left.values() if states.get(c.hash) not in ("done", "failed")]:
                if cell.hash in graph.left:
                    graph.begin(cell)
                    store.fail(cell, f"its job ended without a result; see {folder}")
                    graph.end(cell.hash)
                    tell(cell)


def check_package(runner: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--on {runner} needs {package}: pip install uqharness[{runner}]")


def check_slurm() -> None:
    """Refuse to plan jobs if submitit or a controller is missing."""
    check_package("slurm", "submitit")
    if not shutil.which("sbatch"):
        raise InputError("--on slurm: sbatch is not installed; run this where jobs are submitted")
    try:
        done = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=30)
        reason = "" if done.returncode == 0 else done.stderr
    except subprocess.TimeoutExpired:
        reason = "no answer in 30 s"
    if reason:
        raise InputError(f"--on slurm: the controller does not answer: {' '.join(reason.split())[:200]}; see `sinfo`")


def _queued(jobs: list[str]) -> bool:
    """Return whether Slurm still has one of these jobs; if it does not answer, assume that it does."""
    done = subprocess.run(["squeue", "-h", "-j", ",".join(jobs), "-o", "%i"], capture_output=True, text=True)
    return bool(done.stdout.strip()) or (done.returncode != 0 and "Invalid job id" not in done.stderr)


# -------------------------------------------------------------------- Ray


def ray(graph: Graph, address: str | None, jobs: int, work: Work, tell: Callable[[Cell], None]) -> None:
    """Run each cell as a task once it can start; Ray runs the task of a dead worker again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray as library

    how = {"address": address} if address else {"num_cpus": jobs, "include_dashboard": False}
    try:
        library.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _inherited()}, **how)
    except Exception as error:  # a plain one if a node of this machine does not start in 30 s
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--on ray: no cluster answers at {address or 'this machine'}: {reason}") from error
    try:
        card = 1 if library.cluster_resources().get("GPU") else 0
        task = library.remote(num_cpus=1, num_gpus=card, max_retries=5)(_ray_task)
        out, running = str(graph.store.out), {}
        while graph.left or graph.running:
            while (cell := graph.ready()) is not None:
                graph.begin(cell)
                running[task.remote(work, os.getcwd(), out, cell.hash)] = cell
            (done, *_), _ = library.wait(list(running), num_returns=1)
            cell = running.pop(done)
            try:
                library.get(done)
            except library.exceptions.RayError as error:
                if not graph.store.is_done(cell.hash):
                    graph.store.fail(cell, f"Ray stopped retrying: {' '.join(str(error).split())[:300]}")
            graph.end(cell.hash)
            tell(cell)
    finally:
        library.shutdown()


def _ray_task(work: Work, folder: str, out: str, name: str) -> None:
    os.chdir(folder)
    work(out, name)


def _inherited() -> dict[str, str]:
    """Return environment variables that cells need: locations of data, models and worlds."""
    names = ("UQHARNESS_", "HF_", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRANSFORMERS_")
    own = {"OMP_NUM_THREADS": "1"} if not gpus() else {}
    return {**own, **{name: value for name, value in os.environ.items() if name.startswith(names)}}


def check_ray(address: str | None) -> None:
    """Refuse to run on Ray if it is missing or the address cannot be reached; Ray itself waits for minutes."""
    check_package("ray", "ray")
    if address in (None, "auto", "local"):
        return
    host, colon, port = str(address).removeprefix("ray://").rpartition(":")
    try:
        if not colon or not port.isdigit():
            raise OSError("give HOST:PORT")
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(f"--on ray: no cluster answers at {address}: {error}; nothing was run") from error
