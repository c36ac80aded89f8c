"""A LoRA in the last third of the layers: what lies below runs once for all draws, and never backwards.

On SmolLM2-135M where `UQHARNESS_REAL_MODELS` names the folder of `tools/real_models.py`, else on a random Llama of as
many layers. Each row against the same adapter with every draw in full, or a LoRA in all layers in training.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from peft import PeftModel
from torch import nn

from benchmarks.evaluation import gaussian
from benchmarks.setting import QV, Shape, adapter, questions, run_of
from benchmarks.timing import Row, Times, figure, interleave, ratio
from benchmarks.training import ours
from uqharness.adapters.mle import MLE
from uqharness.engine.engine import Engine
from uqharness.engine.rows import make_rows
from uqharness.settings import Run
from uqharness.training.base_model import build_model

REAL = os.environ.get("UQHARNESS_REAL_MODELS", "")
SMOLLM2 = Path(REAL, "smollm2-135m-instruct")


def model_of(shape: Shape, run: Run, real: bool) -> PeftModel:
    """With a LoRA whose B is not zero."""
    if not real:
        return adapter(shape, run)
    model, _ = build_model(dataclasses.replace(run, base=str(SMOLLM2), dtype="float32"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def evaluation(model: PeftModel, shape: Shape, batch: int, answer: int, rounds: int) -> Times:
    rows = make_rows([question.pairs for question in questions(shape, batch, answer=answer).train], 512, branch=True)
    engines = {name: Engine(model, gaussian(model), 10) for name in ("shared", "full")}
    engines["full"].trunk = None
    assert engines["shared"].trunk is not None
    # The first round, which does not count, has the check of the first batch.
    return interleave({name: partial(engine.score, rows) for name, engine in engines.items()}, rounds)


def rows(quick: bool) -> Iterator[Row]:
    real = SMOLLM2.is_dir() and bool(REAL) and not quick
    small = Shape(64, 6, 32, 256) if quick else Shape(192, 30, 64, 4000)
    shape = Shape(576, 30, 64, 49152) if real else small
    name = "SmolLM2-135M" if real else f"random Llama of width {shape.width}"
    some, batch, rounds = shape.layers // 3, 2, 1 if quick else 5
    run = run_of(batch, QV, steps=2 if quick else 4)
    last = dataclasses.replace(run, layers=f"last:{some}")
    model = model_of(shape, last, real)
    for answers, length, goal in (("letters", 1, 0.39), ("answers of 5 tokens", 5, 0.44)):
        times = evaluation(model, shape, batch, length, rounds)
        row = f"N = 10 and the mean, LoRA in the last {some} of {shape.layers} layers, {answers} / every draw in full"
        yield figure(f"{row}, {name}", f"predicted {goal}", round(1.1 * goal, 3), ratio(times, "shared", "full"))
    few, data = max(1, shape.layers // 5), questions(shape, 16)
    cached = dataclasses.replace(run, layers=f"last:{few}", cache_prefix=1.0)
    fits = {
        "some": ours(MLE(), model, last, data),
        # The round that does not count is the first epoch.
        "kept": ours(MLE(), model_of(shape, cached, real), cached, data),
        "all": ours(MLE(), model_of(shape, run, real), run, data),
    }
    times = interleave(fits, rounds)
    row = f"mle training step, LoRA in the last {some} of {shape.layers} layers / in all, {name}"
    yield figure(row, "predicted 0.55–0.67", 0.737, ratio(times, "some", "all"))
    row = f"mle training step after the first epoch, last {few} of {shape.layers}, --cache-prefix / all, {name}"
    yield figure(row, "predicted 0.2", 0.22, ratio(times, "kept", "all"))
