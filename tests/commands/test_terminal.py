"""What reaches a terminal: names that cannot steer it, characters that it has, and one line for a disk that is full."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_results import result

from uqharness import cli
from uqharness.cli import main
from uqharness.errors import InputError, RunError, of_system
from uqharness.terminal import printable

TASKS = {"md": "arc_easy_uq", "csv": "arc_easy_uq\x1b[2J", "latex": "arc_easy_uq\x1b[2J", "json": "arc\u202eeasy_uq"}
STEERING = "\x1b[31m", "\u202e", "\x9b2J", "\u2066", "\r"


@pytest.mark.parametrize("form", ["md", "csv", "latex", "json"])
def test_names_of_a_results_file_cannot_steer_the_terminal(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such names are refused where the file is read, in one line that shows them spelled out."""
    result(tmp_path, "BLoB" + "x".join(STEERING) if form in ("md", "csv") else "BLoB", task=TASKS[form])
    assert main(["table", str(tmp_path), "--format", form]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "not a short text" in err
    assert not any(mark in out + err for mark in (*STEERING, "\x1b"))


def test_an_error_about_a_strange_name_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "no\x1b[31m\u202e\nwhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("uqharness: no\\u001b[31m\\u202e where does not exist") and len(err.splitlines()) == 1


def test_printable_keeps_text() -> None:
    text = "σ² → 0.5\n\tname: مرحبا 👩‍🔬"
    assert printable(text) == text


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("argv", [["methods"], ["tasks"], ["train", "--help"], ["table", "RESULTS"]])
def test_a_terminal_without_our_characters_is_no_error(
    argv: list[str], encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result(tmp_path, "σ→")
    written = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        assert main([str(tmp_path) if word == "RESULTS" else word for word in argv]) == 0
        sys.stdout.flush()
        text = written.getvalue().decode(encoding)
    assert len(text) > 100 and (argv[0] != "table" or "sigma->" in text)


@pytest.mark.parametrize("command", ["publish", "export-site"])
def test_a_full_disk_is_one_line_and_code_1(command: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for a full disk: both refuse the writing, at the same place."""
    result(tmp_path)
    out = tmp_path / "out" / ("a.parquet" if command == "publish" else "site")
    argv = [sys.executable, "-m", "uqharness", command, str(tmp_path), str(out)]
    limit = (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        check=False,
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot be written: File too large; free some space" in done.stderr
    assert not out.is_file() and not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device that is always full")
def test_a_full_disk_is_seen_behind_what_libraries_make_of_it() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.save({"weight": torch.zeros(10**6)}, "/dev/full")  # as a checkpoint is saved
    error = of_system(failed.value)
    assert isinstance(error, RunError) and "No space left on device" in str(error)
    wrapped = ValueError("the callback failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/x/y")
    assert "/x/y: cannot be written: No space left on device" in str(of_system(wrapped))
    assert of_system(ValueError("something else")) is None


def test_places_that_the_system_refuses_are_input_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(of_system(PermissionError(errno.EACCES, "Permission denied", "/root/x")), InputError)
    result(tmp_path)
    (folder := tmp_path / "x.parquet").mkdir()
    assert main(["publish", str(tmp_path), str(folder)]) == 2
    assert "is a folder: give the name of a file" in capsys.readouterr().err
    assert main(["validate", "a" * 300]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert main(["export-site", str(tmp_path), "/"]) == 2 and "root folder" in capsys.readouterr().err


def test_log_lines_go_to_what_is_stderr_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is made once in a process, whose stderr may be another one later."""
    logger, first, second = logging.getLogger("uqharness"), io.StringIO(), io.StringIO()
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, [] if name == "handlers" else getattr(logger, name))
    monkeypatch.setattr(sys, "stderr", first)
    cli._logging(False)
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logger.warning("a line")
    assert second.getvalue() == "a line\n"
