"""MAP: its decay against a loop written out by hand, and the prior variance that it stands for."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from uqharness.adapters.map import MAP
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.posterior import keyed_generator
from uqharness.settings import Run
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.data import ChoiceData
from uqharness.training.loop import Batch, choice_loss, collate, learning_rate


def test_contract() -> None:
    assert check_method(MAP, prior_var=0.1).finite == 1


def by_hand(data: ChoiceData, decay: float) -> dict[str, torch.Tensor]:
    """Adam (arXiv:1412.6980, Algorithm 1) and θ ← (1 − lr λ) θ, without Trainer and torch.optim."""
    stack = LoraStack(inject(tiny_llama(), TINY))
    epochs = [torch.randperm(16, generator=keyed_generator("order", TINY.seed, e)).tolist() for e in range(3)]
    stream = [data.train[i] for epoch in epochs for i in epoch]  # 12 steps of 4 items are 3 epochs of 16
    parameters = list(stack.parameters.values())
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for step in range(TINY.steps):
        lr = TINY.lr * learning_rate(step, TINY)
        items = stream[step * TINY.batch_size : (step + 1) * TINY.batch_size]
        loss = choice_loss(stack, Batch(*collate(items, data), step, step))
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                p.mul_(1 - lr * decay)
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.sub_(lr * m_hat / (v_hat.sqrt() + TINY.adam_eps))
    return stack.mean()


def test_the_decay_is_that_of_a_loop_by_hand() -> None:
    decay = 0.5  # large enough to see
    posterior, _, _ = fit_tiny(MAP(weight_decay=decay))
    wanted, undecayed = by_hand(tiny_data(), decay), by_hand(tiny_data(), 0.0)
    for name, tensor in posterior.mean.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=2e-5)
    assert max(float((posterior.mean[n] - undecayed[n]).abs().max()) for n in undecayed) > 2e-2


@pytest.mark.parametrize(("items", "variance"), [(640, 0.01), (16, 1.0), (5000, 156.25)])
def test_decay_is_the_gradient_of_the_stated_prior_per_item(items: int, variance: float) -> None:
    theta = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    prior = torch.distributions.Normal(0.0, math.sqrt(variance))
    (gradient,) = torch.autograd.grad(-prior.log_prob(theta).sum() / items, theta)
    method = MAP(prior_var=variance)
    torch.testing.assert_close(method.decay(items) * theta.detach(), gradient)
    assert MAP(weight_decay=method.decay(items)).variance(items) == pytest.approx(variance)


def test_the_papers_decay_does_nothing() -> None:
    run = Run()  # the papers': 5,000 steps, lr 1e-4
    left = math.prod(1 - run.lr * learning_rate(step, run) * MAP().decay(640) for step in range(run.steps))
    assert run.lr * MAP().decay(640) == pytest.approx(1e-9)
    assert 0 < 1 - left < 3e-6
    assert MAP().variance(640) == pytest.approx(156.25)


def test_two_ways_to_say_it_are_refused() -> None:
    with pytest.raises(InputError, match="prior_var exclude each other"):
        MAP(weight_decay=0.1, prior_var=1.0)
    with pytest.raises(InputError, match="own weight_decay"):
        fit_tiny(MAP(), dataclasses.replace(TINY, weight_decay=0.1))
