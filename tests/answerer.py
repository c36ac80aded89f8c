"""An lm-eval model whose answers, with their draws, depend on the text alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from uqharness.results.record import BMALogProb


class Answerer(LM):
    """Answers by the text, with `draws` draws (None: plain floats, as of any other model)."""

    def __init__(self, draws: int | None = 3, spoil: float | None = None) -> None:
        super().__init__()
        self.draws, self.spoil = draws, spoil

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(self.answer(*request.args), False) for request in requests]

    def answer(self, context: str, continuation: str) -> float:
        seed = int.from_bytes(hashlib.sha256(f"{context}|{continuation}".encode()).digest()[:8], "big")
        first, *rest = (-3 * np.random.default_rng(seed).random((self.draws or 0) + 1)).tolist()
        if self.draws is None:
            return float(first if self.spoil is None else self.spoil)
        value = float(np.log(np.exp(rest).mean())) if rest else first
        return BMALogProb(value, rest, mean=first)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("not asked for")

    generate_until = loglikelihood_rolling
