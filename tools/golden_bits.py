#!/usr/bin/env python
"""Train every method for 30 seeded steps with the code at hand and with another commit, and compare bit for bit.

tests/test_golden.py compares with tensors that another machine made, to 1e-5. Here both are trained on this machine, in
one environment, so that not one bit may differ: run it before a change of structure lands. The trainings are those of
tools/make_golden.py at hand. Both trees are built as wheels and run in processes of their own: the other commit in a
git worktree that is removed afterwards, the code at hand with what is not committed yet.

A change of numbers that is meant shows here as well; say in the commit which tensors move and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from make_golden import ROOT, TRAININGS, fitted_numbers, tensors_of

ADAPTERS = "tests/golden/adapters"
RUNNER = """\
import json, sys
import uqharness
from uqharness.cli import main
if not uqharness.__file__.startswith(sys.argv[1]):
    sys.exit(f"{uqharness.__file__} was imported, not what is in {sys.argv[1]}")
for words in json.loads(sys.argv[2]):
    if code := main([*words, "--debug"]):
        sys.exit(code)
"""
EPILOG = """\
examples:
  python tools/golden_bits.py                           # against the commit that made the golden adapters
  python tools/golden_bits.py --against main            # against a branch, a tag or a commit
  python tools/golden_bits.py --only blob laplace-joint # and what these build on
  python tools/golden_bits.py --keep /tmp/bits          # leave the adapter folders there

Takes about two minutes on one core.
Exit codes: 0 equal, 1 something differs or a training failed, 2 the input cannot be used."""


class Failed(Exception):
    """A command failed; the message says which."""


def run(command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise Failed(f"{' '.join(map(str, command))[:200]} failed with exit code {done.returncode}:\n{last}")
    return done.stdout.strip()


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], ROOT)
    try:
        yield folder
    finally:
        run(["git", "worktree", "remove", "--force", folder], ROOT)


def package(tree: Path, folder: Path) -> Path:
    """What a user would install of a tree, unpacked: its entry points are its own."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheel"], tree)
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    return folder / "package"


def train(code: Path, folder: Path, names: Sequence[str]) -> Path:
    """Train with the package in `code`; return the folder of the adapters."""
    folder.mkdir(parents=True)
    runner = folder / "runner.py"
    runner.write_text(RUNNER)
    commands = [TRAININGS[name].command(f"adapters/{name}") for name in names]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    env = {**os.environ, **threads, "PYTHONPATH": str(code), "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    run([sys.executable, runner, code, json.dumps(commands)], folder, env)
    return folder / "adapters"


def compare(folder: Path, other: Path) -> tuple[int, list[str]]:
    """(number of tensors, a line for each that differs) of two adapter folders."""
    now, then = digests(folder), digests(other)
    lines = []
    for name in sorted({*now, *then}):
        if name not in now or name not in then:
            lines.append(f"{name}: {'gone' if name not in now else 'new'}")
        elif now[name] != then[name]:
            lines.append(f"{name}: {now[name][:16]}, was {then[name][:16]}")
    if (numbers := fitted_numbers(folder)) != (before := fitted_numbers(other)):
        lines.append(f"{numbers}, was {before}")
    return len(now), lines


def digests(folder: Path) -> dict[str, str]:
    """{tensor: SHA-256 of its type, shape and bytes}."""
    hashes = {}
    for name, tensor in tensors_of(folder).items():
        about = f"{tensor.dtype} {[*tensor.shape]} ".encode()
        hashes[name] = hashlib.sha256(about + tensor.contiguous().numpy().tobytes()).hexdigest()
    return hashes


def with_sources(names: Sequence[str]) -> list[str]:
    """These trainings and those that they build on, in an order in which they can run."""
    wanted = {*names, *(TRAININGS[name].source for name in names)}
    return [name for name in TRAININGS if name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT", help=f"[the newest commit that touched {ADAPTERS}]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(TRAININGS)} [all]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder, for both trees' adapters")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.only or () if name not in TRAININGS]:
        parser.error(f"unknown training {unknown[0]!r}: there are {', '.join(TRAININGS)}")
    if args.keep and args.keep.exists():
        parser.error(f"--keep {args.keep} exists: give a new folder")
    try:
        wanted = args.against or run(["git", "log", "-1", "--format=%H", "--", ADAPTERS], ROOT)
        commit = run(["git", "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}"], ROOT)
    except Failed:
        parser.error(f"--against {args.against or ''}: no such commit")
    names = with_sources(args.only or list(TRAININGS))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            out = args.keep.resolve() if args.keep else Path(scratch, "out")
            with worktree(commit, Path(scratch, "tree")) as tree:
                then = train(package(tree, Path(scratch, "then")), out / "then", names)
            now = train(package(ROOT, Path(scratch, "now")), out / "now", names)
            return report({name: compare(now / name, then / name) for name in names}, commit)
    except Failed as error:
        print(f"golden_bits: {error}", file=sys.stderr)
        return 1


def report(results: dict[str, tuple[int, list[str]]], commit: str) -> int:
    for name, (_, lines) in results.items():
        for line in lines:
            print(f"{name}: {line}")
    moved = [name for name, (_, lines) in results.items() if lines]
    if moved:
        print(f"{len(moved)} of {len(results)} trainings differ from {commit[:12]}: {', '.join(moved)}")
        return 1
    print(f"{sum(count for count, _ in results.values())} tensors of {len(results)} trainings: equal to {commit[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
