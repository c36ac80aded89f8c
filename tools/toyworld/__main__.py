"""`python -m tools.toyworld`: make the embedded world again, or check it against its manifest."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tools.toyworld import files
from tools.toyworld.world import make_world
from uqharness.commands.folders import writable
from uqharness.commands.parser import Parser
from uqharness.errors import InputError, RunError, UQError
from uqharness.toyworld import data_path

EXAMPLES = """examples:
  python -m tools.toyworld --check       is the shipped world what its manifest says?
  python -m tools.toyworld --out my_world
                                             questions and tokenizer again, in a second or two
  python -m tools.toyworld --out my_world --seed 7 --full
                                             another world with a base of its own (about {minutes} minutes)
"""
MINUTES = 4


def parser() -> argparse.ArgumentParser:
    epilog = EXAMPLES.format(minutes=MINUTES)
    made = Parser(prog="python -m tools.toyworld", description=__doc__, epilog=epilog)
    add = made.add_argument
    add("--out", type=Path, default=data_path(), help="folder to write (default: the shipped one)")
    add("--seed", type=int, help="seed of the world (default: that of --out, else the shipped one)")
    add("--full", action="store_true", help="pretrain the base model as well, on one core")
    add("--check", action="store_true", help="write nothing: regenerate the questions, compare all checksums")
    return made


class Bar:
    """A progress line with the time left, rewritten in place on a terminal, one line per tenth elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.start = total, time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        terminal = sys.stderr.isatty()
        if step == 1:  # also where another attempt starts
            self.start = time.monotonic()
        if step % (20 if terminal else max(self.total // 10, 1)) and step != self.total:
            return
        left = (time.monotonic() - self.start) / step * (self.total - step)
        filled = 30 * step // self.total
        bar = "#" * filled + "." * (30 - filled)
        text = f"pretraining [{bar}] {step}/{self.total}  loss {loss:.3f}  {left:4.0f} s left"
        end = "" if terminal and step < self.total else "\n"
        print(f"\r{text}" if terminal else text, end=end, file=sys.stderr, flush=True)


def seed_of(out: Path, seed: int | None) -> int:
    """The seed asked for, or the one that the folder (else the shipped world) was made with."""
    if seed is not None:
        return seed
    manifest = files.read_manifest(out) or files.read_manifest(data_path())
    if "seed" not in manifest:
        raise InputError(f"no seed given and no manifest in {out}: add --seed")
    return int(manifest["seed"])


def check(out: Path, seed: int) -> None:
    """Compare the folder with its manifest, and its questions with freshly generated ones."""
    if not files.read_manifest(out):
        raise InputError(f"no {files.MANIFEST} in {out}: make the world first, or name its folder with --out")
    changed = files.differences(out) + files.stale_questions(make_world(seed), out)
    if changed:
        count = len(changed)
        raise RunError(f"{count} files differ from manifest or seed, first {changed[0]}: make them anew")
    count = len(files.checksums(out))
    print(f"{out}: {count} files as in the manifest, questions as the seed {seed} makes them")


def make(out: Path, seed: int, full: bool) -> None:
    """Write questions and tokenizer, with `full` the base too, and the manifest that says so."""
    from tools.toyworld import pretrain

    writable(out / "base", f"--out {out}")
    world, before = make_world(seed), files.read_manifest(out)
    if not full and before and before.get("seed") != seed:
        base_seed = before.get("seed")
        raise InputError(f"the base in {out} is of seed {base_seed}, not {seed}: add --full or another --out")
    files.write_questions(world, out)
    files.write_tokenizer(world, out)
    entries: dict[str, object] = {"seed": seed}
    if full:
        start = time.monotonic()
        made = pretrain.make_base(world, out / "base", Bar(pretrain.TOTAL_STEPS))
        command = f"python -m tools.toyworld --full --seed {seed}"
        losses = made.losses
        trained = {"steps": len(losses), "first_losses": losses[:5], "last_loss": losses[-1]}
        trained |= {"attempt": len(made.failed), "failed": made.failed} if made.failed else {}
        seconds = round(time.monotonic() - start)
        entries |= {"command": command, "versions": files.versions()}
        entries |= {"seconds": seconds, "pretraining": trained}
    files.write_manifest(out, **entries)
    print(f"{out}: {len(files.checksums(out))} files written")


def main(argv: list[str] | None = None) -> int:
    try:
        args = parser().parse_args(argv)
        seed = seed_of(args.out, args.seed)
        if args.check:
            check(args.out, seed)
        else:
            make(args.out, seed, args.full)
    except UQError as error:
        print(f"toyworld: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
