"""`uqharness demo`: train the methods on the embedded world, evaluate them through lm-eval, print the table.

Every cell (a method and a training seed) is one `uqharness train` and one `uqharness eval`; what is done is kept, so
the demo can be interrupted, and a second run with nothing changed is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uqharness import __version__, registry
from uqharness.atomic import write_atomic
from uqharness.commands.folders import writable
from uqharness.errors import InputError, RunError

TASKS = ("toyworld_uq", "toyworld_near_uq", "toyworld_far_uq")
DRAWS = 10
DONE = "demo.json"
REFERENCES = {"oracle": ("toyworld_oracle", "pretrained=toyworld_oracle"), "zero-shot": ("hf", "")}


@dataclass(frozen=True)
class Cell:
    """One row of the table at one seed: what is trained and how it is evaluated."""

    name: str
    method: str | None  # None: the oracle or the untrained base
    seed: int
    settings: Mapping[str, Any]
    limit: int | None
    source: str | None = None  # the cell whose adapter it builds on

    @property
    def weight(self) -> int:
        """Roughly how long it takes: an ensemble is several trainings."""
        return 3 if self.method == "ens" else 2 if self.method else 1

    def key(self) -> str:
        """What its result depends on."""
        told = {**asdict(self), "tasks": TASKS, "draws": DRAWS, "version": __version__, "world": _world_hash()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for adapters and results [demo]")
    parser.add_argument("--all", action="store_true", help="every installed method, not only the papers'")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these methods only")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="training seeds 0 … N-1 [1]")
    parser.add_argument("--quick", action="store_true", help="mle and blob, fewer steps and questions: a minute")
    parser.add_argument("--limit", type=int, help="questions per task [1500, quick: 400; 0: all 6000]")
    parser.add_argument("--workers", type=int, help="processes [one per core]")


def run(args: argparse.Namespace) -> int:
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least one process is needed")
    writable(args.out / "results", f"--out {args.out}")
    suite = yaml.safe_load(files("uqharness.suites").joinpath("toyworld.yaml").read_text(encoding="utf-8"))
    cells = plan(args, suite)
    todo = [cell for cell in cells if not is_done(args.out, cell)]
    if len(todo) < len(cells):
        print(f"{len(cells) - len(todo)} of {len(cells)} cells are done already in {args.out}", file=sys.stderr)
    run_cells(args.out, todo, args.workers or os.cpu_count() or 1)
    from uqharness.commands.demo_report import report

    report(args.out, [args.out / "results" / cell.name for cell in cells])
    return 0


def plan(args: argparse.Namespace, suite: Mapping[str, Any]) -> list[Cell]:
    """The cells, longest first so that both cores end together; before them those that others build on."""
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}: at least one training seed is needed")
    if args.limit is not None and args.limit < 0:
        raise InputError(f"--limit {args.limit}: give a number of questions, or 0 for all of them")
    installed = registry.methods()
    wanted = args.methods or (["mle", "blob"] if args.quick else list(suite["methods"]))
    for name in args.methods or ():
        registry.get_method(name)  # an unknown name is refused here, with a suggestion
    if args.all:
        wanted = list(dict.fromkeys([*suite["methods"], *installed]))
    limit = args.limit if args.limit is not None else (400 if args.quick else 1500)
    shared = {**suite["run"], **(suite["quick"] if args.quick else {})}
    cells = [Cell(name, None, 0, {}, limit or None) for name in REFERENCES]
    for name in dict.fromkeys(registry.ALIASES.get(n, n) for n in wanted):
        if name in installed:
            own = suite["methods"].get(name) or suite["others"].get(name) or {}
            settings = {**shared, **own}
            base = suite["sources"].get(name)
            for s in range(args.seeds):
                source = f"{base}/seed{s}" if base in wanted else None
                cells.append(Cell(f"{name}/seed{s}", name, s, settings, limit or None, source))
    sources = {cell.source for cell in cells}
    return sorted(cells, key=lambda cell: (cell.name not in sources, -cell.weight))


def is_done(out: Path, cell: Cell) -> bool:
    marker = out / "results" / cell.name / DONE
    return marker.is_file() and json.loads(marker.read_text()).get("key") == cell.key()


def run_cells(out: Path, cells: Sequence[Cell], workers: int) -> None:
    """All cells over the worker processes, with one bar for the whole."""
    from tqdm.auto import tqdm

    if not cells:
        return
    started, left = time.monotonic(), list(cells)
    shape = "{percentage:3.0f}% |{bar:40}| {elapsed} gone, {remaining} to go{postfix}"
    bar = tqdm(total=sum(cell.weight for cell in cells), bar_format=shape)
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(min(workers, len(cells)), mp_context=context, initializer=_start_worker) as pool,
    ):
        running: dict[Future[None], Cell] = {}
        try:
            while running or left:
                ready, left = divide(left, running.values())
                running |= {pool.submit(run_cell, str(out), cell): cell for cell in ready}
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = running.pop(future)
                    future.result()
                    bar.set_postfix_str(f"{cell.name} done, {len(running) + len(left)} cells left", refresh=False)
                    bar.update(cell.weight)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C or SIGTERM: their cells are made again
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bar.close()
    print(f"{len(cells)} cells in {time.monotonic() - started:.0f} s", file=sys.stderr)


def divide(left: Sequence[Cell], running: Iterable[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Those that can start, and those whose source is not done."""
    unfinished = {cell.name for cell in (*left, *running)}
    ready = [cell for cell in left if cell.source not in unfinished]
    return ready, [cell for cell in left if cell.source in unfinished]


def run_cell(out: str, cell: Cell) -> None:
    """Train and evaluate one cell; what it prints goes to OUT/logs."""
    root = Path(out)
    log = root / "logs" / f"{cell.name.replace('/', '-')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    results = root / "results" / cell.name
    try:
        with _written_to(log):
            adapter = train_cell(root, cell) if cell.method else None
            evaluate_cell(results, cell, adapter)
    except Exception as error:
        raise RunError(f"{cell.name} failed: {' '.join(str(error).split())} (its log: {log})") from error
    write_atomic(results / DONE, json.dumps({"key": cell.key(), "cell": asdict(cell)}) + "\n")


def train_cell(root: Path, cell: Cell) -> Path:
    from uqharness.commands import train
    from uqharness.commands.parser import Parser

    adapter = root / "adapters" / cell.name
    argv = [str(cell.method), "--out", str(adapter), "--seed", str(cell.seed), "--overwrite"]
    source = root / "adapters" / str(cell.source)
    if cell.source and source.is_dir():  # else the method trains the same by itself
        argv += ["--adapter", str(source)]
    parser = Parser(prog="uqharness train")
    train.add_arguments(parser)
    settings = adapter.with_name(f"{adapter.name}.yaml")
    write_atomic(settings, yaml.safe_dump(dict(cell.settings)))
    args = parser.parse_args([*argv, "--config", str(settings)])
    args.argv, args.debug = ["train", *argv, "--config", str(settings)], True
    train.run(args)
    return adapter


def evaluate_cell(results: Path, cell: Cell, adapter: Path | None) -> None:
    from uqharness.commands import evaluate
    from uqharness.commands.parser import Parser
    from uqharness.toyworld import base_path

    for old in results.rglob("results_*.json"):
        old.unlink()
    if adapter:
        model, given = "bayeslora", f"adapter={adapter},samples={DRAWS},seed=0"
    else:
        model, given = REFERENCES[cell.name]
        given = given or f"pretrained={base_path()},dtype=float32"
    argv = ["--model", model, "--model_args", given, "--tasks", ",".join(TASKS), "--batch_size", "64"]
    argv += ["--output_path", str(results), "--device", "cpu", *(["--limit", str(cell.limit)] if cell.limit else [])]
    parser = Parser(prog="uqharness eval")
    args = evaluate.parse(parser, argv)
    args.argv, args.debug = ["eval", *argv], True
    evaluate.run(args)


@contextlib.contextmanager
def _written_to(log: Path) -> Iterator[None]:
    """What this process and its children print goes to a file (lm-eval asks git and pip about the environment)."""
    kept = os.dup(1), os.dup(2)
    with open(log, "w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)


def _start_worker() -> None:
    """Once per worker: end with the parent; what lm-eval records of the environment takes it seconds to ask."""
    import functools
    import threading

    threading.Thread(target=_end_with_parent, daemon=True).start()

    from torch.utils import collect_env

    collect_env.get_pretty_env_info = functools.lru_cache(maxsize=1)(collect_env.get_pretty_env_info)


def _end_with_parent() -> None:
    """Wait for the end of the parent, however it comes, and end this process."""
    from multiprocessing import connection

    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Worker processes inherit one thread each: two on two cores are faster than two threads in each of two."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _world_hash() -> str:
    from uqharness.toyworld import data_path

    manifest = data_path() / "MANIFEST.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest.exists() else ""
