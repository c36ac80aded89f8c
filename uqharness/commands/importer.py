"""`uqharness import FROM TO`: convert a checkpoint of the papers' own code to an adapter folder."""

from __future__ import annotations

import argparse
import logging
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqharness.commands.folders import vacant
from uqharness.errors import InputError

if TYPE_CHECKING:
    from uqharness.importers import Imported

log = logging.getLogger("uqharness.import")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="folder of bayesian-peft or laplace-lora (step_… or above)")
    parser.add_argument("out", metavar="TO", help="the adapter folder to write")
    parser.add_argument("--eps", type=float, help="BLoB: --bayes-eps of its training, which is not stored")
    parser.add_argument("--step", type=int, help="laplace-lora: which step [the last]")
    parser.add_argument("--members", type=int, help="ENS: how many there must be [as many as there are]")
    parser.add_argument(
        "--average",
        choices=("probs", "logits"),
        default="probs",
        help="ENS: what is averaged; the authors' code averages logits [probs]",
    )
    parser.add_argument("--base", help="base model, if the checkpoint does not name it or it has moved")
    parser.add_argument("--task", help="the task it was trained on, for tables; it is not checked")
    parser.add_argument("--seed", type=int, default=0, help="the seed it was trained with [0]")


def run(args: argparse.Namespace) -> int:
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.importers import read_checkpoint

    out = vacant(args.out)
    imported = read_checkpoint(
        Path(args.source).expanduser(),
        eps=args.eps,
        step=args.step,
        members=args.members,
        average=args.average,
        train_seed=args.seed,
    )
    base = args.base or imported.config.base_model_name_or_path
    if not base:
        raise InputError(f"{imported.folder} does not name its base model: add --base MODEL")
    imported.config.base_model_name_or_path = base
    adapter_io.save_folder(out, imported.config, imported.predictive, record(imported, base, args))
    dropped = imported.details["dropped"]
    left = f"; ignored {', '.join(dropped)}, which the base contains" if dropped else ""
    print(
        f"{out}: {imported.method} from {imported.tool}, {imported.predictive.posterior.kind} posterior, "
        f"{len(imported.predictive.posterior.mean)} tensors{left}"
    )
    log.warning("the items that it was trained on are unknown: evaluating on them cannot be refused")
    print(f"next, with the prompts it was trained on (the protocol {imported.protocol}):")
    task = "openbookqa_uq_bp" if imported.protocol == "bayesian-peft" else "openbookqa_uq_ll"
    print(f"  uqharness eval {shlex.quote(str(out))} --tasks {task} --output_path results")
    return 0


def record(imported: Imported, base: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the record of an imported checkpoint, without a recipe: how it was trained is not stored."""
    from uqharness import registry
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.commands.train import method_entry, versions

    config = imported.config
    settings = {"average": args.average} if imported.method == "ens" else {}
    return {
        "method": method_entry(registry.get_method(imported.method), settings, "uqharness"),
        "base": {"name": base, "revision": None, "fingerprint": None},
        "imported": {
            "from": str(args.source),
            "tool": imported.tool,
            "protocol": imported.protocol,
            "content_hash": adapter_io.content_hash(imported.folder),
            **imported.details,
        },
        "run": {
            "base": base,
            "task": args.task or "",
            "seed": args.seed,
            "lora_r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "target_modules": sorted(config.target_modules or ()),
        },
        "recipe": None,
        "recipe_hash": None,
        "data": {"task": args.task, "splits": []},
        "training": [],
        "costs": {},
        "versions": versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["uqharness", *args.argv]),
    }
