"""Skip computation whose result is not read or that all draws share, without changing the numbers.

- In the last layer only the positions matter at which the output head is read (`skip_unread`).
- Layers below the first one that differs between draws have the same hidden states in all draws (`Trunk`).
- A question's choices share their prompt, where the model takes rows that branch (`may_branch`).

Only for architectures that were tested to be built like this (`tests/engine/test_shortcuts.py`, `test_trunk.py`);
others run in full.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from uqharness.engine.rows import Rows

SKIPS = ("llama", "mistral", "qwen2", "qwen3")  # model types whose last layer runs in part, and whose rows may branch
SHARES = (*SKIPS, "gemma2", "gemma3_text", "phi3", "smollm3", "mixtral", "qwen3_moe")  # whose lower layers run once
LAST = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
_LAYER = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.")
_HEAD = "base_model.model.lm_head."


def may_branch(model: PeftModel, max_length: int) -> bool:
    """Return whether rows may be tries: the model takes any mask, and no layer has a window of its own."""
    config: Any = model.get_base_model().config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    free = config._attn_implementation in ("sdpa", "eager") and (window is None or window >= max_length)
    return config.model_type in SKIPS and free


def drops(model: nn.Module, config: object) -> bool:
    """Return whether a forward of `model` in training mode has dropout, that is, random numbers for each token."""
    own = float(getattr(config, "attention_dropout", 0) or 0)
    return own > 0 or any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))


# ---------------------------------------------------------------- positions that nobody reads


def pick_read(hidden: Tensor, rows: Rows, draws: int) -> Tensor:
    """Select the positions that are read: `[S·R, T, H]` -> `[S·U, 1, H]`, draw-major."""
    blocks = hidden.view(draws, *rows.input_ids.shape, hidden.shape[-1])
    return blocks[:, rows.row.to(hidden.device), rows.pos.to(hidden.device)].flatten(0, 1).unsqueeze(1)


@contextmanager
def skip_unread(model: PeftModel, rows: Rows, draws: int, keep: Collection[nn.Module] = ()) -> Iterator[None]:
    """Run the last layer's q, o and MLP only at read positions, inside this context.

    Its k and v run at all positions, as everyone attends to them. keep: modules that run in full.
    """
    base: Any = model.get_base_model()
    pays = base.config.model_type in SKIPS and 2 * len(rows.row) < rows.input_ids.numel()
    # Gradient checkpointing runs the layer again in the backward pass, after this.
    pays = pays and not (base.training and getattr(base.model.layers[-1], "gradient_checkpointing", False))

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (pick_read(args[0], rows, draws), *args[1:])

    def scatter(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(draws, *rows.input_ids.shape, output.shape[-1])  # [S, R, T, H]
        whole[:, rows.row.to(output.device), rows.pos.to(output.device)] = output.view(draws, len(rows.row), -1)
        return whole.flatten(0, 1)

    with ExitStack() as undo:
        for name in LAST if pays else ():
            module = base.model.layers[-1].get_submodule(name)
            if any(part in keep for part in module.modules()):
                continue
            undo.callback(module.register_forward_pre_hook(pick).remove)
            undo.callback(module.register_forward_hook(scatter).remove)
        yield


# ---------------------------------------------------------------- layers that all draws share


class Trunk:
    """The first `depth` layers of a model, which run once per batch of rows.

    The model's own forward does the rest: these layers hand on the stored states, so that masks and rotary embeddings
    are handled there. Without a KV cache; layers that get something from other layers (keys, values, embeddings of
    their own) would not see it.
    """

    def __init__(self, model: PeftModel, depth: int) -> None:
        base: Any = model.get_base_model()
        self.depth, self.layers = depth, list(base.model.layers)[:depth]

    def run(self, forward: Callable[[], object]) -> Tensor:
        """Return the hidden states `[R, T, H]` after these layers; the forward of R rows stops there."""
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
        """Start forwards from `state`, repeated draw-major, inside this context; None: run everything."""
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


class _Captured(Exception):
    """Raised when the last of the shared layers has run."""


def trunk(model: PeftModel, varied: Iterable[str]) -> Trunk | None:
    """Return the layers before the first of these tensors; None if there are none or the architecture is unknown."""
    base: Any = model.get_base_model()
    if base.config.model_type not in SHARES:
        return None
    layers = len(base.model.layers)

    def place(name: str) -> int:
        """Return the layer index of a tensor; the output head is after the last, unknown names before the first."""
        if layer := _LAYER.match(name):
            return int(layer[1])
        return layers if name.startswith(_HEAD) else 0

    depth = min(map(place, varied), default=0)
    return Trunk(model, depth) if depth else None


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether logits are equal up to the rounding of their type."""
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    scale = float(one.float().abs().max()) or 1.0
    return bool(((one - other).float().abs() <= tolerance * scale).all())
