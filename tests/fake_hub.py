"""A small Hugging Face hub on this machine: what huggingface_hub asks for in downloads and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN, OWNER = "hf_of_someone", "someone"
Files = dict[str, bytes]


class FakeHub(ThreadingHTTPServer):
    """Repositories of model kind; `someone` owns what their token makes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, str]] = {}  # id -> branch -> commit
        self.commits: dict[str, Files] = {}
        self.messages: list[str] = []
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, name: str, files: Files | Path | None = None) -> str:
        """A repository with one commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        self.repositories[name] = {}
        return self.commit(name, "main", files or {".gitattributes": b""}, "initial commit")

    def commit(self, name: str, branch: str, files: Files, message: str) -> str:
        content = json.dumps([name, branch, message, len(self.commits), sorted(files)])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.repositories[name][branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process that takes this for the hub."""
        dropped = re.compile(r"(HF_HUB|HF_DATASETS|TRANSFORMERS)_(OFFLINE|CACHE)|HF_TOKEN")
        others = {key: value for key, value in os.environ.items() if not dropped.fullmatch(key)}
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        own = {"HF_TOKEN": token} if token else {}
        return {**others, **settings, **own, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        return None

    # ---------------------------------------------------------------- answers

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.reply(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def error(self, status: int, message: str, code: str | None = None) -> None:
        more = {"X_Error_Code": code} if code else {}
        self.json({"error": message}, status, X_Error_Message=message, **more)

    def user(self) -> str | None:
        return OWNER if self.headers.get("Authorization") == f"Bearer {TOKEN}" else None

    def may_write(self, name: str) -> bool:
        if self.user() is None:
            self.error(401, "Invalid username or password.")
        elif not name.startswith(f"{OWNER}/"):
            self.error(403, "you must use a write token to upload to a repository that is yours")
        else:
            return True
        return False

    def files_of(self, name: str, revision: str) -> tuple[str, Files] | None:
        branches = self.server.repositories.get(name)
        if branches is None or (name in self.server.private and self.user() is None):
            self.error(401 if self.user() is None else 404, "Repository not found", "RepoNotFound")
            return None
        sha = branches.get(revision, revision)
        if sha not in self.server.commits:
            self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return sha, self.server.commits[sha]

    # ---------------------------------------------------------------- reading

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.asked.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            name = match[1]
            if got := self.files_of(name, match[2] or "main"):
                siblings = [{"rfilename": file} for file in sorted(got[1])]
                info = {"id": name, "sha": got[0], "private": name in self.server.private, "tags": []}
                self.json({**info, "siblings": siblings})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            if got := self.files_of(match[1], match[2]):
                sizes = {file: len(content) for file, content in sorted(got[1].items())}
                self.json([{"type": "file", "path": f, "size": n, "oid": "0" * 40} for f, n in sizes.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (got := self.files_of(match[1], match[2])) is None:
                return
            if match[3] not in got[1]:
                return self.error(404, "Entry not found", "EntryNotFound")
            body = got[1][match[3]]
            self.reply(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=got[0])
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/[^/]+/.+", path):
            self.error(404, "there are no folders here", "EntryNotFound")
        else:
            self.error(404, "Sorry, we can't find the page you are looking for.", "RepoNotFound")

    do_HEAD = do_GET

    # ---------------------------------------------------------------- writing

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.reply(b"")

    def do_POST(self) -> None:
        path, body = unquote(self.path.split("?")[0]), self.body()
        self.server.asked.append(path)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if match is None:
            match = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch)()", path)
        if match is None:
            return self.error(404, "no such page")
        if self.may_write(match[1]):
            getattr(self, match[2])(match[1], match[3], body)
        return None

    def create(self, body: dict[str, Any]) -> None:
        name = f"{body.get('organization') or OWNER}/{body['name']}"
        if self.user() is None:
            return self.error(401, "Invalid username or password.")
        if not name.startswith(f"{OWNER}/"):
            return self.error(403, "You don't have the rights to create a model under this namespace")
        if name in self.server.repositories:
            return self.json({"error": "You already created this model repo", "url": f"/{name}"}, 409)
        self.server.create(name)
        if body.get("visibility") == "private" or body.get("private"):
            self.server.private.add(name)
        return self.json({"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})

    def validate(self, content: str) -> None:
        data = yaml.safe_load(content.split("---")[1])
        base = data.get("base_model")
        if base is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            message = f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
            return self.json({"errors": [{"message": message}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in names}
        self.json({"files": [{"path": f, "uploadMode": mode, "shouldIgnore": False} for f, mode in modes.items()]})

    def batch(self, name: str, _: str, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        href = f"{self.server.endpoint}/blobs/"
        self.json(
            {
                "transfer": "basic",
                "objects": [{**each, "actions": {"upload": {"href": href + each["oid"]}}} for each in objects],
            }
        )

    def branch(self, name: str, branch: str, _: bytes) -> None:
        branches = self.server.repositories[name]
        if branch in branches:
            return self.error(409, "Reference already exists")
        branches[branch] = branches["main"]
        return self.json({})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        if branch not in self.server.repositories.get(name, {}):
            return self.error(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = dict(self.server.commits[self.server.repositories[name][branch]])
        message = ""
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                message = value["summary"]
            elif part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                content = self.server.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                files[value["path"]] = content
            else:
                assert part["key"] == "deletedFile", part
                del files[value["path"]]
        sha = self.server.commit(name, branch, files, message)
        return self.json(
            {"commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True}
        )
