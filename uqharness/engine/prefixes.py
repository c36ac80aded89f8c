"""Random numbers for each token of a row, keyed by the tokens before it, for noise on a layer's input.

Counter-based: a number depends on its key and on the hash of the unpadded tokens up to its own alone, so padding,
chunking, batching and ranks cannot change it. Integers wrap in 64 bits alike on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uqharness.engine.rows import Rows
from uqharness.posterior import hashed


def signed(value: int) -> int:
    """Return the 64 bits of `value` as torch's int64."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


# SplitMix64 (Steele, Lea and Flood 2014, OOPSLA): its increment and the two multipliers of its finaliser.
STEP, FIRST, SECOND = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key64(*key: object) -> int:
    """Return 64 bits derived from `key`."""
    return signed(hashed(*key))


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64."""
    z = (z ^ _right(z, 30)) * FIRST
    z = (z ^ _right(z, 27)) * SECOND
    return z ^ _right(z, 31)


def uniform53(prefix: Tensor, key: int, width: int) -> Tensor:
    """Return integers below 2^53, `width` for each prefix: `[…]` -> `[…, width]`."""
    stream = mix(prefix ^ key)[..., None]
    return _right(mix(stream + torch.arange(1, width + 1, device=prefix.device) * STEP), 11)


def normal(prefix: Tensor, key: int, width: int) -> Tensor:
    """Return standard normal numbers, `width` for each prefix: `[…]` -> `[…, width]` float64."""
    return torch.special.ndtri((uniform53(prefix, key, width) + 0.5) / 2**53)


def prefix_hashes(rows: Rows) -> Tensor:
    """Return a hash of each token and the tokens before it on its path: `[R, T]` int64."""
    ids, depth = rows.input_ids.cpu(), rows.depth.cpu()
    hashes = torch.empty_like(ids)
    state = torch.zeros(len(ids), int(depth.max()) + 2, dtype=torch.long)  # by depth, of the newest token there
    row = torch.arange(len(ids))
    for t in range(ids.shape[1]):
        hashes[:, t] = mix(state[row, depth[:, t]] + STEP ^ ids[:, t])
        state[row, depth[:, t] + 1] = hashes[:, t]
    return hashes.to(rows.input_ids.device)


def prefix_tables(rows: Rows) -> dict[tuple[int, int], Tensor]:
    """Return hashes by the shape of a layer's input: all tokens inside the model, the read positions at its head."""
    hashes = prefix_hashes(rows)
    read = hashes[rows.row, rows.pos][:, None]
    return {(read.shape[0], 1): read, (hashes.shape[0], hashes.shape[1]): hashes}


def _right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
