"""Files and folders are whole, on the disk before they are renamed, and as readable as the umask says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_adapter import save
from uqharness.atomic import write_atomic
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
    found = modes(tmp_path / "draws")
    assert found["draw1"] == 0o770 and found["draw1/adapter_model.safetensors"] == 0o660
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
