"""Writing the world to disk, atomically and the same way every time, and checking what lies there."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.toyworld.tokenizer import save_tokenizer
from tools.toyworld.world import DATASETS, World, make_questions
from uqharness.atomic import write_atomic

MANIFEST = "MANIFEST.json"


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    """JSON lines in the order and spacing that the checksum of a split refers to."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()


def question_files(world: World) -> Iterator[tuple[str, bytes]]:
    """(path inside the world's folder, lines) of every split of every data set."""
    for name in DATASETS:
        for split, rows in make_questions(world, name).items():
            yield f"questions/{name}_{split}.jsonl.gz", lines_of(rows)


def write_questions(world: World, out: Path) -> None:
    """The gzip header carries no time, so that equal questions are equal files."""
    for name, lines in question_files(world):
        write_atomic(out / name, gzip.compress(lines, compresslevel=9, mtime=0))


def stale_questions(world: World, out: Path) -> list[str]:
    """Question files that are missing or not what the world's seed makes."""
    made = question_files(world)
    return [n for n, lines in made if not (out / n).is_file() or content_of(out / n) != lines]


def write_tokenizer(world: World, out: Path) -> None:
    save_tokenizer(world, out / "base")


def content_of(path: Path) -> bytes:
    """What a checksum refers to: a gzipped file's lines (zlib releases pack differently), else the bytes."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def checksums(out: Path) -> dict[str, str]:
    """sha256 of every file of the world except the manifest itself."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != MANIFEST and p.name[0] != ".")
    return {p.relative_to(out).as_posix(): hashlib.sha256(content_of(p)).hexdigest() for p in files}


def versions() -> dict[str, str]:
    """The releases that the numbers depend on."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def read_manifest(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_manifest(out: Path, **entries: Any) -> None:
    """Merge `entries` into the manifest and renew its checksums."""
    manifest = {**read_manifest(out), **entries, "sha256": checksums(out)}
    write_atomic(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def differences(out: Path) -> list[str]:
    """Files that are missing, unknown or changed against the manifest."""
    expected, actual = read_manifest(out).get("sha256", {}), checksums(out)
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
