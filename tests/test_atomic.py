"""Files and folders are whole, on the disk before they are renamed, and as readable as the umask says."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_adapter import save
from uqharness.atomic import recover_folder, write_atomic
from uqharness.cli import main


@pytest.fixture
def group_umask() -> Iterator[None]:
    """A lab's: the group may read and write, others nothing."""
    before = os.umask(0o007)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_an_adapter_and_its_draws_follow_the_umask(group_umask: None, base: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "blob", base)
    assert {"adapter_model.safetensors", "posterior.safetensors"} < modes(folder).keys()
    assert set(modes(folder).values()) == {0o660} and stat.S_IMODE(folder.stat().st_mode) == 0o770
    assert main(["export", str(folder), str(tmp_path / "draws"), "--samples", "2"]) == 0
    file_modes = modes(tmp_path / "draws")
    assert file_modes["draw1"] == 0o770 and file_modes["draw1/adapter_model.safetensors"] == 0o660
    assert {path.name for path in tmp_path.iterdir()} == {"blob", "draws"}


def test_a_file_follows_the_umask(group_umask: None, tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), "one")
    write_atomic(tmp_path / ("n" * 255), "two")
    assert modes(tmp_path) == {"n" * 255: 0o660} and (tmp_path / ("n" * 255)).read_text() == "two"


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every flush and rename from now on, by the name of its file."""
    events: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def flushed(handle: int) -> None:
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renamed(move: Any) -> Any:
        def to(source: Any, target: Any) -> None:
            events.append(("rename", os.path.basename(target)))
            move(source, target)

        return to

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed(replace))
    monkeypatch.setattr(os, "rename", renamed(rename))
    return events


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the names of open files are read from /proc")
def test_everything_is_on_the_disk_once_before_the_rename(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = watch(monkeypatch)
    write_atomic(tmp_path / "x.json", "{}")
    assert [kind for kind, _ in events] == ["fsync", "rename", "fsync"] and events[0][1].startswith(".x.json.")
    events.clear()
    folder = save(tmp_path / "blob", base)
    before, after = events[: events.index(("rename", "blob"))], events[events.index(("rename", "blob")) + 1 :]
    flushed = [name for kind, name in before if kind == "fsync"]
    assert sorted(name for name in flushed if not name.startswith(".blob.")) == sorted(os.listdir(folder))
    assert flushed[-1].startswith(".blob.") and after == [("fsync", tmp_path.name)]


# Replaces OUT by a folder whose file `text` says "new"; {patch} decides where it is killed.
REPLACE = """
import os, sys
from pathlib import Path
from uqharness import atomic
def die(*args, **kwargs):
    os.kill(os.getpid(), 9)
{patch}
out = Path(sys.argv[1])
with atomic.folder_beside(out) as temporary:
    (temporary / "text").write_text("new")
    {during}
    atomic.place_folder(temporary, out)
"""
NTH_RENAME = """
atomic._exchange = lambda one, two: False
renames, rename = [], os.rename
def counted(*args):
    renames.append(args)
    die() if len(renames) == {n} else rename(*args)
os.rename = counted
"""


def replace(out: Path, patch: str = "", during: str = "pass") -> int:
    code = REPLACE.format(patch=patch, during=during)
    return subprocess.run([sys.executable, "-c", code, str(out)]).returncode


@pytest.mark.parametrize(
    "patch, during, left, after",
    [
        ("", "die()", "old", "old"),  # while the new one is written
        ("atomic._exchange = die", "pass", "old", "old"),
        ("atomic._remove = die", "pass", "new", "new"),  # exchanged, the old one not yet removed
        (NTH_RENAME.format(n=2), "pass", "old", "old"),
        (NTH_RENAME.format(n=3), "pass", None, "new"),  # the moment without any, where names cannot be exchanged
        (NTH_RENAME.format(n=9) + "atomic._remove = die", "pass", "new", "new"),
    ],
)
def test_a_kill_leaves_a_whole_folder_and_the_next_start_clears_the_rest(
    patch: str, during: str, left: str | None, after: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "text").write_text("old")
    (tmp_path / ".out.settings").mkdir()  # somebody else's
    assert replace(out, patch, during) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3  # the kill came where it should
    assert ((out / "text").read_text() if out.exists() else None) == left
    with caplog.at_level(logging.WARNING, "uqharness"):
        recover_folder(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.settings"}
    assert (out / "text").read_text() == after and caplog.messages and str(out) in caplog.text
    assert replace(out) == 0 and (out / "text").read_text() == "new"


def test_what_a_living_process_writes_is_not_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = REPLACE.format(patch="", during="print('writing', flush=True); input()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(out)], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "writing\n"
        recover_folder(out)
        process.communicate("\n")
    assert process.returncode == 0 and (out / "text").read_text() == "new"


def test_a_reader_finds_a_folder_at_every_moment(tmp_path: Path) -> None:
    from uqharness.atomic import _exchange

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    out = tmp_path / "out"
    loop = REPLACE.format(patch="", during="pass").replace("with ", "for _ in range(300):\n  with ")
    assert replace(out) == 0
    process = subprocess.Popen([sys.executable, "-c", loop, str(out)])
    looks = 0
    while process.poll() is None:
        assert (out / "text").read_text() == "new"
        looks += 1
    assert process.returncode == 0 and looks > 100


def test_training_restores_what_a_killed_overwrite_left(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = save(tmp_path / "blob", base)
    os.rename(out, tmp_path / ".blob.uqharness-old-00000000")
    assert main(["train", "mle", "--base", str(base), "--task", "toyworld_uq", "--out", str(out)]) == 2
    assert "already contains an adapter" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"blob"}
