"""`uqharness push DIR user/name`: upload an adapter folder to the Hugging Face hub.

The folder is first checked as for an evaluation, all its files are uploaded in one commit, and no other file is.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from uqharness.errors import InputError

if TYPE_CHECKING:
    from uqharness.results.runs import RunSummary

log = logging.getLogger("uqharness.push")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="an adapter folder, ours or a plain PEFT LoRA")
    parser.add_argument("repository", metavar="user/name", help="the repository; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", "--branch", default="main", metavar="BRANCH", help="the branch [main]")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--results", nargs="+", metavar="RESULTS", help="results of this adapter, for its card")
    parser.add_argument("--dry-run", action="store_true", help="check, and list what would be pushed")


def run(args: argparse.Namespace) -> int:
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.adapter_io import hub, model_card
    from uqharness.results import leakage
    from uqharness.training import prompts

    repository = hub.check_name(args.repository)
    folder = Path(args.adapter).expanduser()
    if not folder.is_dir():
        problem = "a file" if folder.exists() else "no such folder"
        raise InputError(f"{args.adapter}: {problem}; give an adapter folder, for example one of `uqharness train`")
    _, record = adapter_io.load_predictive(folder)
    leakage.seen_splits(folder, record)
    base = (record or {}).get("base", {}).get("name") or adapter_io.read_config(folder).base_model_name_or_path
    try:
        text = (folder / adapter_io.CARD).read_text(encoding="utf-8") if (folder / adapter_io.CARD).is_file() else None
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / adapter_io.CARD}: not UTF-8; save it as UTF-8") from error
    card = model_card.complete(text, record, base, repository)
    if args.results:
        model_card.add_results(card, repository.partition("/")[2], evaluations(args.results, folder))
    if base != "toyworld" and not model_card.facts(record or {"base": {"name": base}}).get("base_model"):
        log.warning("the base is %s, which is not on the hub: users of this adapter have to give base=MODEL", base)
    files: dict[str, Path | bytes] = {
        name: folder / name for name in adapter_io.FILES if (folder / name).is_file() and name != adapter_io.CARD
    }
    files[adapter_io.CARD] = str(card).encode()
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    if args.dry_run:
        print(f"would push to {repository}, branch {args.revision}; nothing was sent:")
        for name, size in sizes.items():
            print(f"  {name:<26} {size:>13,} bytes")
        print(f"{adapter_io.CARD} begins with\n---\n{card.data.to_yaml()}\n---")
        return 0
    message = args.message or f"Add {adapter_io.content_hash(folder)} with uqharness"
    how = {"owned": adapter_io.FILES, "branch": args.revision, "private": args.private, "message": message}
    done = hub.push(repository, files, **how)
    print(f"{done.url}: {len(files)} files, {sum(sizes.values()) / 1e6:.1f} MB, branch {done.branch}, {done.commit}")
    known = record or {}
    words = ["--tasks", str((known.get("data") or {}).get("task") or "TASK"), *prompts.flags(known.get("run") or {})]
    print("evaluate it by")
    adapter = f"adapter=hub:{repository}@{done.commit},samples=10"
    print(f"  lm_eval --model bayeslora --model_args {adapter} {shlex.join(words)}")
    return 0


def evaluations(results: list[str], folder: Path) -> list[RunSummary]:
    """Return the results of the adapter in `folder`, one per task and protocol; log why others do not count."""
    from uqharness.adapter_io import folder as adapter_io
    from uqharness.leaderboard.table_sources import newest
    from uqharness.results.metadata import stated
    from uqharness.results.runs import plain_text, read_runs

    own, runs = adapter_io.content_hash(folder), read_runs(results)
    usable = stated(run for run in runs if run.adapter_hash == own)
    if not usable:
        others = {plain_text(r.adapter_hash or "a model without an adapter", 40) for r in runs if r.adapter_hash != own}
        which = f": they are of {', '.join(sorted(others)[:3])}" if others else ""
        raise InputError(f"--results: none count for this adapter, {own}{which}; evaluate it, or remove --results")
    notes: list[str] = []
    best = newest(usable, notes)
    for note in notes:
        log.info(note)
    return sorted(best, key=lambda run: (run.task, run.protocol_hash))
