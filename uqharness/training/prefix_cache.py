"""`--cache-prefix GIB`: what the layers below the first LoRA make of a question, kept for when it comes again.

It depends on the base, the tokens and where they branch alone: not on step, seed, noise or method. In the memory of the
process, so that later epochs, and the later seeds of `--seeds`, start at the first layer that is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from uqharness.engine.engine import read_logits
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import Rows
from uqharness.engine.shortcuts import drops
from uqharness.engine.trunk import agree, trunk
from uqharness.errors import InputError
from uqharness.settings import Run
from uqharness.training.fingerprint import base_fingerprint

log = logging.getLogger("uqharness.train")
States = dict[tuple[int, ...], Tensor]  # a row's tokens and their depths -> [their number, H]
_KEPT: dict[Hashable, States] = {}  # of one base and depth: the last that was trained with


class PrefixCache:
    """Hidden states of training rows where the first LoRA begins."""

    def __init__(self, stack: LoraStack, run: Run) -> None:
        shared = trunk(stack.model, stack.parameters)
        if shared is None:
            raise InputError(
                "cache_prefix is set, but no layers that are known to be alike lie below the first LoRA: "
                "give --layers last:K, or leave --cache-prefix out"
            )
        base = stack.model.get_base_model()
        if any(drops(layer, base.config) for layer in shared.layers):
            raise InputError("cache_prefix is set, but the base has dropout of its own: leave --cache-prefix out")
        device = next(iter(stack.parameters.values())).device
        key = (base_fingerprint(base), str(base.dtype), run.load_in_4bit, run.load_in_8bit, str(device), shared.depth)
        if key not in _KEPT:
            _KEPT.clear()
        self.states = _KEPT.setdefault(key, {})
        self.model, self.trunk, self.checked = stack.model, shared, False
        self.budget = run.cache_prefix * 2**30
        self.size = sum(state.nbytes for state in self.states.values())

    @contextmanager
    def below(self, rows: Rows) -> Iterator[None]:
        """Within: a forward of these rows starts with what is kept of them."""
        with self.trunk.replaced(self.state(rows), 1):
            yield

    @torch.no_grad()
    def state(self, rows: Rows) -> Tensor:
        """`[R, T, H]`, zero at the places that nobody reads and nobody that is read attends to."""
        ends = torch.zeros(len(rows.input_ids), dtype=torch.long, device=rows.row.device)
        lengths: list[int] = ends.scatter_reduce(0, rows.row, rows.pos + 1, "amax").tolist()
        # In depth-first order the depths say who sees whom.
        inputs = zip(rows.input_ids.tolist(), rows.depth.tolist(), lengths, strict=True)
        keys = [(*ids[:length], *depth[:length]) for ids, depth, length in inputs]
        new = [k for k, key in enumerate(keys) if key not in self.states or not self.checked]
        fresh: States = {}
        if new:
            ids, attention = rows.input_ids[new], rows.attention(self.model.dtype)
            attention = {name: tensor[new] for name, tensor in attention.items()}
            made = self.trunk.run(lambda: self.model(input_ids=ids, use_cache=False, **attention))
            fresh = {keys[k]: state[: lengths[k]] for k, state in zip(new, made, strict=True)}
        states = [fresh[key] if key in fresh else self.states[key] for key in keys]
        whole = torch.stack(
            [
                nn.functional.pad(state.to(rows.input_ids.device), (0, 0, 0, rows.input_ids.shape[1] - len(state)))
                for state in states
            ]
        )
        if not self.checked:
            self._check(rows, whole)
        for key, state in fresh.items():
            if key not in self.states:
                self._keep(key, state)
        return whole

    def _check(self, rows: Rows, state: Tensor) -> None:
        """Compare with a full forward, once."""
        self.checked, training = True, self.model.training
        self.model.eval()  # LoRA's dropout
        full = read_logits(self.model, rows)
        with self.trunk.replaced(state, 1):
            short = read_logits(self.model, rows)
        self.model.train(training)
        if not agree(full, short):
            name = type(self.model.get_base_model()).__name__
            raise InputError(f"cache_prefix is set, but {name} is not what its layers are alone: leave it out")

    def _keep(self, key: tuple[int, ...], state: Tensor) -> None:
        if self.size + state.nbytes <= self.budget:
            self.states[key] = state.to("cpu", copy=True)
            self.size += state.nbytes
        elif self.budget:
            log.warning("--cache-prefix is full after %d inputs: others run in full", len(self.states))
            self.budget = 0
