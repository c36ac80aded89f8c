"""Perturbed linears against their equation, token by token, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.dense_ggn import LONG, adapter
from uqharness.engine.flipout import perturb, standard
from uqharness.engine.lora import DrawLinear
from uqharness.engine.readers import reader_of
from uqharness.engine.rows import make_rows
from uqharness.posterior import keyed_generator
from uqharness.training.loop import Batch


@pytest.mark.parametrize("flipout", ["example", "token", "none"])
def test_a_perturbed_linear_is_equation_12(flipout: str) -> None:
    """W x + b + ((E ∘ Ω)(x ∘ s)) ∘ t with the signs of the row's question, of the token, or none."""
    rows = make_rows([q.pairs for q in LONG.train], 24)  # 3 rows of 2 questions each
    batch = Batch(rows, torch.zeros(len(LONG.train)), 0, 7)
    linear = DrawLinear.convert(nn.Linear(6, 3).double())
    noise = standard(linear.weight, 1, 7, "l").double().requires_grad_()
    perturbation = perturb(flipout, {"l": noise}, batch.rows, len(batch.gold), 1, 7)["l"]
    x = torch.randn(*rows.input_ids.shape, 6, generator=keyed_generator("x"), dtype=torch.float64)
    linear.perturbation = perturbation
    y = linear(x)
    wanted = torch.zeros_like(y)
    s, t = perturbation.signs((len(batch.gold),) if flipout == "example" else tuple(x.shape[:-1]))
    for r, q in enumerate(rows.example.tolist()):
        for k in range(x.shape[1]):
            place = {"example": (q,), "token": (r, k)}.get(flipout)
            signs = (s[place], t[place]) if place else (torch.ones(6), torch.ones(3))
            wanted[r, k] = linear.weight @ x[r, k] + linear.bias + (noise @ (x[r, k] * signs[0])) * signs[1]
    assert {*s.unique().tolist(), *t.unique().tolist()} == {-1.0, 1.0}
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    weights = [noise, linear.weight]
    for own, theirs in zip(*(torch.autograd.grad(v.square().sum(), weights) for v in (y, wanted)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-10)


def test_gradients_of_a_forward_that_leaves_out_what_nobody_reads_are_those_of_the_whole() -> None:
    stack = adapter()
    rows, own = make_rows([q.pairs for q in LONG.train], 24), list(stack.parameters.values())
    whole = stack.model(input_ids=rows.input_ids).logits[rows.row, rows.pos]  # [U, V]
    short = reader_of(stack.model).logits(stack.model, rows, skip=True)[0]
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-10)
    for from_ours, theirs in zip(
        *(torch.autograd.grad(v.log_softmax(-1)[:, 3].sum(), own) for v in (short, whole)), strict=True
    ):
        torch.testing.assert_close(from_ours, theirs, rtol=0, atol=1e-10)
