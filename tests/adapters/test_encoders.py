"""Every method on a tiny encoder that classifies: the contract, and that it learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from uqharness.adapters.ens import member_run
from uqharness.engine.predictive import as_predictive
from uqharness.engine.rows import make_rows
from uqharness.posterior import Point
from uqharness.registry import get_method
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_encoder
from uqharness.training.base_model import inject

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


LORA_HEAD = ("query", "value", "classifier.dense", "classifier.out_proj")


@pytest.mark.parametrize("name", SETTINGS)
def test_contract_with_a_lora_in_the_head(name: str) -> None:
    run = dataclasses.replace(TINY, schedule="constant" if name == "swag" else TINY.schedule, target_modules=LORA_HEAD)
    check_method(get_method(name), run, encoder=True, **SETTINGS[name])


@pytest.mark.parametrize("kind", ["roberta", "bert"])
@pytest.mark.parametrize("name", "mle blob laplace mcd melora swag".split())
def test_draws_of_a_head_with_a_lora_are_those_of_merged_weights(name: str, kind: str) -> None:
    """The answers of each draw are those of a plain transformers model with W0 + (α / r) B A in place of W0."""
    own = {"predictive": "weights"} if name == "laplace" else SETTINGS[name]
    targets = LORA_HEAD if kind == "roberta" else ("query", "value", "pooler.dense", "classifier")
    run = dataclasses.replace(TINY, lr=1e-2, target_modules=targets, lora_r=4)
    settings = {} if kind == "roberta" else {"pad_token_id": 0}
    model, data = inject(tiny_encoder(kind=kind, **settings), run), tiny_data(encoder=True)
    predictive = as_predictive(get_method(name)(**own).fit(model, data, run))
    posterior, rows = predictive.posterior, make_rows([q.pairs for q in data.train], data.max_length)
    if name == "mcd":  # the masks act on A's inputs: no merged weights
        posterior = Point(posterior.mean, 0)
        predictive = as_predictive(posterior)
    scores = predictive.engine(model.eval(), 3, seed=5).score(rows).draws.reshape(-1, len(data.train), 3)
    random = posterior.draws(0, len(scores), 5)
    assert name in ("mle", "mcd") or any("classifier" in tensor for tensor in random)
    for draw, answers in enumerate(scores):
        weights = {**posterior.mean, **{tensor: values[draw] for tensor, values in random.items()}}
        plain = tiny_encoder(kind=kind, **settings)
        parameters = dict(plain.named_parameters())
        with torch.no_grad():
            for tensor, value in weights.items():
                if ".base_layer." in tensor:
                    parameters[tensor.removeprefix("base_model.model.").replace(".base_layer", "")].copy_(value)
            for tensor, b in weights.items():
                if ".lora_B." in tensor:
                    module = tensor.removeprefix("base_model.model.").partition(".lora_B")[0]
                    a = weights[tensor.replace("lora_B", "lora_A")]
                    parameters[f"{module}.weight"].add_(run.lora_alpha / run.lora_r * b @ a)
            for question, expected in zip(data.train, answers, strict=True):
                logits = plain(input_ids=torch.tensor([list(question.pairs[0][0])])).logits[0]
                torch.testing.assert_close(logits.double().log_softmax(-1), expected, atol=2e-5, rtol=0)


def test_members_of_an_ensemble_start_from_heads_of_their_own() -> None:
    """A member is what MLE gives with the member's seed: its head does not continue the one before it."""
    ens = get_method("ens")(members=2)
    made, _, _ = fit_tiny(ens, TINY, encoder=True)
    alone, _, _ = fit_tiny(get_method("mle")(), member_run(TINY, 1), encoder=True)
    second = as_predictive(made).posterior.draws(0, 2, 0)
    for name, tensor in as_predictive(alone).posterior.mean.items():
        assert torch.equal(second[name][1], tensor), name


@pytest.mark.parametrize("name", "mle blob melora laplace mcd ens bbb swag".split())
def test_every_method_beats_the_majority_class(name: str) -> None:
    run = dataclasses.replace(TINY, steps=20, lr=3e-2, schedule="constant")
    made, model, data = fit_tiny(get_method(name)(**SETTINGS[name]), run, encoder=True)
    rows = make_rows([q.pairs for q in data.train], data.max_length)
    answers = as_predictive(made).engine(model.eval(), 5).score(rows).average(rows).argmax(-1).tolist()
    gold = [q.gold for q in data.train]
    most = max(map(gold.count, set(gold)))
    assert sum(a == g for a, g in zip(answers, gold, strict=True)) > most
