"""Write files and folders atomically: they are absent, old or complete, and flushed to disk before they are renamed.

They get the umask's permissions, like any new file, so that colleagues can read shared files.

Folders beside OUT, which a kill leaves and `recover_folder` clears:
    .OUT.uqharness-XXXXXXXX                  being written, or what was replaced; locked by the process that writes it
    .OUT.uqharness-new-…  .OUT.uqharness-old-…    whole, where two folders cannot be exchanged in one step
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a temporary file beside `path` and rename it into place."""
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
    """Create a folder beside `out`, to be filled, finished with `finish_folder` and placed with `place_folder`.

    It is removed at the end unless it was placed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(out)
    temporary = _hidden(out)
    temporary.mkdir()
    with _locked(temporary):
        try:
            yield temporary
        finally:
            _remove(temporary)


def place_folder(temporary: Path, out: Path) -> None:
    """Rename `temporary` to `out`. Where a folder is replaced, a reader finds one of the two at every moment.

    File systems that cannot exchange two names (NFS, macOS) have a moment without either; `recover_folder` ends it.
    """
    if not os.path.lexists(out):
        os.rename(temporary, out)
    elif not _exchange(temporary, out):  # else `temporary` is now the old one, which `folder_beside` removes
        new, old = _hidden(out, "new-"), _hidden(out, "old-")
        os.rename(temporary, new)
        os.rename(out, old)
        os.rename(new, out)
        sync_folder(out.parent)
        _remove(old)
    sync_folder(out.parent)


def recover_folder(out: Path) -> None:
    """Complete or remove files that a killed run left while writing `out`, and log it."""
    pattern = re.compile(re.escape(_hidden(out, "", "").name) + r"(|new-|old-)[0-9a-f]{8}")
    leftovers: dict[str, list[Path]] = {}
    for path in sorted(out.parent.glob(".*")) if out.parent.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            leftovers.setdefault(match[1], []).append(path)
    for path in [*leftovers.get("new-", ()), *leftovers.get("old-", ())]:
        if not os.path.lexists(out):
            os.rename(path, out)
            which = "the new" if "uqharness-new-" in path.name else "the old"
            log.warning("%s: a killed run left no folder here; restored %s one", out, which)
    left = [path for paths in leftovers.values() for path in paths if os.path.lexists(path) and _is_free(path)]
    for path in left:
        _remove(path)
    if left:
        log.warning(
            "%s: removed files that a killed run left beside it: %s", out, ", ".join(path.name for path in left)
        )


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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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


def _hidden(out: Path, kind: str = "", token: str | None = None) -> Path:
    token = secrets.token_hex(4) if token is None else token
    name = out.name
    if len(name) > 150:  # file systems end at 255
        name = name[:150] + hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return out.with_name(f".{name}.uqharness-{kind}{token}")


def _exchange(one: Path, two: Path) -> bool:
    """Exchange two names in one step (Linux); False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock that tells others that a living process writes here; True if it could be had."""
    handle, held = -1, False
    with contextlib.suppress(OSError, AttributeError):  # no locks on this system or file system
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    try:
        yield held
    finally:
        if handle >= 0:
            os.close(handle)


def _is_free(folder: Path) -> bool:
    """Return whether no living process writes here; False where that cannot be known."""
    with _locked(folder) as held:
        return held


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
