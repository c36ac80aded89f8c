"""Work that nobody needs: in the last layer only the positions matter at which the output head is read.

Its q, o and MLP run at these alone; its k and v at all, as everyone attends to them. The numbers stay what they are.
Only for architectures that were tested to be built like this (`tests/engine/test_shortcuts.py`); others run in full.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from uqharness.engine.rows import Rows

KNOWN = ("llama", "mistral", "qwen2", "qwen3")
LAST = ("self_attn.q_proj", "self_attn.o_proj", "mlp")


def may_branch(model: PeftModel, max_length: int) -> bool:
    """Whether rows may be tries: the model takes any mask, and no layer has a window of its own."""
    config: Any = model.get_base_model().config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    free = config._attn_implementation in ("sdpa", "eager") and (window is None or window >= max_length)
    return config.model_type in KNOWN and free


def drops(model: nn.Module, config: object) -> bool:
    """Whether a forward of `model` in training mode has dropout, that is, random numbers for each token."""
    own = float(getattr(config, "attention_dropout", 0) or 0)
    return own > 0 or any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))


@contextmanager
def read_only(model: PeftModel, rows: Rows, draws: int, keep: Collection[nn.Module] = ()) -> Iterator[None]:
    """Within: a forward of `rows`, repeated for `draws`, leaves out what nobody reads. keep: not in these."""
    base: Any = model.get_base_model()
    pays = base.config.model_type in KNOWN and 2 * len(rows.row) < rows.input_ids.numel()
    # Gradient checkpointing runs the layer again in the backward pass, after this.
    pays = pays and not (base.training and getattr(base.model.layers[-1], "gradient_checkpointing", False))

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (read(args[0], rows, draws), *args[1:])

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


def read(hidden: Tensor, rows: Rows, draws: int) -> Tensor:
    """The positions that are read: `[S·R, T, H]` -> `[S·U, 1, H]`, draw-major."""
    blocks = hidden.view(draws, *rows.input_ids.shape, hidden.shape[-1])
    return blocks[:, rows.row.to(hidden.device), rows.pos.to(hidden.device)].flatten(0, 1).unsqueeze(1)
