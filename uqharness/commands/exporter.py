"""`uqharness export DIR OUT --samples N`: draw i of a posterior as the plain PEFT adapter OUT/draw{i}.

For servers that support PEFT but not posteriors; their client averages p(y | x) ≈ 1/N Σ_i p(y | x, θ_i).
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from uqharness.atomic import finish_folder, folder_beside, place_folder
from uqharness.commands.folders import vacant
from uqharness.errors import InputError
from uqharness.settings import MAX_DRAWS

if TYPE_CHECKING:
    from uqharness.posterior import Posterior, Tensors

log = logging.getLogger("uqharness.export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="an adapter folder, or hub:user/name")
    parser.add_argument("out", metavar="OUT", help="the folder to write: OUT/draw0, OUT/draw1 …")
    parser.add_argument("--samples", type=int, required=True, metavar="N", help="how many draws")
    parser.add_argument("--seed", type=int, default=0, help="as bayeslora's seed: the same draws [0]")


def run(args: argparse.Namespace) -> int:
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.commands import serving

    if not 1 <= args.samples <= MAX_DRAWS or not 0 <= args.seed < 2**32:
        raise InputError(
            f"--samples is {args.samples} and --seed {args.seed}: give 1 to {MAX_DRAWS:,} draws and a seed from 0"
        )
    out = vacant(args.out)
    folder = adapter_io.fetch(args.adapter)
    predictive, record = adapter_io.load_predictive(folder)
    if predictive.whole_questions:
        log.warning(
            "%s does not only average its weights: the exported weights alone give other answers", predictive.kind
        )
    posterior, rule = predictive.exportable(), predictive.open_form().rule
    count = posterior.usable(args.samples)
    config = adapter_io.read_config(folder)
    base = str((record or {}).get("base", {}).get("name") or config.base_model_name_or_path or "BASE")
    with folder_beside(out) as temporary:
        for i in range(count):
            adapter_io.save_peft(temporary / f"draw{i}", config, draw(posterior, i, args.seed))
        (temporary / "README.md").write_text(
            serving.readme(args.adapter, base, config, posterior, rule, count, args.seed)
        )
        finish_folder(temporary)
        place_folder(temporary, out)
    how = "logits, as this adapter does" if rule == "logits" else "probabilities, not their weights or logits"
    fewer = f" ({args.samples} asked for; the posterior has no more)" if count < args.samples else ""
    print(f"{out}: {count} plain PEFT adapter{'s' * (count > 1)}, draw0 … draw{count - 1}{fewer}")
    print(f"average their {how}: {out / 'README.md'} has the command that serves them and a client")
    return 0


def draw(posterior: Posterior, i: int, seed: int) -> Tensors:
    """Return all tensors of draw i, with the mean for tensors that the posterior does not vary."""
    return {**posterior.mean, **{name: stacked[0] for name, stacked in posterior.draws(i, i + 1, seed).items()}}
