"""The obvious way to average: one full forward per draw and sequence, in a Python loop. Slow, and right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from uqharness.posterior import Posterior


def logprob(model: PeftModel, context: Sequence[int], continuation: Sequence[int]) -> float:
    """log p(continuation | context) by one full forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
    start = len(context) - 1
    return sum(float(logits[start + j, token]) for j, token in enumerate(continuation))


def install(model: PeftModel, weights: Mapping[str, Tensor]) -> None:
    """Put weights into the adapter through PEFT's own loader."""
    result = set_peft_model_state_dict(model, dict(weights))
    assert not result.unexpected_keys


def per_draw(
    model: PeftModel,
    posterior: Posterior,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    samples: int,
    seed: int,
) -> Tensor:
    """`[S, K]` log-likelihoods of K (context, continuation) pairs under S draws, one at a time."""
    values = []
    for i in range(samples):
        drawn = {name: tensor[0] for name, tensor in posterior.draws(i, i + 1, seed).items()}
        install(model, {**posterior.mean, **drawn})
        values.append([logprob(model, context, continuation) for context, continuation in pairs])
    install(model, posterior.mean)
    return torch.tensor(values, dtype=torch.float64)
