"""Generate text under averaging: next tokens come from the mixture p(y_t | y_<t, x) = 1/S Σ_s p(y_t | y_<t, x, θ_s).

All draws read the same tokens, each with a KV cache of its own, and one token is chosen from the average. This is
not the mixture over whole texts (`loglikelihood` is): see docs/decisions/averaging.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from uqharness.errors import InputError
from uqharness.posterior import keyed_generator

_REFUSED = {"num_beams": 1, "num_return_sequences": 1, "penalty_alpha": None, "assistant_model": None}


class Mixture(LogitsProcessor):
    """Replace the scores of all draws by the mixture's, so that every draw continues with the same token."""

    def __init__(self, draws: int, sampler: Sampler | None) -> None:
        self.draws, self.sampler = draws, sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        per_draw = scores.float().log_softmax(-1).unflatten(0, (self.draws, -1))  # [S, B, V]
        mixture = per_draw.logsumexp(0) - math.log(self.draws)  # [B, V]
        if self.sampler is not None:
            mixture = self.sampler(input_ids[: len(mixture)], mixture)
        return mixture.repeat(self.draws, 1)


class Sampler:
    """Sample one token per row from warped scores, with one generator per prompt: batching does not change a text."""

    def __init__(self, seed: int, prompts: list[list[int]], settings: dict[str, Any]) -> None:
        self.generators = [keyed_generator("generate", seed, *prompt) for prompt in prompts]
        self.warpers: list[LogitsProcessor] = []
        if (temperature := settings.get("temperature")) not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k := settings.get("top_k"):
            self.warpers.append(TopKLogitsWarper(int(top_k)))
        if (top_p := settings.get("top_p")) not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(float(top_p)))
        if min_p := settings.get("min_p"):
            self.warpers.append(MinPLogitsWarper(float(min_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        total = scores.double().softmax(-1).cumsum(-1)  # [B, V]
        level = torch.tensor([torch.rand((), generator=g, dtype=torch.float64).item() for g in self.generators])
        level = level.to(total.device)[:, None] * total[:, -1:]
        token = torch.searchsorted(total, level, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter(-1, token, 0.0)


def split_settings(generation: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (arguments of `generate`, sampling of the mixture); refuse settings that averaging does not support."""
    for name, allowed in _REFUSED.items():
        if generation.get(name, allowed) not in (allowed, None):
            raise InputError(f"{name}={generation[name]} cannot be averaged over draws: use greedy or sampling")
    settings = dict(generation)
    sampling = {name: settings.pop(name, None) for name in ("temperature", "top_k", "top_p", "min_p", "do_sample")}
    warm = sampling["temperature"] not in (None, 0, 0.0)
    if sampling["do_sample"] is None:
        sampling["do_sample"] = warm
    if sampling["do_sample"] and sampling["temperature"] in (0, 0.0):
        raise InputError("temperature=0 cannot be sampled from: remove do_sample for greedy decoding")
    return settings, sampling


def unpadded(context: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Return the prompts of a left-padded batch."""
    rows = context.tolist()
    if mask is None:
        return rows
    return [[t for t, m in zip(row, keep, strict=True) if m] for row, keep in zip(rows, mask.tolist(), strict=True)]
