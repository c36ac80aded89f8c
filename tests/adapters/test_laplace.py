"""Laplace's predictives, its contract and its bad input; against quadrature, linear sampling and laplace-torch.

The curvature under it is tested in `tests/curvature/test_laplace_curvature.py`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from torch import Tensor, nn

from tests.dense_ggn import LONG, PADDED, RUN, adapter, ask, covariance, dense_block, fit, jacobian, predictive
from tests.tiny import make_base, make_lora
from uqharness import registry
from uqharness.adapter_io.folder import load_predictive, save_adapter
from uqharness.adapters.laplace import Laplace, best_precision
from uqharness.curvature.laplace import Kron
from uqharness.curvature.linearised import LaplacePosterior, Linearised, bridge, monte_carlo, probit
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError, RunError
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import Members, Point, keyed_generator
from uqharness.testing import check_method, tiny_data, tiny_llama
from uqharness.training.base_model import inject

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


def test_quasi_random_points_are_closer_than_ten_times_as_many_pseudo_random_ones() -> None:
    """Two choices, where Gauss–Hermite quadrature knows the answer."""
    f, cov = torch.tensor([1.3, -0.4]).double(), torch.tensor([[2.0, 1.2], [1.2, 1.5]]).double()
    errors = []
    for seed in range(5):
        points = Linearised(LaplacePosterior({}, Kron({}), {}, train_seed=seed), mc_samples=1024).standard(2)
        pseudo = torch.randn(10_240, 2, generator=keyed_generator("pseudo", seed)).double()
        estimates = [float(monte_carlo(f, cov, xi).exp()[0]) for xi in (points, pseudo)]
        errors.append([abs(p - two_way(f, cov)) for p in estimates])
    quasi, plain = (max(column) for column in zip(*errors, strict=True))
    assert quasi < 1e-3 and quasi < plain


def test_all_predictives_agree_where_the_covariance_is_small() -> None:
    f = torch.tensor([1.3, -0.4]).double()
    cov = 1e-6 * torch.eye(2).double()
    standard = torch.randn(1000, 2, generator=keyed_generator("xi")).double()
    for logp in (monte_carlo(f, cov, standard), probit(f, cov), bridge(f, cov)):
        torch.testing.assert_close(logp, f.log_softmax(0), rtol=0, atol=1e-4)
    flat = torch.full((4,), 0.7).double()
    for logp in (probit(flat, cov.new_ones(4).diag()), bridge(flat, cov.new_ones(4).diag())):
        torch.testing.assert_close(logp.exp(), torch.full((4,), 0.25).double())


def test_bridge_is_the_papers_equation_20() -> None:
    mu, variance = [0.9, -0.3, 2.0, 0.1], [0.5, 1.0, 2.0, 0.7]
    alpha = [
        (1 - 2 / 4 + math.exp(m) / 16 * sum(math.exp(-other) for other in mu)) / v
        for m, v in zip(mu, variance, strict=True)
    ]
    f, diagonal = torch.tensor([mu, variance], dtype=torch.float64)
    answers = bridge(f, diagonal.diag()).exp()
    assert answers.tolist() == pytest.approx([a / sum(alpha) for a in alpha], rel=1e-12)


# ---------------------------------------------------------------- through the engine


@pytest.mark.parametrize("integral", ["joint", "indep", "probit", "bridge"])
def test_answers_do_not_depend_on_the_batch_and_are_distributions(integral: str) -> None:
    stack = adapter()
    linearised = predictive(PADDED, stack, predictive=integral, mc_samples=2000)
    questions = [q.pairs for q in (*PADDED.train, *LONG.train)] + [LONG.train[0].pairs[:2]]
    engine = linearised.engine(stack.model, samples=10)
    scores = engine.score(make_rows(questions, 24))
    assert scores.draws.shape == (1, 20) and scores.mean is not None
    start = 0
    for pairs in questions:
        part = scores.draws[0, start : start + len(pairs)]
        alone = engine.score(make_rows([pairs], 24)).draws[0]
        torch.testing.assert_close(part, alone, rtol=0, atol=1e-6)
        assert float(part.exp().sum()) == pytest.approx(1, abs=1e-9)
        own = scores.mean[start : start + len(pairs)].log_softmax(0)
        assert float((part - own).abs().max()) > 1e-4  # not the mean's answer
        start += len(pairs)


def test_joint_equals_sampling_the_linear_model() -> None:
    """p by 2,000 draws of the weights through f(θ*) + J (θ − θ*), J by plain autograd."""
    stack = adapter(layers=1)
    linearised = predictive(PADDED, stack, mc_samples=50_000, prior_precision=5.0)
    posterior = linearised.posterior
    assert isinstance(posterior, LaplacePosterior)
    question, names = PADDED.train[1], list(posterior.precision)
    f, j = jacobian(stack, question, names)
    total = torch.zeros(3).double()
    for start in range(0, 2000, 500):
        draws = posterior.draws(start, start + 500, 1)
        theta = torch.cat([(draws[n] - posterior.mean[n]).flatten(1) for n in names], 1).double()
        total += (f + theta @ j.T).softmax(-1).sum(0)
    answer = linearised.engine(stack.model).score(make_rows([question.pairs], 24)).draws[0]
    torch.testing.assert_close(answer.exp(), total / 2000, rtol=0, atol=0.02)
    assert float((answer.exp() - f.softmax(0)).abs().max()) > 0.03


def test_weights_form_answers_by_draws() -> None:
    stack = adapter()
    linearised = predictive(PADDED, stack)
    form = linearised.open_form()
    assert (linearised.rule, form.rule) == ("given", "probs") and linearised.whole_questions
    rows = make_rows([q.pairs for q in PADDED.train], 24)
    scores = form.engine(stack.model, samples=3, seed=2).score(rows)
    again = predictive(PADDED, stack, predictive="weights").engine(stack.model, samples=3, seed=2).score(rows)
    assert scores.draws.shape == (3, 12) and torch.equal(scores.draws, again.draws)
    assert float(scores.draws.std(0).min()) > 1e-4


@pytest.mark.parametrize(
    "settings", [{}, {"structure": "diag"}, {"structure": "full", "layers": "last"}], ids=["kron", "diag", "full"]
)
def test_saved_and_loaded_it_gives_the_same_answers(settings: dict[str, str], tmp_path: Path) -> None:
    stack = adapter()
    linearised = predictive(PADDED, stack, mc_samples=500, **settings)
    record = {"method": {"name": "laplace", "settings": {}}, "base": {"name": "tiny"}, "data": {}}
    rows = make_rows([q.pairs for q in PADDED.train], 24)
    wanted = linearised.engine(stack.model).score(rows).draws
    save_adapter(tmp_path / "lap", stack.model, linearised, record)
    loaded, _ = load_predictive(tmp_path / "lap")
    assert isinstance(loaded.posterior, LaplacePosterior) and loaded.record() == linearised.record()
    assert loaded.posterior.settings() == linearised.posterior.settings()
    assert torch.equal(loaded.engine(stack.model).score(rows).draws, wanted)
    left, right = linearised.posterior.draws(0, 3, 1), loaded.posterior.draws(0, 3, 1)
    assert set(left) == set(right) and all(torch.equal(left[n], right[n]) for n in left)


# ---------------------------------------------------------------- in lm-eval


def test_lm_eval_gets_combined_answers_to_choices_and_draws_for_the_rest(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = make_lora(base)
    linearised = Laplace(mc_samples=500).fit(model, PADDED, RUN, DrawAverage(Point(LoraStack(model).mean(), 0)))
    record = {"method": {"name": "laplace", "settings": {}}, "base": {"name": str(base)}}
    save_adapter(tmp_path / "lap", model, linearised, record)
    lm = BayesLoRA(str(tmp_path / "lap"), samples=4, device="cpu", batch_size=3)
    variants = [
        Instance("loglikelihood", {}, (text, answer), k, metadata=("task", doc, 1))
        for doc, text in enumerate(("w1 w2 Answer:", "w3 w4 w5 Answer:"))
        for k, answer in enumerate((" A", " B", " w7 w8"))
    ]
    values = torch.tensor([float(value) for value, _ in lm.loglikelihood(variants)]).view(2, 3)
    torch.testing.assert_close(values.exp().sum(1), torch.ones(2))
    alone = lm.loglikelihood(variants[:1])[0][0]
    form = linearised.open_form().engine(lm.model, 4)
    draws = form.score(make_rows([[lm._encode_pair(*variants[0].args)]], 64)).draws
    assert float(alone) == pytest.approx(float(draws.logsumexp(0)) - math.log(4), abs=1e-5)
    assert alone.combine == "probs" and len(alone.draws) == 4


# ---------------------------------------------------------------- the method


@pytest.mark.parametrize("settings", [{}, {"predictive": "weights", "layers": "last"}], ids=["default", "weights"])
def test_contract(settings: dict[str, str]) -> None:
    posterior = check_method(Laplace, mc_samples=200, **settings).posterior
    assert isinstance(posterior, LaplacePosterior) and posterior.report["log_evidence"] < 0


def test_post_hoc_trains_nothing_and_keeps_the_mean() -> None:
    source = Point(adapter().mean(), 0)
    posterior = check_method(Laplace, source=source, mc_samples=200).posterior
    assert all(torch.equal(posterior.mean[name], tensor) for name, tensor in source.mean.items())


def test_it_is_registered_under_both_names() -> None:
    assert registry.get_method("laplace").name == registry.get_method("lap").name == "laplace"


def test_an_adapter_of_another_base_is_refused() -> None:
    mean = adapter().mean()
    wider = inject(tiny_llama(hidden_size=64), RUN)
    with pytest.raises(InputError, match=r"does not fit the base.*\(2, 32\) in the adapter and \(2, 64\)"):
        Laplace().fit(wider, tiny_data(), RUN, DrawAverage(Point(mean, 0)))
    fewer = inject(tiny_llama(num_hidden_layers=1), RUN)
    with pytest.raises(InputError, match="none in the model"):
        Laplace().fit(fewer, tiny_data(), RUN, DrawAverage(Point(mean, 0)))
    with pytest.raises(InputError, match="one mean, found 2"):
        Laplace().fit(inject(tiny_llama(), RUN), tiny_data(), RUN, DrawAverage(Members([mean, mean], 0)))


def test_nan_in_the_adapter_is_a_failed_run() -> None:
    mean = adapter().mean()
    name = next(name for name in mean if "lora_B" in name)
    mean[name][0, 0] = math.nan
    with pytest.raises(RunError, match="NaN"):
        Laplace().fit(inject(tiny_llama(), RUN), tiny_data(), RUN, DrawAverage(Point(mean, 0)))


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
    untrained = DrawAverage(Point(LoraStack(inject(tiny_llama(), RUN)).mean(), 0))  # B = 0
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
    covariances = [covariance(posterior, stack, q) for q in ask(*test.tolist()).train]

    gold = torch.tensor([q.gold for q in data.train])
    theirs = oracle.Laplace(
        ChoiceModel(stack),
        "classification",
        subset_of_weights="all",
        hessian_structure="kron",
        backend=AsdlGGN,
        prior_precision=4.0,
    )
    theirs.fit(DataLoader(TensorDataset(ids, gold), batch_size=2))
    assert isinstance(posterior.curvature, Kron)
    assert float(theirs.log_marginal_likelihood()) == pytest.approx(posterior.report["log_evidence"], rel=1e-5)
    blocks = list(posterior.curvature.blocks.items())
    assert len(blocks) == len(theirs.H_facs.kfacs)
    for (name, block), (left, right) in zip(blocks, theirs.H_facs.kfacs, strict=True):
        dense = dense_block(block, stack.layers[name].weight.shape)
        wanted = torch.kron(left, right)
        torch.testing.assert_close(dense, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    f_mean, f_cov = theirs._glm_predictive_distribution(test)
    for q, (f, cov) in enumerate(covariances):
        torch.testing.assert_close(f, f_mean[q], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(cov, f_cov[q], rtol=1e-4, atol=1e-7)
