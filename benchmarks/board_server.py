"""The leaderboard's app on a port of its own, for what visits it."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from uqharness.commands.leaderboard import command, environment


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
