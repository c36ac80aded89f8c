"""`uqharness train METHOD --base BASE --task TASK --out DIR`: settings -> method.fit -> folder.

With `--adapter DIR` the method builds on a trained adapter, whose files define the base and the LoRA.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness import settings as config
from uqharness.atomic import recover_folder
from uqharness.commands import early
from uqharness.commands.fitting import costs, prepare
from uqharness.commands.folders import writable
from uqharness.commands.settings import Plan, resolve
from uqharness.errors import InputError
from uqharness.plugins import version_of
from uqharness.results import leakage
from uqharness.settings import Run, count_of, is_main_process

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.engine.predictive import Predictive
    from uqharness.method import Method

log = logging.getLogger("uqharness.train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "uqharness train METHOD --base BASE --task TASK --out DIR [options]"
    parser.add_argument("method", metavar="METHOD", help="one of `uqharness methods`")
    parser.add_argument("--adapter", metavar="DIR", help="build on this trained LoRA (a folder, or hub:user/name)")
    parser.add_argument("--seeds", type=_count, metavar="N", help="N runs, seeds --seed … into OUT/seed0 …")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, cells, estimated time, memory and disk; do not train"
    )
    parser.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help="the method's own settings")
    parser.add_argument("--config", metavar="FILE", help="settings from YAML or JSON; flags and --set take precedence")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the adapter in OUT once the new one is complete"
    )
    parser.add_argument("--allow-leak", action="store_true", help="train although the task evaluates these items")
    parser.add_argument("--include-path", metavar="DIR", help="folder with task YAMLs of your own")
    config.add_flags(parser.add_argument_group("run settings"), Run)  # type: ignore[arg-type]


def run(args: argparse.Namespace) -> int:
    early.check_train(args)  # before torch is imported
    plan = resolve(args)
    for name in ("base", "task", *([] if args.dry_run else ["out"])):
        if not getattr(plan.run, name):
            raise InputError(f"no {name}: give --{name} ({early.WANTED[name]})")
    if not args.dry_run and is_main_process():
        for cell in plan.cells():
            recover_folder(Path(cell.out))
    quiet()
    task = _load_task(plan.run, args)
    plan = _with_targets(plan, task)
    states = {cell.out: state(cell, plan, args.overwrite) for cell in plan.cells()}
    if type(plan.method).uses_source and not type(plan.method).continues and plan.source is None:
        name, out = type(plan.method).name, shlex.quote(plan.run.out or "OUT")
        first = f"{name} builds on a trained LoRA, and --adapter is not given: first training one, MLE for"
        reuse = f"to reuse an existing one: uqharness train {name} --adapter DIR --out {out}"
        log.warning("%s", f"{first} {plan.run.steps:,} steps; {reuse}")
    if args.dry_run:
        from uqharness.commands import dryrun

        return dryrun.show(plan, states, task)
    for cell in plan.cells():
        if states[cell.out] == "complete":
            print(f"{cell.out}: complete, skipped (--overwrite trains it again)")
        else:
            _train(plan, cell, task, args)
    _next(plan, args)
    return 0


def _with_targets(plan: Plan, task: Any) -> Plan:
    """Return the plan with its target modules by name, as they are printed, recorded and hashed.

    A method's suggestion names modules of causal models: an encoder's have other names.
    """
    from uqharness.training.pairs import classes_of

    classes = len(classes_of(task))
    if plan.run.target_modules != config.AUTO and not (classes and "target_modules" in plan.suggested):
        return plan
    from uqharness.training.base_model import skeleton
    from uqharness.training.targets import architecture, default_targets

    base = skeleton(plan.run.base, classes)
    kind, targets = architecture(base), default_targets(base)
    log.info("target modules: %s (auto, for %s; --target-modules overrides them)", " ".join(targets), kind)
    return dataclasses.replace(plan, run=dataclasses.replace(plan.run, target_modules=targets), architecture=kind)


def state(cell: Run, plan: Plan, overwrite: bool) -> str:
    """Return "to do", or "complete" for a seed with the same settings; refuse anything else in `cell.out`."""
    if not cell.out:
        return "to do"
    from uqharness.adapter_io import folder as adapter_io

    out = writable(Path(cell.out), f"--out {cell.out}")
    if not (out.exists() or out.is_symlink()):
        return "to do"
    if not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder that does not exist yet")
    if not any(out.iterdir()):
        return "to do"
    if not (out / adapter_io.PEFT_CONFIG).exists():
        raise InputError(
            f"--out {out} contains something that is not an adapter: give a folder that does not exist yet"
        )
    if overwrite:
        return "to do"
    record = adapter_io.read_record(out)
    if plan.seeds is None or record is None:
        raise InputError(f"--out {out} already contains an adapter: give another folder, or add --overwrite")
    recorded = {
        "method": record["method"]["name"],
        "settings": record["method"].get("settings"),
        **record.get("run", {}),
        "adapter": (record.get("source") or {}).get("content_hash"),
    }
    wanted = {"adapter": None, **plan.identity()}
    key = next((key for key, value in wanted.items() if key in recorded and recorded[key] != value), None)
    if key is not None:
        raise InputError(
            f"{out} was trained with {key}={recorded[key]!r}, now it is {wanted[key]!r}: "
            "seeds of one table need equal settings; give another --out, or --overwrite"
        )
    return "complete"


def _load_task(run: Run, args: argparse.Namespace) -> Any:
    from uqharness.training.questions import check_trainable, load_task

    task = load_task(run.task, args.include_path)
    check_trainable(task)
    fitted, evaluated = splits(task)
    if fitted == evaluated and not args.allow_leak:
        raise InputError(f"task {run.task} trains and evaluates on {fitted}: choose another task, or add --allow-leak")
    return task


def splits(task: Any) -> tuple[str, str]:
    """Return the names of the training split and of the split that lm-eval evaluates."""
    role = "test" if task.has_test_docs() else "validation"
    names = []
    for each in ("training", role):
        name = str(getattr(task.config, f"{each}_split"))
        # Parts of one split are told apart by their rows, where the task knows them.
        names.append(f"{name}{list(task.bounds(each))}" if hasattr(task, "bounds") else name)
    return names[0], names[1]


def _train(plan: Plan, cell: Run, task: Any, args: argparse.Namespace) -> None:
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.engine.predictive import as_predictive
    from uqharness.training import inert
    from uqharness.training.checkpoints import drop_checkpoints

    model, data = prepare(plan, cell, task)
    source, shared = plan.source, 0
    if source:
        if type(plan.method).continues:
            source.check_same(plan.recipe(cell), data.record, plan.method.name)
        shared = source.tuned_on_fitted(data.record["splits"])
    started = time.perf_counter()
    try:
        predictive = as_predictive(plan.method.fit(model, data, cell, source.predictive if source else None))
    except KeyboardInterrupt as stop:
        if any(course.own_checkpoints() for course in data.courses):
            stop.args = (f"checkpoints are in {cell.checkpoints}: add --resume to the command to continue",)
        raise
    seconds = time.perf_counter() - started
    used = data.record["splits"]
    data.record["splits"] = [{k: v for k, v in leakage.stored(s).items() if k != "fingerprints"} for s in used]
    full = record(plan, cell, model, {**data.record, "splits": used}, seconds)
    full["data"] = {k: v for k, v in data.record.items() if k != "training"}
    full["data"]["leak_allowed"] = bool(args.allow_leak and len(set(splits(task))) == 1)
    full["command"] = shlex.join(["uqharness", *args.argv])
    full["activity"] = inert.measure(model, predictive, data)
    used = [leakage.stored(split) for split in used]
    if source:
        full["source"], full["data"]["tuned_on_fitted"] = source.entry(), shared
        full |= source.recipe()
        used = source.splits(used)
    adapter_io.save_adapter(Path(cell.out), model, predictive, full, used)
    if not cell.stop_at:  # else a training to a later step goes on from the last one
        drop_checkpoints(data.courses)
    inert.report(plan.method.name, plan.method.if_inert, full["activity"], full["training"])
    print(f"{cell.out}: {describe(predictive)}, {seconds:.1f} s")


def record(plan: Plan, cell: Run, model: PeftModel, data: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return everything needed to reproduce this adapter, and its cost."""
    from uqharness.training.base_model import training_dtype
    from uqharness.training.fingerprint import base_fingerprint

    cls, courses = type(plan.method), list(data.get("training", ()))
    base = model.get_base_model()
    return {
        "method": method_entry(cls, config.as_json(plan.method), plan.package),
        "base": {
            "name": cell.base,
            "revision": getattr(base.config, "_commit_hash", None),
            "fingerprint": base_fingerprint(base),
            "dtype": str(training_dtype(cell)).removeprefix("torch."),
        },
        "run": config.as_json(cell),
        "overridden": dict(plan.overridden),
        "recipe": config.as_json(plan.recipe(cell)),
        "recipe_hash": config.recipe_hash(plan.recipe(cell), data),
        "training": courses,
        "costs": costs(courses, model, seconds),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def method_entry(cls: type[Method], settings: dict[str, Any], package: str) -> dict[str, Any]:
    """Return the record's entry of a method."""
    about = {"name": cls.name, "label": cls.label, "paper": cls.paper, "settings": settings}
    return {**about, "package": package, "version": version_of(package)}


def versions() -> dict[str, str | None]:
    names = ("torch", "transformers", "peft", "lm-eval", "uqharness")
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version_of(name) for name in names}}


def describe(predictive: Predictive) -> str:
    finite, kind = predictive.finite, predictive.posterior.kind
    count = "any number of draws" if finite is None else f"{finite} draw" + "s" * (finite > 1)
    return f"{kind} posterior, {f'{predictive.kind} answers' if predictive.whole_questions else count}"


def _next(plan: Plan, args: argparse.Namespace) -> None:
    """Print the next commands."""
    from uqharness.training.prompts import flags

    words = [plan.run.task, *flags(config.as_json(plan.run))]
    tasks = " ".join(map(shlex.quote, words))
    include = f" --include_path {shlex.quote(args.include_path)}" if args.include_path else ""
    print("next, evaluate by averaging over 10 draws and see the table:")
    for cell in plan.cells():
        adapter = shlex.quote(f"adapter={cell.out},samples=10")
        print(f"  lm_eval --model bayeslora --model_args {adapter} --tasks {tasks}{include} --output_path results")
    print("  uqharness table results")


def quiet() -> None:
    """Silence the progress bars and warnings of libraries."""
    import datasets

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()


def _count(text: str) -> int:
    if (count := count_of(text, 1, 1000)) is None:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} must be an integer from 1 to 1000")
    return count
