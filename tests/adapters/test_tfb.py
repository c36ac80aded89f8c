"""TFB: the rotation keeps the function, the update's covariance, the search against a scan, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from uqharness.adapters.tfb import TFB, rotate, spread
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError, RunError
from uqharness.posterior import Gaussian, Members, Point, Tensors, keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import tune_table

torch.set_num_threads(1)
A, B = "q.lora_A.weight", "q.lora_B.weight"


def random(*shape: int, key: str) -> torch.Tensor:
    return torch.randn(*shape, generator=keyed_generator("tfb test", key))


def trained() -> Point:
    start = LoraStack(inject(tiny_llama(), TINY)).mean()
    return Point({name: 0.4 * random(*t.shape, key=name) for name, t in start.items()}, 0)


def test_contract() -> None:
    settings: dict[str, Any] = {"min_items": 4, "samples": 3, "halvings": 1, "tolerance": 0.5}
    assert check_method(TFB, source=trained(), **settings).kind == "gaussian"
    assert check_method(TFB, **settings).finite is None  # trains first


def test_the_rotation_keeps_every_answer() -> None:
    source, data = trained(), tiny_data()
    data.tune = data.train
    rotated, _ = rotate(source.mean)
    name = next(name for name in rotated if "lora_B" in name)
    gram = rotated[name].T @ rotated[name]
    torch.testing.assert_close(gram, gram.diagonal().diag())  # orthogonal columns
    assert not torch.allclose(source.mean[name], rotated[name])
    model = inject(tiny_llama(), TINY).eval()
    tables = [tune_table(Engine(model, Point(mean, 0), 1), data) for mean in (source.mean, rotated)]
    torch.testing.assert_close(*tables, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("m", "rank"), [(5, 3), (2, 3), (5, 1)])
def test_covariance_of_the_update_is_isotropic_in_the_space_of_b(m: int, rank: int) -> None:
    b = random(m, rank, key="b") @ random(rank, 3, key="c")  # rank 1: two directions are missing
    mean: Tensors = {A: random(3, 4, key="a"), B: b}
    rotated, inverse = rotate(mean)
    torch.testing.assert_close(rotated[B] @ rotated[A], b @ mean[A])
    std = spread(rotated, inverse, 0.3)[A]
    # Cov of column j of ΔW is B' diag(Ω_j²) B'ᵀ, exactly; columns are independent.
    u, d, _ = torch.linalg.svd(b, full_matrices=False)
    u = u[:, d > 1e-5]
    for j in range(4):
        covariance = rotated[B] @ std[:, j].square().diag() @ rotated[B].T
        torch.testing.assert_close(covariance, 0.09 * u @ u.T, rtol=1e-4, atol=1e-5)
    drawn = Gaussian(rotated, {A: std}, 0).draws(0, 20_000, 1)[A]
    updates = (rotated[B] @ (drawn - rotated[A])).transpose(1, 2).flatten(1)  # vec by columns
    wanted = torch.kron(torch.eye(4), 0.09 * u @ u.T)
    torch.testing.assert_close(updates.T.cov(), wanted, rtol=0, atol=0.09 * 7 / math.sqrt(20_000))


@pytest.mark.parametrize("edge", [3e-5, 0.0151, 0.4, 7.0])
def test_the_search_ends_just_below_the_edge(edge: float) -> None:
    sigma, tried = TFB(halvings=8).search(lambda value: value <= edge)
    assert sigma <= edge < sigma * 2 ** (2 / 2**8)
    assert all(passed == (value <= edge) for value, passed in tried)


def test_the_search_says_when_there_is_no_edge() -> None:
    with pytest.raises(RunError, match="does not make the nll worse"):
        TFB().search(lambda value: True)
    with pytest.raises(RunError, match="no σ down to"):
        TFB().search(lambda value: False)


@pytest.mark.parametrize("settings", [{}, {"score": "acc"}, {"per": "item", "labels": "gold"}])
def test_sigma_is_the_largest_of_a_scan_that_keeps_the_score(settings: dict[str, Any]) -> None:
    method = TFB(min_items=4, samples=3, sigma=0.05, halvings=4, tolerance=0.25, **settings)
    posterior, model, data = fit_tiny(method, source=trained())
    assert isinstance(posterior, Gaussian)
    record, which = data.record["tfb"], method.score
    gold = torch.tensor([q.gold for q in data.tune])
    mean = tune_table(Engine(model, Point(posterior.mean, 0), 1), data)
    if method.labels == "pseudo":
        gold = mean.argmax(-1)

    def worse(factor: float) -> float:  # at `factor` times the σ that was found, by hand
        std = {name: factor * t for name, t in posterior.std.items()}
        p = torch.zeros(len(gold), 3).double()
        for i in range(3):
            drawn = Gaussian(posterior.mean, std, 0).draws(i, i + 1, 0)
            one = Point({**posterior.mean, **{name: t[0] for name, t in drawn.items()}}, 0)
            p += tune_table(Engine(model, one, 1), data).exp() / 3
        if which == "acc":
            return float((mean.argmax(-1) == gold).double().mean() - (p.argmax(-1) == gold).double().mean())
        return float((mean - p.log()).gather(1, gold[:, None]).mean())

    nll = -float(mean.gather(1, gold[:, None]).mean())
    allowed = 0.25 if which == "acc" else 0.25 * nll * (4 if method.per == "item" else 1)
    assert record["allowed"] == pytest.approx(allowed, rel=1e-5)
    assert worse(1.0) <= allowed + 1e-6 < worse(2 ** (1 / 16)) + 2e-6


def test_bad_input_is_one_line() -> None:
    with pytest.raises(InputError, match="it has 4 items, at least 10"):
        fit_tiny(TFB())
    with pytest.raises(InputError, match="found 2 ensemble members"):
        fit_tiny(TFB(min_items=4), source=Members([trained().mean] * 2, 0))
