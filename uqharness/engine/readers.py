"""A reader selects the outputs of a model that are answers; training loss, engine and Fisher share it.

`Continuations` reads next-token logits where a continuation's tokens are predicted. `Classes` reads the class logits of
a sequence classifier, which fit the same tables: one row for each question, read n being class `token[n]` of it.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from uqharness.engine.lora import is_classifier
from uqharness.engine.rows import Rows
from uqharness.engine.shortcuts import pick_read, skip_unread
from uqharness.errors import InputError


class Reader(ABC):
    """Select the logits of a forward that are answers, and compute values of each continuation (or class).

    K answers belong to Q questions: answer k is choice `rows.choice[k]` of question `rows.question[k]`. Each is read at
    one place or several; U is the number of distinct places of all rows, S that of functions.

    Example:
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.testing import tiny_adapter
        >>> model = tiny_adapter()
        >>> rows = make_rows([[([5, 6, 7], [1]), ([5, 6, 7], [2])]], max_length=16)  # a question with two choices
        >>> reader = reader_of(model)
        >>> likelihoods = reader.log_likelihoods(reader.logits(model, rows), rows)  # [S, K]
        >>> table = choice_logprobs(likelihoods.detach(), rows)  # [S, Q, C]
        >>> tuple(likelihoods.shape), tuple(table.shape), round(float(table.exp().sum()), 6)
        ((1, 2), (1, 1, 2), 1.0)
    """

    @abstractmethod
    def logits(self, model: PeftModel, rows: Rows, draws: int = 1, skip: bool = False) -> Tensor:
        """Run the rows, repeated for `draws` functions, and return the logits where an answer is read: `[S, U, V]`.

        skip: omit computation whose result is not read.
        """

    def log_likelihoods(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return log p(answer), summed over its tokens in float64: `[S, U, V]` -> `[S, K]`."""
        logits = logits.float()
        read = logits[:, rows.at, rows.token] - logits.logsumexp(-1)[:, rows.at]  # [S, N]
        total = torch.zeros(len(logits), len(rows.question), dtype=torch.float64, device=logits.device)
        return total.index_add(1, rows.slot, read.double())

    def greedy(self, mixture: Tensor, rows: Rows) -> Tensor:
        """Return whether every token of an answer is the most probable one: `[U, V]` -> `[K]`."""
        hit = mixture.argmax(-1)[rows.at] == rows.token
        flags = torch.ones(len(rows.question), dtype=torch.bool, device=hit.device)
        return flags.index_put((rows.slot[~hit],), torch.tensor(False, device=hit.device))

    def choice_logits(self, logits: Tensor, rows: Rows) -> Tensor:
        """Return f_c(x), whose softmax is p(choice | question): `[U, V]` -> `[Q, C]`, −inf for absent choices.

        The logit itself where all of a question's answers are one token read at one place (as in Laplace-LoRA), else
        the sum of the tokens' log-probabilities: the two differ by a constant.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        owner = rows.question[rows.slot]  # [N]
        places = torch.zeros(int(rows.question.max()) + 1, dtype=torch.long, device=owner.device)
        low, high = (places.scatter_reduce(0, owner, rows.at, how, include_self=False) for how in ("amin", "amax"))
        shift = torch.where((low != high)[owner], logits.logsumexp(-1)[rows.at], 0.0)
        total = torch.zeros(len(rows.question), dtype=torch.float64, device=logits.device)
        total = total.index_add(0, rows.slot, (logits[rows.at, rows.token] - shift).double())
        return choice_table(total[None], rows)[0]


class Continuations(Reader):
    """Continuations under a causal language model's output head."""

    def logits(self, model: PeftModel, rows: Rows, draws: int = 1, skip: bool = False) -> Tensor:
        """Return logits of the output head at the positions that are read.

        A pre-hook on the head picks the hidden states, so any architecture works and whatever follows the head
        (soft-capping, scaling) is left to the model. No attention mask where rows do not branch: they are
        right-padded and causal.
        """
        attention = {name: t.repeat(draws, *[1] * (t.ndim - 1)) for name, t in rows.attention(model.dtype).items()}
        head = model.get_base_model().get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: (pick_read(args[0], rows, draws), *args[1:]))
        try:
            with skip_unread(model, rows, draws) if skip else contextlib.nullcontext():
                logits: Tensor = model(input_ids=rows.input_ids.repeat(draws, 1), use_cache=False, **attention).logits
        finally:
            handle.remove()
        return logits.view(draws, len(rows.row), -1)


class Classes(Reader):
    """Class logits of a sequence classifier: one row is one question, whose "tokens" are its classes.

    Example:
        >>> from uqharness.engine.rows import make_rows
        >>> from uqharness.testing import TINY, tiny_encoder
        >>> from uqharness.training.base_model import inject
        >>> rows = make_rows([[([5, 6, 7], [k]) for k in range(3)]], max_length=16)  # one question
        >>> tuple(Classes().logits(inject(tiny_encoder(), TINY).eval(), rows).shape)  # [S, U, V]
        (1, 1, 3)
    """

    def logits(self, model: PeftModel, rows: Rows, draws: int = 1, skip: bool = False) -> Tensor:
        """Run the rows, each up to its read position. Later positions are padding and masked."""
        inputs = {"input_ids": rows.input_ids % TYPE, "attention_mask": rows.real.long()}
        config: Any = model.get_base_model().config
        if (getattr(config, "type_vocab_size", 0) or 0) > 1:
            inputs["token_type_ids"] = rows.input_ids // TYPE
        logits: Tensor = model(**{name: tensor.repeat(draws, 1) for name, tensor in inputs.items()}).logits
        return logits.view(draws, len(rows.input_ids), -1)[:, rows.row]


TYPE = 2**24  # more than any vocabulary has: an id of a classifier's rows is token + TYPE · token type


def with_types(ids: Sequence[int], types: Sequence[int]) -> tuple[int, ...]:
    """Encode token types (BERT's first and second segment) in token ids, as `Classes` reads them."""
    return tuple(token + TYPE * kind for token, kind in zip(ids, types, strict=True))


def reader_of(model: PeftModel) -> Reader:
    """Return the reader that fits a model's head."""
    base = model.get_base_model()
    if is_classifier(base):
        return Classes()
    if base.get_output_embeddings() is None:
        raise InputError(f"{type(base).__name__} has no output head to read answers from")
    return Continuations()


def choice_table(values: Tensor, rows: Rows) -> Tensor:
    """Arrange values of answers by question and choice: `[S, K]` -> `[S, Q, C]`, −inf for absent choices."""
    table = values.new_full((len(values), int(rows.question.max()) + 1, int(rows.choice.max()) + 1), -math.inf)
    return table.index_put(
        (torch.arange(len(values), device=table.device)[:, None], rows.question, rows.choice), values
    )


def choice_logprobs(log_likelihoods: Tensor, rows: Rows) -> Tensor:
    """Return log p(choice | the question's choices): `[S, K]` -> `[S, Q, C]`, −inf for absent choices."""
    return choice_table(log_likelihoods, rows).log_softmax(-1)
