"""BBB: its KL against torch.distributions, its gradients against an explicit draw of weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from uqharness.adapters.bbb import BBB
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.posterior import Gaussian, keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import Batch, choice_loss, collate


def random(*shape: int, key: str = "") -> torch.Tensor:
    return torch.randn(*shape, generator=keyed_generator("bbb test", key), dtype=torch.float64)


@pytest.mark.parametrize("settings", [{}, {"prior": "mixture", "on": "AB"}])
def test_contract(settings: dict[str, str]) -> None:
    posterior = check_method(BBB, **settings)
    assert isinstance(posterior, Gaussian)
    wanted = ("lora_A", "lora_B") if settings else ("lora_A",)
    assert set(posterior.std) == {name for name in posterior.mean if any(part in name for part in wanted)}


@pytest.mark.parametrize("prior_std", [1.0, 0.2])
def test_closed_form_kl_is_that_of_torch_distributions(prior_std: float) -> None:
    mean, rho = random(3, 7, key="mean"), random(3, 7, key="rho") - 3
    value = BBB(prior_std=prior_std, kl_reduce="sum").kl({"a": mean}, {"a": rho}, {"a": torch.zeros(3, 7)})
    wanted = kl_divergence(Normal(mean, F.softplus(rho)), Normal(torch.zeros(3, 7).double(), prior_std)).sum()
    torch.testing.assert_close(value, wanted)


def test_its_gradient_by_hand() -> None:
    """∂KL/∂μ = μ/σp²;  ∂KL/∂ρ = (σ/σp² − 1/σ) sigmoid(ρ)."""
    mean, rho = random(4, 5, key="m").requires_grad_(), (random(4, 5, key="r") - 3).requires_grad_()
    method = BBB(prior_std=0.5, kl_reduce="sum")
    method.kl({"a": mean}, {"a": rho}, {"a": torch.zeros(4, 5)}).backward()
    std = torch.log1p(rho.detach().exp())
    torch.testing.assert_close(mean.grad, mean.detach() / 0.25)
    torch.testing.assert_close(rho.grad, (std / 0.25 - 1 / std) / (1 + (-rho.detach()).exp()))


def mixture(pi: float, wide: float, narrow: float) -> MixtureSameFamily:
    parts = Normal(torch.zeros(2).double(), torch.tensor([wide, narrow], dtype=torch.float64))
    return MixtureSameFamily(Categorical(torch.tensor([pi, 1 - pi], dtype=torch.float64)), parts)


def test_mixture_kl_is_log_q_minus_log_p_at_the_draw() -> None:
    mean, rho, e = random(3, 6, key="mean"), random(3, 6, key="rho") - 3, random(3, 6, key="e")
    std = F.softplus(rho)
    value = BBB(prior="mixture", pi=0.25, narrow_std=0.01, kl_reduce="sum").kl({"a": mean}, {"a": rho}, {"a": e})
    w = mean + std * e
    wanted = (Normal(mean, std).log_prob(w) - mixture(0.25, 1.0, 0.01).log_prob(w)).sum()
    torch.testing.assert_close(value, wanted)


def test_mixture_kl_averages_to_the_integral() -> None:
    """One weight: the mean over many draws against quadrature of q log(q / p)."""
    mean, std = 0.3, 0.4
    rho = torch.full((200_000,), math.log(math.expm1(std)), dtype=torch.float64)
    draws = random(200_000, key="many")
    method = BBB(prior="mixture", narrow_std=0.1, kl_reduce="sum")
    value = method.kl({"a": torch.full_like(rho, mean)}, {"a": rho}, {"a": draws}) / len(rho)
    grid = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    q = Normal(torch.tensor(mean).double(), torch.tensor(std).double())
    gap = q.log_prob(grid) - mixture(0.5, 1.0, 0.1).log_prob(grid)
    wanted = torch.trapezoid(q.log_prob(grid).exp() * gap, grid)
    assert float(value) == pytest.approx(float(wanted), abs=0.006)  # standard error 0.0018


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_a_training_forward_is_one_with_drawn_weights(prior: str) -> None:
    """The perturbed forward and its gradients are those of w = μ + log(1 + e^ρ) ∘ E in the layer's place."""
    data, method = tiny_data(), BBB(prior=prior)  # type: ignore[arg-type]
    stack = LoraStack(inject(tiny_llama(), TINY))
    for name, p in stack.parameters.items():  # B is 0 at the start: then A would have no gradient
        p.data.normal_(std=0.3, generator=keyed_generator(name))
    rho, batch = method.start(stack, 0), Batch(*collate(data.train[:4], data), 5, 5)
    noise = method.noise(rho, batch, seed=0)
    means = {name: stack.layers[name].weight for name in rho}
    stack.perturb(method.perturbations(rho, noise, batch, seed=0))
    own = [*rho.values(), *means.values()]
    loss = choice_loss(stack, batch) + method.kl(means, rho, noise) / 16
    gradients = torch.autograd.grad(loss, own)
    stack.clear()
    drawn = {name: (means[name] + F.softplus(rho[name]) * noise[name])[None] for name in rho}
    with stack.functions(drawn):
        wanted = choice_loss(stack, batch) + method.kl(means, rho, noise) / 16
        expected = torch.autograd.grad(wanted, own)
    torch.testing.assert_close(loss, wanted)
    for closed, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(closed, gradient, rtol=1e-4, atol=1e-5)


def test_bayesian_torchs_defaults() -> None:
    stack = LoraStack(inject(tiny_llama(), TINY))
    rho = BBB().start(stack, 0)
    assert set(rho) == {name for name in stack.layers if ".lora_A." in name}
    values = torch.cat([r.detach().flatten() for r in rho.values()])
    assert float(values.mean()) == pytest.approx(-3.0, abs=0.02)
    assert float(values.std()) == pytest.approx(0.1, rel=0.2)
    assert float(F.softplus(values).mean()) == pytest.approx(0.0488, abs=0.002)
    assert BBB().prior_std == 1.0 and BBB().prior == "gaussian"


def test_the_kl_counts_one_over_n_or_one_over_batches() -> None:
    """At the first step the recorded loss is the noisy mean NLL plus the weighted KL."""
    first = {}
    for weight in ("items", "batches"):
        _, _, data = fit_tiny(BBB(kl_weight=weight, kl_reduce="sum"))  # type: ignore[arg-type]
        first[weight] = data.record["training"][0]["loss"][0][1]
    method, stack = BBB(kl_reduce="sum"), LoraStack(inject(tiny_llama(), TINY))
    rho = method.start(stack, 0)
    kl = float(method.kl({name: stack.layers[name].weight for name in rho}, rho, rho).detach())
    assert first["batches"] - first["items"] == pytest.approx(kl * (4 - 1) / 16, rel=1e-4)


def library_kl_loss(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Bayesian-Torch 0.5, written from its source: `kl_div(mu_q, sigma_q, mu_p, sigma_p)` of BaseVariationalLayer_ is
    `(log(sigma_p) - log(sigma_q) + (sigma_q**2 + (mu_q - mu_p)**2) / (2 * sigma_p**2) - 0.5).mean()`, sigma_q =
    log1p(exp(rho)), and `get_kl_loss(model)` adds the layers' up."""
    total = torch.zeros((), dtype=torch.float64)
    for mu_q, rho in layers:
        mu_p, sigma_p, sigma_q = torch.zeros_like(mu_q), torch.ones_like(mu_q), torch.log1p(torch.exp(rho))
        kl = torch.log(sigma_p) - torch.log(sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2) - 0.5
        total = total + kl.mean()
    return total


def test_the_default_kl_is_bayesian_torchs() -> None:
    shapes = {"a": (4, 32), "b": (2, 128), "c": (8, 16)}
    means = {name: random(*shape, key=f"m{name}") for name, shape in shapes.items()}
    rho = {name: random(*shape, key=f"r{name}") - 3 for name, shape in shapes.items()}
    layers = [(means[name], rho[name]) for name in shapes]
    zero = {name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.testing.assert_close(BBB().kl(means, rho, zero), library_kl_loss(layers))
    summed = BBB(kl_reduce="sum").kl({"a": means["a"]}, {"a": rho["a"]}, zero)
    torch.testing.assert_close(summed, 128 * library_kl_loss(layers[:1]))


def test_the_default_loss_is_that_of_the_librarys_readme() -> None:
    """`loss = cross_entropy_loss + kl / args.batch_size`: the first step's recorded loss, beside the bound's."""
    first = {}
    for reduce in ("mean", "sum"):
        _, _, data = fit_tiny(BBB(kl_reduce=reduce))  # type: ignore[arg-type]
        first[reduce] = data.record["training"][0]["loss"][0][1]
    method, stack = BBB(), LoraStack(inject(tiny_llama(), TINY))
    rho = method.start(stack, 0)
    pairs = [(stack.layers[name].weight.detach().double(), r.detach().double()) for name, r in rho.items()]
    bound = sum(r.numel() * library_kl_loss([(m, r)]) for m, r in pairs) / 16
    wanted = library_kl_loss(pairs) / TINY.batch_size - bound
    assert first["mean"] - first["sum"] == pytest.approx(float(wanted), rel=1e-4)


def test_the_librarys_mean_and_loras() -> None:
    for init, wanted in (("library", 0.1), ("lora", None)):
        stack, plain = LoraStack(inject(tiny_llama(), TINY)), LoraStack(inject(tiny_llama(), TINY))
        BBB(mu_init=init).start(stack, 0)  # type: ignore[arg-type]
        a = torch.cat([layer.weight.flatten() for name, layer in stack.layers.items() if ".lora_A." in name])
        before = torch.cat([layer.weight.flatten() for name, layer in plain.layers.items() if ".lora_A." in name])
        if wanted is None:
            assert torch.equal(a, before)
        else:
            assert float(a.mean()) == pytest.approx(0, abs=0.02) and float(a.std()) == pytest.approx(wanted, rel=0.1)
        assert all(bool((layer.weight == 0).all()) for name, layer in stack.layers.items() if ".lora_B." in name)


def test_batches_with_the_mean_is_refused() -> None:
    with pytest.raises(InputError, match="kl_reduce=sum"):
        BBB(kl_weight="batches")
