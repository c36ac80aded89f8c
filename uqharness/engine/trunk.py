"""The layers below the first one that differs between draws: their hidden states are the same in all draws.

They run once per batch of rows. The model's own forward does the rest: its layers below hand on the stored states, so
that masks and rotary embeddings stay its business, and no list of layers is sliced. Only for architectures that were
tested to be built like this (`tests/engine/test_trunk.py`), without a KV cache; others run in full. Layers that get
something from other layers (keys, values, embeddings of their own) would not see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "mixtral", "qwen3_moe")
_LAYER = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.")
_HEAD = "base_model.model.lm_head."


class _Captured(Exception):
    """The last of the shared layers has run."""


class Trunk:
    """The first `depth` layers of a model."""

    def __init__(self, model: PeftModel, depth: int) -> None:
        base: Any = model.get_base_model()
        self.depth, self.layers = depth, list(base.model.layers)[:depth]

    def run(self, forward: Callable[[], object]) -> Tensor:
        """The hidden states `[R, T, H]` with which a forward of R rows leaves these layers; it stops there."""
        outputs: list[Any] = []

        def stop(_: object, __: object, output: Any) -> None:
            outputs.append(output)
            raise _Captured

        handle = self.layers[-1].register_forward_hook(stop)
        try:
            forward()
        except _Captured:
            pass
        finally:
            handle.remove()
        self._tuple = isinstance(outputs[0], tuple)  # of older versions of transformers
        state: Tensor = outputs[0][0] if self._tuple else outputs[0]
        return state

    @contextmanager
    def replaced(self, state: Tensor | None, draws: int) -> Iterator[None]:
        """Within: a forward of the rows of `state`, repeated draw-major, starts with it. None: everything runs."""
        if state is None:
            yield
            return
        repeated = state.repeat(draws, 1, 1)  # [S·R, T, H]
        output = (repeated,) if self._tuple else repeated
        own = [vars(layer).get("forward") for layer in self.layers]  # accelerate sets its own on the instance
        try:
            for layer in self.layers:
                layer.forward = lambda *_, **__: output
            yield
        finally:
            for layer, forward in zip(self.layers, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward


def trunk(model: PeftModel, varied: Iterable[str]) -> Trunk | None:
    """What comes before the first of these tensors; None where that is nothing, or the architecture is not known."""
    base: Any = model.get_base_model()
    if base.config.model_type not in KNOWN:
        return None
    depth = min((_place(name, len(base.model.layers)) for name in varied), default=0)
    return Trunk(model, depth) if depth else None


def _place(name: str, layers: int) -> int:
    """The layer of a tensor; the output head comes after the last, and what is not known before the first."""
    if found := _LAYER.match(name):
        return int(found[1])
    return layers if name.startswith(_HEAD) else 0


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether logits are equal to the rounding of their type."""
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    scale = float(one.float().abs().max()) or 1.0
    return bool(((one - other).float().abs() <= tolerance * scale).all())
