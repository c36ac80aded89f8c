"""Run cells in processes of this machine, as Slurm jobs or as Ray tasks.

All of them call `work(out, hash)` of the command, which runs one cell, records its end in the store and never raises
for a cell that fails. Progress is read from the store, so a runner may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection
from typing import Any

from uqharness.suite.plan import Cell
from uqharness.suite.store import FAILED, Store

Work = Callable[[str, str], None]


class Graph:
    """Remaining cells, in the order of their weights, and which of them can start."""

    def __init__(self, cells: Mapping[str, Cell], store: Store, weight: Callable[[Cell], float]) -> None:
        self.store, self.cells = store, cells
        done = {name for name, state in store.states().items() if state == "done"}
        self.left = {name: cell for name, cell in cells.items() if name not in done}
        self.running: dict[str, Cell] = {}
        self.failed: dict[str, str] = {}  # and those that were not begun, as what they need failed
        self.weights = {name: weight(cell) for name, cell in self.left.items()}
        self.path = dict(self.weights)  # with the longest of what waits for it
        for cell in reversed(list(self.left.values())):
            for needed in cell.needs:
                if needed in self.path:
                    own = self.weights[needed]
                    self.path[needed] = max(self.path[needed], own + self.path[cell.hash])

    def ready(self, base: str | None = None) -> Cell | None:
        """Return the next cell to start: prefer this base, then the cell that most others wait for."""
        waiting = {*self.left, *self.running}
        able = [cell for cell in self.left.values() if not waiting.intersection(cell.needs)]
        return max(able, key=lambda cell: (_base(cell) == base, self.path[cell.hash]), default=None)

    def begin(self, cell: Cell) -> None:
        self.running[cell.hash] = self.left.pop(cell.hash)

    def end(self, name: str) -> None:
        """Read the result of a cell from the store; give up cells that need a failed one."""
        cell = self.running.pop(name)
        if self.store.is_done(name):
            return
        if not self.store.mark(name, FAILED).exists():
            self.store.fail(cell, "its process was killed: out of memory? See the log")
        self.failed[name] = self.store.error(name)["error"]
        for other in list(self.left.values()):
            if self.failed.keys() & set(other.needs):
                del self.left[other.hash]
                self.failed[other.hash] = "not started: a cell that it needs failed"


def _base(cell: Cell) -> str | None:
    run = cell.spec.get("run")
    return str(run["base"]) if run else None


# -------------------------------------------------------------------- this machine


def local(graph: Graph, jobs: int, work: Work, tell: Callable[[Cell], None]) -> None:
    """Run cells in `jobs` processes, each with its own GPU if GPUs exist."""
    context = multiprocessing.get_context("spawn")
    workers: dict[connection.Connection, _Worker] = {}
    devices = _devices(jobs)
    try:
        while graph.left or graph.running:
            for device in devices:
                busy = next((w for w in workers.values() if w.device == device), None)
                base = busy.base if busy else None
                if (busy and busy.cell) or not (cell := graph.ready(base)):
                    continue
                if busy is None:
                    busy = _Worker(context, work, device)
                    workers[busy.pipe] = busy
                graph.begin(cell)
                busy.start(cell, graph.store)
            for pipe in connection.wait([w.pipe for w in workers.values() if w.cell]):
                worker = workers[pipe]  # type: ignore[index]
                cell = worker.end()
                if cell is None:  # the process died; the next cell gets a new one
                    cell = workers.pop(worker.pipe).cell
                assert cell is not None
                graph.end(cell.hash)
                tell(cell)
    finally:
        for worker in workers.values():
            worker.close()


class _Worker:
    def __init__(self, context: Any, work: Work, device: str) -> None:
        self.pipe, theirs = context.Pipe()
        self.device, self.cell, self.base = device, None, None  # type: tuple[str, Cell | None, str | None]
        with _environment(device):
            self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
            self.process.start()
        theirs.close()

    def start(self, cell: Cell, store: Store) -> None:
        self.cell, self.base = cell, _base(cell) or self.base
        self.pipe.send((str(store.out), cell.hash))

    def end(self) -> Cell | None:
        """Return the cell that has ended; None if the process has ended."""
        try:
            self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return None
        cell, self.cell = self.cell, None
        return cell

    def close(self) -> None:
        if self.cell is not None:
            self.process.terminate()
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: connection.Connection, work: Work) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            work(*pipe.recv())
            pipe.send("ended")


def _end_with_parent() -> None:
    """Wait until the parent ends for any reason, then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def gpus() -> list[str]:
    """Return the GPUs that this process may use, without loading CUDA into it."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    root = "/proc/driver/nvidia/gpus"
    return [str(k) for k in range(len(os.listdir(root)))] if os.path.isdir(root) else []


def _devices(jobs: int) -> list[str]:
    """Return a name for each process: the GPU's number and an index on it, or the CPU."""
    cards = gpus() or ["cpu"]
    return [f"{cards[k % len(cards)]}:{k // len(cards)}" for k in range(jobs)]


@contextlib.contextmanager
def _environment(device: str) -> Iterator[None]:
    """Give a process one GPU or one thread; one thread per process is faster than two on two cores."""
    card = device.partition(":")[0]
    names = {"CUDA_VISIBLE_DEVICES": card} if card != "cpu" else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
