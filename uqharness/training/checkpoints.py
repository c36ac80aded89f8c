"""The course of one training: losses, scores, best step, costs, and checkpoints, valid only when complete.

A checkpoint is written in `OUT.checkpoints/.uqharness-partial` and renamed into place with a marker that lists its
files with size and SHA-256. Files that no marker of this run lists are never deleted.

Knows tensors and files; not the Trainer, not methods.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers.utils.logging import tqdm

from uqharness.atomic import sha256_of, write_atomic
from uqharness.errors import InputError, RunError
from uqharness.settings import FREE, Run, as_json, is_main_process

LOOK = 16  # steps between two looks at the losses on a GPU
MARKER, WEIGHTS, BEST = "complete.json", "trained.safetensors", "best.safetensors"
PARTIAL = ".uqharness-partial"  # in OUT.checkpoints: where a checkpoint is written before it counts
KEEP = 2  # checkpoints of a run that stay during training
log = logging.getLogger(__name__)


class Course:
    """Follow the trained tensors through the run."""

    def __init__(
        self,
        trained: Mapping[str, Tensor],
        run: Run,
        score: Callable[[], dict[str, float]],
        inputs: Mapping[str, Any] | None = None,
        stds: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """inputs: what the run depends on beside its settings; a checkpoint made of others is not resumed.

        stds: the std of each layer now, recorded every `run.record_every` steps.
        """
        self.trained, self.run, self.score, self.stds = trained, run, score, stds
        self.step = 0  # steps done
        self.losses: list[float] = []  # one per step
        self.evaluations: list[dict[str, float]] = []
        self.std: dict[str, list[list[float]]] = {}  # {layer: [[step, std], …]}
        self.best: dict[str, Tensor] | None = None
        self.selected: int | None = None
        self.resumed_from: int | None = None
        self.seconds = 0.0
        self.peak_memory = 0
        self._unseen: list[tuple[int, Tensor]] = []
        self._settings = {k: v for k, v in as_json(run).items() if k not in (*FREE, "stop_at")}
        self._settings |= inputs or {}

    # ---------------------------------------------------------------- during the run

    def begin(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._load(checkpoint)
        elif self.stds is not None:
            self._record_std()
        self.clear_partial()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._clock = time.perf_counter()
        quiet = not is_main_process()  # several processes, one bar
        steps = {"total": self.run.last_step, "initial": self.step}
        self._bar = tqdm(**steps, desc="train", unit="step", mininterval=0.5, disable=quiet)

    def add_loss(self, step: int, loss: Tensor) -> None:
        """Add the loss of one forward without reading it, which would make the CPU wait for the GPU."""
        self._unseen.append((step, loss.detach()))

    def end_step(self, step: int) -> None:
        self.step = step
        scored = self.run.eval_every and (step % self.run.eval_every == 0 or step == self.run.last_step)
        if scored or step == self.run.last_step or step % LOOK == 0 or not self._unseen[-1][1].is_cuda:
            self.look()
        if scored:
            self.evaluations.append({"step": step, **self.score()})
            if wanted := self.run.select.partition(":")[2]:
                values = [(-1.0 if wanted == "acc" else 1.0) * scores[wanted] for scores in self.evaluations]
                if values[-1] < min(values[:-1], default=math.inf):
                    self.best, self.selected = self._copies(), step
        if self.stds is not None and (step % self.run.record_every == 0 or step == self.run.last_step):
            self._record_std()

    def _record_std(self) -> None:
        assert self.stds is not None
        for layer, value in self.stds().items():
            self.std.setdefault(layer, []).append([self.step, value])

    def look(self) -> None:
        """Read the losses since the last look; the run ends at the first that is no number."""
        if not self._unseen:
            return
        steps, losses = zip(*self._unseen, strict=True)
        self._unseen = []
        by_step: dict[int, list[float]] = {}
        for step, value in zip(steps, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(value):
                self._bar.close()
                own = self.own_checkpoints()
                rescue = (
                    f"the last good checkpoint is {own[-1].name}" if own else "no checkpoint was written (--save-every)"
                )
                raise RunError(
                    f"the loss is {value} at step {step + 1} of {self.run.steps}; {rescue}; try a lower --lr"
                )
            by_step.setdefault(step, []).append(value)
        self.losses += [sum(values) / len(values) for values in by_step.values()]
        self._bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
        self._bar.update(len(by_step))

    def finish(self) -> None:
        """Restore the weights of the selected step and finalise the costs."""
        self._bar.close()
        self.seconds += time.perf_counter() - self._clock
        self._note_memory()
        if self.best is not None:
            self._copy_in(self.best)
        if bad := [name for name, tensor in self.trained.items() if not bool(torch.isfinite(tensor).all())]:
            raise RunError(f"{bad[0]} is not finite after step {self.step}: try a lower --lr")

    def _note_memory(self) -> None:
        """Record the peak memory so far, including that of earlier processes."""
        if any(t.is_cuda for t in self.trained.values()):
            now = torch.cuda.max_memory_allocated()
        else:
            scale = 1 if sys.platform == "darwin" else 1024
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        self.peak_memory = max(self.peak_memory, now)

    def record(self) -> dict[str, Any]:
        """Return costs and curves for the adapter's record."""
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory,
            "trainable_parameters": sum(t.numel() for t in self.trained.values()),
            "loss": thin(self.losses),
            "evaluations": self.evaluations,
            "selected_step": self.selected or self.step,
            "resumed_from": self.resumed_from,
            **({"std": self.std} if self.std else {}),
        }

    # ---------------------------------------------------------------- checkpoints

    def save_weights(self, folder: Path) -> None:
        write_atomic(folder / WEIGHTS, save(self._copies()))
        if self.best is not None:
            write_atomic(folder / BEST, save(self.best))

    def mark(self, partial: Path) -> None:
        """Complete the checkpoint in `partial`: list its files, rename it into place, delete older ones."""
        assert self.run.checkpoints is not None
        self.look()
        self._note_memory()
        state = {
            "step": self.step,
            "losses": self.losses,
            "evaluations": self.evaluations,
            "std": self.std,
            "selected": self.selected,
            "seconds": self.seconds + time.perf_counter() - self._clock,
            "peak_memory": self.peak_memory,
            "settings": self._settings,
            "files": {path.name: _fingerprint(path) for path in sorted(partial.iterdir()) if path.name != MARKER},
        }
        write_atomic(partial / MARKER, json.dumps(state))
        place = self.run.checkpoints / partial.name
        if place in self.own_checkpoints():
            _delete(place)
        if os.path.lexists(place):  # it does not belong to this run
            names = (place.with_name(f"{place.name}.aside{number}") for number in itertools.count(1))
            aside = next(path for path in names if not os.path.lexists(path))
            os.rename(place, aside)
            _tell(f"{place} is not a checkpoint of this run: renamed to {aside.name}")
        os.rename(partial, place)
        self.clear_partial()
        older = [folder for folder in self.own_checkpoints() if folder != place]
        older.sort(key=lambda folder: (folder / MARKER).stat().st_mtime_ns)
        for folder in older[: -(KEEP - 1)]:
            _delete(folder)

    def own_checkpoints(self) -> list[Path]:
        """Return the folders whose marker names this run, fewest steps first; their files are not checked."""
        return [folder for folder, marker in self._marked() if marker["settings"] == self._settings]

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from: this run's newest whose files are all as listed."""
        others = []
        for folder, marker in reversed(self._marked()):
            if differing := sorted(k for k, v in self._settings.items() if marker["settings"].get(k) != v):
                others.append(f"{folder} was made with another {', '.join(differing)}: resume with the same")
            elif problem := _damage(folder, marker):
                _tell(f"{folder} is skipped: {problem}")
            else:
                return folder
        if others and not self.own_checkpoints():
            raise InputError(others[0])
        _tell(f"no complete checkpoint in {self.run.checkpoints}: starting from step 0")
        return None

    def _marked(self) -> list[tuple[Path, dict[str, Any]]]:
        """(folder, marker) of every checkpoint with a readable marker, fewest steps first."""
        where = self.run.checkpoints
        folders = []
        for folder in where.glob("checkpoint-*") if where else ():
            if re.fullmatch(r"checkpoint-\d+", folder.name) and not folder.is_symlink():
                if (marker := _read_marker(folder)) is not None:
                    folders.append((folder, marker))
        return sorted(folders, key=lambda pair: int(pair[0].name.rsplit("-", 1)[-1]))

    def clear_partial(self) -> None:
        """Delete the incomplete checkpoint of a killed run."""
        if self.run.checkpoints is not None and is_main_process():
            shutil.rmtree(self.run.checkpoints / PARTIAL, ignore_errors=True)

    def _load(self, folder: Path) -> None:
        state = json.loads((folder / MARKER).read_text())
        self._copy_in(load_file(folder / WEIGHTS))
        self.best = load_file(folder / BEST) if BEST in state["files"] else None
        self.step = self.resumed_from = int(state["step"])
        self.losses, self.evaluations, self.std = state["losses"], state["evaluations"], state.get("std", {})
        self.selected, self.seconds, self.peak_memory = (state[key] for key in ("selected", "seconds", "peak_memory"))

    def _copies(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.trained.items()}

    @torch.no_grad()
    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) != set(self.trained):
            raise InputError("the checkpoint holds other tensors than this run trains: give one of the same method")
        for name, tensor in tensors.items():
            self.trained[name].copy_(tensor)


def drop_checkpoints(courses: Iterable[Course]) -> None:
    """Delete the checkpoints of these runs. Logs (`report_to`) and other files stay."""
    for course in courses if is_main_process() else ():
        where = course.run.checkpoints
        if where is None or not where.is_dir():
            continue
        course.clear_partial()
        for folder in course.own_checkpoints():
            _delete(folder)
        for made in (where, where.parent):  # an ensemble's members lie in OUT.checkpoints
            if made.name.endswith(".checkpoints"):
                with contextlib.suppress(OSError):  # not empty
                    made.rmdir()
        if left := sorted(path.name for path in where.glob("checkpoint-*")):
            _tell(f"kept in {where}, because it does not belong to this run: {', '.join(left)}")


def thin(values: list[float], points: int = 200) -> list[list[float]]:
    """Return [[last step, mean of the stretch], …] with at most `points` stretches."""
    size = max(1, math.ceil(len(values) / points))
    parts = [(min(i + size, len(values)), values[i : i + size]) for i in range(0, len(values), size)]
    return [[stop, sum(part) / len(part)] for stop, part in parts]


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Restore the caller's global generators, which the Trainer seeds for dropout."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _tell(line: str) -> None:
    if is_main_process():
        log.warning(line)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """Return the marker of a checkpoint; None if it cannot be read."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("settings"), dict) else None


def _damage(folder: Path, marker: Mapping[str, Any]) -> str | None:
    """Return why a checkpoint cannot be resumed, or None."""
    files = marker.get("files")
    if not isinstance(files, dict) or WEIGHTS not in files:
        return f"{MARKER} does not list its files"
    for name, listed in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _fingerprint(path) != listed:
            return f"{name} is not the file that {MARKER} lists"
    return None


def _delete(folder: Path) -> None:
    """Delete what the marker lists, the marker first; a folder that holds more stays."""
    marker = _read_marker(folder) or {}
    (folder / MARKER).unlink(missing_ok=True)
    for name in marker.get("files", ()):
        if Path(name).name == name:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
