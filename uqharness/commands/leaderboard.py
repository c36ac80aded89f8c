"""`uqharness leaderboard RESULTS…`: show the leaderboard in a browser, served by this machine."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from importlib.resources import files
from pathlib import Path

from uqharness.errors import InputError, RunError

FIRST_PORT, PORTS = 8501, 20
DEMO = Path("demo") / "results"  # where `uqharness demo` puts them
# Also in leaderboard/.streamlit/config.toml; a flag wins over a user's own configuration.
FLAGS = {
    "browser.gatherUsageStats": "false",
    "server.headless": "true",  # otherwise it asks for an e-mail address; the browser is opened here
    "server.fileWatcherType": "none",
    "client.toolbarMode": "minimal",
    "client.showErrorLinks": "false",
    "logger.level": "warning",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="*",
        metavar="RESULTS",
        help="results_*.json of lm-eval, or folders of them [demo/results if it is here, else the published ones]",
    )
    parser.add_argument("--port", type=int, help=f"port of the server [the first free one from {FIRST_PORT} on]")
    parser.add_argument(
        "--address",
        default="localhost",
        help="address of the server; 0.0.0.0: reachable from other machines [localhost]",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")


def run(args: argparse.Namespace) -> int:
    given_paths = args.results or own()
    paths = [Path(given).absolute() for given in given_paths]
    for given, path in zip(given_paths, paths, strict=True):
        if not path.exists():
            raise InputError(f"{given} does not exist; give a results_*.json of lm-eval or a folder of them")
    family(args.address)  # one that is no address of a machine is refused here
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port {args.port}: give a number from 1 to 65535, or none")
    port = args.port if args.port is not None else first_free(args.address)
    if not free(args.address, port):
        raise InputError(f"port {port} of {args.address} is not free; give another --port, or none")
    address = f"http://{'localhost' if args.address in ('0.0.0.0', '::') else args.address}:{port}"
    server = subprocess.Popen(command(port, args.address), env=environment(paths))
    threading.Thread(target=announce, args=(address, server, not args.no_browser), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # the server ends with the command
    try:
        code = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0
    if code not in (0, -signal.SIGTERM, -signal.SIGINT):
        raise RunError(f"the server ended with code {code}; see its output above")
    return 0


def own() -> list[str]:
    """Return the default results: those of `uqharness demo` in this folder, else the published ones."""
    if not DEMO.is_dir():
        return []
    print(f"showing {DEMO}, which is in this folder; without it the published results are shown", file=sys.stderr)
    return [str(DEMO)]


def command(port: int, address: str) -> list[str]:
    app = str(files("uqharness.leaderboard") / "app.py")
    flags = {**FLAGS, "server.port": str(port), "server.address": address}
    return [sys.executable, "-m", "streamlit", "run", app, *(f"--{name}={value}" for name, value in flags.items())]


def environment(paths: list[Path]) -> dict[str, str]:
    """Return the app's environment (`leaderboard/app.py`): the results and a cache file."""
    arguments = json.dumps([str(path) for path in paths])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "uqharness" / f"leaderboard-{hashlib.sha256(arguments.encode()).hexdigest()[:16]}.parquet"
    return {**os.environ, "UQHARNESS_LEADERBOARD": arguments, "UQHARNESS_LEADERBOARD_CACHE": str(cache)}


def first_free(address: str) -> int:
    port = next((p for p in range(FIRST_PORT, FIRST_PORT + PORTS) if free(address, p)), None)
    if port is None:
        raise InputError(f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are all taken; give a --port")
    return port


def family(address: str) -> socket.AddressFamily:
    """Return the address family, IPv4 or IPv6."""
    try:
        return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"--address {address}: no such address ({error}); give localhost or 0.0.0.0") from None


def free(address: str, port: int) -> bool:
    try:
        with socket.socket(family(address)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except (OSError, OverflowError):
        return False
    return True


def announce(address: str, server: subprocess.Popen[bytes], browser: bool) -> None:
    """Wait until the server answers, print its address and open a browser."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                break
        except OSError:
            time.sleep(0.2)
    else:
        return
    print(f"uqharness leaderboard: {address} (Ctrl-C ends it)", file=sys.stderr)
    if browser:
        webbrowser.open(address)
