"""BLoB against torch.distributions, autograd, a loop over examples, and the numbers of the reference code."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from uqharness.adapters.blob import BLoB, Random
from uqharness.engine.lora import DrawLinear, LoraStack
from uqharness.engine.rows import Rows
from uqharness.errors import InputError
from uqharness.posterior import Gaussian, keyed_generator
from uqharness.settings import Run
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import Batch, choice_loss, collate, learning_rate

torch.set_num_threads(1)

ABLATIONS: list[dict[str, Any]] = [
    {},
    {"asymmetric": False, "parameterization": "softplus", "flipout": "token", "reweight": False},
    {
        "asymmetric": False,
        "std_optimizer": "shared",
        "flipout": "none",
        "train_samples": 2,
        "weights": "code",
    },
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_contract(settings):
    posterior = check_method(BLoB, **settings)
    assert isinstance(posterior, Gaussian) and posterior.finite is None
    random = {name for name in posterior.mean if ".lora_A." in name or settings.get("asymmetric") is False}
    assert set(posterior.std) == random and all(float(std.min()) > 0 for std in posterior.std.values())


def make_random(method: BLoB, scale: float = 1.0, shape: tuple[int, int] = (4, 6)) -> Random:
    generator = keyed_generator("test", scale, method)
    g = torch.rand(shape, generator=generator) * 0.5 + 0.1
    g = g if method.parameterization == "square" else g - 2
    return Random("x", torch.randn(shape, generator=generator), nn.Parameter(g), scale)


def kl_by_torch(method: BLoB, r: Random) -> tuple[Tensor, Tensor, Tensor]:
    """KL and its gradients by torch.distributions and autograd; Ω written out again."""
    mean, g = r.mean.clone().requires_grad_(), r.g.detach().clone().requires_grad_()
    std = (r.scale * g) ** 2 if method.parameterization == "square" else r.scale * torch.log1p(torch.exp(g))
    kl = kl_divergence(Normal(mean, std), Normal(0.0, method.prior_std)).sum()
    kl.backward()
    assert mean.grad is not None and g.grad is not None
    return kl.detach(), mean.grad, g.grad


@pytest.mark.parametrize("parameterization", ["square", "softplus"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_closed_form_kl_gradients(parameterization, scale):
    method = BLoB(parameterization=parameterization, prior_std=0.3)
    random = [make_random(method, scale), make_random(method, scale, (2, 3))]
    of_mean, of_g = method.kl_gradients(random)
    for r, mean_gradient, g_gradient in zip(random, of_mean, of_g, strict=True):
        _, expected_mean, expected_g = kl_by_torch(method, r)
        torch.testing.assert_close(mean_gradient, expected_mean)
        torch.testing.assert_close(g_gradient, expected_g, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("std_optimizer", ["sgd", "shared"])
def test_one_step_is_sgd_on_the_weighted_kl(std_optimizer):
    """Twin: torch.optim.SGD on autograd's gradients; the likelihood's gradient of G joins in, or stays out."""
    method = BLoB(std_optimizer=std_optimizer)
    r = make_random(method)
    _, mean_gradient, g_gradient = kl_by_torch(method, r)
    likelihood = torch.randn_like(r.g)
    mean, g = nn.Parameter(r.mean.clone()), nn.Parameter(r.g.detach().clone())
    mean.grad = 0.25 * mean_gradient
    g.grad = 0.25 * g_gradient + (likelihood if std_optimizer == "sgd" else 0)
    torch.optim.SGD([mean, g], lr=0.01).step()
    r.g.grad = likelihood
    method.step([r], 0.01, 0.25)
    torch.testing.assert_close(r.mean, mean.detach())
    torch.testing.assert_close(r.g, g)


def test_cycle_lengths_are_those_of_the_reference_code():
    cycles = {640: 316, 1119: 393, 2248: 517, 2251: 518, 2558: 544, 4957: 706, 9427: 909}
    assert {items: BLoB().cycle(items, 4) for items in cycles} == cycles
    assert BLoB(rescale=False).cycle(4957, 8) == 619  # the authors' OOD script, two processes
    assert BLoB(reweight=False).cycle(640, 4) == 160 and BLoB().cycle(1, 1000) == 1


def test_the_batch_of_the_cycle_is_that_of_all_processes(monkeypatch):
    run = dataclasses.replace(TINY, batch_size=2, grad_accumulation=3)
    assert run.effective_batch == 6
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run.effective_batch == 12


@pytest.mark.parametrize("cycle", [1, 2, 5, 30, 316, 909])
def test_kl_weights(cycle):
    paper = [BLoB(weights="paper").kl_weight(step, cycle) for step in range(2 * cycle)]
    code = [BLoB().kl_weight(step, cycle) for step in range(2 * cycle)]  # the default: sum 1, as the paper's text
    assert sum(paper[:cycle]) == pytest.approx(2)
    assert sum(code[:cycle]) == pytest.approx((2 ** (cycle + 1) - 2) / (2 ** (cycle + 1) - 1))  # 1 but for 2^-M
    assert paper[cycle:] == paper[:cycle]
    if cycle <= 30:  # as printed
        assert paper[:cycle] == pytest.approx([2**i / (2**cycle - 1) for i in range(1, cycle + 1)])
        assert code[:cycle] == pytest.approx([2**i / (2 ** (cycle + 1) - 1) for i in range(1, cycle + 1)])
    plain = [BLoB(reweight=False).kl_weight(step, cycle) for step in range(cycle)]
    assert sum(plain) == pytest.approx(1) and len(set(plain)) == 1


@pytest.mark.parametrize(
    "items, weights, expected",
    [(640, "code", 0.187), (9427, "code", 0.098), (640, "paper", 0.200), (9427, "paper", 0.160)],
)
def test_growth_of_the_std_under_the_kl_alone(items, weights, expected):
    """PITFALLS: .0018 -> .187 (WG-S) / .098 (BoolQ) in 5,000 steps: that is the code's weighting."""
    method, run = BLoB(weights=weights), Run(steps=5000, warmup=0.06)
    g = torch.empty(16, 16).uniform_(0.05 / math.sqrt(2), 0.05, generator=keyed_generator("growth"))
    r, cycle = Random("x", torch.zeros(16, 16), nn.Parameter(g), 1.0), method.cycle(items, 4)
    assert float(method.std(r).mean()) == pytest.approx(0.0018, abs=5e-5)
    for step in range(run.steps):
        method.step([r], method.kl_lr * learning_rate(step, run), method.kl_weight(step, cycle))
    assert float(method.std(r).mean()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("parameterization", ["square", "softplus"])
@pytest.mark.parametrize("mean_init, numerator", [("paper", 6.0), ("peft", 1.0)])
def test_start(parameterization, mean_init, numerator):
    method = BLoB(parameterization=parameterization, mean_init=mean_init)
    for r in method.start(LoraStack(inject(tiny_llama(), TINY)), seed=0):
        bound, std = math.sqrt(numerator / r.mean.shape[1]), method.std(r)
        assert 0.75 * bound < float(r.mean.abs().max()) <= bound and ".lora_A." in r.name
        assert 0.05**2 / 2 * 0.999 <= float(std.min()) < float(std.max()) <= 0.05**2 * 1.001
    seeds = [method.start(LoraStack(inject(tiny_llama(), TINY)), seed)[0].g for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


def test_b_is_scaled_where_it_is_random():
    method = BLoB(asymmetric=False)
    random = {r.name: r for r in method.start(LoraStack(inject(tiny_llama(), TINY)), seed=0)}
    b = next(r for name, r in random.items() if ".lora_B." in name)
    assert b.scale == 0.01 and torch.allclose(method.std(b), (b.g / 100) ** 2)
    assert any(".lora_A." in name and r.scale == 1.0 for name, r in random.items())


# -------------------------------------------------------------------- flipout


def layer_outputs(flipout: str, count: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of one layer's noise for a batch of 3 rows (2 questions) × 2 equal tokens: [count, 3, 2, out]."""
    method = BLoB(flipout=flipout)
    r = make_random(method, 1.0, (2, 5))
    x = torch.randn(5, generator=keyed_generator("x")).expand(3, 2, 5)
    linear = DrawLinear.convert(nn.Linear(5, 2, bias=False))
    linear.weight.data.zero_()
    empty, example = torch.zeros(0, dtype=torch.long), torch.tensor([0, 0, 1])
    rows = Rows(torch.zeros(3, 2), example.new_tensor([0, 1, 2]), *[empty] * 6, example)
    stds = []
    for micro in range(count):
        linear.perturbation = method.perturbations([r], Batch(rows, torch.zeros(2), 0, micro), 0, seed=0)["x"]
        stds.append(linear(x))
    return torch.stack(stds).detach(), x[0, 0], method.std(r).detach()


@pytest.mark.parametrize("flipout", ["example", "token", "none"])
def test_flipout_has_the_moments_of_the_direct_sampler(flipout):
    """Each token's output: mean 0, covariance that of (E ∘ Ω) x, estimated by drawing the weights themselves."""
    outputs, x, std = layer_outputs(flipout)
    direct = (torch.randn(4000, 2, 5, generator=keyed_generator("direct")) * std) @ x  # [count, out]
    exact = torch.diag((std**2) @ (x**2))
    torch.testing.assert_close(direct.T.cov(), exact, atol=0.15 * float(exact.max()), rtol=0)
    for row in range(3):
        flat = outputs[:, row, 0]
        assert float(flat.mean(0).abs().max()) < 5 * math.sqrt(float(exact.max()) / 2000)
        torch.testing.assert_close(flat.T.cov(), exact, atol=0.15 * float(exact.max()), rtol=0)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_flipout_shares_noise_where_it_should_and_nowhere_else():
    for flipout, same_row, same_question, other in (
        ("example", 1.0, 1.0, 0.0),
        ("token", 0.0, 0.0, 0.0),
        ("none", 1.0, 1.0, 1.0),
    ):
        outputs, _, _ = layer_outputs(flipout)
        y = outputs[..., 0]  # [count, row, token]
        assert correlation(y[:, 0, 0], y[:, 0, 1]) == pytest.approx(same_row, abs=0.08), flipout
        assert correlation(y[:, 0, 0], y[:, 1, 0]) == pytest.approx(same_question, abs=0.08), flipout
        assert correlation(y[:, 0, 0], y[:, 2, 0]) == pytest.approx(other, abs=0.08), flipout


def test_flipout_loss_equals_a_loop_over_questions():
    """Eq. 12 / A.3: question q sees A_q = M + (E ∘ Ω) ∘ t_q s_qᵀ: put that matrix in, one question at a time."""
    method, data = BLoB(eps=0.6), tiny_data()
    stack = LoraStack(inject(tiny_llama(), TINY))
    random = method.start(stack, seed=0)
    for name, parameter in stack.parameters.items():
        if ".lora_B." in name:  # B = 0 would hide the noise
            parameter.data = torch.randn(parameter.shape, generator=keyed_generator("B", name))
    rows, gold = collate(data.train[:4], data)
    batch = Batch(rows, gold, 0, 0)
    perturbations = method.perturbations(random, batch, 0, seed=0)
    stack.perturb(perturbations)
    together = choice_loss(stack, batch)
    stack.clear()
    alone = []
    for q in range(4):
        drawn = {}
        for r in random:
            s, t = perturbations[r.name].signs((4,))
            drawn[r.name] = r.mean.detach() + perturbations[r.name].noise.detach() * torch.outer(t[q], s[q])
        with stack.weights(drawn):
            alone.append(choice_loss(stack, Batch(*collate([data.train[q]], data), 0, 0)))
    mean_only = choice_loss(stack, batch)
    assert abs(float(mean_only - together)) > 1e-2, "the noise must matter for this test"
    assert float(together) == pytest.approx(float(sum(alone)) / 4, abs=1e-5)


def test_samples_are_averaged_and_differ():
    method, data = BLoB(eps=0.6, train_samples=3), tiny_data()
    stack = LoraStack(inject(tiny_llama(), TINY))
    random = method.start(stack, seed=0)
    batch = Batch(*collate(data.train[:4], data), 0, 7)
    noise = [method.perturbations(random, batch, k, 0)[random[0].name].noise for k in (0, 1, 0)]
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    other = method.perturbations(random, dataclasses.replace(batch, micro=8), 0, 0)[random[0].name].noise
    assert not torch.equal(noise[0], other)


def test_gradient_checkpointing_gives_the_same_gradients():
    """The recomputed forward must see the same noise: a generator that moves on would fail here."""
    run = dataclasses.replace(TINY, steps=4)
    plain, _, one = fit_tiny(BLoB(eps=0.5), run)
    saving, _, two = fit_tiny(BLoB(eps=0.5), dataclasses.replace(run, gradient_checkpointing=True))
    losses = [[value for _, value in data.record["training"][0]["loss"]] for data in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in plain.state().items():
        torch.testing.assert_close(saving.state()[name], tensor, atol=1e-6, rtol=1e-4)


# -------------------------------------------------------------------- the whole


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path):
    run = dataclasses.replace(TINY, steps=2, out=str(tmp_path / "a"), save_every=1)
    fit_tiny(BLoB(), run)
    with pytest.raises(InputError, match="another method"):
        fit_tiny(BLoB(kl_lr=0.5), dataclasses.replace(run, resume=True))


def test_the_std_is_no_part_of_the_peft_adapter_and_counts_as_trained():
    posterior, model, data = fit_tiny(BLoB())
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in posterior.mean)
    trained = sum(t.numel() for t in posterior.mean.values()) + sum(t.numel() for t in posterior.state().values())
    assert data.record["training"][0]["trainable_parameters"] == trained
    assert not any("uq" in name or "std" in name for name, _ in model.named_parameters())
    assert LoraStack(model).layers and all(layer.perturbation is None for layer in LoraStack(model).layers.values())


def test_the_std_grows_by_the_kl_and_stays_without():
    run = dataclasses.replace(TINY, steps=20, lr=1e-2)
    stds = []
    for kl_lr in (0.0, 0.01):
        # A cycle of 16 questions is longer than this run, and nearly all its weight is at its end.
        posterior, _, _ = fit_tiny(BLoB(kl_lr=kl_lr, reweight=False), run)
        assert isinstance(posterior, Gaussian)
        stds.append(torch.cat([std.flatten() for std in posterior.std.values()]).mean())
    start = BLoB().start(LoraStack(inject(tiny_llama(), TINY)), seed=0)
    assert float(stds[0]) == pytest.approx(float(torch.cat([r.g.flatten() ** 2 for r in start]).mean()))
    assert float(stds[1]) > 2 * float(stds[0])
