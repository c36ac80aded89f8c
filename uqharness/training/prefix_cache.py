"""`--cache-prefix GIB`: cache the output of the layers below the first LoRA for each question.

It depends only on the base, the tokens and where they branch, not on step, seed, noise or method. It is stored in
memory, so that later epochs, and the later seeds of `--seeds`, start at the first trained layer; with
`--cache-prefix-dir DIR` also in a file, for other commands.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from uqharness.atomic import write_atomic
from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import reader_of
from uqharness.engine.rows import Rows
from uqharness.engine.shortcuts import Trunk, agree, drops, trunk
from uqharness.errors import InputError
from uqharness.settings import Run

log = logging.getLogger("uqharness.train")
States = dict[str, Tensor]  # digest of a row's tokens and their depths -> [their number, H]
_KEPT: dict[str, States] = {}  # of one base and depth: the last that was trained with


class PrefixCache:
    """Hidden states of training rows where the first LoRA begins."""

    def __init__(self, stack: LoraStack, run: Run) -> None:
        shared = trunk(stack.model, stack.parameters)
        if shared is None:
            raise InputError(
                "cache_prefix is set, but no layers that are known to be alike lie below the first LoRA: "
                "give --layers last:K, or remove --cache-prefix"
            )
        base = stack.model.get_base_model()
        if any(drops(layer, base.config) for layer in shared.layers):
            raise InputError("cache_prefix is set, but the base has dropout of its own: remove --cache-prefix")
        self.model, self.trunk, self.checked = stack.model, shared, False
        self.limit, self.full = run.cache_prefix * 2**30, False
        key = key_of(base, shared)
        self.file = Path(run.cache_prefix_dir, f"{key}.safetensors") if run.cache_prefix_dir else None
        if key not in _KEPT:
            _KEPT.clear()
        self.states = _KEPT.setdefault(key, {})
        self.size = sum(state.nbytes for state in self.states.values())
        filed = read(self.file) if self.file else {}
        self._add(filed)
        self.filed = len(filed)

    @contextmanager
    def below(self, rows: Rows) -> Iterator[None]:
        """Start forwards of these rows from the cached states inside this context."""
        with self.trunk.replaced(self.state(rows), 1):
            yield

    @torch.no_grad()
    def state(self, rows: Rows) -> Tensor:
        """Return `[R, T, H]`, zero at positions that are neither read nor attended to by read positions."""
        lengths: list[int] = (rows.ends + 1).tolist()
        # In depth-first order the depths say who sees whom.
        inputs = zip(rows.input_ids.tolist(), rows.depth.tolist(), lengths, strict=True)
        keys = [digest([*ids[:length], *depth[:length]]) for ids, depth, length in inputs]
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
        if not self._add(fresh) and not self.full:
            log.warning("--cache-prefix is full after %d inputs: others run in full", len(self.states))
            self.full = True
        return whole

    def _check(self, rows: Rows, state: Tensor) -> None:
        """Compare with a full forward once, and refuse a difference."""
        self.checked, training = True, self.model.training
        self.model.eval()  # LoRA's dropout
        full = reader_of(self.model).logits(self.model, rows)
        with self.trunk.replaced(state, 1):
            short = reader_of(self.model).logits(self.model, rows)
        self.model.train(training)
        if not agree(full, short):
            name = type(self.model.get_base_model()).__name__
            raise InputError(f"cache_prefix is set, but caching changes the results of {name}: remove it")

    def _add(self, states: States) -> bool:
        """Add states to the cache; return False if the budget does not allow all of them."""
        new = {key: state for key, state in states.items() if key not in self.states}
        for key, state in new.items():
            if self.size + state.nbytes > self.limit:
                return False
            self.states[key] = state if state.device.type == "cpu" and state.is_contiguous() else state.cpu()
            self.size += state.nbytes
        return True

    def save(self) -> None:
        """Write new states to the file, together with those that other processes have written since."""
        if self.file is None or len(self.states) <= self.filed:
            return
        self._add(read(self.file))
        try:
            write_atomic(self.file, save(self.states))
            self.filed = len(self.states)
        except OSError as error:
            log.warning("%s cannot be written: %s; the next command starts without it", self.file, error.strerror)


def read(file: Path) -> States:
    """Return the states in a file; none if it is missing or incomplete."""
    try:
        return load_file(file) if file.exists() else {}
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read: %s; it is computed again", file, error)
        return {}


def key_of(base: Any, shared: Trunk) -> str:
    """Return a hash of the lower layers: code, settings and a sample of every weight (a merged LoRA keeps norms)."""
    config = {name: value for name, value in base.config.to_dict().items() if name != "_name_or_path"}
    facts = [transformers.__version__, shared.depth, str(base.dtype), str(base.device), config]
    sample = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for module in (base.get_input_embeddings(), *shared.layers):
        for weight in module.parameters():
            some = weight.detach().flatten()[:: max(1, weight.numel() // 1024)]
            sample.update(some.double().cpu().numpy().tobytes())
    return sample.hexdigest()[:32]


def digest(numbers: list[int]) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:32]
