"""The oracle as an lm-eval model: log p(label = choice | question) under the true label distribution.

No model can have a lower expected NLL in this world. Its row goes through the same tasks and metrics as all others.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from uqharness.errors import InputError


class Oracle(LM):
    """`--model toyworld_oracle`: answer with the true distribution of each toy-world question."""

    def __init__(self, pretrained: str = "toyworld_oracle", **_: Any) -> None:
        super().__init__()
        self.name = pretrained

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for request in requests:
            if "oracle" not in request.doc:
                raise InputError(
                    f"{request.task_name} has no known label distribution: the oracle is for toyworld tasks"
                )
        return [(float(r.doc["oracle"][r.idx]), r.doc["oracle"][r.idx] == max(r.doc["oracle"])) for r in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise InputError("the oracle answers multiple choice only")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise InputError("the oracle answers multiple choice only")
