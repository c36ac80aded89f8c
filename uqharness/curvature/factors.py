"""F = Σ x xᵀ over a stream of vectors, stored as k eigenvectors; the trace of the rest is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uqharness.posterior import keyed_generator

DENSE = 1024  # factors up to this width are summed as matrices, wider ones as sketches


class Factor:
    """Σ x xᵀ over vectors of width n, in the end as vectors `[n, k]` and values `[k]`, k ≤ rank.

    Up to `DENSE` it is summed as a matrix and cut at the largest eigenvalues. Wider ones are sketched: Y = F Ω
    grows as the data streams and F̂ = Y (Ωᵀ Y)⁻¹ Yᵀ (Nyström; Tropp et al. 2017, arXiv:1706.05736, Alg. 3).
    Either way F̂ ≼ F ≼ F̂ + dropped · I with dropped = tr F − tr F̂, which is known exactly.
    """

    def __init__(self, width: int, rank: int, support: Tensor | None = None) -> None:
        self.width, self.rank, self.support = width, rank, support
        self.total: Tensor | None = None
        self.eps = torch.finfo(torch.float32).eps
        self.trace: Tensor | float = 0.0
        self.count = 0
        used = width if support is None else len(support)
        self.test: Tensor | None = None
        if used > DENSE:
            random = torch.randn(used, min(3 * rank + 32, used), generator=keyed_generator("sketch", used, rank))
            self.test = torch.linalg.qr(random.double())[0]  # Ω [n, p]

    def add(self, x: Tensor) -> None:
        self.include(self.product(x))

    def product(self, x: Tensor) -> tuple[Tensor, Tensor | float, int]:
        """Return the contribution of vectors `[N, n]` to F or Y, to tr F and to the count."""
        x = x if x.dtype == torch.float64 else x.float()
        x = x if self.support is None else x[:, self.support.to(x.device)]
        if self.test is None:
            return x.T @ x, 0.0, len(x)
        self.test = self.test.to(x.device)
        trace = torch.linalg.vector_norm(x, dtype=torch.float64).square()
        return x.T @ (x @ self.test.to(x.dtype)), trace, len(x)

    def include(self, product: tuple[Tensor, Tensor | float, int]) -> None:
        part, trace, count = product
        self.eps = torch.finfo(part.dtype).eps
        self.total = part.to(torch.float64, copy=True) if self.total is None else self.total.add_(part)
        self.trace += trace
        self.count += count

    def finish(self) -> tuple[Tensor, Tensor, float]:
        """Return (vectors, values, dropped), on the CPU in float64."""
        assert self.total is not None, "no data"
        if not bool(self.total.isfinite().all()):
            return self.total.cpu(), torch.full((1,), math.nan), math.nan
        if self.test is None:
            values, vectors = torch.linalg.eigh(self.total)
            vectors, values = vectors[:, -self.rank :], values[-self.rank :]
        else:
            vectors, values = self._nystrom()
        keep = values > 1e-12 * values.max().clamp(min=1e-300)
        vectors, values = vectors[:, keep], values[keep]
        trace = float(self.total.trace() if self.test is None else self.trace)
        return vectors.cpu(), values.cpu(), max(0.0, trace - float(values.sum()))

    def _nystrom(self) -> tuple[Tensor, Tensor]:
        assert self.total is not None and self.test is not None
        shift = self.eps * self.total.norm()  # keeps the core positive; taken off again below
        shifted = self.total + shift * self.test
        core = self.test.T @ shifted
        weights, basis = torch.linalg.eigh((core + core.T) / 2)
        half = shifted @ (basis * weights.clamp(min=shift / 2).rsqrt())
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
        values = (singular.square() - shift).clamp(min=0)
        return vectors[:, : self.rank], values[: self.rank]
