"""Laplace against dense matrices: the GGN by autograd, conjugate regression, quadrature, and laplace-torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from uqharness import registry
from uqharness.adapter_io import load_posterior, save_adapter
from uqharness.adapters import laplace
from uqharness.adapters.laplace import Laplace, LaplacePosterior, best_precision, bridge, evidence, monte_carlo, probit
from uqharness.base_model import inject
from uqharness.bma import Engine, make_rows
from uqharness.config import Run
from uqharness.curvature import Block, Diag, Full, Kron
from uqharness.data import ChoiceData, Question
from uqharness.errors import InputError, RunError
from uqharness.factors import DENSE, Factor
from uqharness.kfac import choice_logits, fisher_root, sampled_root, split
from uqharness.lora import LoraStack
from uqharness.posterior import Members, Point, keyed_generator
from uqharness.testing import TINY, check_method, tiny_data, tiny_llama

RUN = dataclasses.replace(TINY, target_modules=("q_proj", "v_proj", "lm_head"), lora_r=2)


def adapter(run: Run = RUN, seed: int = 0, layers: int = 2) -> LoraStack:
    """A float64 model with a random adapter whose values are float32's: as if it had been trained."""
    model = inject(tiny_llama(num_hidden_layers=layers), run)
    stack = LoraStack(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in stack.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.double().eval()
    return stack


def ask(*contexts: list[int], answers: list[list[int]] | None = None) -> ChoiceData:
    answers = answers or [[1], [2], [3]]
    questions = [
        Question([(context, answer) for answer in answers], n % len(answers), str(n))
        for n, context in enumerate(contexts)
    ]
    return ChoiceData(questions, [], [], 24, 0, {})


PADDED = ask([10, 11, 12], [20, 21, 22, 23, 24], [30, 31], [40, 41, 42, 43])
LONG = ask([10, 11, 12], [20, 21, 22, 23], answers=[[1, 5], [2], [3, 6, 7]])


def fit(data: ChoiceData, stack: LoraStack, run: Run = RUN, **settings: object) -> LaplacePosterior:
    source = Point(stack.mean(), 0)
    posterior = Laplace(**settings).fit(stack.model, data, run, source)  # type: ignore[arg-type]
    assert isinstance(posterior, LaplacePosterior)
    return posterior


# ---------------------------------------------------------------- the twin: one question, one row, plain autograd


def answers(stack: LoraStack, question: Question) -> Tensor:
    """f_c by whole forwards without padding: logits of single tokens, else sums of log-probabilities: `[C]`."""
    single = all(len(answer) == 1 for _, answer in question.pairs)
    found = []
    for context, answer in question.pairs:
        logits = stack.model(input_ids=torch.tensor([[*context, *answer]])).logits[0]
        scores = logits if single else logits.log_softmax(-1)
        found.append(sum(scores[len(context) - 1 + k, token] for k, token in enumerate(answer)))
    return torch.stack(found)  # type: ignore[arg-type]


def jacobian(stack: LoraStack, question: Question, names: list[str]) -> tuple[Tensor, Tensor]:
    """f `[C]` and its Jacobian `[C, P]` with respect to the named weights."""
    weights = [stack.layers[name].weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    f = answers(stack, question)
    rows = [torch.autograd.grad(value, weights, retain_graph=True) for value in f]
    return f.detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def dense_fisher(stack: LoraStack, data: ChoiceData, names: list[str]) -> tuple[Tensor, float]:
    """Σ_n J_nᵀ (diag p − p pᵀ) J_n and Σ log p(gold)."""
    total, likelihood = torch.zeros(()).double(), 0.0
    for question in data.train:
        f, j = jacobian(stack, question, names)
        p = f.softmax(0)
        total = total + j.T @ (p.diag() - torch.outer(p, p)) @ j
        likelihood += float(f.log_softmax(0)[question.gold])
    return total, likelihood


def dense_evidence(fisher: Tensor, likelihood: float, theta: Tensor, precision: float) -> float:
    eye = torch.eye(len(fisher), dtype=torch.float64)
    ratio = torch.logdet(fisher + precision * eye) - len(fisher) * math.log(precision)
    return float(likelihood - 0.5 * (ratio + precision * theta @ theta))


def block_diagonal(fisher: Tensor, stack: LoraStack, names: list[str]) -> Tensor:
    sizes = [stack.layers[name].weight.numel() for name in names]
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes))
    return fisher * (owner[:, None] == owner[None])


def covariance(posterior: LaplacePosterior, stack: LoraStack, question: Question) -> tuple[Tensor, Tensor]:
    """f and the covariance of the answer logits by the code under test."""
    rows = make_rows([question.pairs], 24)
    f, found = laplace.jacobians(stack, list(posterior.precision), rows)
    return f[0], posterior.curvature.covariance(found, posterior.precision)[0]


def check_against_dense(posterior: LaplacePosterior, stack: LoraStack, data: ChoiceData, fisher: Tensor) -> None:
    """Evidence, its maximum and the covariance on a new question."""
    names = list(posterior.precision)
    _, likelihood = dense_fisher(stack, data, names)
    theta = torch.cat([posterior.mean[name].flatten() for name in names]).double()
    precision = next(iter(posterior.precision.values()))
    wanted = dense_evidence(fisher, likelihood, theta, precision)
    assert posterior.report["log_evidence"] == pytest.approx(wanted, rel=1e-5)
    best = optimize.minimize_scalar(
        lambda x: -dense_evidence(fisher, likelihood, theta, math.exp(x)), bounds=(-12, 12), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert math.log(precision) == pytest.approx(best.x, abs=1e-4)
    for question in (*ask([50, 51, 10]).train, *LONG.train):
        f, j = jacobian(stack, question, names)
        inverse = torch.linalg.inv(fisher + precision * torch.eye(len(fisher)))
        found_f, found = covariance(posterior, stack, question)
        torch.testing.assert_close(found_f, f, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, j @ inverse @ j.T, rtol=1e-4, atol=1e-7)


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
    found = torch.cat([v.flatten() for v in posterior.curvature.values.values()]).double()
    torch.testing.assert_close(found, fisher.diagonal(), rtol=1e-5, atol=1e-9)
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


def dense_block(block: Block, shape: torch.Size) -> Tensor:
    out = block.out.double()
    if block.rows is not None:
        out = torch.zeros(shape[0], out.shape[1]).double().index_copy(0, block.rows, out)
    basis = torch.kron(out, block.inp.double())
    return basis * block.values.double().flatten() @ basis.T


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
        found = dense_block(block, stack.layers[name].weight.shape)
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-6 * float(wanted[name].abs().max()))
    head = next(b for n, b in posterior.curvature.blocks.items() if "lm_head.lora_B" in n)
    assert head.rows is not None and head.rows.tolist() == [1, 2, 3] and head.out.shape == (3, 2)


def test_a_model_prepared_for_gradient_checkpointing_gives_the_same_fisher() -> None:
    stack = adapter()
    wanted = fit(PADDED, stack)
    stack.model.enable_input_require_grads()
    stack.model.gradient_checkpointing_enable()
    found = fit(PADDED, stack)
    assert all(torch.equal(found.state()[name], tensor) for name, tensor in wanted.state().items())
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
    """Batch k's labels come from the generator keyed (fisher, seed, k); the sum is over their scores alone."""
    stack, run = adapter(layers=1), dataclasses.replace(RUN, batch_size=4, seed=5)
    posterior = fit(PADDED, stack, run, fisher="mc", structure="diag", prior_precision=1.0)
    parts = [jacobian(stack, question, list(posterior.precision)) for question in PADDED.train]
    p = torch.stack([f.softmax(0) for f, _ in parts])
    labels = torch.multinomial(p, 1, generator=keyed_generator("fisher", 5, 0))[:, 0].tolist()
    wanted = sum((j[y] - f.softmax(0) @ j).square() for (f, j), y in zip(parts, labels, strict=True))
    assert isinstance(posterior.curvature, Diag)
    found = torch.cat([v.flatten() for v in posterior.curvature.values.values()]).double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------- low rank


@pytest.mark.parametrize("width", [40, DENSE + 26])
@pytest.mark.parametrize("rank", [3, 12])
def test_low_rank_stays_below_the_factor_by_no_more_than_it_says(width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, width, generator=generator).double() * torch.arange(1, width + 1) ** -1.0
    factor = Factor(width, rank)
    for part in x.split(50):
        factor.add(part)
    vectors, values, dropped = factor.finish()
    assert len(values) == rank and dropped > 0
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(rank).double(), rtol=0, atol=1e-6)
    left = torch.linalg.eigvalsh(x.T @ x - vectors * values @ vectors.T)
    largest = float((x.T @ x).trace())
    assert float(left.min()) > -1e-6 * largest
    assert float(left.max()) <= dropped * (1 + 1e-6)
    assert dropped == pytest.approx(float(left.sum()), rel=1e-5)
    best = torch.linalg.eigvalsh(x.T @ x)[:-rank].sum()
    assert dropped < (1.5 if width > DENSE else 1.0001) * float(best)


def test_a_sketch_of_a_factor_of_low_rank_is_that_factor() -> None:
    x = torch.randn(30, 5).double() @ torch.randn(5, DENSE + 7).double()
    factor = Factor(DENSE + 7, 8)
    factor.add(x)
    vectors, values, dropped = factor.finish()
    scale = float((x.T @ x).abs().max())
    torch.testing.assert_close(vectors * values @ vectors.T / scale, x.T @ x / scale, rtol=0, atol=1e-6)
    assert dropped < 1e-4 * float(values.sum())


def test_low_rank_never_understates_a_variance_and_overstates_it_within_the_recorded_bound() -> None:
    stack = adapter()
    exact = fit(PADDED, stack, prior_precision=3.0)
    rough = fit(PADDED, stack, prior_precision=3.0, rank=2)
    bound = rough.report["variance_error_bound"]
    assert exact.report["variance_error_bound"] < 1e-4 < bound
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
    found = evidence(likelihood, kron, {"w": float(w.square().sum())}, {"w": precision})
    marginal = stats.multivariate_normal(np.zeros(30), (sigma**2 * torch.eye(30) + x @ x.T / precision).numpy())
    assert found == pytest.approx(sum(marginal.logpdf(y[:, k].numpy()) for k in range(2)), rel=1e-9)
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


# ---------------------------------------------------------------- Gaussian logits


def two_way(f: Tensor, cov: Tensor) -> float:
    """E[σ(f_0 − f_1)] by Gauss–Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    variance = float(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    at = float(f[0] - f[1]) + math.sqrt(variance) * nodes
    return float((weights / (1 + np.exp(-at))).sum() / weights.sum())


def test_monte_carlo_equals_quadrature_and_independence_differs() -> None:
    f = torch.tensor([1.3, -0.4]).double()
    cov = torch.tensor([[2.0, 1.2], [1.2, 1.5]]).double()
    standard = torch.randn(200_000, 2, generator=keyed_generator("xi")).double()
    joint = float(monte_carlo(f, cov, standard).exp()[0])
    alone = float(monte_carlo(f, cov.diagonal().diag(), standard).exp()[0])
    assert joint == pytest.approx(two_way(f, cov), abs=2e-3)
    assert alone == pytest.approx(two_way(f, cov.diagonal().diag()), abs=2e-3)
    assert joint - alone > 0.02


def test_all_predictives_agree_where_the_covariance_is_small() -> None:
    f = torch.tensor([1.3, -0.4]).double()
    cov = 1e-6 * torch.eye(2).double()
    standard = torch.randn(1000, 2, generator=keyed_generator("xi")).double()
    for found in (monte_carlo(f, cov, standard), probit(f, cov), bridge(f, cov)):
        torch.testing.assert_close(found, f.log_softmax(0), rtol=0, atol=1e-4)
    flat = torch.full((4,), 0.7).double()
    for found in (probit(flat, cov.new_ones(4).diag()), bridge(flat, cov.new_ones(4).diag())):
        torch.testing.assert_close(found.exp(), torch.full((4,), 0.25).double())


def test_bridge_is_the_papers_equation_20() -> None:
    mu, variance = [0.9, -0.3, 2.0, 0.1], [0.5, 1.0, 2.0, 0.7]
    alpha = [
        (1 - 2 / 4 + math.exp(m) / 16 * sum(math.exp(-other) for other in mu)) / v
        for m, v in zip(mu, variance, strict=True)
    ]
    f, diagonal = torch.tensor([mu, variance], dtype=torch.float64)
    found = bridge(f, diagonal.diag()).exp()
    assert found.tolist() == pytest.approx([a / sum(alpha) for a in alpha], rel=1e-12)


# ---------------------------------------------------------------- through the engine


def test_differences_are_those_of_the_jacobian() -> None:
    stack = adapter(layers=1)
    names = list(stack.layers)
    questions = [LONG.train[0].pairs, PADDED.train[1].pairs[:2]]
    f, whole = laplace.jacobians(stack, names, make_rows(questions, 24))
    same, less = laplace.jacobians(stack, names, make_rows(questions, 24), differences=True)
    assert torch.equal(f, same) and f[1, 2] == -math.inf
    for name, j in whole.items():
        wanted = torch.stack([j[0] - j[0, 2], torch.cat([j[1, :2] - j[1, 1], j[1, 2:]])])
        torch.testing.assert_close(less[name], wanted)
        assert not j[1, 2].any() and j[1, 0].any()


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_rows_of_some_questions_at_a_time_are_those_questions(size: int) -> None:
    stack = adapter(layers=1)
    questions = [q.pairs for q in (*PADDED.train, *LONG.train)] + [LONG.train[0].pairs[:2]]
    parts = list(split(make_rows(questions, 24), size))
    assert len(parts) == -(-len(questions) // size)
    found = torch.cat([choice_logits(stack, part)[part.question, part.choice] for part in parts])
    wanted = torch.cat([choice_logits(stack, make_rows([pairs], 24))[0] for pairs in questions])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("predictive", ["joint", "indep", "probit", "bridge"])
def test_answers_do_not_depend_on_the_batch_and_are_distributions(predictive: str) -> None:
    stack = adapter()
    posterior = fit(PADDED, stack, predictive=predictive, mc_samples=2000)
    questions = [q.pairs for q in (*PADDED.train, *LONG.train)] + [LONG.train[0].pairs[:2]]
    engine = Engine(stack.model, posterior, samples=10)
    found = engine.score(make_rows(questions, 24))
    assert found.draws.shape == (1, 20) and found.mean is not None
    start = 0
    for pairs in questions:
        part = found.draws[0, start : start + len(pairs)]
        alone = engine.score(make_rows([pairs], 24)).draws[0]
        torch.testing.assert_close(part, alone, rtol=0, atol=1e-6)
        assert float(part.exp().sum()) == pytest.approx(1, abs=1e-9)
        own = found.mean[start : start + len(pairs)].log_softmax(0)
        assert float((part - own).abs().max()) > 1e-4  # not the mean's answer
        start += len(pairs)


def test_joint_equals_sampling_the_linear_model() -> None:
    """p by 2,000 draws of the weights through f(θ*) + J (θ − θ*), J by plain autograd."""
    stack = adapter(layers=1)
    posterior = fit(PADDED, stack, mc_samples=50_000, prior_precision=5.0)
    question, names = PADDED.train[1], list(posterior.precision)
    f, j = jacobian(stack, question, names)
    total = torch.zeros(3).double()
    for start in range(0, 2000, 500):
        draws = posterior.draws(start, start + 500, 1)
        theta = torch.cat([(draws[n] - posterior.mean[n]).flatten(1) for n in names], 1).double()
        total += (f + theta @ j.T).softmax(-1).sum(0)
    found = Engine(stack.model, posterior).score(make_rows([question.pairs], 24)).draws[0]
    torch.testing.assert_close(found.exp(), total / 2000, rtol=0, atol=0.02)
    assert float((found.exp() - f.softmax(0)).abs().max()) > 0.03


def test_weights_form_answers_by_draws() -> None:
    stack = adapter()
    posterior = fit(PADDED, stack)
    form = posterior.open_form()
    assert (posterior.combine, form.combine) == ("given", "probs")
    rows = make_rows([q.pairs for q in PADDED.train], 24)
    scores = Engine(stack.model, form, samples=3, seed=2).score(rows)
    again = Engine(stack.model, fit(PADDED, stack, predictive="weights"), samples=3, seed=2).score(rows)
    assert scores.draws.shape == (3, 12) and torch.equal(scores.draws, again.draws)
    assert float(scores.draws.std(0).min()) > 1e-4


@pytest.mark.parametrize(
    "settings", [{}, {"structure": "diag"}, {"structure": "full", "layers": "last"}], ids=["kron", "diag", "full"]
)
def test_saved_and_loaded_it_gives_the_same_answers(settings: dict[str, str], tmp_path: Path) -> None:
    stack = adapter()
    posterior = fit(PADDED, stack, mc_samples=500, **settings)
    record = {"method": {"name": "laplace", "settings": {}}, "base": {"name": "tiny"}, "data": {}}
    rows = make_rows([q.pairs for q in PADDED.train], 24)
    wanted = Engine(stack.model, posterior).score(rows).draws
    save_adapter(tmp_path / "lap", stack.model, posterior, record)
    loaded, _ = load_posterior(tmp_path / "lap")
    assert isinstance(loaded, LaplacePosterior) and loaded.report == posterior.report
    assert torch.equal(Engine(stack.model, loaded).score(rows).draws, wanted)
    left, right = posterior.draws(0, 3, 1), loaded.draws(0, 3, 1)
    assert set(left) == set(right) and all(torch.equal(left[n], right[n]) for n in left)


# ---------------------------------------------------------------- the method


@pytest.mark.parametrize("settings", [{}, {"predictive": "weights", "layers": "last"}], ids=["default", "weights"])
def test_contract(settings: dict[str, str]) -> None:
    posterior = check_method(Laplace, mc_samples=200, **settings)
    assert isinstance(posterior, LaplacePosterior) and posterior.report["log_evidence"] < 0


def test_post_hoc_trains_nothing_and_keeps_the_mean() -> None:
    source = Point(adapter().mean(), 0)
    posterior = check_method(Laplace, source=source, mc_samples=200)
    assert all(torch.equal(posterior.mean[name], tensor) for name, tensor in source.mean.items())


def test_it_is_registered_under_both_names() -> None:
    assert registry.get_method("laplace").name == registry.get_method("lap").name == "laplace"


def test_an_adapter_of_another_base_is_refused() -> None:
    mean = adapter().mean()
    wider = inject(tiny_llama(hidden_size=64), RUN)
    with pytest.raises(InputError, match=r"does not fit the base.*\(2, 32\) in the adapter and \(2, 64\)"):
        Laplace().fit(wider, tiny_data(), RUN, Point(mean, 0))
    fewer = inject(tiny_llama(num_hidden_layers=1), RUN)
    with pytest.raises(InputError, match="none in the model"):
        Laplace().fit(fewer, tiny_data(), RUN, Point(mean, 0))
    with pytest.raises(InputError, match="one mean, found 2"):
        Laplace().fit(inject(tiny_llama(), RUN), tiny_data(), RUN, Members([mean, mean], 0))


def test_nan_in_the_adapter_is_a_failed_run() -> None:
    mean = adapter().mean()
    name = next(name for name in mean if "lora_B" in name)
    mean[name][0, 0] = math.nan
    with pytest.raises(RunError, match="NaN"):
        Laplace().fit(inject(tiny_llama(), RUN), tiny_data(), RUN, Point(mean, 0))


@pytest.mark.parametrize("structure", ["kron", "diag", "full"])
def test_a_fisher_that_is_not_finite_is_a_failed_run(structure: str) -> None:
    stack = adapter(layers=1)
    layer = next(layer for name, layer in stack.layers.items() if "q_proj.lora_B" in name)

    def overflow(module: nn.Module, args: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: gradient * math.inf)

    layer.register_forward_hook(overflow)
    with pytest.raises(RunError, match="not finite"):
        fit(PADDED, stack, structure=structure)


def test_a_marginal_likelihood_without_maximum_is_a_failed_run() -> None:
    with pytest.raises(RunError, match="no maximum.*Fisher is 0"):
        best_precision(torch.zeros(3).double(), 1.0, "")
    with pytest.raises(RunError, match="of q has no maximum.*‖θ‖² is 0"):
        best_precision(torch.ones(3).double(), 0.0, " of q")
    untrained = Point(LoraStack(inject(tiny_llama(), RUN)).mean(), 0)  # B = 0
    with pytest.raises(RunError, match="lora_[AB].weight has no maximum"):
        Laplace(prior="layer").fit(inject(tiny_llama(), RUN), tiny_data(), RUN, untrained)


def test_settings_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(InputError, match="prior=layer needs"):
        Laplace(structure="full", prior="layer")
    big = dataclasses.replace(RUN, lora_r=16, target_modules=("all-linear",))
    with pytest.raises(InputError, match="structure=full needs a matrix"):
        fit(PADDED, adapter(big), big, structure="full")
    with pytest.raises(InputError, match="rank is 0"):
        Laplace(rank=0)


# ---------------------------------------------------------------- laplace-torch


class ChoiceModel(nn.Module):
    """What laplace-torch sees: ids -> choice logits, the head at the last position only."""

    def __init__(self, stack: LoraStack) -> None:
        super().__init__()
        self.inner = stack.model
        for name, parameter in self.inner.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        self.inner.get_base_model().get_output_embeddings().register_forward_pre_hook(lambda m, a: (a[0][:, -1:],))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids, use_cache=False).logits[:, -1, [1, 2, 3]]


def test_kron_equals_laplace_torchs() -> None:
    """The same factors, evidence and functional variance as KronLaplace with the ASDL backend."""
    oracle = pytest.importorskip("laplace", reason="scripts/install-laplace-oracle.sh installs it")
    from laplace.curvature import AsdlGGN
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 64, (6, 5), generator=generator)
    data = ask(*ids.tolist())
    stack = adapter()
    posterior = fit(data, stack, prior_precision=4.0, rank=64)
    test = torch.randint(8, 64, (3, 5), generator=generator)
    mine = [covariance(posterior, stack, q) for q in ask(*test.tolist()).train]

    gold = torch.tensor([q.gold for q in data.train])
    theirs = oracle.Laplace(
        ChoiceModel(stack), "classification", subset_of_weights="all", hessian_structure="kron", backend=AsdlGGN,
        prior_precision=4.0,
    )  # fmt: skip
    theirs.fit(DataLoader(TensorDataset(ids, gold), batch_size=2))
    assert isinstance(posterior.curvature, Kron)
    assert float(theirs.log_marginal_likelihood()) == pytest.approx(posterior.report["log_evidence"], rel=1e-5)
    blocks = list(posterior.curvature.blocks.items())
    assert len(blocks) == len(theirs.H_facs.kfacs)
    for (name, block), (left, right) in zip(blocks, theirs.H_facs.kfacs, strict=True):
        found = dense_block(block, stack.layers[name].weight.shape)
        wanted = torch.kron(left, right)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    f_mean, f_cov = theirs._glm_predictive_distribution(test)
    for q, (f, cov) in enumerate(mine):
        torch.testing.assert_close(f, f_mean[q], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(cov, f_cov[q], rtol=1e-4, atol=1e-7)
