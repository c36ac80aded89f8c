"""Adapter folders on the tiny base of `tests/tiny.py`, and the requests that lm-eval asks them with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from peft import PeftModel

from tests.tiny import make_lora
from uqharness.adapter_io import folder as adapter_io
from uqharness.engine.lora import LoraStack
from uqharness.posterior import Gaussian
from uqharness.training.fingerprint import base_fingerprint

TEXTS = ["w1 w2 w3 Answer:", "w4 Answer:", "w5 w6 w7 w8 w9 w10 Answer:", "w11 w12 Answer:"]
REQUESTS = [(text, answer) for text in TEXTS for answer in (" A", " B", " w3 w4", " C w1 w2 w3")]


def gaussian(model: PeftModel, std: float = 0.2, train_seed: int = 3) -> Gaussian:
    """The adapter's own weights as the mean, and a std on every A."""
    mean = LoraStack(model).mean()
    return Gaussian(mean, {n: torch.full_like(t, std) for n, t in mean.items() if "lora_A" in n}, train_seed)


def save(folder: Path, base: Path, std: float | None = 0.2, **lora: Any) -> Path:
    """An adapter folder: Gaussian on A, or (std None) what PEFT itself writes."""
    model = make_lora(base, **lora)
    if std is None:
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder
    adapter_io.save_adapter(folder, model, gaussian(model, std, train_seed=5), record(base, model, "blob"))
    return folder


def record(base: Path, model: PeftModel, method: str) -> dict[str, Any]:
    return {
        "method": {"name": method, "label": method, "settings": {}},
        "base": {"name": str(base), "fingerprint": base_fingerprint(model.get_base_model())},
    }


def instances(kind: str, arguments: Sequence[Any]) -> list[Instance]:
    """One request for each document."""
    return [Instance(kind, {}, args, 0, metadata=("some_task", i, 1)) for i, args in enumerate(arguments)]


def ask(text: str, choices: Sequence[str], doc: int) -> list[Instance]:
    """One question's requests, as lm-eval makes them."""
    numbered = enumerate(choices)
    return [Instance("loglikelihood", {}, (text, c), k, metadata=("some_task", doc, 1)) for k, c in numbered]


@contextmanager
def lines_of(name: str) -> Iterator[list[str]]:
    """What a logger says within, wherever its lines go: lm-eval's set-up keeps them from pytest's caplog."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
