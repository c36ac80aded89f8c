"""`uqharness COMMAND …`: select the command and its exit code. The commands themselves are in `commands/`.

Exit codes: 0 success, 1 a run or a check failed, 2 the input cannot be used, 130 Ctrl-C, 143 SIGTERM. A command's
module is imported only when that command is given, so `--help` stays quick.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence

from uqharness import __version__
from uqharness.commands.parser import Parser
from uqharness.errors import InputError, UQError, did_you_mean, of_system
from uqharness.interrupt import catch_sigterm, describe
from uqharness.terminal import PrintableFormatter, say, tolerate_encoding

# A command (and its module in commands/, where that has another name), one line of help, and examples.
HELP = """\
demo: train and evaluate methods on the embedded world, in minutes
  uqharness demo
train: train an adapter: METHOD on BASE with the training split of TASK
  uqharness train blob --base toyworld --task toyworld_uq --out runs/blob
  uqharness train ens --base BASE --task arc_easy_uq --out runs/ens --seeds 3
  uqharness train blob --base BASE --task boolq_uq --out OUT --set reweight=false --dry-run
  uqharness train laplace --adapter runs/mle --out runs/laplace
eval evaluate: run lm_eval with our models and tasks: same flags and result files, faster start
  uqharness eval runs/blob --tasks toyworld_uq --output_path results
  uqharness eval runs/blob --model_args samples=5 --tasks uq_ood --output_path results
  uqharness eval --model hf --model_args pretrained=BASE --tasks arc_easy_uq -o results
suite: run grids of methods, tasks and seeds: locally, on Slurm or on Ray
  uqharness suite run toyworld --dry-run
  uqharness suite run blob-table1 --set base=BASE steps=500 --only method=mle,blob seed=0
  uqharness suite status suites/toyworld
  uqharness suite retry suites/toyworld
table: print methods x datasets from results, recomputed from the draws
  uqharness table results
  uqharness table results --metric acc,ece,nll --samples 0,5,10 --format latex
ood: compare in-distribution with shifted data: detection, and change of metrics
  uqharness ood results
  uqharness ood results --against MLE --format csv
plot: draw the papers' figures from recorded results and adapters
  uqharness plot reliability results --out reliability.pdf
  uqharness plot draws results --metric nll,ece --task arc_easy_uq --out draws.png
  uqharness plot std-growth --out figure2.pdf
reproduce: print a paper's table beside the results of a suite, cell by cell
  uqharness reproduce blob-table1 out
  uqharness reproduce blob-table1 out --format latex --out table1.tex
validate: check results as the leaderboard does: exit code 0, 1 or 2
  uqharness validate results
  uqharness validate results --submit
publish: write results as one small file that can be committed
  uqharness publish results leaderboard/published/toyworld.parquet
export-site export_site: write the leaderboard as static files, for a project page
  uqharness export-site results site
leaderboard: show tables, figures and every question in a browser
  uqharness leaderboard results
  uqharness leaderboard
  uqharness leaderboard results --no-browser --port 8600
import importer: convert a checkpoint of bayesian-peft or laplace-lora to an adapter
  uqharness import checkpoints/blob/BASE/obqa/run1 runs/blob --eps 0.05
  uqharness import checkpoints/deepensemble/BASE/obqa/run1 runs/ens --members 3
  uqharness import outputs/openbookqa/run1 runs/map --step 999
export exporter: write draws of an adapter as plain PEFT adapters
  uqharness export runs/blob draws --samples 10
push: upload an adapter to the Hugging Face hub
  uqharness push runs/blob me/blob --dry-run
  uqharness push runs/blob me/blob --private --results results
  uqharness eval hub:me/blob --tasks arc_easy_uq --output_path results
methods listing: list the installed methods
  uqharness methods --json
tasks listing: list the tasks that come with uqharness
  uqharness tasks
doctor: check this installation
  uqharness doctor --json
"""


def _read_help() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return {command: (module, one line of help, examples)}."""
    commands = {}
    for head, *examples in (block.splitlines() for block in re.split(r"\n(?=\S)", HELP.strip())):
        words, _, about = head.partition(": ")
        name, *module = words.split()
        path = f"uqharness.commands.{module[0] if module else name}"
        commands[name] = path, about, tuple(map(str.strip, examples))
    return commands


COMMANDS = _read_help()
ALIASES = {"submit": ("validate", "--submit")}  # of before
OVERVIEW = """\
Bayesian LoRA in lm-eval: train a posterior over adapters, average over it, compare the answers.

commands:
{commands}

examples:
  uqharness train blob --base toyworld --task toyworld_uq --out runs/blob
  uqharness eval runs/blob --tasks toyworld_uq --output_path results
  uqharness table results

`uqharness COMMAND --help` explains one command. `--debug` on any of them shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    tolerate_encoding()
    try:
        with catch_sigterm():
            return _dispatch(given)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    except KeyboardInterrupt as stop:
        return _say(*describe(stop))
    except BrokenPipeError:  # `| head`: the reader has gone, and so may we
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in given:
            raise
        if isinstance(error, UQError):
            return _say(str(error), error.exit_code)
        if refused := of_system(error):
            return _say(str(refused), refused.exit_code)
        reason = " ".join(str(error).split())
        return _say(f"{type(error).__name__}: {reason} (add --debug for the traceback)", 1)


def _say(message: str, code: int) -> int:
    say(message)
    return code


def _dispatch(argv: list[str]) -> int:
    words = [word for word in argv if word != "--debug"]
    if not words or words[0].startswith("-"):
        return _overview(words)
    words = [*ALIASES.get(words[0], words[:1]), *words[1:]]
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    _logging("--debug" in argv)
    module = importlib.import_module(COMMANDS[name][0])
    parser = _parser(name)
    module.add_arguments(parser)
    parse = getattr(module, "parse", None)  # eval's flags are lm-eval's
    args = parse(parser, rest) if parse else parser.parse_args(rest)
    args.argv, args.debug = words, "--debug" in argv
    return int(module.run(args))


def _overview(words: list[str]) -> int:
    listed = "\n".join(f"  {name:<11} {about}" for name, (_, about, _) in COMMANDS.items())
    parser = Parser(prog="uqharness", description=OVERVIEW.format(commands=listed), usage="uqharness COMMAND …")
    parser.add_argument("--version", action="version", version=f"uqharness {__version__}")
    parser.parse_args(words)
    parser.print_help()
    return 0 if words else 2


def _parser(name: str) -> Parser:
    _, about, examples = COMMANDS[name]
    shown = "\n".join(["examples:", *(f"  {example}" for example in examples)])
    parser = Parser(prog=f"uqharness {name}", description=about, epilog=shown)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Stderr(logging.Handler):
    """Write to the current stderr: the stream of the time when the handler was created may be closed."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def _logging(debug: bool) -> None:
    """Send our own log messages to stderr as plain lines."""
    logger = logging.getLogger("uqharness")
    if not logger.handlers:
        handler = _Stderr()
        handler.setFormatter(PrintableFormatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    # PEFT imports it wherever it is installed, and it speaks of kernels then.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
