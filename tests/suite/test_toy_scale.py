"""Shipped suites run to their end on real data and a tiny base: three in every gate, the causal ones in .ci/full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.suite.test_run import in_child, run_all
from tests.tiny import make_base, make_encoder
from uqharness.commands.suite import preflight
from uqharness.suite.plan import Plan, make
from uqharness.suite.schema import read, shipped
from uqharness.suite.store import Store

torch.set_num_threads(1)
GATE = {
    "blob-table1": ("mle", "ens", "laplace", "map"),
    "melora-table2": ("melora",),
    "laplace-figure3-llama": ("map@1", "la@2"),
}
ENCODERS = {name for name in shipped() if "roberta" in name or name in ("laplace-figure5-diag", "laplace-figure6-diag")}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny") / "base", max_position_embeddings=2048)


def run(made: Plan, out: Path, methods: tuple[str, ...]) -> None:
    """One training task and seed, each kind of row once."""
    store, task = Store(out), made.entries[0].train
    chosen = made.chosen({"train": [task], **({"method": list(methods)} if methods else {})})
    store.write(made)
    part = Plan(made.suite, made.file, made.text, {}, chosen, made.entries)
    assert in_child(lambda: run_all(out, part)) == 0
    states = store.states()
    failed = [f"{cell.name}: {store.error(name)}" for name, cell in chosen.items() if states.get(name) != "done"]
    assert not failed, failed


@pytest.mark.parametrize("name", GATE)
def test_three_suites_run_to_their_end(name: str, tiny: Path, tmp_path: Path, offline_hub: object) -> None:
    made = make(read(name), {"base": str(tiny), "steps": 10, "limit": 4, "seeds": 1})
    run(made, tmp_path, GATE[name])


@pytest.mark.parametrize("name", ["blob-table7-roberta", "laplace-figure1-roberta"])
def test_suites_of_encoders_run_to_their_end(name: str, tmp_path: Path, offline_hub: object) -> None:
    """RTE by each method of a table; the first steps of a figure."""
    base = make_encoder(tmp_path / "base", max_position_embeddings=514)
    made = make(read(name), {"base": str(base), "steps": 10, "limit": 4, "seeds": 1})
    preflight(made, made.chosen({"train": ["rte_uq"]}))
    run(made, tmp_path / "out", ("map@3", "la@6") if "figure" in name else ())


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(shipped()) - ENCODERS - {"toyworld", "real-small"}))
def test_every_causal_suite_runs_to_its_end(name: str, tiny: Path, tmp_path: Path, offline_hub: object) -> None:
    run(make(read(name), {"base": str(tiny), "steps": 20, "limit": 40, "seeds": 1}), tmp_path, ())
