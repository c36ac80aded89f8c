"""`uqharness leaderboard`: what it refuses, what it starts, and that the server ends with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from uqharness.cli import main
from uqharness.commands import leaderboard


def test_what_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_taken_port_is_refused_and_another_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["leaderboard", str(tmp_path), "--port", str(port)]) == 2
        assert f"port {port}" in capsys.readouterr().err
    assert leaderboard.free("localhost", leaderboard.first_free("localhost"))
    assert not leaderboard.free("localhost", 70000)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--port", "99999"], "--port 99999: give a number from 1 to 65535"),
        (["--port", "-1"], "--port -1: give"),
        (["--address", "no.such.host.invalid"], "--address no.such.host.invalid: no such address"),
    ],
)
def test_what_is_no_port_or_address_is_refused(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", str(tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_app_is_told_the_results_and_no_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = leaderboard.environment([tmp_path])
    assert json.loads(environment["UQHARNESS_LEADERBOARD"]) == [str(tmp_path)]
    assert Path(environment["UQHARNESS_LEADERBOARD_CACHE"]).is_relative_to(tmp_path)
    line = leaderboard.command(8600, "localhost")
    assert "--browser.gatherUsageStats=false" in line and "--server.address=localhost" in line
    app = Path(next(word for word in line if word.endswith("app.py")))
    assert app.is_file() and (app.parent / ".streamlit" / "config.toml").is_file()


def test_the_server_answers_and_ends_with_the_command(tmp_path: Path) -> None:
    port = leaderboard.first_free("localhost")
    command = [sys.executable, "-m", "uqharness", "leaderboard", str(tmp_path), "--no-browser", "--port", str(port)]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stderr is not None
        assert f"http://localhost:{port}" in process.stderr.readline()
        with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    for _ in range(50):
        if leaderboard.free("localhost", port):
            break
        time.sleep(0.1)
    assert leaderboard.free("localhost", port)


def test_without_results_those_of_the_demo_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert leaderboard.own() == []
    (tmp_path / "demo" / "results").mkdir(parents=True)
    assert leaderboard.own() == [str(Path("demo") / "results")]
