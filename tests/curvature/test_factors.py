"""Low-rank factors against the dense sum: below it, by no more than they say."""

from __future__ import annotations

import pytest
import torch

from uqharness.curvature.factors import DENSE, Factor


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
