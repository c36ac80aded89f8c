"""Files and folders that are absent, old or whole, never half-written, and on the disk before they have their name.

They get the permissions that the umask gives to any new file: others of a lab can read what a lab shares.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write through a temporary file beside it, which is then renamed in."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, to be filled, finished with `finish_folder` and renamed to `out`.

    It is removed at the end, unless it was renamed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(out)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_folder(folder: Path) -> None:
    """Give each file the umask's permissions (safetensors writes 0600) and flush everything to the disk."""
    probe = _beside(folder / "mode")  # the umask itself can only be read by changing it for all threads
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            os.chmod(path, mode)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's entries, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:150]}.{secrets.token_hex(4)}")
