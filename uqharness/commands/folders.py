"""The folder or file that a command is to write: refused before the work, not after hours of it."""

from __future__ import annotations

import os
from pathlib import Path

from uqharness.errors import InputError


def writable(out: Path, said: str) -> Path:
    """`out`, if it can be made: what is nearest above it is a folder of ours. said: the place as the user gave it."""
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        found = "is a file" if parent.is_file() else "cannot be written"
        raise InputError(f"{said}: {parent} {found}; give another place")
    return out


def vacant(name: str) -> Path:
    """A folder that can be written without losing anything."""
    out = Path(name).expanduser()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise InputError(f"{out} exists already: give a folder that does not exist yet")
    return writable(out, str(out))
