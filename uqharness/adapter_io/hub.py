"""Repositories of the Hugging Face hub: download one, commit files to one; errors are one line.

Knows repositories and files, not adapters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uqharness.errors import InputError, RunError, UQError

PREFIX = "hub:"
MAIN = "main"
_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub."""

    repository: str
    branch: str
    commit: str
    url: str


def is_id(name: object) -> bool:
    """Return whether a name has the form `owner/name` and is no path that exists here."""
    return isinstance(name, str) and _ID.fullmatch(name) is not None and not os.path.exists(name)


def commit_of(folder: Path) -> str | None:
    """Return the commit of a cached folder, models--OWNER--NAME/snapshots/COMMIT; None for any other folder."""
    path = folder.resolve()
    return path.name if path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name) else None


def cached(repository: str, files: Sequence[str]) -> Path | None:
    """Return the folder of a repository in the hub's cache, or None; use no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(name: str, files: Sequence[str]) -> Path:
    """Return the local folder of `user/name` or `user/name@revision` with those of `files` that exist."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    with _explained(f"adapter={PREFIX}{name}", repository, revision or None):
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))


def check_name(name: str) -> str:
    """Return `user/name` without `hub:`; refuse what the hub does not accept as a repository name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository = name.removeprefix(PREFIX)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{name!r}: not a repository name ({_first_line(error)}); give user/name") from error
    if "/" not in repository:
        raise InputError(f"{name!r}: not a repository name; give user/name, for example me/{repository}")
    return repository


def push(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    owned: Sequence[str],
    branch: str = MAIN,
    private: bool = False,
    message: str,
) -> Pushed:
    """Create the repository and the branch if they do not exist, and commit all files at once.

    owned: the names that belong together. Those of them that the repository has and `files` has not are deleted in
    the same commit, so that every commit is a whole; other files of the repository stay.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    token = get_token()
    if not token:
        raise InputError(f"{repository}: no token for the hub: run `hf auth login`, or set HF_TOKEN, and push again")
    api = HfApi(token=token)  # explicit: HF_HUB_DISABLE_IMPLICIT_TOKEN is about reading
    with _explained(f"push to {repository}", repository, branch, writing=True):
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise InputError(
                f"push to {repository}: it exists and is public: make it private in its settings on the hub, or remove "
                "--private; nothing was pushed"
            )
        if branch != MAIN and not branch.startswith("refs/"):
            api.create_branch(repository, branch=branch, exist_ok=True)
        existing = set(api.list_repo_files(repository, revision=branch))
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in owned if name in existing and name not in files]
        done = api.create_commit(repository, operations, commit_message=message, revision=branch)
    return Pushed(repository, branch, str(done.oid), f"{api.endpoint}/{repository}")


@contextmanager
def _explained(what: str, repository: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Turn errors of the hub and the network into ours."""
    try:
        yield
    except UQError:
        raise
    except Exception as error:
        raise _explain(error, what, repository, revision, writing) from error


def _explain(error: Exception, what: str, repository: str, revision: str | None, writing: bool) -> UQError:
    from huggingface_hub import errors

    kind = type(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) and writing:  # the hub says 401 for what is not there, too
        return InputError(
            f"{what}: the hub refuses it ({status} {_server_message(error)}): log in as its owner with a token that "
            "may write (`hf auth login`), or give a name of your own"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{what}: {repository} has no revision {revision!r}; give a branch, tag or commit of it")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{what}: {repository} is gated: ask for access on its page, then run `hf auth login`")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        reason = "not found; a private one needs a token" if status else _first_line(error)
        return InputError(f"{what}: no such repository on the hub ({reason}); check its name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(f"{what}: HF_HUB_OFFLINE is set, so the hub is not used: unset it")
    if status:
        return RunError(f"{what}: the hub answers {status} {_server_message(error)}; try again later")
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        reason = " ".join(str(error).split())
        return InputError(f"{what}: {reason[:300]}; correct README.md")
    network = isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError))
    if network or kind.__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests")):
        return RunError(f"{what}: the hub cannot be reached ({_first_line(error)}); check the network and HF_ENDPOINT")
    return RunError(f"{what}: {kind.__name__}: {_first_line(error)}")


def _server_message(error: Exception) -> str:
    text = getattr(error, "server_message", None) or "without a reason"
    return " ".join(str(text).split())[:200]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
