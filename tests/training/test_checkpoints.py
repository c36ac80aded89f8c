"""Checkpoints: only whole ones are resumed, only the run's own are deleted."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from uqharness.errors import RunError
from uqharness.settings import Run
from uqharness.testing import TINY, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.checkpoints import MARKER, PARTIAL, Course, drop_checkpoints
from uqharness.training.loop import fit_loop

torch.set_num_threads(1)


def fit(run: Run, **options: Any) -> tuple[PeftModel, Course]:
    model = inject(tiny_llama(), run)
    return model, fit_loop(model, tiny_data(), run, **options)


def weights(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def spoil(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name, how",
    [
        ("optimizer.pt", "deleted"),
        ("scheduler.pt", "deleted"),
        ("rng_state.pth", "changed"),
        ("trained.safetensors", "cut"),
        ("trainer_state.json", "changed"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_next_older_whole_one(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=4, steps=12, lora_dropout=0.3)
    straight, _ = fit(run)
    spoil(tmp_path / "a.checkpoints/checkpoint-12" / name, how)
    with caplog.at_level(logging.INFO, "uqharness"):
        resumed, course = fit(dataclasses.replace(run, resume=True))
    assert course.resumed_from == 8
    (line,) = [line for line in caplog.messages if "is skipped" in line]
    assert f"checkpoint-12 is skipped: {name} is" in line
    for key, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[key], tensor), key


def test_without_a_whole_checkpoint_the_run_starts_from_step_0_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=4, steps=8)
    straight, _ = fit(run)
    spoil(tmp_path / "a.checkpoints/checkpoint-8/scheduler.pt", "deleted")
    (tmp_path / "a.checkpoints/checkpoint-4" / MARKER).write_text("{")
    with caplog.at_level(logging.INFO, "uqharness"):
        resumed, course = fit(dataclasses.replace(run, resume=True))
    assert course.resumed_from is None and "starting from step 0" in caplog.text
    assert all(torch.equal(weights(resumed)[key], tensor) for key, tensor in weights(straight).items())
    # What carried no readable marker was set aside, and the run's own took its place.
    assert (tmp_path / "a.checkpoints/checkpoint-4.aside1/optimizer.pt").exists()
    assert course.own_checkpoints() == [tmp_path / f"a.checkpoints/checkpoint-{n}" for n in (4, 8)]


def strangers(where: Path) -> set[str]:
    """Folders that only look like ours, at several depths; one holds a marker of another run."""
    for name in ("checkpoint-1", "checkpoint-4", "checkpoint-best", "deep/down/checkpoint-2", "checkpoint-8"):
        (where / name).mkdir(parents=True)
        (where / name / "precious.bin").write_bytes(b"years of work")
    (where / "checkpoint-1" / MARKER).write_text('{"settings": {"seed": 7}, "files": {"precious.bin": {}}}')
    (where / "checkpoint-8" / MARKER).write_text("not JSON")
    return files(where)


def test_training_deletes_only_checkpoints_of_its_own(tmp_path: Path) -> None:
    where = tmp_path / "a.checkpoints"
    before = strangers(where)
    _, course = fit(dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=1, steps=9))
    own = {path.name for path in course.own_checkpoints()}
    assert own == {"checkpoint-8", "checkpoint-9"}  # rotated among its own
    drop_checkpoints([course])
    assert files(where) == {re.sub(r"^(checkpoint-\d)/", r"\1.aside1/", name) for name in before}


def test_a_file_that_the_marker_does_not_list_outlives_the_checkpoint(tmp_path: Path) -> None:
    _, course = fit(dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=4, steps=4))
    note = tmp_path / "a.checkpoints/checkpoint-4/note.txt"
    note.write_text("mine")
    drop_checkpoints([course])
    assert files(tmp_path) == {str(note.relative_to(tmp_path))}


def test_a_marker_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    _, course = fit(dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=4, steps=4))
    marker, victim = tmp_path / "a.checkpoints/checkpoint-4" / MARKER, tmp_path / "victim"
    victim.write_text("")
    marker.write_text(marker.read_text().replace('"optimizer.pt"', '"../../victim"'))
    drop_checkpoints([course])
    assert victim.exists()


def test_what_a_kill_left_of_a_checkpoint_is_cleared(tmp_path: Path) -> None:
    partial = tmp_path / "a.checkpoints" / PARTIAL / "checkpoint-4"
    partial.mkdir(parents=True)
    (partial / "best.safetensors").write_bytes(b"half")
    _, course = fit(dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=4, steps=4))
    assert "best.safetensors" not in files(tmp_path / "a.checkpoints/checkpoint-4")
    drop_checkpoints([course])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_the_last(tmp_path: Path) -> None:
    run = dataclasses.replace(TINY, out=str(tmp_path / "a"), save_every=2, steps=6)

    def fill(step: int) -> None:
        if step == 3:  # no folder can be made there
            (tmp_path / "a.checkpoints" / PARTIAL).write_text("")

    with pytest.raises(RunError, match="checkpoint of step 4 cannot be written .* the last one is checkpoint-2"):
        fit(run, after_step=fill)
