"""SWAG: moments against numpy over stored snapshots, the draws' covariance against the formula, bad input."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from uqharness.adapters.swag import SWAG, LowRank, Moments
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.posterior import keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import fit_loop

torch.set_num_threads(1)
CONSTANT = dataclasses.replace(TINY, schedule="constant")


def random(*shape: int, key: str) -> torch.Tensor:
    return torch.randn(*shape, generator=keyed_generator("swag test", key))


def test_contract() -> None:
    assert dict(SWAG.suggests) == {"schedule": "constant"}
    assert check_method(SWAG, CONSTANT, every=1, rank=3, start=0.3).kind == "lowrank"  # resumes amid the snapshots


def test_moments_are_those_of_the_stored_trajectory() -> None:
    posterior, model, data = fit_tiny(SWAG(every=2, rank=3, start=0.4), CONSTANT)
    assert isinstance(posterior, LowRank)
    stack, iterates = LoraStack(inject(tiny_llama(), CONSTANT)), []
    fit_loop(stack, tiny_data(), CONSTANT, after_step=lambda step: iterates.append(stack.mean()))
    steps = [6, 8, 10, 12]
    assert data.record["swag"] == {"snapshots": 4, "first_step": 6, "last_step": 12}
    for name in stack.parameters:
        snapshots = np.stack([iterates[step - 1][name].double().numpy() for step in steps])
        np.testing.assert_allclose(posterior.mean[name], snapshots.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(posterior.std[name], snapshots.std(0), rtol=1e-3, atol=1e-7)
        deviations = [snapshots[i] - snapshots[: i + 1].mean(0) for i in (3, 1, 2)]  # a ring of three
        np.testing.assert_allclose(posterior.columns[name], np.stack(deviations), rtol=1e-3, atol=1e-6)
        assert torch.equal(LoraStack(model).parameters[name], posterior.mean[name])


def test_small_variance_around_a_large_mean_keeps_its_digits() -> None:
    snapshots = 100 + 1e-3 * random(50, 40, key="far")
    moments = Moments({"w": snapshots[0]}, 2)
    for n, theta in enumerate(snapshots):
        moments.add(n, {"w": theta})
    std = moments.posterior(50, {"w": snapshots[0]}, 0).std["w"]
    np.testing.assert_allclose(std, snapshots.double().numpy().std(0), rtol=1e-2)
    naive = (snapshots.square().mean(0) - snapshots.mean(0).square()).clamp(min=0).sqrt()
    assert float((naive / std - 1).abs().max()) > 0.5  # as printed in the paper, in fp32


def test_covariance_of_the_draws_is_joint_over_tensors() -> None:
    shapes = {"a": (2, 3), "b": (2,)}
    mean = {n: random(*s, key=f"mean {n}") for n, s in shapes.items()}
    std = {n: random(*s, key=f"std {n}").abs() for n, s in shapes.items()}
    columns = {n: random(4, *s, key=f"columns {n}") for n, s in shapes.items()}
    count = 8_000
    drawn = LowRank(mean, std, columns, 0).draws(0, count, 7)
    flat = torch.cat([drawn["a"].flatten(1), drawn["b"]], 1).double().numpy()  # [S, 8]
    d = np.concatenate([columns["a"].reshape(4, 6), columns["b"]], 1).T.astype(np.float64)  # [8, K]
    sigma = np.concatenate([std["a"].flatten(), std["b"]]).astype(np.float64)
    wanted = 0.5 * np.diag(sigma**2) + d @ d.T / (2 * (4 - 1))
    scale = np.sqrt(np.diag(wanted))
    error = (np.cov(flat.T) - wanted) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * math.sqrt(2 / count)
    assert np.abs((wanted / np.outer(scale, scale))[:6, 6:]).max() > 0.2  # so the joint part is seen
    centre = np.concatenate([mean["a"].flatten(), mean["b"]])
    assert (np.abs(flat.mean(0) - centre) < 5 * scale / math.sqrt(count)).all()


def test_snapshots_are_evenly_spaced_and_end_with_the_run() -> None:
    run = dataclasses.replace(TINY, steps=100)
    assert SWAG(every=10).snapshots(run, 16) == [60, 70, 80, 90, 100]
    assert SWAG().snapshots(run, 40) == [60, 70, 80, 90, 100]  # an epoch is 10 steps of 4
    assert SWAG(every=30, start=0.1).snapshots(run, 40) == [40, 70, 100]


def test_bad_input_is_one_line() -> None:
    with pytest.raises(InputError, match="at least 2 snapshots, found 1: one every 10 steps"):
        fit_tiny(SWAG(every=10), CONSTANT)
    with pytest.raises(InputError, match="select is best:nll"):
        fit_tiny(SWAG(every=1), dataclasses.replace(CONSTANT, eval_every=2, select="best:nll"))
    with pytest.raises(InputError, match="K >= 2"):
        LowRank({"a": torch.zeros(2)}, {"a": torch.ones(2)}, {"a": torch.ones(1, 2)}, 0)


def test_a_falling_learning_rate_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uqharness"), "propagate", True)  # the command line turns it off
    with caplog.at_level("WARNING", logger="uqharness"):
        fit_tiny(SWAG(every=1), dataclasses.replace(TINY, steps=4, schedule="linear"))
    assert "learning rate falls" in caplog.text
