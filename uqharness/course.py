"""The course of one training: losses, scores, best step, costs, and checkpoints that count only when whole.

Knows tensors and files; not the Trainer, not methods.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers.utils.logging import tqdm

from uqharness.atomic import write_atomic
from uqharness.config import Run, as_json
from uqharness.errors import InputError, RunError

if TYPE_CHECKING:
    from uqharness.data import ChoiceData

LOOK = 16  # steps between two looks at the losses on a GPU
MARKER, WEIGHTS, BEST = "complete.json", "trained.safetensors", "best.safetensors"
# What may differ between a run and the one that resumes it.
FREE = {"out", "resume", "save_every", "report_to", "device"}
log = logging.getLogger(__name__)


class Course:
    """Follows the trained tensors through the run."""

    def __init__(
        self,
        trained: Mapping[str, Tensor],
        run: Run,
        data: ChoiceData,
        score: Callable[[], dict[str, float]],
        method: Any = None,
    ) -> None:
        self.trained, self.run, self.score = trained, run, score
        self.step = 0  # steps done
        self.losses: list[float] = []  # one per step
        self.evaluations: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.selected: int | None = None
        self.resumed_from: int | None = None
        self.seconds = 0.0
        self.peak_memory = 0
        self._unseen: list[tuple[int, Tensor]] = []
        self._settings = {k: v for k, v in as_json(run).items() if k not in FREE}
        self._settings["data"] = [split["hash"] for split in data.record.get("splits", [])]
        self._settings["method"] = [getattr(method, "name", None), as_json(method)]
        if run.eval_every and not data.select:
            raise InputError(
                "eval_every is set but there is no selection split: give --select-split train[-20%]"
            )

    # ---------------------------------------------------------------- during the run

    def begin(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            self._load(checkpoint)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._clock = time.perf_counter()
        quiet = os.environ.get("RANK", "0") != "0"  # several processes, one bar
        steps = {"total": self.run.steps, "initial": self.step}
        self._bar = tqdm(**steps, desc="train", unit="step", mininterval=0.5, disable=quiet)

    def add_loss(self, step: int, loss: Tensor) -> None:
        """The loss of one forward, not looked at yet: a GPU would have to finish its work first."""
        self._unseen.append((step, loss.detach()))

    def end_step(self, step: int) -> None:
        self.step = step
        scored = self.run.eval_every and (step % self.run.eval_every == 0 or step == self.run.steps)
        if scored or step == self.run.steps or step % LOOK == 0 or not self._unseen[-1][1].is_cuda:
            self.look()
        if scored:
            self._evaluate(step)

    def look(self) -> None:
        """Read the losses since the last look; the run ends at the first that is no number."""
        if not self._unseen:
            return
        steps, losses = zip(*self._unseen, strict=True)
        self._unseen = []
        found: dict[int, list[float]] = {}
        for step, value in zip(steps, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(value):
                self._fail(step, value)
            found.setdefault(step, []).append(value)
        self.losses += [sum(values) / len(values) for values in found.values()]
        self._bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
        self._bar.update(len(found))

    def _fail(self, step: int, value: float) -> None:
        self._bar.close()
        kept = self.newest_checkpoint(mine=False) if self.run.out else None
        rescue = (
            f"the last good checkpoint is {kept.name}" if kept else "no checkpoint was written (--save-every)"
        )
        raise RunError(
            f"the loss is {value} at step {step + 1} of {self.run.steps}; {rescue}; try a lower --lr"
        )

    def _evaluate(self, step: int) -> None:
        self.evaluations.append({"step": step, **self.score()})
        wanted = self.run.select.partition(":")[2]
        if wanted:
            sign = -1.0 if wanted == "acc" else 1.0
            values = [sign * found[wanted] for found in self.evaluations]
            if values[-1] < min(values[:-1], default=math.inf):
                self.best, self.selected = self._copies(), step

    def finish(self) -> None:
        """Weights of the selected step in place; costs final."""
        self._bar.close()
        self.seconds += time.perf_counter() - self._clock
        self._note_memory()
        if self.best is not None:
            self._copy_in(self.best)
        bad = [name for name, tensor in self.trained.items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise RunError(f"{bad[0]} is not finite after step {self.step}: try a lower --lr")

    def _note_memory(self) -> None:
        """The peak so far, that of the processes before this one included."""
        if any(t.is_cuda for t in self.trained.values()):
            now = torch.cuda.max_memory_allocated()
        else:
            scale = 1 if sys.platform == "darwin" else 1024
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        self.peak_memory = max(self.peak_memory, now)

    def record(self) -> dict[str, Any]:
        """For the adapter's record: costs and curves."""
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory,
            "trainable_parameters": sum(t.numel() for t in self.trained.values()),
            "loss": thin(self.losses),
            "evaluations": self.evaluations,
            "selected_step": self.selected or self.step,
            "resumed_from": self.resumed_from,
        }

    # ---------------------------------------------------------------- checkpoints

    def save_weights(self, folder: Path) -> None:
        write_atomic(folder / WEIGHTS, save(self._copies()))
        if self.best is not None:
            write_atomic(folder / BEST, save(self.best))

    def mark(self, folder: Path) -> None:
        """The checkpoint in `folder` is whole: from here on it counts."""
        self.look()
        self._note_memory()
        state = {
            "step": self.step,
            "losses": self.losses,
            "evaluations": self.evaluations,
            "selected": self.selected,
            "seconds": self.seconds + time.perf_counter() - self._clock,
            "peak_memory": self.peak_memory,
            "settings": self._settings,
        }
        write_atomic(folder / MARKER, json.dumps(state))

    def newest_checkpoint(self, mine: bool = True) -> Path | None:
        """The whole checkpoint of the most steps; `mine`: refuse one of other settings."""
        where = self.run.checkpoints
        found = sorted(where.glob(f"checkpoint-*/{MARKER}"), key=_step_of) if where else []
        if not found:
            if mine:
                log.info("no complete checkpoint in %s: starting from step 0", where)
            return None
        if mine:
            stored = json.loads(found[-1].read_text())["settings"]
            other = sorted(key for key in self._settings if stored.get(key) != self._settings[key])
            if other:
                raise InputError(
                    f"{found[-1].parent} was made with another {', '.join(other)}: resume with the same"
                )
        return found[-1].parent

    def _load(self, folder: Path) -> None:
        state = json.loads((folder / MARKER).read_text())
        self._copy_in(load_file(folder / WEIGHTS))
        self.best = load_file(folder / BEST) if (folder / BEST).exists() else None
        self.step = self.resumed_from = int(state["step"])
        self.losses, self.evaluations = state["losses"], state["evaluations"]
        self.selected, self.seconds, self.peak_memory = (
            state["selected"],
            state["seconds"],
            state["peak_memory"],
        )

    def _copies(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.trained.items()}

    @torch.no_grad()
    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        if set(tensors) != set(self.trained):
            raise InputError(
                "the checkpoint holds other tensors than this run trains: was it another method?"
            )
        for name, tensor in tensors.items():
            self.trained[name].copy_(tensor)


def drop_checkpoints(run: Run) -> None:
    """Once the adapter itself is written. Logs (`report_to`) that lie beside them stay."""
    if run.checkpoints is None or os.environ.get("RANK", "0") != "0":
        return
    for folder in list(run.checkpoints.rglob("checkpoint-*")):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted([run.checkpoints, *run.checkpoints.rglob("*")], reverse=True):  # the inner ones first
        with contextlib.suppress(OSError):  # not empty, or gone
            folder.rmdir()


def thin(values: list[float], points: int = 200) -> list[list[float]]:
    """[[last step, mean of the stretch], …] with at most `points` stretches."""
    size = max(1, math.ceil(len(values) / points))
    parts = [(min(i + size, len(values)), values[i : i + size]) for i in range(0, len(values), size)]
    return [[stop, sum(part) / len(part)] for stop, part in parts]


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """The Trainer seeds the global generators (dropout needs that); the caller gets its own back."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def _step_of(marker: Path) -> int:
    return int(marker.parent.name.rsplit("-", 1)[-1])
