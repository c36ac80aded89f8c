"""Every method on a tiny encoder that classifies: the contract, and that it learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from uqharness.engine.predictive import as_predictive
from uqharness.engine.rows import make_rows
from uqharness.registry import get_method
from uqharness.testing import TINY, check_method, fit_tiny

SETTINGS: dict[str, dict[str, Any]] = {
    "mle": {},
    "map": {},
    "mcd": {},
    "ens": {"members": 2},
    "bbb": {},
    "laplace": {"mc_samples": 200},
    "blob": {},
    "melora": {},
    "swag": {"every": 1, "rank": 3, "start": 0.3},
    "tempscale": {"min_items": 4},
    "scalabl": {},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_contract(name: str) -> None:
    run = dataclasses.replace(TINY, schedule="constant") if name == "swag" else TINY
    posterior = as_predictive(check_method(get_method(name), run, encoder=True, **SETTINGS[name])).posterior
    assert any(tensor.endswith("classifier.out_proj.weight") for tensor in posterior.mean)


@pytest.mark.parametrize("name", "mle blob melora laplace mcd ens bbb swag".split())
def test_every_method_beats_the_majority_class(name: str) -> None:
    run = dataclasses.replace(TINY, steps=20, lr=3e-2, schedule="constant")
    made, model, data = fit_tiny(get_method(name)(**SETTINGS[name]), run, encoder=True)
    rows = make_rows([q.pairs for q in data.train], data.max_length)
    answers = as_predictive(made).engine(model.eval(), 5).score(rows).average(rows).argmax(-1).tolist()
    gold = [q.gold for q in data.train]
    most = max(map(gold.count, set(gold)))
    assert sum(a == g for a, g in zip(answers, gold, strict=True)) > most
