"""Check the folder or file that a command will write before the work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from uqharness.errors import InputError

LONGEST = 255  # bytes of a name, on every common file system


def nameable(name: str, said: str) -> str:
    """Return `name`; refuse one that is not a valid path. said: the path as the user gave it."""
    if "\0" in name:
        raise InputError(f"{said}: a NUL byte in {name!r}; give a path without one")
    longest = max((len(os.fsencode(part)) for part in re.split(r"[/\\]", name)), default=0)
    if longest > LONGEST:
        raise InputError(f"{said[:60]}…: a name of {longest:,} bytes; at most {LONGEST} are possible")
    return name


def writable(out: Path, said: str) -> Path:
    """Return `out`; refuse a path that cannot be created. said: the path as the user gave it."""
    nameable(str(out), said)
    try:
        parent = next((path for path in out.absolute().parents if path.exists()), None)
    except OSError as error:  # a folder that cannot be entered
        raise InputError(f"{said}: {error.strerror}; choose another location") from error
    if parent is None:
        raise InputError(f"{said}: this is the root folder; give a folder below it")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        state = "is a file" if parent.is_file() else "cannot be written"
        raise InputError(f"{said}: {parent} {state}; choose another location")
    return out


def vacant(name: str) -> Path:
    """Return a folder that can be written without losing anything; refuse any other."""
    out = Path(nameable(name, name)).expanduser()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise InputError(f"{out} exists already: give a folder that does not exist yet")
    return writable(out, str(out))
