"""ScalaBL: its KL against torch.distributions, the draws' covariance, a training forward, the saved mean."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from uqharness.adapters.scalabl import ScalaBL, Subspace
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.posterior import keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import Batch, choice_loss, collate, score

torch.set_num_threads(1)
A, B = "q.lora_A.weight", "q.lora_B.weight"


def random(*shape: int, key: str) -> torch.Tensor:
    return torch.randn(*shape, generator=keyed_generator("scalabl test", key))


@pytest.mark.parametrize("kl", ["exact", "code"])
def test_contract(kl: str) -> None:
    assert check_method(ScalaBL, kl=kl).kind == "subspace"


@pytest.mark.parametrize(("kl", "prior_std"), [("exact", 1.0), ("exact", 0.3), ("code", 1.0), ("code", 0.3)])
def test_kl_is_that_of_torch_distributions(kl: str, prior_std: float) -> None:
    log_mean, log_std = random(8, key="m").double(), random(8, key="s").double()
    q, p = Normal(log_mean.exp(), log_std.exp()), Normal(torch.zeros(8).double(), prior_std)
    wanted = kl_divergence(q, p) if kl == "exact" else kl_divergence(p, q)
    kl_value = ScalaBL(kl=kl, prior_std=prior_std).kl_value(log_mean, log_std)  # type: ignore[arg-type]
    torch.testing.assert_close(kl_value, wanted.sum())
    assert abs(float(kl_divergence(q, p).sum() / kl_divergence(p, q).sum()) - 1) > 0.1  # the two differ


def test_covariance_of_the_draws() -> None:
    """vec(B diag(s) A) = Σ_k s_k (a_k ⊗ b_k), so Σ = K diag(σ²) Kᵀ with these columns."""
    inner, b = random(3, 4, key="a").double(), random(5, 3, key="b").double()
    mu, sigma = random(3, key="mu").exp().double(), random(3, key="sigma").exp().double()
    posterior = Subspace({A: mu[:, None] * inner, B: b}, {A: sigma / mu}, 0)
    count = 10_000
    updates = (b @ posterior.draws(0, count, 1)[A].double()).transpose(1, 2).flatten(1)  # vec by columns
    columns = torch.stack([torch.kron(inner[k], b[:, k]) for k in range(3)], 1)
    wanted = columns @ sigma.square().diag() @ columns.T
    scale = wanted.diagonal().sqrt()
    assert float(((updates.T.cov() - wanted) / torch.outer(scale, scale)).abs().max()) < 5 * math.sqrt(2 / count)
    assert float(((updates.mean(0) - columns @ mu) / scale).abs().max()) < 5 / math.sqrt(count)
    assert int(torch.linalg.matrix_rank(wanted)) == 3  # of 20: an r-dimensional subspace


def test_start_is_loras_own_function_in_its_svd() -> None:
    stack = LoraStack(inject(tiny_llama(), TINY))
    before = stack.mean()
    diagonals = ScalaBL().start(stack, 0)
    assert len(diagonals) == 5  # q and v of two layers, and the head
    for name, d in diagonals.items():
        v, s = d.a.weight, d.log_mean.exp()
        torch.testing.assert_close(v @ v.T, torch.eye(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(v.T @ s.square().diag() @ v, before[name].T @ before[name], rtol=0, atol=1e-5)
        assert bool((d.log_std.exp() <= 0.05 + 1e-6).all()) and bool((d.log_std.exp() >= 0.05 / 2**0.5 - 1e-6).all())


def test_a_training_forward_is_one_with_diag_s_a_in_the_place_of_a() -> None:
    data, method = tiny_data(), ScalaBL(eps=0.5)
    stack = LoraStack(inject(tiny_llama(), TINY))
    diagonals = method.start(stack, 0)
    for name, p in stack.parameters.items():
        if ".lora_B." in name:
            p.data.normal_(std=0.3, generator=keyed_generator(name))
    batch = Batch(*collate(data.train[:4], data), 5, 5)
    own = [p for d in diagonals.values() for p in (d.log_mean, d.log_std, d.a.weight, d.b.weight)]
    method.set_noise(diagonals, batch, seed=0)
    stack.model.train()
    with stack.inputs({name.replace("lora_A", "lora_B"): d for name, d in diagonals.items()}):
        loss = choice_loss(stack, batch)
        gradients = torch.autograd.grad(loss, own)
        scored = score(stack, data)  # in eval mode: the mean
    drawn = {}
    for name, d in diagonals.items():
        z = torch.randn(2, generator=keyed_generator("noise", 0, 5, name))
        drawn[name] = ((d.log_mean.exp() + z * d.log_std.exp()).diag() @ d.a.weight)[None]
    with stack.functions(drawn):
        wanted = choice_loss(stack, batch)
        expected = torch.autograd.grad(wanted, own)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    for closed, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(closed, gradient, rtol=1e-3, atol=1e-5)
    posterior = method.finish(stack, diagonals, seed=0)
    assert score(stack, data) == pytest.approx(scored, rel=1e-5)
    assert set(posterior.state()) == {f"{name}.relative_std" for name in diagonals}
    assert sum(t.numel() for t in posterior.state().values()) == 2 * 5  # r per layer


def test_the_kl_step_is_sgd() -> None:
    method, stack = ScalaBL(), LoraStack(inject(tiny_llama(), TINY))
    diagonals = method.start(stack, 0)
    d = next(iter(diagonals.values()))
    mean, std = d.log_mean.detach().exp(), d.log_std.detach().exp()
    before = [d.log_mean.detach().clone(), d.log_std.detach().clone()]
    method.step(diagonals, lr=0.1)
    # d KL / d log μ = μ², d KL / d log σ = σ² − 1 for a standard normal prior
    torch.testing.assert_close(d.log_mean.data, before[0] - 0.1 * mean.square())
    torch.testing.assert_close(d.log_std.data, before[1] - 0.1 * (std.square() - 1))


def test_training_moves_mean_and_std() -> None:
    # γ = 1000 makes a cycle of 25 steps, so that the run's 12 weigh something.
    posterior, model, _ = fit_tiny(ScalaBL(kl_lr=1000, gamma=1000))
    assert isinstance(posterior, Subspace)
    for name, ratio in posterior.relative.items():
        assert torch.equal(LoraStack(model).parameters[name], posterior.mean[name])
        assert bool((ratio > 0).all()) and bool(posterior.mean[name].isfinite().all())
    fixed, _, _ = fit_tiny(ScalaBL(kl_lr=0, gamma=1000))
    assert isinstance(fixed, Subspace)
    name = next(iter(fixed.relative))
    assert bool((posterior.relative[name] > fixed.relative[name]).all())  # towards the wide prior


def test_bad_input_is_one_line() -> None:
    with pytest.raises(InputError, match="σ/μ of q.lora_A.weight: expected shape"):
        Subspace({A: torch.zeros(2, 3)}, {A: torch.ones(3)}, 0)
    with pytest.raises(InputError, match="lora_r of at most 32"):
        fit_tiny(ScalaBL(), dataclasses.replace(TINY, lora_r=40))
