"""One cell of a suite: train an adapter or evaluate one, in a folder of its own, through the commands themselves.

A worker keeps the base and the tokenised questions from cell to cell (`keep`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from uqharness import __version__
from uqharness import settings as config
from uqharness.atomic import folder_beside, place_folder, recover_folder, write_atomic
from uqharness.commands.parser import Parser
from uqharness.errors import RunError, UQError, of_system
from uqharness.settings import Run
from uqharness.suite.plan import Cell, Plan
from uqharness.suite.store import Store

CHECKPOINTS = 10  # of a training, at least 50 steps apart


def work(out: str, name: str) -> None:
    """Run a cell of the suite in `out` with its output in its log; a failure is recorded, not raised."""
    store = Store(out)
    cell = _plan(out).cells[name]
    log = store.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _written_to(log):
        try:
            keep()
            run(store, cell)
        except Exception as error:
            traceback.print_exc()
            known = error if isinstance(error, UQError) else of_system(error)
            reason = str(known) if known else f"{type(error).__name__}: {error}"
            store.fail(cell, " ".join(reason.split()))


@functools.lru_cache(maxsize=1)
def _plan(out: str) -> Plan:
    return Store(out).read()


def run(store: Store, cell: Cell) -> None:
    """Run a cell unless it is done; wait if another process is running it."""
    with store.lock(cell.hash):
        if store.is_done(cell.hash):
            return
        for needed in cell.needs:
            if not store.is_done(needed):
                raise RunError(
                    f"{cell.name} needs {needed}, which is not done: run `uqharness suite cell {needed}` first"
                )
        store.forget_failures([cell.hash])
        started = time.time()
        act, place = (train, store.adapter) if cell.kind == "train" else (evaluate, store.results)
        out = place(cell.hash)
        recover_folder(out)
        command = [] if out.is_dir() else act(store, cell, out)  # a killed run may have completed it
        about: dict[str, Any] = {"command": shlex.join(["uqharness", *command]) if command else None}
        about |= {"commit": commit(), "version": __version__, "host": socket.gethostname(), "ended": time.time()}
        store.finish(cell, {**about, "seconds": round(time.time() - started, 2)})


def train(store: Store, cell: Cell, out: Path) -> list[str]:
    """Train a cell's adapter and return the command."""
    from uqharness.commands import train

    spec = cell.spec
    given = {**spec["run"], "settings": dict(spec["settings"])}
    both = set(given) & set(spec["settings"])  # a name that is the method's as well is the run's as a flag only
    flags = [word for key in sorted(both) for word in (f"--{key.replace('_', '-')}", str(given.pop(key)))]
    argv = [spec["method"], "--out", str(out), "--seed", str(given.pop("seed")), "--overwrite", *flags]
    argv += ["--base", str(given.pop("base")), "--task", str(given.pop("task"))]
    steps = int(given.get("steps", Run.steps))
    given.setdefault("save_every", max(50, -(-steps // CHECKPOINTS)))
    argv += ["--adapter", str(store.adapter(cell.source))] if cell.source else []
    argv += ["--include-path", spec["include_path"]] if spec["include_path"] else []
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    if cell.after:  # reuse the checkpoints of the training up to an earlier step
        earlier = store.adapter(cell.after)
        left = earlier.with_name(f"{earlier.name}.checkpoints")
        if left.is_dir() and not checkpoints.exists():
            with contextlib.suppress(OSError):
                left.rename(checkpoints)
    settings = store.mark(cell.hash, ".yaml")
    write_atomic(settings, yaml.safe_dump(given))
    argv += ["--config", str(settings), *(["--resume"] if checkpoints.is_dir() else [])]
    parser = Parser(prog="uqharness train")
    train.add_arguments(parser)
    args = parser.parse_args(argv)
    args.argv, args.debug = ["train", *argv], True
    train.run(args)
    return ["train", *argv]


def evaluate(store: Store, cell: Cell, out: Path) -> list[str]:
    """Evaluate a cell into a temporary folder, rename it when it is complete, and return the command."""
    from uqharness.commands import evaluate
    from uqharness.training.base_model import pick_device
    from uqharness.training.prompts import flags

    spec = cell.spec
    trained = spec if "run" in spec else _plan(str(store.out)).cells[str(cell.source)].spec
    run = config.build(Run, {**trained["run"], "out": str(out)})
    model, given = _model(spec, run, store.adapter(cell.source) if cell.source else None)
    argv = ["--model", model, "--model_args", given, "--tasks", spec["task"], "--batch_size", spec["batch_size"]]
    argv += ["--device", str(pick_device(run.device)), *(["--limit", str(spec["limit"])] if spec["limit"] else [])]
    argv += ["--include_path", spec["include_path"]] if spec["include_path"] else []
    argv += flags(config.as_json(run)) if model in ("bayeslora", "hf") else []
    with folder_beside(out) as folder:
        args = evaluate.parse(Parser(prog="uqharness eval"), [*argv, "--output_path", str(folder)])
        command = ["eval", *argv, "--output_path", str(out)]
        args.argv, args.debug = command, True
        evaluate.run(args)
        if not any(folder.rglob("results_*.json")):
            raise RunError(f"{cell.name}: lm-eval wrote no results; see its log")
        place_folder(folder, out)
    return command


def _model(spec: Any, run: Run, adapter: Path | None) -> tuple[str, str]:
    """Return the lm-eval model and its arguments."""
    bits = "".join(f",{name}=True" for name in ("load_in_4bit", "load_in_8bit") if getattr(run, name))
    if adapter:
        return "bayeslora", f"adapter={adapter},samples={spec['samples']},seed=0{bits}"
    if spec["model"] != "hf":
        return spec["model"], f"pretrained={spec['model']}"
    from uqharness.training.base_model import base_location, training_dtype

    where, file = base_location(run.base)
    dtype = str(training_dtype(run)).removeprefix("torch.")
    return "hf", f"pretrained={where},dtype={dtype}{bits}" + (f",gguf_file={file}" if file else "")


# -------------------------------------------------------------------- what a worker keeps


def keep() -> None:
    """Cache the base, the tokenised questions and lm-eval's description of the environment between cells."""
    from torch.utils import collect_env

    from uqharness.training import base_model, data

    if not hasattr(collect_env.get_pretty_env_info, "cache_info"):
        collect_env.get_pretty_env_info = functools.lru_cache(maxsize=1)(collect_env.get_pretty_env_info)
    base_model.keep_base()
    data.keep_questions()


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, with + if files differ; None for an installation."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        ask = functools.partial(subprocess.run, capture_output=True, text=True, cwd=root, check=True, timeout=20)
        changed = ask(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return ask(["git", "rev-parse", "HEAD"]).stdout.strip()[:12] + ("+" if changed else "")
    return None


@contextlib.contextmanager
def _written_to(log: Path) -> Iterator[None]:
    """Redirect the output of this process and its children to a file (lm-eval runs git and pip)."""
    before = os.dup(1), os.dup(2)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, saved in zip((1, 2), before, strict=True):
                os.dup2(saved, number)
                os.close(saved)
