"""The leaderboard's app on a port of its own, for what visits it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from uqharness.commands.leaderboard import command, environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright


@contextmanager
def serving(results: Sequence[Path], **env: str) -> Iterator[tuple[str, int]]:
    """The app's address (HOST:PORT), once it answers, and its process; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    address, env = f"localhost:{port}", {**environment([path.absolute() for path in results]), **env}
    server = subprocess.Popen(command(port, "localhost"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://{address}/_stcore/health")
        yield address, server.pid
    finally:
        server.terminate()
        server.wait(20)


def _wait(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no answer from {url}")


# The system's browser; none is downloaded.
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def chromium(started: Playwright) -> Browser:
    """Start the system's browser, headless and without requests of its own."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return started.chromium.launch(executable_path=BROWSER, args=flags)
