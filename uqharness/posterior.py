"""A posterior is a distribution over weights; a method makes one.

p(y | x, D) = ∫ p(y | x, θ) q(θ) dθ ≈ 1/N Σ_i p(y | x, θ_i),  θ_i ~ q   (BLoB, arXiv:2406.11675, Eq. 1)

`Posterior` has the mean and a rule for draw number i. It contains tensors only and does not know models, rows or the
engine; a predictive turns draws into answers (`engine/predictive.py`).
Tensors are named as PEFT saves them (`…q_proj.lora_A.weight`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from uqharness.errors import InputError
from uqharness.loose_json import check, shown

Tensors = dict[str, Tensor]


def hashed(*key: object) -> int:
    """Return 64 bits derived from `key`, below 2^64."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()[:8], "little")


def keyed_generator(*key: object) -> torch.Generator:
    """Return a CPU generator that depends only on `key`, so a draw is the same on every rank, device and chunk."""
    return torch.Generator().manual_seed(hashed(*key) >> 1)


def stored(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors as a posterior stores them: fp32, on the CPU, without a graph."""
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def noise(train_seed: int, seed: int, draw: int, name: str, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise of one tensor in one draw: fp32, on the CPU, bit for bit the same everywhere."""
    return torch.randn(tuple(shape), generator=keyed_generator("draw", train_seed, seed, draw, name))


def split_state(state: Mapping[str, Tensor], mean: Mapping[str, Tensor], *suffixes: str) -> list[Tensors]:
    """Return the parts of a saved posterior by suffix: `{tensor of the mean}{suffix}`; refuse other names."""
    parts: list[Tensors] = [{} for _ in suffixes]
    for name, tensor in state.items():
        k = next((k for k, suffix in enumerate(suffixes) if name.endswith(suffix)), -1)
        own = name.removesuffix(suffixes[k]) if k >= 0 else ""
        if own not in mean:
            raise InputError(f"posterior.safetensors has {shown(name, 120)}, which does not belong to this adapter")
        parts[k][own] = tensor
    return parts


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], low: float | None = None) -> None:
    """Refuse a tensor with another shape, or with values that are not finite or below `low`."""
    if tuple(tensor.shape) != tuple(shape):
        raise InputError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()) or (low is not None and bool((tensor < low).any())):
        at_least = "" if low is None else f" of at least {low:g}"
        raise InputError(f"{name}: expected finite values{at_least}")


class Posterior(ABC):
    """The mean's weights and a rule that makes draw i from (train_seed, seed, i, tensor name) alone.

    Args:
        mean: every trained tensor, as PEFT names it.
        train_seed: the adapter's training seed, so that two adapters have different draws.

    Attributes:
        finite: the number of different draws, each used at most once; None if unlimited.
        symmetric: mean + δ and mean − δ are equally probable, which antithetic draws need.
        mean_is_member: the "mean" is member 0, because an ensemble has no meaningful mean.

    Example:
        >>> mean = {"q_proj.lora_A.weight": torch.zeros(2, 3)}
        >>> posterior = Gaussian(mean, {"q_proj.lora_A.weight": torch.ones(2, 3)}, train_seed=0)
        >>> five, ten = (posterior.draws(0, n, seed=1)["q_proj.lora_A.weight"] for n in (5, 10))
        >>> tuple(ten.shape), torch.equal(ten[:5], five)
        ((10, 2, 3), True)
    """

    kind: ClassVar[str]
    finite: int | None = None
    symmetric: bool = False
    mean_is_member: bool = False

    def __init__(self, mean: Mapping[str, Tensor], train_seed: int) -> None:
        self.mean = stored(mean)
        self.train_seed = train_seed

    @abstractmethod
    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        """Return draws start … stop−1, stacked: {name: [stop − start, …]}; an absent name is the mean."""

    def state(self) -> Tensors:
        """Return the tensors that `draws` needs besides the mean (stored in posterior.safetensors)."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return what `draws` needs that is not a tensor (stored in uq_config.json)."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Posterior:
        """Return a posterior from its `state` and `settings`."""

    def usable(self, samples: int) -> int:
        """Return the number of draws that `samples` gives: finitely many draws are used at most once each."""
        return samples if self.finite is None else min(samples, self.finite)


def antithetic(posterior: Posterior, count: int, seed: int) -> Tensors:
    """Draws in pairs: θ_2k = mean + δ_k, θ_2k+1 = mean − δ_k, δ_k that of draw k (Hammersley and Morton 1956)."""
    if not posterior.symmetric:
        raise InputError(f"a {posterior.kind} posterior is not symmetric around its mean: remove sampling=antithetic")
    tensors = {}
    for name, drawn in posterior.draws(0, (count + 1) // 2, seed).items():
        pairs = torch.stack([drawn, 2 * posterior.mean[name] - drawn], 1)  # [k, 2, ...]
        tensors[name] = pairs.flatten(0, 1)[:count]
    return tensors


class Point(Posterior):
    """One weight vector: q = δ(θ − mean). MLE and MAP.

    Example:
        >>> Point({"q_proj.lora_A.weight": torch.zeros(2, 3)}, train_seed=0).draws(0, 1, seed=0)
        {}
    """

    kind = "point"
    finite = 1

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Point:
        split_state(state, mean)
        return cls(mean, train_seed)


class _MembersFile(TypedDict):
    members: int


class Members(Posterior):
    """Finitely many weight vectors, each with the same weight: q = 1/K Σ_k δ(θ − θ_k).

    Example:
        >>> members = Members([{"lora_A": torch.full((2, 3), float(k))} for k in range(3)], train_seed=0)
        >>> members.usable(10), members.draws(1, 3, seed=0)["lora_A"][:, 0, 0].tolist()
        (3, [1.0, 2.0])
    """

    kind = "members"
    mean_is_member = True

    def __init__(self, members: Sequence[Mapping[str, Tensor]], train_seed: int) -> None:
        if not members:
            raise InputError("an ensemble needs at least one member")
        if any(set(m) != set(members[0]) for m in members):
            raise InputError("ensemble members hold different tensors: train them with the same target modules")
        super().__init__(members[0], train_seed)
        self.members = [stored(member) for member in members]
        self.finite = len(members)

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        return {name: torch.stack([m[name] for m in self.members[start:stop]]) for name in self.mean}

    def state(self) -> Tensors:
        # Member 0 is the PEFT part of the adapter already.
        others = enumerate(self.members[1:], start=1)
        return {f"member{k}.{name}": tensor for k, member in others for name, tensor in member.items()}

    def settings(self) -> dict[str, Any]:
        return {"members": len(self.members)}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Members:
        check(dict(settings), _MembersFile, "uq_config.json: posterior")
        count = settings["members"]
        saved_members = 1 + len({name.split(".", 1)[0] for name in state})
        if saved_members != count:
            raise InputError(f"the record says {count} ensemble members, posterior.safetensors has {saved_members}")
        expected = {f"member{k}.{name}": (k, name) for k in range(1, count) for name in mean}
        if odd := sorted(set(state) ^ set(expected)):
            problem = "lacks" if odd[0] in expected else "has no place for"
            raise InputError(f"posterior.safetensors {problem} {shown(odd[0], 120)}: copy the adapter again")
        members = [dict(mean), *({} for _ in range(1, count))]
        for saved, (k, name) in expected.items():
            check_tensor(saved, state[saved], mean[name].shape)
            members[k][name] = state[saved]
        return cls(members, train_seed)


class Gaussian(Posterior):
    """Independent Gaussians: θ_i = mean + std ∘ E_i, E_i ~ N(0, I). Tensors without a std are the mean.

    Example:
        >>> mean = {"lora_A": torch.zeros(2, 3), "lora_B": torch.ones(3, 2)}
        >>> list(Gaussian(mean, {"lora_A": torch.ones(2, 3)}, train_seed=0).draws(0, 5, seed=1))
        ['lora_A']
    """

    kind = "gaussian"
    symmetric = True

    def __init__(self, mean: Mapping[str, Tensor], std: Mapping[str, Tensor], train_seed: int) -> None:
        super().__init__(mean, train_seed)
        self.std = stored(std)
        for name, tensor in self.std.items():
            if name not in self.mean:
                raise InputError(f"std of {name}: the mean has no such tensor")
            check_tensor(f"std of {name}", tensor, self.mean[name].shape, low=0)

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        drawn = {}
        for name, std in self.std.items():
            noises = [noise(self.train_seed, seed, i, name, std.shape) for i in range(start, stop)]
            drawn[name] = torch.stack([self.mean[name] + std * e for e in noises])
        return drawn

    def state(self) -> Tensors:
        return {f"{name}.std": tensor for name, tensor in self.std.items()}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Gaussian:
        (std,) = split_state(state, mean, ".std")
        return cls(mean, std, train_seed)
