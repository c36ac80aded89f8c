"""Shipped suites run to their end on real data and a tiny base: five in every gate, all of them in .ci/full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.suite.toy_scale import part_of, run, tiny_base, toy_settings
from uqharness.commands.suite import preflight
from uqharness.suite.plan import make
from uqharness.suite.schema import read, shipped

torch.set_num_threads(1)
GATE = {
    "blob-table1": ("mle", "ens", "laplace", "map"),
    "melora-table2": ("melora",),
    "laplace-figure3-llama": ("map@1", "la@2"),
    "blob-table7-roberta": ("mle", "map", "mcd", "ens", "bbb", "laplace", "blob"),
    "laplace-figure1-roberta": ("map@3", "la@6"),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("name", GATE)
def test_suites_run_to_their_end(name: str, bases: Path, tmp_path: Path, offline_hub: object) -> None:
    """Rows of each kind on the first training task."""
    made = make(read(name), {"base": tiny_base(name, bases), "steps": 10, "limit": 4, "seeds": 1})
    cells = made.chosen({"train": [made.entries[0].train], "method": GATE[name]})
    preflight(made, cells)
    assert not run(made, cells, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", shipped())
def test_every_suite_runs_to_its_end(name: str, bases: Path, tmp_path: Path, offline_hub: object) -> None:
    made = make(read(name), toy_settings(name, bases))
    assert not run(made, part_of(made), tmp_path)
