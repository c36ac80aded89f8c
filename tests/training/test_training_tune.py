"""The averaged answer on the tuning split against a loop over draws and questions."""

from __future__ import annotations

import math

import pytest
import torch
from slow_twin import per_draw

from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage
from uqharness.errors import InputError
from uqharness.posterior import Members, Tensors, keyed_generator
from uqharness.testing import TINY, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import check_tune, tune_table
from uqharness.training.questions import Question


def weights(key: str) -> Tensors:
    start = LoraStack(inject(tiny_llama(), TINY)).mean()
    return {n: 0.4 * torch.randn(t.shape, generator=keyed_generator(key, n)) for n, t in sorted(start.items())}


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_the_table_is_that_of_a_loop_whatever_the_batches(rule: str) -> None:
    data = tiny_data(9)
    data.tune = [Question(q.pairs[: 2 + n % 2], 0, q.fingerprint) for n, q in enumerate(data.train[:7])]
    model, source = inject(tiny_llama(), TINY).eval(), DrawAverage(Members([weights("a"), weights("b")], 0), rule)
    answers = tune_table(source.engine(model, 2, 0), data, size=3)
    assert answers.shape == (7, 3)
    for q, row in zip(data.tune, answers, strict=True):
        p = per_draw(model, source.posterior, q.pairs, 2, 0).softmax(-1)  # [S, C]
        mixed = p.mean(0) if rule == "probs" else p.log().mean(0).softmax(-1)
        torch.testing.assert_close(row[: len(mixed)].exp().double(), mixed, rtol=0, atol=1e-5)
        assert (row[len(mixed) :] == -math.inf).all()


def test_too_few_items_are_refused() -> None:
    data = tiny_data()
    check_tune("m", data, len(data.tune))
    with pytest.raises(InputError, match="m fits on the tuning split: it has 4 items, at least 5 are needed"):
        check_tune("m", data, len(data.tune) + 1)
