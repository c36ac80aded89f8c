"""`record_every`: the std of each layer during training, which changes nothing that is learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from uqharness.method import Method
from uqharness.registry import get_method
from uqharness.testing import TINY, fit_tiny


def method_of(name: str) -> Method:
    return get_method(name)()


@pytest.mark.parametrize("name", ["blob", "melora", "bbb", "scalabl"])
def test_stds_are_recorded_from_the_start_to_the_end(name: str) -> None:
    plain, _, plain_data = fit_tiny(method_of(name))
    recorded, _, data = fit_tiny(method_of(name), dataclasses.replace(TINY, record_every=5))
    for key, tensor in {**plain.mean, **plain.state()}.items():
        assert torch.equal(tensor, {**recorded.mean, **recorded.state()}[key])
    curve = data.record["training"][0]
    assert "std" not in plain_data.record["training"][0]
    assert all([step for step, _ in series] == [0, 5, 10, 12] for series in curve["std"].values())
    sizes = {key: recorded.mean[key].numel() for key in curve["std"]}
    if name in ("blob", "bbb"):  # whose random tensors are A's
        start, end = (
            sum(series[k][1] * sizes[key] for key, series in curve["std"].items()) / sum(sizes.values())
            for k in (0, -1)
        )
        assert [start, end] == pytest.approx(curve["kl"]["std"], rel=1e-5)
        for key, series in curve["std"].items():
            assert series[-1][1] == pytest.approx(float(recorded.state()[f"{key}.std"].mean()), rel=1e-5)
    assert len({series[-1][1] for series in curve["std"].values()}) > 1


def test_a_resumed_training_has_the_same_curve(tmp_path: Path) -> None:
    run = dataclasses.replace(TINY, record_every=3)
    whole = fit_tiny(method_of("blob"), run)[2].record["training"][0]["std"]
    saving = dataclasses.replace(run, out=str(tmp_path / "a"), save_every=6)
    fit_tiny(method_of("blob"), saving)
    for marker in tmp_path.rglob("checkpoint-12/complete.json"):
        marker.unlink()
    again = fit_tiny(method_of("blob"), dataclasses.replace(saving, resume=True))[2].record["training"][0]
    assert again["resumed_from"] == 6 and again["std"] == whole


def test_a_method_without_a_std_records_none() -> None:
    assert "std" not in fit_tiny(method_of("mle"), dataclasses.replace(TINY, record_every=5))[2].record["training"][0]
