"""Run token rows through many functions at once: the mean and S draws, folded into the batch.

The output head runs only where an answer is read (`readers.py`), and computation shared by all draws runs once
(`shortcuts.py`). A function has two parts: weights of the adapter (stacked draws) and transforms of its layers' inputs,
keyed by draw and by each token's prefix. The engine knows tokens and functions, not tasks or methods; the
predictive interprets the values (`predictive.py`). Slow twin: `tests/slow_twin.py`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from scipy.special import stdtrit
from torch import Tensor

from uqharness.engine.lora import FoldedInput, InputTransform, LoraStack
from uqharness.engine.prefixes import prefix_tables
from uqharness.engine.readers import choice_logprobs, reader_of
from uqharness.engine.rows import Rows
from uqharness.engine.shortcuts import agree, trunk
from uqharness.errors import InputError
from uqharness.posterior import Posterior, antithetic

FIRST_LOOK = 3  # draws before `samples=auto` looks: the standard deviation of two says nothing
LEVEL = 0.95
log = logging.getLogger(__name__)


@dataclass
class Scores:
    """Log-likelihoods of K continuations: under each draw and under the mean, and whether the mixture is greedy."""

    draws: Tensor  # [S, K] float64, or one combined row [1, K]
    mean: Tensor | None  # [K]
    greedy: Tensor  # [K] bool: every token is the argmax of the next-token mixture
    taken: Tensor  # [K] how many draws were taken; NaN stands for the others
    rule: str = "probs"  # how the draws are averaged

    def average(self, rows: Rows) -> Tensor:
        """Return log p̄(choice | question) by the rule: `[Q, C]`, −inf for absent choices."""
        table = choice_logprobs(self.draws, rows.to("cpu"))  # [S, Q, C]
        mixed = table.mean(0) if self.rule == "logits" else table.logsumexp(0)
        return mixed.log_softmax(-1)


class Auto(NamedTuple):
    """samples=auto: stop drawing for a question when its averaged answer has settled.

    With n of S draws taken, the average over all S lies within t · s · √((S − n) / (S n)) of the average over those n,
    at 95 %: the Student interval for the mean of a finite population without replacement (Cochran 1977, Sampling
    Techniques, ch. 2), s the standard deviation over draws of a choice's probability, t the 97.5 % quantile with n − 1
    degrees of freedom. A question is settled when this is at most `tolerance` for each of its choices. The level is
    that of one look, and there is one after every draw from the third; what that comes to in all was measured:
    benchmarks/NOTES.md.
    """

    most: int = 10
    tolerance: float = 0.1

    def unsettled(self, logp: Tensor) -> Tensor:
        """Return which questions are unsettled, `[Q]`, from `[n, Q, C]` log-probabilities, −inf for absent choices.

        A question with one choice has no probability that could settle, so it gets all draws.
        """
        n, p = len(logp), logp.softmax(-1)
        spread = p.std(0).amax(-1)  # [Q]
        reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt((self.most - n) / (self.most * n))
        alone = (logp[0] > -math.inf).sum(-1) < 2
        return alone | ~(reach * spread <= self.tolerance)  # NaN is never settled


class Engine:
    """Run rows through the mean and the first `samples` draws of a posterior.

    `predictive.engine(model, …)` creates the engine of a `Predictive`.

    Args:
        model: the base with the adapter, whose weights become the posterior's mean.
        posterior: source of the draws; if they are finitely many, each is used at most once.
        samples: number of draws; 0 evaluates the mean.
        seed: seed of the draws.
        mean: also score the mean, as an additional function.
        tokens: maximum tokens of one forward, draws included; None: by the device.
        autocast: the type to compute in, of HFLM's `mixed_precision_dtype`.
        auto: stop drawing for a question whose average is settled to this tolerance.
        pairs: take antithetic draws.
        weights: draw weights; False: only the inputs' transforms differ between draws.
        inputs: transforms of layers' inputs, by the name of the layer's tensor.
        combined: function of rows that returns log p(choice | question) `[K]` instead of draws; only the mean is run.
        rule: how the draws are averaged; stored with the scores.

    Example:
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.posterior import Gaussian
        >>> from uqharness.testing import TINY, tiny_adapter
        >>> model = tiny_adapter()
        >>> mean = LoraStack(model).mean()
        >>> posterior = Gaussian(mean, {n: t * 0 + 0.1 for n, t in mean.items() if "lora_A" in n}, train_seed=0)
        >>> question = [([5, 6, 7], [1]), ([5, 6, 7], [2])]  # (context, continuation) of each choice
        >>> scores = Engine(model, posterior, samples=4).score(make_rows([question], max_length=16))
        >>> tuple(scores.draws.shape), tuple(scores.mean.shape)
        ((4, 2), (2,))
    """

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
        weights: bool = True,
        inputs: Mapping[str, InputTransform] | None = None,
        combined: Callable[[Rows], Tensor] | None = None,
        rule: str = "probs",
    ) -> None:
        self.model, self.posterior, self.autocast, self.rule = model, posterior, autocast, rule
        self.reader, self.stack = reader_of(model), LoraStack(model)
        self.stack.load({name: t for name, t in posterior.mean.items() if name in self.stack.parameters})
        self.samples = posterior.usable(samples)
        self.combined = combined if self.samples else None
        on_gpu = next(model.parameters()).device.type != "cpu"
        # Tokens of one forward, draws included: on a CPU more than these are no faster (benchmarks/NOTES.md).
        self.tokens = tokens or (32768 if on_gpu else 2048)
        draw = partial(antithetic, posterior) if pairs else partial(posterior.draws, 0)
        varied = self.samples > 0 and not self.combined
        drawn = draw(self.samples, seed) if varied and weights else {}
        self.one_by_one = self.stack.why_one_by_one(drawn) if drawn else None
        if self.one_by_one:
            log.info("draws run one by one: %s cannot be folded into the batch", self.one_by_one)
        self.inputs = dict(inputs or {})
        varied = varied and bool(drawn or self.inputs)
        # A mean of its own is one more function; where a draw is the mean (a point, member 0) it is not.
        self.separate_mean = mean and varied and not posterior.mean_is_member
        # {name: [F, ...]}, made once per run: the mean if it is separate, then the draws. {} is the mean alone.
        whole = {name: [posterior.mean[name][None], t] if self.separate_mean else [t] for name, t in drawn.items()}
        self.tensors = {name: self.stack.on_device(name, torch.cat(parts)) for name, parts in whole.items()}
        self.count = self.separate_mean + (self.samples if varied else 1)
        self.first_draw = int(self.separate_mean) if varied else 1  # function number of draw 0
        self.trunk = trunk(model, [*drawn, *self.inputs]) if self.count > 1 else None
        self.trunk_checked = False
        self.auto = Auto(self.samples, auto) if auto is not None and varied else None

    @torch.inference_mode()
    def score(self, rows: Rows) -> Scores:
        """Return log-likelihoods of the rows' continuations under every function, or until `auto` stops."""
        rows = rows.to(self.stack.device)
        values = torch.full((self.count, len(rows.question)), math.nan, dtype=torch.float64)
        taken, mixture = torch.full((len(rows.question),), self.samples), None
        first, start, left = int(self.separate_mean), 0, rows
        stop = min(first + FIRST_LOOK, self.count) if self.auto else self.count
        slots, places = torch.arange(len(rows.question)), torch.arange(len(rows.row))  # of what is left
        state = self._shared(rows)
        while True:
            part, summed = self._run(left, start, stop, state)
            values[start:stop, slots] = part.cpu()
            mixture = summed if mixture is None else mixture.index_add(0, places.to(summed.device), summed)
            if self.auto is None or stop == self.count:
                break
            taken[slots] = stop - first
            unsettled = self.auto.unsettled(choice_logprobs(values[first:stop, slots].to(part.device), left))
            state = None if state is None else state[unsettled[left.example]]
            left, kept_slots, kept_places = left.take(unsettled)
            slots, places = slots[kept_slots.cpu()], places[kept_places.cpu()]
            if not len(slots):
                break
            taken[slots] = self.samples
            start, stop = stop, stop + 1
        greedy = self.reader.greedy(mixture, rows).cpu()
        if self.combined:
            return Scores(self.combined(rows).double().cpu()[None], values[0], greedy, taken.fill_(1), self.rule)
        if self.separate_mean:
            return Scores(values[1:], values[0], greedy, taken, self.rule)
        if not self.samples:  # the mean alone
            return Scores(values[:0], values[0], greedy, taken, self.rule)
        is_mean = self.posterior.finite == 1 or self.posterior.mean_is_member
        return Scores(values, values[0] if is_mean else None, greedy, taken, self.rule)

    @torch.inference_mode()
    def states(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return what the output head reads, under every function, the mean's first, and the averaged answers.

        Returns:
            Hidden states `[F, U, H]` and log p̄(choice | question) `[Q, C]`.
        """
        rows = rows.to(self.stack.device)
        head, seen = self.model.get_base_model().get_output_embeddings(), list[Tensor]()
        states, values = list[Tensor](), list[Tensor]()
        shared = self._shared(rows)
        handle = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
        try:
            for logits in self._chunks(rows, state=shared):
                states.append(seen.pop().reshape(len(logits), logits.shape[1], -1).float().cpu())
                values.append(self.reader.log_likelihoods(logits, rows).cpu())
        finally:
            handle.remove()
        draws = torch.cat(values)[int(self.separate_mean) :]
        flags = torch.zeros(draws.shape[1], dtype=torch.bool)
        return torch.cat(states), Scores(draws, None, flags, flags, self.rule).average(rows)

    def _run(self, rows: Rows, start: int, stop: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Functions start … stop−1: log p(continuation) `[F, K]` and the draws' summed next-token p `[U, V]`."""
        values, mixture = [], None
        for logits in self._chunks(rows, start, stop, state):  # [F, U, V]
            values.append(self.reader.log_likelihoods(logits, rows))
            skip = 1 if self.separate_mean and start == 0 else 0  # the mean is no part of the mixture
            start += len(logits)
            if skip < len(logits):
                part = logits[skip:].float().softmax(-1).sum(0)
                mixture = part if mixture is None else mixture + part
        assert mixture is not None
        return torch.cat(values), mixture

    def _shared(self, rows: Rows) -> Tensor | None:
        """Return hidden states that all functions share `[R, T, H]`; None if the first layer already differs.

        The first batch is compared with a full forward.
        """
        if self.trunk is None:
            return None
        with self._autocast(rows):
            state = self.trunk.run(lambda: self.reader.logits(self.model, rows, skip=True))
        if not self.trunk_checked:
            self.trunk_checked, prefixes = True, prefix_tables(rows) if self.inputs else None
            last = self.count - 1
            full, short = (self._forward(rows, last, last + 1, prefixes, s) for s in (None, state))
            if not agree(full, short):
                log.warning(
                    "the %d layers below the first that differs between draws give other results when shared in %s: "
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
        """Yield logits of successive chunks of functions; halve the chunk when the GPU is full.

        state: what `_shared` returned; without it each function runs in full.
        """
        end, prefixes = self.count if end is None else end, prefix_tables(rows) if self.inputs else None
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
                log.info("out of memory with %d draws at once: continuing with half of them", stop - start)
                continue
            yield logits
            start = stop

    def _forward(
        self, rows: Rows, start: int, stop: int, prefixes: dict[tuple[int, int], Tensor] | None, state: Tensor | None
    ) -> Tensor:
        below = self.trunk.replaced(state, stop - start) if self.trunk else contextlib.nullcontext()
        with self.using(start, stop, prefixes), self._autocast(rows), below:
            return self.reader.logits(self.model, rows, stop - start, skip=True)

    def _autocast(self, rows: Rows) -> contextlib.AbstractContextManager[Any]:
        on = self.autocast is not None
        return torch.autocast(rows.input_ids.device.type, self.autocast) if on else contextlib.nullcontext()

    @contextlib.contextmanager
    def using(self, start: int, stop: int, prefixes: dict[tuple[int, int], Tensor] | None = None) -> Iterator[None]:
        """Make the model compute functions start … stop−1, folded draw-major, inside this context.

        prefixes: hashes of the tokens that are run (`prefix_tables`), which transforms of inputs need.
        """
        if self.inputs and prefixes is None:
            do = "use samples=0" if self.samples else "its mean depends on them too; give tasks without generation"
            raise InputError(f"a {self.posterior.kind} posterior that transforms inputs cannot generate: {do}")
        if self.one_by_one:
            functions = self.stack.weights({name: t[start] for name, t in self.tensors.items()})
        else:
            functions = self.stack.functions({name: t[start:stop] for name, t in self.tensors.items()})
        draws = [i - self.first_draw if i >= self.first_draw else None for i in range(start, stop)]
        folded = {name: FoldedInput(transform, draws, prefixes or {}) for name, transform in self.inputs.items()}
        with functions, self.stack.inputs(folded):
            yield
