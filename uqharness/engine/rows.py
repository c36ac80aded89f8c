"""Token rows of questions and the reads from them; a question's inputs can share a prefix.

A row is then a trie in depth-first order: token i sees token j iff j <= i <= last[j], that is, iff j is on its way from
the root. The prompt occurs once for all choices, which share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from uqharness.errors import InputError

Pair = tuple[Sequence[int], Sequence[int]]  # (context ids, continuation ids)


@dataclass
class Rows:
    """Token rows, right-padded, and the reads from them.

    Read n looks at position `pos[at[n]]` of row `row[at[n]]` for token `token[n]` and counts towards continuation
    `slot[n]`; continuation k is choice `choice[k]` of question `question[k]`.
    """

    input_ids: Tensor  # [R, T]
    row: Tensor  # [U] the distinct (row, position) pairs at which the head is computed
    pos: Tensor  # [U]
    at: Tensor  # [N]
    token: Tensor  # [N]
    slot: Tensor  # [N]
    question: Tensor  # [K]
    choice: Tensor  # [K]
    example: Tensor  # [R] the question that each row belongs to
    depth: Tensor = torch.empty(0)  # [R, T] tokens before this one; where rows do not branch: its place
    last: Tensor = torch.empty(0)  # [R, T] the last place that sees this one; where rows do not branch: T − 1

    def __post_init__(self) -> None:
        if not self.depth.numel():
            places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
            self.depth, self.last = (t.expand(self.input_ids.shape) for t in (places, places.amax()))

    def to(self, device: torch.device | str) -> Rows:
        return Rows(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def take(self, questions: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """Select questions (`[Q]` bool); also return which continuations `[K]` and read places `[U]` remain."""
        slots, inputs = questions[self.question], questions[self.example]
        places, reads = inputs[self.row], slots[self.slot]
        q, r, u, k = (keep.cumsum(0) - 1 for keep in (questions, inputs, places, slots))  # new numbers
        rows = Rows(
            self.input_ids[inputs],
            r[self.row[places]],
            self.pos[places],
            u[self.at[reads]],
            self.token[reads],
            k[self.slot[reads]],
            q[self.question[slots]],
            self.choice[slots],
            q[self.example[inputs]],
            self.depth[inputs],
            self.last[inputs],
        )
        return rows, slots, places

    @property
    def examples(self) -> dict[int, Tensor]:
        """Return {number of rows: example of each row}, inside the model (R rows) and at its head (U rows)."""
        return {len(self.row): self.example[self.row], len(self.example): self.example}

    @property
    def ends(self) -> Tensor:
        """Return the last read position of each row: `[R]`."""
        ends = torch.zeros(len(self.input_ids), dtype=torch.long, device=self.row.device)
        return ends.scatter_reduce(0, self.row, self.pos, "amax")

    @property
    def real(self) -> Tensor:
        """Return which tokens are not after the last read position of their row: `[R, T]`."""
        return torch.arange(self.input_ids.shape[1], device=self.row.device) <= self.ends[:, None]

    def attention(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return position ids and attention mask for rows that branch; nothing for other rows."""
        width = self.input_ids.shape[1]
        if bool((self.last == width - 1).all()):
            return {}
        places = torch.arange(width, device=self.last.device)
        sees = (places <= places[:, None]) & (places[:, None] <= self.last[:, None, :])  # [R, T, T]
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
        return {"attention_mask": mask[:, None], "position_ids": self.depth}


@dataclass
class Trie:
    """A row under construction; inputs must be added in sorted order, so that prefixes are shared with the last one."""

    tokens: list[int]
    depth: list[int]
    last: dict[int, int]  # of the places that not all later ones see
    path: list[int]  # places of the newest input's tokens

    def add(self, before: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Return the places of `ids`, reusing those of the prefix shared with `before`."""
        shared = next((k for k, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        self.last |= dict.fromkeys(self.path[shared:], len(self.tokens) - 1)
        start = len(self.tokens)
        self.tokens += ids[shared:]
        self.depth += range(shared, len(ids))
        self.path = [*self.path[:shared], *range(start, len(self.tokens))]
        return self.path


def make_rows(questions: Sequence[Sequence[Pair]], max_length: int, pad: int = 0, branch: bool = False) -> Rows:
    """Return rows for questions, each a list of (context, continuation).

    Continuations of one question that need the same input share its row, so single-token choices cost one row;
    with `branch` each question is one row. Inputs that are too long lose tokens on the left, as in lm-eval's HFLM.
    """
    tries: list[Trie] = []
    example: list[int] = []
    places: dict[tuple[int, int], int] = {}
    reads: list[tuple[int, int, int]] = []  # [N] (at, token, slot)
    slots: list[tuple[int, int]] = []  # [K] (question, choice)
    for q, pairs in enumerate(questions):
        inputs = [model_input(context, continuation, max_length) for context, continuation in pairs]
        rows_of: dict[tuple[int, ...], tuple[int, list[int]]] = {}
        for group in [sorted(set(inputs))] if branch else [[ids] for ids in dict.fromkeys(inputs)]:
            trie = Trie([], [], {}, [])
            rows_of |= {ids: (len(tries), trie.add(before, ids)) for before, ids in pairwise([(), *group])}
            tries.append(trie)
            example.append(q)
        for c, ((_, continuation), ids) in enumerate(zip(pairs, inputs, strict=True)):
            number, path = rows_of[ids]
            for place, wanted in zip(path[len(ids) - len(continuation) :], continuation, strict=True):
                reads.append((places.setdefault((number, place), len(places)), wanted, len(slots)))
            slots.append((q, c))
    columns = [*zip(*places, strict=True), *zip(*reads, strict=True), *zip(*slots, strict=True), example]
    input_ids, depth, last = _padded(tries, pad)
    row, pos, at, token, slot, question, choice, of = (torch.tensor(c, dtype=torch.long) for c in columns)
    return Rows(input_ids, row, pos, at, token, slot, question, choice, of, depth, last)


def _padded(tries: Sequence[Trie], pad: int) -> list[Tensor]:
    """Return tokens, depth and last `[R, T]`; padding is never read.

    Its depth is 0: a place that no input has could change what a model makes of the others (dynamic RoPE).
    """
    width = max(len(trie.tokens) for trie in tries)
    ids = [trie.tokens + [pad] * (width - len(trie.tokens)) for trie in tries]
    depth = [trie.depth + [0] * (width - len(trie.depth)) for trie in tries]
    last = [[trie.last.get(place, width - 1) for place in range(width)] for trie in tries]
    return [torch.tensor(rows, dtype=torch.long) for rows in (ids, depth, last)]


def model_input(context: Sequence[int], continuation: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Return the model's input for (context, continuation): all but the last token, truncated on the left."""
    if not continuation:
        raise InputError("an answer choice tokenises to nothing: give it at least one token")
    if not context:
        raise InputError("an answer has no context: give the model a prompt or a BOS token")
    if len(continuation) > max_length:
        raise InputError(f"an answer has {len(continuation)} tokens, the model accepts {max_length}: raise max_length")
    return tuple([*context, *continuation][-(max_length + 1) : -1])
