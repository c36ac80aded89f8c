"""An adapter by its hub id, from a tiny local stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from uqharness import adapter_io

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """One model repository, someone/blob, whose files are those of `folder`."""

    folder: Path

    def log_message(self, *args: object) -> None:
        return None

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if re.fullmatch(r"/api/models/someone/blob(/revision/\w+)?", path):
            names = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
            info = {"id": "someone/blob", "sha": COMMIT, "private": False, "tags": [], "siblings": names}
            return self.reply(json.dumps(info).encode(), Content_Type="application/json")
        if re.fullmatch(rf"/api/models/someone/blob/tree/({COMMIT}|main)", path):
            listed = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                      for p in sorted(self.folder.iterdir())]  # fmt: skip
            return self.reply(json.dumps(listed).encode(), Content_Type="application/json")
        found = re.fullmatch(r"/someone/blob/resolve/[^/]+/([^/]+)", path)
        if found and (self.folder / found[1]).is_file():
            body = (self.folder / found[1]).read_bytes()
            return self.reply(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        return self.reply(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(blob: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    Hub.folder = blob
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    dropped = re.compile(r"(HF_HUB|HF_DATASETS|TRANSFORMERS)_(OFFLINE|CACHE)|HF_TOKEN")
    kept = {key: value for key, value in os.environ.items() if not dropped.fullmatch(key)}
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    yield {**kept, **settings, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    server.shutdown()
    server.server_close()


CODE = """
from uqharness.model import BayesLoRA
from uqharness import adapter_io
model = BayesLoRA(adapter="hub:someone/blob", samples=2, device="cpu")
print("HASH", adapter_io.content_hash(model.folder), model.engine.samples, model.adapter)
"""


def test_an_adapter_comes_from_the_hub(hub: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE], env=hub, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"HASH {adapter_io.content_hash(Hub.folder)} 2 hub:someone/blob" in done.stdout


def test_without_hub_only_the_cache_is_read(hub: dict[str, str]) -> None:
    code = "from uqharness.adapter_io import fetch; print(fetch('someone/blob'))"
    done = subprocess.run([sys.executable, "-c", code], env=hub, text=True, capture_output=True, timeout=120)
    assert "and not in the hub's cache; for an adapter of the hub give hub:someone/blob" in done.stderr.splitlines()[-1]
    whole = code.replace("print", "fetch('hub:someone/blob@main'); print")
    for command in (whole, code):
        done = subprocess.run([sys.executable, "-c", command], env=hub, text=True, capture_output=True, timeout=120)
        assert COMMIT in done.stdout, done.stderr


def test_an_unknown_repository_is_one_line(hub: dict[str, str]) -> None:
    code = "from uqharness.adapter_io import fetch; fetch('hub:someone/else')"
    done = subprocess.run([sys.executable, "-c", code], env=hub, text=True, capture_output=True, timeout=120)
    assert done.returncode != 0
    assert "InputError: adapter=hub:someone/else: not a repository that the hub has" in done.stderr.splitlines()[-1]
