"""Run the shipped suites on tiny random bases, with real questions, and print a table of how each of them ended.

    python -m tests.suite.toy_scale --out DIR                        all suites, whole grids, one seed
    python -m tests.suite.toy_scale --out DIR --part                 of each its first training task; of `at` two steps
    python -m tests.suite.toy_scale --out DIR --part blob-table1 common

Each suite first passes `--dry-run`. Its cells run one after the other in a forked process; what is done in DIR is not
run again. Data come from the hub; where it cannot be had, put `python ../shared/data/offline_hub.py --` in front.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.tiny import make_base, make_encoder
from uqharness.commands.suite import preflight
from uqharness.suite.plan import Cell, Plan, make
from uqharness.suite.schema import read, shipped
from uqharness.suite.store import Store

ENCODERS = {name for name in shipped() if "query" in read(name).run.get("target_modules", ())}


def toy_settings(suite: str, bases: Path) -> dict[str, Any]:
    """Return what --set says: few steps and questions, one seed, a tiny base, snapshots that fit into the steps."""
    swag = {"every": 5} if any(row.method == "swag" for row in read(suite).rows.values()) else {}
    return {"steps": 20, "limit": 40, "seeds": 1, "base": tiny_base(suite, bases), **swag}


def tiny_base(suite: str, folder: Path) -> str:
    """Return a tiny base that fits a suite; toyworld has its own."""
    if suite == "toyworld":
        return "toyworld"
    kind = "encoder" if suite in ENCODERS else "cloze" if suite.startswith("real-small") else "llama"
    path = folder / kind
    if not path.exists():
        if kind == "encoder":
            make_encoder(path, max_position_embeddings=514)
        else:  # cloze: more layers than real-small trains
            layers = {"num_hidden_layers": 8} if kind == "cloze" else {}
            make_base(path, max_position_embeddings=2048, vocab_size=1500, **layers)
            bpe_tokenizer(1500).save_pretrained(path)
    return str(path)


def bpe_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Trained on this repository's README: any text has tokens, other texts have others, labels have one each."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    readme = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")
    tokenizer.train_from_iterator([readme, 200 * " A B C D E True False"], trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def part_of(made: Plan) -> dict[str, Cell]:
    """Return the cells of the first training task, and of rows at several steps those of the first two."""
    first = made.entries[0].train
    steps = list(dict.fromkeys(e.method.partition("@")[2] for e in made.entries if "@" in e.method))[:2]
    rows = {e.method for e in made.entries if "@" not in e.method or e.method.partition("@")[2] in steps}
    return made.chosen({"train": [first], "method": sorted(rows)})


def run(made: Plan, cells: Mapping[str, Cell], out: Path) -> list[str]:
    """Run cells one after the other in a forked process; return what failed."""
    from uqharness.commands.cell import work

    store = Store(out)
    store.write(made)
    code = in_child(lambda: [work(str(out), name) for name in cells])
    states = store.states()
    failed = [
        f"{cell.name}: {store.error(name)['error']}" for name, cell in cells.items() if states.get(name) != "done"
    ]
    return failed if code == 0 else [f"the process ended with {code}", *failed]


def in_child(act: Callable[[], Any]) -> int:
    """Do something in a forked child; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    from uqharness.cli import main as uqharness

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="[all]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", action="store_true", help="the first training task, two steps of `at`")
    args = parser.parse_args()
    failures, rows = [], ["| suite | cells of the plan | cells run | failed | seconds |", "|---|---|---|---|---|"]
    for name in args.suites or shipped():
        began, out = time.monotonic(), args.out.resolve() / name
        given = toy_settings(name, args.out.resolve() / "bases")
        words = [f"{key}={value}" for key, value in given.items()]
        dry = uqharness(["suite", "run", name, "--out", str(out), "--set", *words, "--dry-run"])
        made = make(read(name), given)
        cells = part_of(made) if args.part else made.cells
        try:
            preflight(made, cells)
            failed = run(made, cells, out)
        except Exception as error:
            failed = [f"{name}: {error}"]
        failures += [f"{name}: --dry-run ended with {dry}"] * bool(dry) + failed
        rows.append(f"| {name} | {len(made.cells)} | {len(cells)} | {len(failed)} | {time.monotonic() - began:.0f} |")
        print(rows[-1], *failed, sep="\n", file=sys.stderr, flush=True)
    print(*rows, *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
