"""`uqharness eval`: lm-eval's own command in this process, with our models and tasks, without the hook.

The flags and the result files are lm-eval's because it is lm-eval that reads and writes them. Where every
task asked for is ours or in --include_path, its index of 14,000 built-in YAMLs is not built.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from uqharness.commands import early
from uqharness.commands.parser import explain
from uqharness.errors import InputError, did_you_mean, instead
from uqharness.harness.saving import check_place, collect, protect
from uqharness.settings import parse_model_args, read_file

MODEL = "bayeslora"
# As in pyproject.toml: a checkout that is not installed has no entry points.
MODELS = {MODEL: "uqharness.harness.model:BayesLoRA", "toyworld_oracle": "uqharness.toyworld.oracle:Oracle"}
log = logging.getLogger("uqharness.eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: all of them are lm-eval's; see `parse`."""


def parse(own: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse the flags of `lm_eval run`, with ADAPTER and --allow-leak as shortcuts for --model_args."""
    parser = lm_eval_parser(own)
    words = [_underscored(word, parser) for word in argv]
    args = parser.parse_args(words or ["--help"])
    if isinstance(args.samples, (int, float)):
        raise InputError(
            f"--samples {args.samples}: lm-eval's --samples picks documents; "
            f"for draws write --model_args samples={args.samples}"
        )
    return args


def lm_eval_parser(own: argparse.ArgumentParser) -> argparse.ArgumentParser:
    from uqharness.harness.bridge import run_parser

    parser: argparse.ArgumentParser = run_parser()
    parser.prog, parser.epilog, parser.allow_abbrev = own.prog, own.epilog, False
    parser.usage = "uqharness eval [ADAPTER] --tasks TASK … [--model_args KEY=VALUE,…] [options of lm_eval]"
    parser.description = f"{own.description}. The model is {MODEL} unless --model is given."
    parser.add_argument("adapter", nargs="?", metavar="ADAPTER", help="short for --model_args adapter=ADAPTER")
    parser.add_argument("--allow-leak", "--allow_leak", action="store_true", help="short for allow_leak=True")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(message: str) -> None:
        raise InputError(explain(parser, message))

    parser.error = error  # type: ignore[assignment,method-assign]
    return parser


def _underscored(word: str, parser: argparse.ArgumentParser) -> str:
    """Accept hyphens in the flags, which lm-eval writes with underscores."""
    name, equals, value = word.partition("=")
    other = "--" + name[2:].replace("-", "_")
    known = parser._option_string_actions
    return other + equals + value if name not in known and name.startswith("--") and other in known else word


def run(args: argparse.Namespace) -> int:
    short = {"adapter": args.adapter, "allow_leak": args.allow_leak or None}
    for name in ("adapter", "allow_leak", "debug", "argv"):
        delattr(args, name)
    settings = read_file(args.config) if args.config else {}  # as lm-eval will read it
    args.model = (settings.get("model") if args.model is None else args.model) or MODEL
    ours = {name: value for name, value in short.items() if value is not None}
    if ours and args.model != MODEL:
        raise InputError(f"ADAPTER and --allow-leak are for --model {MODEL}, found --model {args.model}")
    if ours:
        args.model_args = {**parse_model_args(settings.get("model_args")), **(args.model_args or {}), **ours}
    _check(args, settings)
    return _evaluate(args, settings)


def _check(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Refuse arguments for which lm-eval would end with a traceback."""
    if not (args.tasks or settings.get("tasks")):
        raise InputError("no tasks: give --tasks with names from `uqharness tasks`, or any lm-eval task")
    wants_path = any(getattr(args, key, settings.get(key)) for key in ("log_samples", "predict_only"))
    if wants_path and not (args.output_path or settings.get("output_path")):
        raise InputError("--log_samples and --predict_only write files: give --output_path DIR")
    include = args.include_path or settings.get("include_path")
    if include and not Path(include).is_dir():
        raise InputError(f"--include_path {include} is not a folder: give one that contains task YAMLs")
    limit, size = (getattr(args, key, settings.get(key)) for key in ("limit", "batch_size"))
    if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < math.inf):
        shown = f"{limit:g}" if isinstance(limit, (int, float)) else repr(limit)
        raise InputError(f"--limit {shown}: give a number of questions, or a fraction of them between 0 and 1")
    if size is not None and not re.fullmatch(r"0*[1-9][0-9]{0,4}|auto(:[0-9]{1,4}(\.[0-9]+)?)?", str(size)):
        raise InputError(f"--batch_size {str(size)[:60]}: must be an integer from 1 to 99999, auto or auto:N")
    tasks = args.tasks or settings["tasks"]
    words = [tasks] if isinstance(tasks, str) else tasks
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        names = [name.strip() for word in words for name in word.split(",")]
        early.check_tasks(filter(None, names), [include] if include else [])
    if place := args.output_path or settings.get("output_path"):
        check_place(str(place))
    given = {**parse_model_args(settings.get("model_args")), **(args.model_args or {})}
    if args.model == MODEL and not given.get("adapter"):
        hint = instead(given) or "give its folder or hub:user/name, `uqharness eval ADAPTER --tasks …`"
        raise InputError(f"no adapter: {hint}")


def _evaluate(args: argparse.Namespace, settings: dict[str, Any]) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _import(args.model)
    from lm_eval.utils import setup_logging

    setup_logging()
    _register(args.model)
    from uqharness.commands.tasks_only import lean_tasks

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with collect(always=True), lean_tasks():
        args.func(args)
    from uqharness.results.reading import HINT, is_kept

    # Where the program's own arguments show it, the record itself says it, at exit.
    if not (args.output_path or settings.get("output_path")) and is_kept(sys.argv):
        print(HINT, file=sys.stderr)
    return 0


def _import(model: str) -> None:
    """Import everything that a run needs without garbage collection, which would take a fifth of the start-up."""
    gc.disable()
    try:
        import lm_eval.evaluator  # noqa: F401

        if model == MODEL:
            import uqharness.harness.model  # noqa: F401
    finally:
        gc.enable()


def _register(model: str) -> None:
    """Register our models, as the start-up hook or a newer lm-eval does; refuse an unknown `model`."""
    import lm_eval.models  # noqa: F401  (the built-ins come first)
    from lm_eval.api import registry
    from lm_eval.loggers import evaluation_tracker

    protect(evaluation_tracker)

    for name, target in MODELS.items():
        if name not in registry.model_registry:
            registry.model_registry.register(name, target=target)
    known = list(registry.model_registry.keys())
    if model not in known:
        raise InputError(f"unknown model {model!r}{did_you_mean(model, known)}; lm-eval has {', '.join(sorted(known))}")
