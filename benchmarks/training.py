"""A training step of ours against a plain PEFT LoRA step: full logits, AdamW, the same batches.

Ours run as `uqharness train` runs them, in the Trainer; the peer is a bare loop. All steps of a fit but the first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from peft import PeftModel

from benchmarks.setting import Shape, adapter, questions, run_of
from benchmarks.timing import Row, Seconds, figure, interleave, peak_bytes, ratio
from uqharness.adapters.blob import BLoB
from uqharness.adapters.melora import MeLoRA
from uqharness.adapters.mle import MLE
from uqharness.method import Method
from uqharness.settings import Run
from uqharness.training.checkpoints import Course
from uqharness.training.data import ChoiceData

Steps = Callable[[], Seconds]
Clock = Callable[[], float]


def plain(model: PeftModel, run: Run, data: ChoiceData, clock: Clock = time.process_time) -> Steps:
    """PEFT's LoRA in the loop that everyone writes: the model's own loss, with logits at every position."""
    ids = torch.tensor([[*q.pairs[q.gold][0], *q.pairs[q.gold][1]] for q in data.train])
    labels = ids.clone()
    labels[:, :-1] = -100
    ids, labels = ids.to(model.device), labels.to(model.device)

    def steps() -> Seconds:
        model.train()
        ends = []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=run.lr)
        for step in range(run.steps):
            now = [(step * run.batch_size + k) % len(ids) for k in range(run.batch_size)]
            model(input_ids=ids[now, :-1], labels=ids[now, :-1], shift_labels=labels[now, 1:]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ends += [clock()] if step in (0, run.steps - 1) else []
        return Seconds(ends[-1] - ends[0])

    return steps


def ours(method: Method, model: PeftModel, run: Run, data: ChoiceData, clock: Clock = time.process_time) -> Steps:
    end_step = Course.end_step

    def steps() -> Seconds:
        ends = []

        def note(course: Course, step: int) -> None:
            end_step(course, step)
            if step in (1, run.steps):
                ends.append(clock())

        with patch.object(Course, "end_step", note):
            method.fit(model, data, run, None)
        return Seconds(ends[-1] - ends[0])

    return steps


def shared_prompts(quick: bool) -> Iterator[Row]:
    """Choices of 8 tokens after a prompt of 60: a row for each question against a row for each choice."""
    shape, run = dataclasses.replace(Shape.of(quick), tokens=60), run_of(batch=4, steps=2 if quick else 7)
    data = questions(shape, 64, answer=8)
    shared, apart = (ours(MLE(), adapter(shape, run), run, data) for _ in range(2))

    def alone() -> Seconds:
        with patch("uqharness.training.loop.may_branch", lambda *_: False):
            return apart()

    times = interleave({"shared": shared, "apart": alone}, 1 if quick else 11)
    row = "mle training step, 4 choices of 8 tokens after 60, a row for each question / for each choice"
    yield figure(row, "predicted 0.40", 0.44, ratio(times, "shared", "apart"))


def rows(quick: bool) -> Iterator[Row]:
    shape, run = Shape.of(quick), run_of(batch=4, steps=2 if quick else 7)
    data = questions(shape, 64)
    methods = {"mle": MLE(), "blob": BLoB(), "melora": MeLoRA()}
    fits = {name: ours(method, adapter(shape, run), run, data) for name, method in methods.items()}
    times = interleave({"plain": plain(adapter(shape, run), run, data), **fits}, 1 if quick else 11)
    peer = "bayesian-peft 1.21–1.27; paper 1.15"
    yield figure("BLoB training step / plain PEFT LoRA step", peer, 0.95, ratio(times, "blob", "plain"))
    yield figure("BLoB training step / our mle step", "", 1.05, ratio(times, "blob", "mle"))
    peer = "paper 1.40–1.55"
    yield figure("Me-LoRA training step / our mle step", peer, 1.05, ratio(times, "melora", "mle"))
    yield from shared_prompts(quick)
    peaks = {name: peak_bytes(fits[name]) for name in ("mle", "melora")}
    yield figure("Me-LoRA training, peak memory / our mle", "", 1.01, [peaks["melora"] / peaks["mle"]])
