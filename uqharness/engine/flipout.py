"""x ↦ W x + ((E ∘ Ω)(x ∘ s)) ∘ t: Gaussian weights in training, with fresh signs s, t per example (BLoB,
arXiv:2406.11675, Eq. 12; Flipout, arXiv:1803.04386). For an example that is the weight W + (E ∘ Ω) ∘ t sᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uqharness.engine.rows import Rows
from uqharness.posterior import keyed_generator


def device_generator(device: torch.device, *key: object) -> torch.Generator:
    """Return a generator that depends only on `key` and the kind of device; on a GPU it needs no copy."""
    generator = keyed_generator(*key)
    return generator if device.type == "cpu" else torch.Generator(device).manual_seed(generator.initial_seed())


def standard(like: Tensor, *key: object) -> Tensor:
    """Draw E ~ N(0, I) of a forward."""
    generator = device_generator(like.device, "noise", *key)
    return torch.randn(like.shape, generator=generator, device=like.device)


@dataclass(frozen=True)
class Perturbation:
    """The noise of one linear in one forward.

    The signs are a pure function of `key`, so a forward that is run again (gradient checkpointing) sees the
    same ones; a generator that moves on would silently give wrong gradients.
    """

    noise: Tensor  # E ∘ Ω  [out, in], differentiable in Ω
    key: tuple[object, ...]
    examples: Mapping[int, Tensor] | None  # rows of the input -> example of each row; None: signs per token
    count: int = 0  # examples

    def signs(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return s for inputs and t for outputs: `[*shape, in]`, `[*shape, out]`."""
        generator, device = device_generator(self.noise.device, "flipout", *self.key), self.noise.device
        count, (outputs, inputs) = math.prod(shape), self.noise.shape
        bits = torch.randint(0, 2, (count * (inputs + outputs),), generator=generator, dtype=torch.int8, device=device)
        s, t = bits.to(self.noise.dtype).mul_(2).sub_(1).split([count * inputs, count * outputs])
        return s.view(*shape, inputs), t.view(*shape, outputs)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.examples is None:
            s, t = (sign.to(x.dtype) for sign in self.signs(x.shape[:-1]))
            return F.linear(x, weight, bias) + F.linear(x * s, self.noise.to(x.dtype)) * t
        # One product over the tokens: the weight of an example is small, its tokens are many.
        weights = self.weights(weight)
        if len(x) != self.count:  # else each question has one row, in order
            weights = weights[self.examples[len(x)].to(x.device)]  # [R, out, in]
        y = torch.bmm(x.flatten(1, -2), weights.mT.to(x.dtype)).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight of every example: `[Q, out, in]`."""
        s, t = self.signs((self.count,))
        return torch.addcmul(weight, self.noise, t[:, :, None] * s[:, None, :])


class Shared(Perturbation):
    """One draw for the whole batch: x ↦ (W + E ∘ Ω) x."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, (weight + self.noise).to(x.dtype), bias)


def perturb(
    flipout: str, noise: Mapping[str, Tensor], rows: Rows, questions: int, *key: object
) -> dict[str, Perturbation]:
    """E ∘ Ω of every linear with signs per `example` (of `questions`) or `token`, or the same for all (`none`)."""
    kind = Shared if flipout == "none" else Perturbation
    examples = rows.examples if flipout == "example" else None
    return {name: kind(e, (*key, name), examples, questions) for name, e in noise.items()}
