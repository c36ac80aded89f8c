"""Noise on a layer's input that is no weight: x_t ↦ x_t ∘ f(draw, tokens ≤ t), per-token dropout for one.

Counter-based: a factor depends on (seed, draw, tensor name, hash of the unpadded tokens up to t) alone, so
padding, chunking, batching and ranks cannot change it. Integers wrap in 64 bits alike on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from uqharness.engine.engine import Rows

Shape = tuple[int, int]


def signed(value: int) -> int:
    """The 64 bits of `value` as torch's int64."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


# SplitMix64 (Steele, Lea and Flood 2014, OOPSLA): its increment and the two multipliers of its finaliser.
STEP, FIRST, SECOND = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key64(*key: object) -> int:
    """64 bits from `key`."""
    return signed(int.from_bytes(hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()[:8], "little"))


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64."""
    z = (z ^ _right(z, 30)) * FIRST
    z = (z ^ _right(z, 27)) * SECOND
    return z ^ _right(z, 31)


def uniform53(prefix: Tensor, key: int, width: int) -> Tensor:
    """Integers below 2^53, `width` for each prefix: `[…]` -> `[…, width]`."""
    stream = mix(prefix ^ key)[..., None]
    return _right(mix(stream + torch.arange(1, width + 1, device=prefix.device) * STEP), 11)


def prefix_hashes(rows: Rows) -> Tensor:
    """Hash of each token and those before it on its way from the start: `[R, T]` int64."""
    ids, depth = rows.input_ids.cpu(), rows.depth.cpu()
    hashes = torch.empty_like(ids)
    state = torch.zeros(len(ids), int(depth.max()) + 2, dtype=torch.long)  # by depth, of the newest token there
    row = torch.arange(len(ids))
    for t in range(ids.shape[1]):
        hashes[:, t] = mix(state[row, depth[:, t]] + STEP ^ ids[:, t])
        state[row, depth[:, t] + 1] = hashes[:, t]
    return hashes.to(rows.input_ids.device)


def prefix_tables(rows: Rows) -> dict[Shape, Tensor]:
    """Hashes by the shape of what a layer sees: all tokens inside the model, those read at its head."""
    hashes = prefix_hashes(rows)
    picked = hashes[rows.row, rows.pos][:, None]
    return {(picked.shape[0], 1): picked, (hashes.shape[0], hashes.shape[1]): hashes}


@dataclass(frozen=True)
class InputNoise:
    """x ↦ x ∘ factor, where block s of the batch sees draw `draws[s]`; None is the mean, without noise."""

    factor: Callable[[int, Tensor, int], Tensor]  # (draw, prefix hashes […], width n) -> […, n]
    draws: Sequence[int | None]
    prefixes: Mapping[Shape, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        blocks = x.view(len(self.draws), -1, *x.shape[1:])  # [S, R, T, n]
        prefix = self.prefixes[blocks.shape[1], blocks.shape[2]].to(x.device)
        # One block at a time: the integers of a mask take eight bytes an entry.
        found = [
            block if draw is None else block * self.factor(draw, prefix, x.shape[-1]).to(x.dtype)
            for draw, block in zip(self.draws, blocks, strict=True)
        ]
        return torch.cat(found)


def _right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
