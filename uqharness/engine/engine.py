"""Bayesian model averaging: p(y | x) ≈ 1/S Σ_s p(y | x, θ_s), θ_s ~ q   (BLoB, arXiv:2406.11675, Eq. 1).

The engine runs token rows through all draws, folded into the batch, and reads the output head only where an
answer is read. The layers below the first one that differs between draws run once for all draws (`trunk.py`). It knows
tokens and draws, not tasks or metrics. Slow twin: `tests/slow_twin.py`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from uqharness.engine.auto import FIRST_LOOK, Auto
from uqharness.engine.input_noise import InputNoise, Shape, prefix_tables
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import Pair, Rows, make_rows, model_input
from uqharness.engine.shortcuts import read, read_only
from uqharness.engine.trunk import agree, trunk
from uqharness.errors import InputError
from uqharness.posterior import Posterior, antithetic

__all__ = [
    "Engine",
    "Pair",
    "Rows",
    "Scores",
    "choice_logprobs",
    "continuation_logprobs",
    "make_rows",
    "model_input",
    "read_logits",
]
log = logging.getLogger(__name__)


def read_logits(model: PeftModel, rows: Rows, draws: int = 1, skip: bool = False) -> Tensor:
    """Output-head logits at the positions that are read: `[S, U, V]`.

    A pre-hook on the head picks the hidden states, so any architecture works and whatever follows the head
    (soft-capping, scaling) stays the model's business. No attention mask where rows do not branch: they are
    right-padded and causal. skip: leave out what nobody reads.
    """
    head = model.get_base_model().get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model.get_base_model()).__name__} has no output head to read answers from")
    attention = {name: t.repeat(draws, *[1] * (t.ndim - 1)) for name, t in rows.attention(model.dtype).items()}
    handle = head.register_forward_pre_hook(lambda _, args: (read(args[0], rows, draws), *args[1:]))
    try:
        with read_only(model, rows, draws) if skip else contextlib.nullcontext():
            logits = model(input_ids=rows.input_ids.repeat(draws, 1), use_cache=False, **attention).logits
    finally:
        handle.remove()
    return logits.view(draws, len(rows.row), -1)


def continuation_logprobs(logits: Tensor, rows: Rows) -> Tensor:
    """log p(continuation) over the full vocabulary: `[S, U, V]` -> `[S, K]`, summed in float64."""
    logits = logits.float()
    picked = logits[:, rows.at, rows.token] - logits.logsumexp(-1)[:, rows.at]  # [S, N]
    total = torch.zeros(len(logits), len(rows.question), dtype=torch.float64, device=logits.device)
    return total.index_add(1, rows.slot, picked.double())


def choice_logprobs(logprobs: Tensor, rows: Rows) -> Tensor:
    """log p(choice | the question's choices): `[S, K]` -> `[S, Q, C]`, −inf where a question has fewer choices."""
    shape = (len(logprobs), int(rows.question.max()) + 1, int(rows.choice.max()) + 1)
    table = logprobs.new_full(shape, -math.inf)
    table = table.index_put(
        (torch.arange(shape[0], device=table.device)[:, None], rows.question, rows.choice), logprobs
    )
    return table.log_softmax(-1)


def greedy(mixture: Tensor, rows: Rows) -> Tensor:
    """`[U, V]` -> `[K]`: whether every token of a continuation is the most probable one."""
    hit = mixture.argmax(-1)[rows.at] == rows.token
    found = torch.ones(len(rows.question), dtype=torch.bool, device=hit.device)
    return found.index_put((rows.slot[~hit],), torch.tensor(False, device=hit.device))


@dataclass
class Scores:
    """Log-likelihoods of K continuations: under each draw, under the mean, and what the mixture would say."""

    draws: Tensor  # [S, K] float64
    mean: Tensor | None  # [K]
    greedy: Tensor  # [K] bool: every token is the argmax of the next-token mixture
    taken: Tensor  # [K] how many draws were taken; NaN stands for the others


class Engine:
    """Runs rows through the mean and the first `samples` draws of a posterior."""

    def __init__(
        self,
        model: PeftModel,
        posterior: Posterior,
        samples: int = 10,
        seed: int = 0,
        mean: bool = True,
        tokens: int | None = None,
        autocast: torch.dtype | None = None,
        auto: float | None = None,
        pairs: bool = False,
    ) -> None:
        self.model, self.posterior, self.autocast, self.seed = model, posterior, autocast, seed
        self.stack = LoraStack(model)
        self.stack.load({name: t for name, t in posterior.mean.items() if name in self.stack.parameters})
        self.samples = posterior.usable(samples)
        on_gpu = next(model.parameters()).device.type != "cpu"
        # Tokens of one forward, draws included: on a CPU more than these are no faster (benchmarks/NOTES.md).
        self.tokens = tokens or (32768 if on_gpu else 2048)
        # A posterior that hands over its combined answer needs the mean's forward only.
        self.given = posterior.combine == "given" and self.samples > 0
        draw = partial(antithetic, posterior) if pairs else partial(posterior.draws, 0)
        drawn = draw(self.samples, seed) if self.samples and not self.given else {}
        self.one_by_one = self.stack.why_one_by_one(drawn) if drawn else None
        if self.one_by_one:
            log.info("draws run one by one: %s cannot be folded into the batch", self.one_by_one)
        self.noisy = posterior.noisy_inputs() if self.samples and not self.given else ()
        varied = bool(drawn) or bool(self.noisy)
        # A mean of its own is one more function; where a draw is the mean (a point, member 0) it is not.
        self.separate_mean = mean and varied and not posterior.mean_is_member
        # {name: [F, ...]}, made once per run: the mean if it is separate, then the draws. {} is the mean alone.
        self.tensors = {name: self._stacked(name, tensor) for name, tensor in drawn.items()}
        self.count = self.separate_mean + (self.samples if varied else 1)
        self.trunk = trunk(model, [*drawn, *self.noisy]) if self.count > 1 else None
        self.trunk_checked = False
        # The bound is on averaged probabilities: other rules get all draws.
        stops = auto is not None and varied and posterior.combine == "probs"
        self.auto = Auto(self.samples, auto) if auto is not None and stops else None

    def _stacked(self, name: str, drawn: Tensor) -> Tensor:
        mean = [self.posterior.mean[name][None]] if self.separate_mean else []
        return self.stack.on_device(name, torch.cat([*mean, drawn]))

    @torch.inference_mode()
    def score(self, rows: Rows) -> Scores:
        """Log-likelihoods of the rows' continuations under every function, or under as many draws as it takes."""
        rows = rows.to(self.stack.parameters[next(iter(self.stack.parameters))].device)
        values = torch.full((self.count, len(rows.question)), math.nan, dtype=torch.float64)
        taken, mixture = torch.full((len(rows.question),), self.samples), None
        first, start, left = int(self.separate_mean), 0, rows
        stop = min(first + FIRST_LOOK, self.count) if self.auto else self.count
        slots, places = torch.arange(len(rows.question)), torch.arange(len(rows.row))  # of what is left
        state = self._shared(rows)
        while True:
            found, part = self._run(left, start, stop, state)
            values[start:stop, slots] = found.cpu()
            mixture = part if mixture is None else mixture.index_add(0, places.to(part.device), part)
            if self.auto is None or stop == self.count:
                break
            taken[slots] = stop - first
            table = choice_logprobs(values[first:stop, slots].to(found.device), left)
            unsettled = self.auto.unsettled(table)
            state = None if state is None else state[unsettled[left.example]]
            left, kept, read = left.take(unsettled)
            slots, places = slots[kept.cpu()], places[read.cpu()]
            if not len(slots):
                break
            taken[slots] = self.samples
            start, stop = stop, stop + 1
        scores = self._scores(values, greedy(mixture, rows).cpu(), taken)
        if self.given:
            scores.draws, scores.taken = self.posterior.given(self.stack, rows).double().cpu()[None], taken.fill_(1)
        return scores

    def _run(self, rows: Rows, start: int, stop: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Functions start … stop−1: log p(continuation) `[F, K]` and the draws' summed next-token p `[U, V]`."""
        values, mixture = [], None
        for logits in self._chunks(rows, start, stop, state):  # [F, U, V]
            values.append(continuation_logprobs(logits, rows))
            skip = 1 if self.separate_mean and start == 0 else 0  # the mean is no part of the mixture
            start += len(logits)
            if skip < len(logits):
                part = logits[skip:].float().softmax(-1).sum(0)
                mixture = part if mixture is None else mixture + part
        assert mixture is not None
        return torch.cat(values), mixture

    def _scores(self, values: Tensor, greedy: Tensor, taken: Tensor) -> Scores:
        if self.separate_mean:
            return Scores(values[1:], values[0], greedy, taken)
        if not self.samples or self.given:  # the mean alone
            return Scores(values[:0], values[0], greedy, taken)
        shown = values[0] if self.posterior.finite == 1 or self.posterior.mean_is_member else None
        return Scores(values, shown, greedy, taken)

    def _shared(self, rows: Rows) -> Tensor | None:
        """Hidden states that all functions share `[R, T, H]`; None where the first layer differs already.

        On the first batch, what comes out is compared with a full forward.
        """
        if self.trunk is None:
            return None
        with self._autocast(rows):
            state = self.trunk.run(lambda: read_logits(self.model, rows, skip=True))
        if not self.trunk_checked:
            self.trunk_checked, prefixes = True, prefix_tables(rows) if self.noisy else None
            last = self.count - 1
            full, short = (self._forward(rows, last, last + 1, prefixes, s) for s in (None, state))
            if not agree(full, short):
                log.warning(
                    "the %d layers below the first that differs between draws are not what the draws share in %s: "
                    "each draw runs in full",
                    self.trunk.depth,
                    type(self.model.get_base_model()).__name__,
                )
                self.trunk = None
                return None
        return state

    def _chunks(
        self, rows: Rows, start: int = 0, end: int | None = None, state: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Logits of successive chunks of functions; halves the chunk when the GPU is full.

        state: what `_shared` returned; without it each function runs in full.
        """
        end, prefixes = self.count if end is None else end, prefix_tables(rows) if self.noisy else None
        while start < end:
            size = 1 if self.one_by_one else max(1, self.tokens // rows.input_ids.numel())
            stop = min(start + size, end)
            try:
                logits = self._forward(rows, start, stop, prefixes, state)
            except torch.cuda.OutOfMemoryError:
                if stop - start == 1:
                    raise
                torch.cuda.empty_cache()
                self.tokens = rows.input_ids.numel() * (stop - start) // 2
                log.info("out of memory with %d draws at once: going on with half of them", stop - start)
                continue
            yield logits
            start = stop

    def _forward(
        self, rows: Rows, start: int, stop: int, prefixes: dict[Shape, Tensor] | None, state: Tensor | None
    ) -> Tensor:
        below = self.trunk.replaced(state, stop - start) if self.trunk else contextlib.nullcontext()
        with self.using(start, stop, prefixes), self._autocast(rows), below:
            return read_logits(self.model, rows, stop - start, skip=True)

    def _autocast(self, rows: Rows) -> contextlib.AbstractContextManager[Any]:
        on = self.autocast is not None
        return torch.autocast(rows.input_ids.device.type, self.autocast) if on else contextlib.nullcontext()

    @contextlib.contextmanager
    def using(self, start: int, stop: int, prefixes: dict[Shape, Tensor] | None = None) -> Iterator[None]:
        """Within: the model is functions start … stop−1, folded draw-major, or the one function's weights.

        prefixes: hashes of the tokens that are run, for posteriors with noise on inputs.
        """
        if self.one_by_one:
            functions = self.stack.weights({name: t[start] for name, t in self.tensors.items()})
        else:
            functions = self.stack.functions({name: t[start:stop] for name, t in self.tensors.items()})
        with functions, self.stack.inputs(self._input_noise(start, stop, prefixes)):
            yield

    def _input_noise(self, start: int, stop: int, prefixes: dict[Shape, Tensor] | None) -> dict[str, InputNoise]:
        if self.noisy and prefixes is None:
            raise InputError(f"a {self.posterior.kind} posterior with noise per token cannot generate: use samples=0")
        first = int(self.separate_mean)  # function 0 is then the mean
        draws = [i - first if i >= first else None for i in range(start, stop)]
        factors = {name: partial(self.posterior.input_factor, name, self.seed) for name in self.noisy}
        return {name: InputNoise(factor, draws, prefixes or {}) for name, factor in factors.items()}
