"""Laplace's slow twin: the GGN as one dense matrix, question by question and without padding, by plain autograd."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy import optimize
from torch import Tensor

from uqharness.adapters.laplace import Laplace
from uqharness.curvature.fisher import jacobians
from uqharness.curvature.laplace import Block
from uqharness.curvature.linearised import LaplacePosterior
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage, Predictive
from uqharness.engine.rows import make_rows
from uqharness.posterior import Point
from uqharness.settings import Run
from uqharness.testing import TINY, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.data import ChoiceData
from uqharness.training.questions import Question

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
    posterior = predictive(data, stack, run, **settings).posterior
    assert isinstance(posterior, LaplacePosterior)
    return posterior


def predictive(data: ChoiceData, stack: LoraStack, run: Run = RUN, **settings: object) -> Predictive:
    source = DrawAverage(Point(stack.mean(), 0))
    return Laplace(**settings).fit(stack.model, data, run, source)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the twin: one question, one row, plain autograd


def answers(stack: LoraStack, question: Question) -> Tensor:
    """f_c by whole forwards without padding: logits of single tokens, else sums of log-probabilities: `[C]`."""
    single = all(len(answer) == 1 for _, answer in question.pairs)
    values = []
    for context, answer in question.pairs:
        logits = stack.model(input_ids=torch.tensor([[*context, *answer]])).logits[0]
        scores = logits if single else logits.log_softmax(-1)
        values.append(sum(scores[len(context) - 1 + k, token] for k, token in enumerate(answer)))
    return torch.stack(values)  # type: ignore[arg-type]


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
    f, by_layer = jacobians(stack, list(posterior.precision), rows)
    return f[0], posterior.curvature.covariance(by_layer, posterior.precision)[0]


def check_against_dense(posterior: LaplacePosterior, stack: LoraStack, data: ChoiceData, fisher: Tensor) -> None:
    """Evidence, its maximum and the covariance on a new question."""
    names = list(posterior.precision)
    _, likelihood = dense_fisher(stack, data, names)
    theta = torch.cat([posterior.mean[name].flatten() for name in names]).double()
    precision = next(iter(posterior.precision.values()))
    wanted = dense_evidence(fisher, likelihood, theta, precision)
    assert posterior.report["log_evidence"] == pytest.approx(wanted, rel=1e-5)
    best = optimize.minimize_scalar(
        lambda x: -dense_evidence(fisher, likelihood, theta, math.exp(x)),
        bounds=(-12, 12),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert math.log(precision) == pytest.approx(best.x, abs=1e-4)
    for question in (*ask([50, 51, 10]).train, *LONG.train):
        f, j = jacobian(stack, question, names)
        inverse = torch.linalg.inv(fisher + precision * torch.eye(len(fisher)))
        found_f, block = covariance(posterior, stack, question)
        torch.testing.assert_close(found_f, f, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(block, j @ inverse @ j.T, rtol=1e-4, atol=1e-7)


def dense_block(block: Block, shape: torch.Size) -> Tensor:
    out = block.out.double()
    if block.rows is not None:
        out = torch.zeros(shape[0], out.shape[1]).double().index_copy(0, block.rows, out)
    basis = torch.kron(out, block.inp.double())
    return basis * block.values.double().flatten() @ basis.T
