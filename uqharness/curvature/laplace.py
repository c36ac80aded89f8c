"""P = λ I + F, and functions of its inverse: jᵀ P⁻¹ j, P^(−1/2) ε, log det P (Laplace Redux, arXiv:2106.14806).

F is block-diagonal over LoRA's A and B: Kronecker-factored (`kron`, Laplace-LoRA Eq. 9) or diagonal (`diag`);
or it is the whole matrix (`full`). Directions outside of low-rank parts have the prior's
precision λ. A collector sums F over the passes of `uqharness.curvature.fisher`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from uqharness.curvature.factors import Factor
from uqharness.curvature.fisher import Collector, per_question
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import Rows
from uqharness.errors import InputError, RunError
from uqharness.posterior import Tensors, check_tensor

Tokens = Literal["sum", "expand", "reduce"]
FULL_LIMIT = 8192  # parameters of a dense F


class Curvature(ABC):
    """F with some structure. `precision` is λ of each layer."""

    structure: ClassVar[str]
    dropped: Mapping[str, float] = {}  # layer -> ‖F − F̂‖₂ is at most this
    lost: Mapping[str, float] = {}  # layer -> part of tr F that F̂ leaves out

    @abstractmethod
    def spectra(self) -> dict[str, Tensor]:
        """Return the eigenvalues of each layer's block, float64 (`full`: of all, under the name '')."""

    @abstractmethod
    def covariance(self, jacobians: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensor:
        """Return J P⁻¹ Jᵀ of each question: `{name: [Q, C, out, in]}` -> `[Q, C, C]` float64."""

    @abstractmethod
    def root(self, noise: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensors:
        """Return P^(−1/2) ε: `{name: [out, in]}` -> the same."""

    @abstractmethod
    def state(self) -> Tensors:
        """Return the tensors that `restore` needs."""

    @classmethod
    @abstractmethod
    def restore(cls, state: Tensors) -> Curvature: ...

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a saved curvature of other layers or shapes `[out, in]`."""
        blocks = self.spectra().keys()
        if odd := sorted(blocks ^ shapes.keys()):
            problem = "has no curvature of" if odd[0] in shapes else "has the curvature of another layer,"
            raise InputError(f"posterior.safetensors {problem} {odd[0]}: copy the adapter again")

    def to(self, device: torch.device) -> Curvature:
        return self.restore({name: tensor.to(device) for name, tensor in self.state().items()})


def grouped(state: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """`name.part` -> {name: {part: …}}"""
    parts: dict[str, Tensors] = {}
    for key, tensor in state.items():
        name, part = key.rsplit(".", 1)
        parts.setdefault(name, {})[part] = tensor
    return parts


@dataclass(frozen=True)
class Block:
    """U diag(values) Uᵀ, U = out ⊗ inp: `[out', k]`, `[in, m]`, values `[k, m]`; `rows`: which outputs out' are."""

    out: Tensor
    inp: Tensor
    values: Tensor
    rows: Tensor | None = None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates `[…, k, m]` in U and the rest of x, by subtraction, which avoids later cancellation."""
        part = x if self.rows is None else x[..., self.rows, :]
        inside = self.out.T.to(x.dtype) @ part @ self.inp.to(x.dtype)
        return inside, self.plus(x, -inside)

    def plus(self, x: Tensor, inside: Tensor) -> Tensor:
        part = self.out.to(x.dtype) @ inside @ self.inp.T.to(x.dtype)
        return x + part if self.rows is None else x.index_add(x.dim() - 2, self.rows, part)

    def inverse(self, x: Tensor, precision: float) -> Tensor:
        """Return x_c P⁻¹ x_d: `[Q, C, out, in]` -> `[Q, C, C]`."""
        inside, rest = (part.flatten(2).double() for part in self.split(x))
        weight = 1.0 / (precision + self.values.flatten().double())
        return (inside * weight) @ inside.transpose(1, 2) + rest @ rest.transpose(1, 2) / precision

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a saved block that does not fit a layer `[out, in]`."""
        rows, count = self.rows, shape[0]
        if rows is not None:
            count = len(rows)
            if rows.dtype != torch.long or rows.ndim != 1 or not bool(((rows >= 0) & (rows < shape[0])).all()):
                raise InputError(f"rows of {name}: expected indices below {shape[0]}")
        if not self.out.ndim == self.inp.ndim == self.values.ndim == 2:
            raise InputError(f"curvature of {name}: expected matrices")
        check_tensor(f"out of {name}", self.out, (count, self.values.shape[0]))
        check_tensor(f"inp of {name}", self.inp, (shape[1], self.values.shape[1]))
        check_tensor(f"values of {name}", self.values, self.values.shape, low=0)

    def half(self, x: Tensor, precision: float) -> Tensor:
        inside, rest = self.split(x)
        return self.plus(rest * precision**-0.5, inside * (precision + self.values).rsqrt())


class Kron(Curvature):
    """F_l = L ⊗ R, L = Σ g gᵀ, R = 1/N Σ a aᵀ, each layer by itself."""

    structure = "kron"

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self.blocks = dict(blocks)

    def spectra(self) -> dict[str, Tensor]:
        return {name: block.values.flatten().double() for name, block in self.blocks.items()}

    def covariance(self, jacobians: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensor:
        parts = [self.blocks[name].inverse(j, precision[name]) for name, j in jacobians.items()]
        return torch.stack(parts).sum(0)

    def root(self, noise: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensors:
        return {name: self.blocks[name].half(e, precision[name]) for name, e in noise.items()}

    def state(self) -> Tensors:
        parts = (
            (f"{name}.{part}", tensor) for name, block in self.blocks.items() for part, tensor in vars(block).items()
        )
        return {name: tensor for name, tensor in parts if tensor is not None}

    @classmethod
    def restore(cls, state: Tensors) -> Kron:
        return cls({name: Block(**parts) for name, parts in grouped(state).items()})

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().check_shapes(shapes)
        for name, block in self.blocks.items():
            block.check(name, shapes[name])


class KronCollector(Collector):
    """Σ g gᵀ and Σ a aᵀ per layer.

    tokens = sum: all tokens are rows of both sums, and R is divided by the number of questions (laplace-torch's
    ASDL backend, hence the paper's code); expand: R is divided by the number of tokens (KFAC-expand,
    arXiv:2311.00636); reduce: a is averaged and g summed over a question's tokens (KFAC-reduce).
    """

    def __init__(
        self, stack: LoraStack, names: Sequence[str], rank: int, tokens: Tokens, support: Mapping[str, Tensor]
    ) -> None:
        self.tokens, self.support = tokens, support
        shapes = {name: stack.layers[name].weight.shape for name in names}
        self.out = {name: Factor(shape[0], rank, support.get(name)) for name, shape in shapes.items()}
        self.inp = {name: Factor(shape[1], rank) for name, shape in shapes.items()}

    def inputs(self, inputs: Mapping[str, Tensor], rows: Rows) -> None:
        real = rows.real
        seen: dict[object, tuple[Tensor, Tensor | float, int]] = {}
        where = None if bool(real.all()) else real.flatten().nonzero()[:, 0]
        for name, x in inputs.items():
            key = (x.data_ptr(), x.shape, x.stride())  # q and v have the same input
            if key not in seen:
                seen[key] = self.inp[name].product(self._vectors(x, real, where, rows))
            self.inp[name].include(seen[key])

    def _vectors(self, x: Tensor, real: Tensor, where: Tensor | None, rows: Rows) -> Tensor:
        """The real tokens of inputs `[R, T, n]`, at the head all of `[U, 1, n]`, or their mean per question."""
        real = real if x.shape[1] == real.shape[1] else real.new_ones(x.shape[:2])
        if self.tokens == "reduce":
            return _summed(x * real[..., None], rows) / _summed(real[..., None].to(x.dtype), rows)
        return x.flatten(0, 1) if where is None or x.shape[1] == 1 else x.flatten(0, 1)[where]

    def gradients(self, name: str, x: Tensor, g: Tensor, rows: Rows) -> None:
        # Behind a row's last read g is 0, so padding adds nothing.
        self.out[name].add(_summed(g, rows) if self.tokens == "reduce" else g.flatten(0, 1))

    def finish(self, questions: int) -> Kron:
        blocks, dropped, lost = {}, {}, {}
        for name, factor in self.inp.items():
            scale = 1.0 / (factor.count if self.tokens == "expand" else questions)
            inp, right, lost_right = factor.finish()
            out, left, lost_left = self.out[name].finish()
            values = left[:, None] * (right * scale)
            if not bool(values.isfinite().all()):
                raise RunError(f"the Fisher of {name} is not finite: check the adapter for NaN, or use float32")
            # ‖L⊗R − L̂⊗R̂‖ ≤ ‖L‖ δ_R + ‖R̂‖ δ_L
            highest = [float(v.max()) if len(v) else 0.0 for v in (left, right)]
            dropped[name] = scale * ((highest[0] + lost_left) * lost_right + highest[1] * lost_left)
            whole = scale * float(left.sum() + lost_left) * float(right.sum() + lost_right)
            lost[name] = max(0.0, 1 - float(values.sum()) / max(whole, 1e-300))
            blocks[name] = Block(out.float(), inp.float(), values.float(), self.support.get(name))
        kron = Kron(blocks)
        kron.dropped, kron.lost = dropped, lost
        return kron


def _summed(x: Tensor, rows: Rows) -> Tensor:
    """Σ over the tokens of a question: `[R, T, n]` -> `[Q, n]`."""
    total = x.new_zeros(int(rows.question.max()) + 1, x.shape[-1])
    return total.index_add(0, rows.examples[len(x)], x.sum(1))


class Diag(Curvature):
    """F's diagonal."""

    structure = "diag"

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = dict(values)

    def spectra(self) -> dict[str, Tensor]:
        return {name: value.flatten().double() for name, value in self.values.items()}

    def covariance(self, jacobians: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensor:
        total = torch.zeros(())
        for name, j in jacobians.items():
            flat = j.flatten(2).double()
            total = total.to(flat) + (flat / (precision[name] + self.values[name].flatten())) @ flat.transpose(1, 2)
        return total

    def root(self, noise: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensors:
        return {name: e * (precision[name] + self.values[name]).rsqrt() for name, e in noise.items()}

    def state(self) -> Tensors:
        return {f"{name}.diag": value for name, value in self.values.items()}

    @classmethod
    def restore(cls, state: Tensors) -> Diag:
        return cls({name: parts["diag"] for name, parts in grouped(state).items()})

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().check_shapes(shapes)
        for name, value in self.values.items():
            check_tensor(f"diag of {name}", value, shapes[name], low=0)


class Full(Curvature):
    """F over all layers at once, in the order of `shapes`: one block with the parameters as its outputs."""

    structure = "full"

    def __init__(self, block: Block) -> None:
        self.block = block

    def spectra(self) -> dict[str, Tensor]:
        return {"": self.block.values.flatten().double()}

    def covariance(self, jacobians: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensor:
        flat = torch.cat([j.flatten(2) for j in jacobians.values()], dim=2)[..., None]  # [Q, C, P, 1]
        return self.block.inverse(flat, next(iter(precision.values())))

    def root(self, noise: Mapping[str, Tensor], precision: Mapping[str, float]) -> Tensors:
        flat = torch.cat([e.flatten() for e in noise.values()])[:, None]
        flat = self.block.half(flat, next(iter(precision.values())))[:, 0]
        parts = flat.split([e.numel() for e in noise.values()])
        return {name: part.view(e.shape) for (name, e), part in zip(noise.items(), parts, strict=True)}

    def state(self) -> Tensors:
        return {"all.out": self.block.out, "all.values": self.block.values}

    @classmethod
    def restore(cls, state: Tensors) -> Full:
        if odd := sorted(state.keys() ^ {"all.out", "all.values"}):
            raise InputError(f"posterior.safetensors: expected all.out and all.values alone, differs in {odd[0]}")
        out, values = state["all.out"], state["all.values"]
        return cls(Block(out, torch.ones(1, 1, device=out.device), values))

    def check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.block.check("all", (sum(math.prod(shape) for shape in shapes.values()), 1))


class DenseCollector(Collector):
    """Each question's whole gradient j: Σ j∘j (`diag`), or Σ j jᵀ (`full`)."""

    def __init__(self, stack: LoraStack, names: Sequence[str], full: bool) -> None:
        self.names, self.full = names, full
        self.now: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        count = sum(stack.layers[name].weight.numel() for name in names)
        if full and count > FULL_LIMIT:
            size = f"{count} x {count}, {FULL_LIMIT} at most"
            raise InputError(f"structure=full needs a matrix of {size}: use structure=kron")

    def gradients(self, name: str, x: Tensor, g: Tensor, rows: Rows) -> None:
        j = per_question(x, g, rows)
        if self.full:
            self.now[name] = j.flatten(1)
        else:
            self._add(name, j.double().square().sum(0))

    def end_pass(self) -> None:
        if self.full:
            j = torch.cat([self.now[name] for name in self.names], dim=1).double()  # [Q, P]
            self._add("", j.T @ j)

    def _add(self, name: str, part: Tensor) -> None:
        self.total[name] = self.total[name] + part if name in self.total else part

    def finish(self, questions: int) -> Curvature:
        for name, total in self.total.items():
            if not bool(total.isfinite().all()):
                raise RunError(f"the Fisher{name and f' of {name}'} is not finite: check the adapter for NaN")
        if not self.full:
            return Diag({name: self.total[name].float().cpu() for name in self.names})
        values, vectors = torch.linalg.eigh(self.total[""].cpu())
        keep = values > 1e-12 * values.max().clamp(min=1e-300)
        return Full(Block(vectors[:, keep].float(), torch.ones(1, 1), values[keep].float()[:, None]))


STRUCTURES: dict[str, type[Curvature]] = {cls.structure: cls for cls in (Kron, Diag, Full)}


def collector(
    structure: str, stack: LoraStack, names: Sequence[str], rank: int, tokens: Tokens, support: Mapping[str, Tensor]
) -> Any:
    if structure == "kron":
        return KronCollector(stack, names, rank, tokens, support)
    return DenseCollector(stack, names, full=structure == "full")
