"""Me-LoRA: closed forms, the true covariance of B C A by brute force, and the paper's table of parameters."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from transformers import LlamaConfig, LlamaForCausalLM

from uqharness.adapters.melora import Core, CorePosterior, MeLoRA
from uqharness.engine.lora import LoraStack
from uqharness.posterior import keyed_generator
from uqharness.settings import Run
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import Batch, choice_loss, collate, score


def random(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=keyed_generator("melora test", key), dtype=torch.float64)


def test_contract_with_the_papers_run_settings() -> None:
    targets = ("q_proj", "v_proj")
    assert dict(MeLoRA.suggests) == {"warmup": 0.02, "lora_dropout": 0.1, "target_modules": targets}
    assert check_method(MeLoRA, dataclasses.replace(TINY, **MeLoRA.suggests)).finite is None


def test_contract_of_the_settings() -> None:
    settings = {"kl": "exact", "prior_noise": False, "flipout": "example", "std_optimizer": "sgd"}
    assert check_method(MeLoRA, **settings).kind == "core"


# ------------------------------------------------------------------ Table 1

LLAMA2 = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


def count(model: str, r: int) -> tuple[int, int]:
    """Trained parameters of LoRA and of Me-LoRA on q and v, from the shapes alone."""
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(vocab_size=32000, **LLAMA2[model]))
    peft_model = inject(base, Run(lora_r=r, target_modules=("q_proj", "v_proj")))
    lora = sum(p.numel() for name, p in peft_model.named_parameters() if ".lora_" in name)
    parts = {n: m for n, m in peft_model.named_modules() if isinstance(m, nn.Linear) and ".lora_" in n}
    cores = MeLoRA().start({f"{name}.weight": layer for name, layer in parts.items()}, seed=0)
    assert len(cores) == 2 * LLAMA2[model]["num_hidden_layers"]
    return lora, lora + sum(core.m.numel() + core.h.numel() for core in cores.values())


@pytest.mark.parametrize(
    ("model", "r", "lora", "melora"),
    [("7B", 8, 4.19, 4.20), ("7B", 64, 33.55, 34.08), ("13B", 8, 6.55, 6.56), ("13B", 64, 52.43, 53.08)],
)
def test_parameter_counts_are_those_of_table_1(model: str, r: int, lora: float, melora: float) -> None:
    plain, ours = count(model, r)
    assert plain / 1e6 == pytest.approx(lora, abs=0.006)
    assert ours / 1e6 == pytest.approx(melora, abs=0.006)
    assert r > 8 or 1 < ours / plain < 1.002


# ------------------------------------------------------------------ the posterior

A, B = "q.lora_A.weight", "q.lora_B.weight"


def small(r: int, n: int, m: int) -> tuple[CorePosterior, Tensor, Tensor, Tensor, Tensor]:
    """A posterior of one layer, with A, B, M, Ω in float64."""
    a, b, mean, std = random(r, n, key="a"), random(m, r, key="b"), random(r, r, key="m"), random(r, r, key="s").abs()
    parts = {f"{A}.inner": a, f"{A}.core_mean": mean, f"{A}.core_std": std}
    return CorePosterior({A: mean @ a, B: b}, 0, parts), a, b, mean, std


def printed_covariance(a: Tensor, b: Tensor, std: Tensor) -> Tensor:
    """The paper's Σ_q = [I ⊗ B] diag(vec(Ω|A|)²) [I ⊗ Bᵀ]  (Eq. 4), vec by columns."""
    kron = torch.kron(torch.eye(a.shape[1], dtype=a.dtype), b)
    return kron @ torch.diag((std @ a.abs()).T.flatten().square()) @ kron.T


def true_covariance(a: Tensor, b: Tensor, std: Tensor) -> Tensor:
    """vec(B C A) = (Aᵀ ⊗ B) vec(C), so Σ = (Aᵀ ⊗ B) diag(vec(Ω)²) (Aᵀ ⊗ B)ᵀ."""
    kron = torch.kron(a.T.contiguous(), b)
    return kron @ torch.diag(std.T.flatten().square()) @ kron.T


def test_covariance_of_the_draws_is_the_true_one_and_the_papers_is_not() -> None:
    posterior, a, b, mean, std = small(r=3, n=4, m=5)
    count = 20_000
    weights = b @ posterior.draws(0, count, seed=1)[A].double()  # [S, m, n]
    vectors = weights.transpose(1, 2).flatten(1)
    wanted = true_covariance(a, b, std)
    scale = wanted.diagonal().sqrt()
    noise = 5 / math.sqrt(count)  # five standard errors of a covariance in units of its two stds, at most √2 more
    torch.testing.assert_close(vectors.mean(0), (b @ mean @ a).T.flatten(), rtol=0, atol=noise * float(scale.max()))
    error = (vectors.T.cov() - wanted) / torch.outer(scale, scale)
    assert float(error.abs().max()) < noise * math.sqrt(2)
    paper = (printed_covariance(a, b, std) - wanted) / torch.outer(scale, scale)
    assert float(paper.abs().max()) > 0.5


def test_size_of_the_papers_error_at_r_8() -> None:
    """The std of C A is sqrt(Ω² A²), about half of the printed Ω|A|, and its columns are correlated."""
    a, std = random(8, 256, key="wide"), random(8, 8, key="h").abs()
    true = (std.square() @ a.square()).sqrt()
    ratio = true / (std @ a.abs())
    drawn = CorePosterior({A: a}, 0, {f"{A}.inner": a, f"{A}.core_mean": 0 * std, f"{A}.core_std": std})
    rows = drawn.draws(0, 2000, seed=0)[A].double()  # [S, r, n]
    torch.testing.assert_close(rows.std(0), true, rtol=0.12, atol=0)
    corr = torch.stack([torch.corrcoef(rows[:, i].T) for i in range(8)])
    off = corr[:, ~torch.eye(256, dtype=torch.bool)].abs()
    assert float(ratio.mean()) == pytest.approx(0.50, abs=0.02)
    assert float(off.mean()) == pytest.approx(0.41, abs=0.02)


def test_the_saved_mean_is_the_plain_lora_of_m_a() -> None:
    posterior, model, _ = fit_tiny(MeLoRA(kl_lr=0.01))
    assert isinstance(posterior, CorePosterior) and len(posterior.names) == 5
    for name in posterior.names:
        m, a = posterior.parts[f"{name}.core_mean"], posterior.parts[f"{name}.inner"]
        torch.testing.assert_close(posterior.mean[name], m @ a)
        assert float((m - torch.eye(len(m))).abs().max()) > 1e-3
        assert torch.equal(LoraStack(model).parameters[name], posterior.mean[name])


# ------------------------------------------------------------------ the KL


def test_printed_kl_is_eq_8_term_by_term() -> None:
    m, std, a = random(2, 2, key="m"), random(2, 2, key="s").abs(), random(2, 3, key="a")
    sigma, total = 0.7, 0.0
    for i in range(2):
        for j in range(3):
            total += sum(float(m[i, k] * a[k, j]) for k in range(2)) ** 2 / (2 * sigma**2)
            total += sum(float(std[i, k] * abs(a[k, j])) for k in range(2)) ** 2 / (2 * sigma**2)
        total -= sum(math.log(float(std[i, k])) for k in range(2))
    assert float(MeLoRA().kl_value(m, std, a, sigma)) == pytest.approx(total, rel=1e-12)


def test_exact_kl_is_that_of_torch_distributions() -> None:
    m, std, a = random(8, 8, key="m"), random(8, 8, key="s").abs(), random(8, 9, key="a")
    wanted = kl_divergence(Normal(m, std), Normal(torch.zeros_like(m), 0.7)).sum()
    torch.testing.assert_close(MeLoRA(kl="exact").kl_value(m, std, a, 0.7), wanted)


@pytest.mark.parametrize("kl", ["printed", "exact"])
def test_kl_gradients_are_autograds(kl: str) -> None:
    method = MeLoRA(kl=kl)  # type: ignore[arg-type]
    m, h, a = (random(4, width, key=key).requires_grad_() for key, width in (("m", 4), ("h", 4), ("a", 6)))
    value = method.kl_value(m, h.square(), a, 0.7) + 0 * a.sum()
    for closed, wanted in zip(method.kl_gradients(m, h, a, 0.7), torch.autograd.grad(value, (m, h, a)), strict=True):
        torch.testing.assert_close(closed, wanted)


@pytest.mark.parametrize("std_optimizer", ["adamw", "sgd"])
def test_the_kl_step_is_sgd(std_optimizer: str) -> None:
    method = MeLoRA(std_optimizer=std_optimizer)  # type: ignore[arg-type]
    core = Core(nn.Linear(6, 3, bias=False), nn.Linear(3, 4, bias=False), random(3, 3, key="h").float())
    twin = [p.detach().clone().requires_grad_() for p in (core.m, core.h, core.a.weight)]
    core.h.grad = random(3, 3, key="grad").float()
    sgd = torch.optim.SGD(twin, lr=0.01)
    (0.25 * method.kl_value(twin[0], twin[1].square(), twin[2], 0.9)).backward()
    if std_optimizer == "sgd":
        twin[1].grad += core.h.grad
    sgd.step()
    method.step({"q": core}, lr=0.01, weight=0.25, sigma=0.9)
    for stepped, wanted in zip((core.m, core.h, core.a.weight), twin, strict=True):
        torch.testing.assert_close(stepped, wanted, rtol=1e-5, atol=1e-6)


def test_prior_noise_is_uniform_fresh_per_step_and_keyed() -> None:
    noisy = [MeLoRA().sigma(0, step) - 0.2 for step in range(2000)]
    assert len(set(noisy)) > 1990 and min(noisy) >= 0 and max(noisy) < 1
    assert sum(noisy) / 2000 == pytest.approx(0.5, abs=0.03)
    assert [MeLoRA().sigma(0, 3), MeLoRA().sigma(1, 3)] != [MeLoRA().sigma(0, 3)] * 2
    assert MeLoRA().sigma(0, 3) - 0.2 == noisy[3]
    assert {MeLoRA(prior_noise=False).sigma(0, step) for step in range(5)} == {0.2}


# ------------------------------------------------------------------ training


def test_a_training_forward_is_one_with_c_a_in_the_place_of_a() -> None:
    data, method = tiny_data(), MeLoRA()
    stack = LoraStack(inject(tiny_llama(), TINY))
    for name, p in stack.parameters.items():
        p.data.normal_(std=0.3, generator=keyed_generator(name))
    cores = method.start(stack.layers, 0)
    for name, core in cores.items():
        core.m.data.normal_(generator=keyed_generator(name))
        core.h.data.mul_(10)
    batch = Batch(*collate(data.train[:4], data), 5, 5)
    own = [p for core in cores.values() for p in (core.m, core.h, core.a.weight, core.b.weight)]
    method.set_noise(cores, batch, seed=0)
    stack.model.train()
    with stack.inputs({name.replace("lora_A", "lora_B"): core for name, core in cores.items()}):
        loss = choice_loss(stack, batch)
        gradients = torch.autograd.grad(loss, own)
        scored = score(stack, data)  # in eval mode: the mean, C = M
    drawn = {}
    for name, core in cores.items():
        e = torch.randn(2, 2, generator=keyed_generator("noise", 0, 5, name))
        drawn[name] = ((core.m + e * core.h.square()) @ core.a.weight)[None]
    with stack.functions(drawn):
        wanted = choice_loss(stack, batch)
        expected = torch.autograd.grad(wanted, own)
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-5)  # fp32: (C x) A and (C A) x round differently
    for closed, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(closed, gradient, rtol=1e-3, atol=1e-5)
    method.finish(stack, cores, seed=0)
    assert score(stack, data) == pytest.approx(scored, rel=1e-5)
