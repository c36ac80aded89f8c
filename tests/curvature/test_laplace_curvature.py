"""The Fisher of LoRA layers, its low-rank factors and its posterior against dense matrices and conjugate regression."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.dense_ggn import (
    LONG,
    PADDED,
    RUN,
    adapter,
    ask,
    block_diagonal,
    check_against_dense,
    covariance,
    dense_block,
    dense_fisher,
    fit,
    jacobian,
)
from uqharness.adapters.laplace import evidence
from uqharness.curvature.factors import Factor
from uqharness.curvature.fisher import choice_logits, fisher_root, jacobians, sampled_root, split
from uqharness.curvature.laplace import Block, Diag, Full, Kron
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.posterior import keyed_generator
from uqharness.training.data import ChoiceData
from uqharness.training.questions import Question

# ---------------------------------------------------------------- the Fisher


@pytest.mark.parametrize("data", [PADDED, LONG], ids=["padded", "multi-token"])
def test_full_equals_the_dense_ggn(data: ChoiceData) -> None:
    stack = adapter(layers=1)
    posterior = fit(data, stack, structure="full")
    fisher, likelihood = dense_fisher(stack, data, list(posterior.precision))
    curvature = posterior.curvature
    assert isinstance(curvature, Full)
    u, s = curvature.block.out.double(), curvature.block.values.double()[:, 0]
    torch.testing.assert_close(u * s @ u.T, fisher, rtol=1e-5, atol=1e-6 * float(fisher.abs().max()))
    assert posterior.report["log_likelihood"] == pytest.approx(likelihood, rel=1e-9)
    check_against_dense(posterior, stack, data, fisher)


@pytest.mark.parametrize("data", [PADDED, LONG], ids=["padded", "multi-token"])
def test_diag_is_the_diagonal_of_the_dense_ggn(data: ChoiceData) -> None:
    stack = adapter(layers=1)
    posterior = fit(data, stack, structure="diag")
    fisher, _ = dense_fisher(stack, data, list(posterior.precision))
    assert isinstance(posterior.curvature, Diag)
    values = torch.cat([v.flatten() for v in posterior.curvature.values.values()]).double()
    torch.testing.assert_close(values, fisher.diagonal(), rtol=1e-5, atol=1e-9)
    check_against_dense(posterior, stack, data, fisher.diagonal().diag())


@pytest.mark.parametrize("tokens", ["sum", "expand", "reduce"])
def test_kron_is_exact_for_one_token_and_one_question(tokens: str) -> None:
    stack, data = adapter(layers=1), ask([17])
    posterior = fit(data, stack, tokens=tokens)
    fisher, _ = dense_fisher(stack, data, list(posterior.precision))
    check_against_dense(posterior, stack, data, block_diagonal(fisher, stack, list(posterior.precision)))


def test_last_layer_is_the_heads_adapter_and_kron_is_exact_there_for_one_question() -> None:
    stack, data = adapter(), ask([17, 18, 19])  # the head reads one position, whatever the length
    posterior = fit(data, stack, layers="last")
    names = list(posterior.precision)
    assert [name.split(".")[-3] for name in names] == ["lm_head", "lm_head"]
    fisher, _ = dense_fisher(stack, data, names)
    check_against_dense(posterior, stack, data, block_diagonal(fisher, stack, names))


def test_last_layer_without_a_head_is_the_last_decoder_layer() -> None:
    stack = adapter(dataclasses.replace(RUN, target_modules=("q_proj", "v_proj")))
    names = list(fit(PADDED, stack, layers="last").precision)
    assert len(names) == 4 and all(".layers.1." in name for name in names)


def twin_factors(stack: LoraStack, data: ChoiceData, tokens: str) -> dict[str, Tensor]:
    """L ⊗ R per layer: E over choices of the score's outer product, question by question, without padding."""
    names, seen = list(stack.layers), {}
    handles = [
        stack.layers[name].register_forward_hook(lambda m, a, out, name=name: seen.update({name: (a[0], out)}))
        for name in names
    ]
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    count = dict.fromkeys(names, 0)
    for question in data.train:
        f = answers_at_head(stack, question)
        for name in names:
            a = seen[name][0][0].detach()
            count[name] += len(a)
            a = a.mean(0, keepdim=True) if tokens == "reduce" else a
            right[name] = right.get(name, 0) + a.T @ a
            for c, logp in enumerate(f.log_softmax(0)):
                g = torch.autograd.grad(logp, seen[name][1], retain_graph=True)[0][0]
                g = g.sum(0, keepdim=True) if tokens == "reduce" else g
                left[name] = left.get(name, 0) + float(f.softmax(0)[c]) * g.T @ g
    for handle in handles:
        handle.remove()
    scale = {n: count[n] if tokens == "expand" else len(data.train) for n in names}
    return {n: torch.kron(left[n], right[n] / scale[n]).detach() for n in names}


def answers_at_head(stack: LoraStack, question: Question) -> Tensor:
    """f_c with the head run at the last position only."""
    head = stack.model.get_base_model().get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda m, a: (a[0][:, -1:],))
    logits = stack.model(input_ids=torch.tensor([question.pairs[0][0]])).logits[0, -1]
    handle.remove()
    return logits[[answer[0] for _, answer in question.pairs]]


@pytest.mark.parametrize("tokens", ["sum", "expand", "reduce"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_factors_equal_those_of_plain_hooks(tokens: str, batch_size: int) -> None:
    stack = adapter()
    for parameter in stack.parameters.values():
        parameter.requires_grad_(True)
    wanted = twin_factors(stack, PADDED, tokens)
    posterior = fit(PADDED, stack, dataclasses.replace(RUN, batch_size=batch_size), tokens=tokens)
    assert isinstance(posterior.curvature, Kron)
    for name, block in posterior.curvature.blocks.items():
        dense = dense_block(block, stack.layers[name].weight.shape)
        torch.testing.assert_close(dense, wanted[name], rtol=1e-4, atol=1e-6 * float(wanted[name].abs().max()))
    head = next(b for n, b in posterior.curvature.blocks.items() if "lm_head.lora_B" in n)
    assert head.rows is not None and head.rows.tolist() == [1, 2, 3] and head.out.shape == (3, 2)


def test_a_model_prepared_for_gradient_checkpointing_gives_the_same_fisher() -> None:
    stack = adapter()
    wanted = fit(PADDED, stack)
    stack.model.enable_input_require_grads()
    stack.model.gradient_checkpointing_enable()
    fitted = fit(PADDED, stack)
    assert all(torch.equal(fitted.state()[name], tensor) for name, tensor in wanted.state().items())
    assert all(not p.grad_fn and p.grad is None for p in stack.model.parameters())


def test_roots_are_those_of_the_softmax_fisher_and_of_its_samples() -> None:
    f = torch.tensor([[0.3, -1.0, 2.0, 0.1], [1.0, 0.5, -math.inf, -math.inf]]).double()
    p = f.softmax(-1)
    wanted = torch.diag_embed(p) - p[..., None] * p[:, None]
    root = fisher_root(f)
    assert root.shape == (2, 4, 3)
    torch.testing.assert_close(root @ root.mT, wanted)
    many = f.repeat_interleave(20_000, 0)
    drawn = sampled_root(many, keyed_generator("test")).view(2, 20_000, 4)
    mean_square = torch.einsum("qni,qnj->qij", drawn, drawn) / 20_000
    torch.testing.assert_close(mean_square, wanted, rtol=0, atol=0.02)


def test_sampled_fisher_is_that_of_the_sampled_labels() -> None:
    """Batch k's labels come from the generator keyed (fisher, seed, k); the sum is over their scores alone.

    Shorter questions come first.
    """
    stack, run = adapter(layers=1), dataclasses.replace(RUN, batch_size=4, seed=5)
    posterior = fit(PADDED, stack, run, fisher="mc", structure="diag", prior_precision=1.0)
    train = sorted(PADDED.train, key=lambda question: len(question.pairs[0][0]))
    parts = [jacobian(stack, question, list(posterior.precision)) for question in train]
    p = torch.stack([f.softmax(0) for f, _ in parts])
    labels = torch.multinomial(p, 1, generator=keyed_generator("fisher", 5, 0))[:, 0].tolist()
    wanted = sum((j[y] - f.softmax(0) @ j).square() for (f, j), y in zip(parts, labels, strict=True))
    assert isinstance(posterior.curvature, Diag)
    values = torch.cat([v.flatten() for v in posterior.curvature.values.values()]).double()
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------- low rank


def test_low_rank_never_understates_a_variance_and_overstates_it_within_the_recorded_bound() -> None:
    stack = adapter()
    exact = fit(PADDED, stack, prior_precision=3.0)
    rough = fit(PADDED, stack, prior_precision=3.0, rank=2)
    bound = rough.report["variance_error_bound"]
    assert exact.report["variance_error_bound"] < 1e-4 < bound
    assert exact.report["dropped_trace"] < 1e-6
    shares = {n: 1 - float(rough.curvature.spectra()[n].sum() / s.sum()) for n, s in exact.curvature.spectra().items()}
    assert rough.report["dropped_trace"] == pytest.approx(max(shares.values()), rel=1e-4)
    overstated = 0.0
    for question in ask([50, 51, 10], [9, 9], [60, 10, 11, 12]).train:
        _, small = covariance(exact, stack, question)
        _, large = covariance(rough, stack, question)
        ratios = torch.linalg.eigvals(torch.linalg.solve(small, large)).real
        overstated = max(overstated, float(ratios.max()) - 1)
        assert float(ratios.min()) > 1 - 1e-5
    assert 0 < overstated <= bound


# ---------------------------------------------------------------- where the posterior is known


def test_conjugate_regression() -> None:
    """Y = X Wᵀ + σ ε, W ~ N(0, 1/λ): the Laplace approximation with F = I ⊗ XᵀX/σ² is the posterior."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator).double()
    y = x @ torch.randn(6, 2, generator=generator).double() + 0.5 * torch.randn(30, 2, generator=generator).double()
    sigma, precision = 0.5, 1.7
    inp, out = Factor(6, 6), Factor(2, 2)
    inp.add(x / sigma)
    out.add(torch.eye(2).double())
    (ui, li, _), (uo, lo, _) = inp.finish(), out.finish()
    kron = Kron({"w": Block(uo, ui, lo[:, None] * li)})
    gram = x.T @ x / sigma**2 + precision * torch.eye(6)
    w = torch.linalg.solve(gram, x.T @ y / sigma**2).T  # [2, 6]
    likelihood = float(torch.distributions.Normal(x @ w.T, sigma).log_prob(y).sum())
    value = evidence(likelihood, kron, {"w": float(w.square().sum())}, {"w": precision})
    marginal = stats.multivariate_normal(np.zeros(30), (sigma**2 * torch.eye(30) + x @ x.T / precision).numpy())
    assert value == pytest.approx(sum(marginal.logpdf(y[:, k].numpy()) for k in range(2)), rel=1e-9)
    new = torch.randn(6, generator=generator).double()
    j = torch.stack([torch.outer(torch.eye(2)[c].double(), new) for c in range(2)])[None]  # [1, C, 2, 6]
    wanted = torch.eye(2).double() * (new @ torch.linalg.solve(gram, new))
    torch.testing.assert_close(kron.covariance({"w": j}, {"w": precision})[0], wanted)


@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
def test_draws_have_the_posteriors_covariance(structure: str) -> None:
    """A draw is mean + R ε with R linear: R Rᵀ must be the inverse of the dense precision."""
    stack = adapter(dataclasses.replace(RUN, target_modules=("q_proj",)), layers=1)
    posterior = fit(PADDED, stack, structure=structure, rank=64, prior_precision=2.0)
    names, state = list(posterior.precision), posterior.curvature
    shapes = [posterior.mean[name].shape for name in names]
    eye = torch.eye(sum(shape.numel() for shape in shapes))
    columns = []
    for e in eye:
        parts = e.split([shape.numel() for shape in shapes])
        noise = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        columns.append(torch.cat([t.flatten() for t in state.root(noise, posterior.precision).values()]))
    root = torch.stack(columns, 1).double()
    if isinstance(state, Kron):
        fisher = torch.block_diag(*[dense_block(state.blocks[n], s) for n, s in zip(names, shapes, strict=True)])
    else:
        fisher, _ = dense_fisher(stack, PADDED, names)
        fisher = fisher.diagonal().diag() if structure == "diag" else fisher
    product = root @ root.T @ (fisher + 2.0 * torch.eye(len(fisher)))
    torch.testing.assert_close(product, torch.eye(len(fisher)).double(), rtol=0, atol=1e-4)


def test_the_prior_precision_maximises_the_evidence_per_layer_too() -> None:
    stack = adapter()
    scalar, layered = fit(PADDED, stack), fit(PADDED, stack, prior="layer")
    assert layered.report["log_evidence"] > scalar.report["log_evidence"]
    norms = {name: float(layered.mean[name].square().sum()) for name in layered.precision}
    for posterior, groups in ((scalar, [list(norms)]), (layered, [[name] for name in norms])):
        best, likelihood = posterior.report["log_evidence"], posterior.report["log_likelihood"]
        for group in groups:
            for factor in (0.9, 1.1):
                other = {n: v * (factor if n in group else 1) for n, v in posterior.precision.items()}
                assert evidence(likelihood, posterior.curvature, norms, other) < best


# ---------------------------------------------------------------- rows and Jacobians


def test_differences_are_those_of_the_jacobian() -> None:
    stack = adapter(layers=1)
    names = list(stack.layers)
    questions = [LONG.train[0].pairs, PADDED.train[1].pairs[:2]]
    f, whole = jacobians(stack, names, make_rows(questions, 24))
    same, less = jacobians(stack, names, make_rows(questions, 24), differences=True)
    assert torch.equal(f, same) and f[1, 2] == -math.inf
    for name, j in whole.items():
        wanted = torch.stack([j[0] - j[0, 2], torch.cat([j[1, :2] - j[1, 1], j[1, 2:]])])
        torch.testing.assert_close(less[name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        assert not j[1, 2].any() and j[1, 0].any()


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_rows_of_some_questions_at_a_time_are_those_questions(size: int) -> None:
    stack = adapter(layers=1)
    questions = [q.pairs for q in (*PADDED.train, *LONG.train)] + [LONG.train[0].pairs[:2]]
    parts = list(split(make_rows(questions, 24), size))
    assert len(parts) == -(-len(questions) // size)
    logits = torch.cat([choice_logits(stack, part)[part.question, part.choice] for part in parts])
    wanted = torch.cat([choice_logits(stack, make_rows([pairs], 24))[0] for pairs in questions])
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-9)
