"""A local name is never looked up on the hub, and nothing comes from there that nobody asked for by `hub:`."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from tests.tiny import make_base
from tests.tiny_adapter import save
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io.folder import fetch
from uqharness.cli import main
from uqharness.errors import InputError, RunError


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every address that was asked for; none answers. The hub counts as there: offline mode would hide a look-up."""
    addresses: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        addresses.append(args[-1] if isinstance(args[0], socket.socket) else args[0])
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # counts `json`, whatever the file
    return addresses


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter and a plain one, all under names that look like hub ids; and a task."""
    root = tmp_path_factory.mktemp("local")
    make_base(root / "runs" / "base")
    make_task(root / "tasks")
    before = Path.cwd()
    os.chdir(root)
    try:
        save(Path("runs/blob"), Path("runs/base"))
        save(Path("runs/plain"), Path("runs/base"), std=None)
    finally:
        os.chdir(before)
    return root


def test_a_look_up_would_be_counted(lookups: list[object]) -> None:
    from huggingface_hub import HfApi

    with pytest.raises(Exception, match=r"no network|refused|error|Error"):
        HfApi().model_info("runs/blob")
    assert lookups


@pytest.mark.parametrize("adapter", ["runs/blob", "./runs/blob", "runs/plain", "runs/blob/"])
def test_evaluation_asks_the_hub_for_nothing(
    adapter: str, world: Path, tmp_path: Path, lookups: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    command = ["eval", adapter, "--tasks", "tiny_uq", "--include_path", "tasks", "--limit", "2"]
    assert main([*command, "--model_args", "samples=2", "--output_path", str(tmp_path / "results")]) == 0
    assert lookups == [] and list((tmp_path / "results").rglob("results_*.json"))


def test_training_on_an_adapter_and_export_ask_for_nothing(
    world: Path, tmp_path: Path, lookups: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    laplace = ["train", "laplace", "--adapter", "runs/plain", "--task", "tiny_uq", "--include-path", "tasks"]
    assert main([*laplace, "--out", str(tmp_path / "lap"), "--device", "cpu"]) == 0
    assert main(["export", "runs/blob", str(tmp_path / "draws"), "--samples", "1"]) == 0
    assert lookups == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("./runs/blub", r"no such folder \(did you mean blob\?\); give a folder"),
        ("runs/blub", r"no such folder \(did you mean blob\?\), and not in the hub's cache; .* give hub:runs/blub"),
        ("~/nowhere", "no such folder"),
        ("/nowhere/blob", "no such folder"),
        ("a/b/c", "no such folder"),
        ("blub", "no such folder"),
        ("runs/base/config.json", "is a file: give the folder that contains adapter_config.json"),
        ("..", "no adapter_config.json"),
    ],
)
def test_a_missing_folder_is_an_error_without_a_question_to_the_hub(
    name: str, message: str, world: Path, lookups: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(InputError, match=message):
        adapter_io.load_predictive(fetch(name))
    for command in (
        ["eval", name, "--tasks", "tiny_uq", "--include_path", "tasks"],
        ["train", "laplace", "--adapter", name, "--task", "tiny_uq", "--include-path", "tasks", "--out", "never"],
        ["export", name, "never", "--samples", "1"],
    ):
        assert main(command) == 2
    assert lookups == [] and not Path("never").exists()


def test_a_name_with_hub_is_asked_for(lookups: list[object], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(RunError, match="hub:runs/blob: the hub cannot be reached"):
        fetch("hub:runs/blob")
    assert lookups


def test_what_is_in_the_cache_needs_no_question(
    lookups: list[object], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, commit = tmp_path / "models--someone--blob", "a" * 40
    shutil.copytree(world / "runs" / "blob", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fetch("someone/blob") == repository / "snapshots" / commit and lookups == []
