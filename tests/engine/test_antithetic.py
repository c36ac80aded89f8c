"""sampling=antithetic: pairs that are mirrored at the mean, whatever the number of draws, the chunks and the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slow_twin import install, logprob
from tests.tiny import make_lora
from tests.tiny_adapter import TEXTS, instances
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapters.mcd import Dropped
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import antithetic

PAIRS = [([1, 12, 13], [4]), ([1, 12, 13], [5]), ([1, 7, 8, 9], [4, 9, 2])]


@pytest.mark.parametrize("tokens", [1, 40, None])
def test_the_second_of_a_pair_is_the_first_mirrored(base: Path, blob: Path, tokens: int | None) -> None:
    posterior = adapter_io.load_predictive(blob)[0].posterior
    scores = Engine(make_lora(base), posterior, 5, 7, pairs=True, tokens=tokens).score(make_rows([PAIRS], 64))
    twin, wanted = make_lora(base), []
    for i in range(5):  # by hand: pair i // 2 has the noise of draw i // 2
        drawn = {name: t[0] for name, t in posterior.draws(i // 2, i // 2 + 1, 7).items()}
        mirrored = {name: 2 * posterior.mean[name] - t for name, t in drawn.items()}
        install(twin, {**posterior.mean, **(mirrored if i % 2 else drawn)})
        wanted.append([logprob(twin, *pair) for pair in PAIRS])
    torch.testing.assert_close(scores.draws, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-5)


def test_the_first_draws_of_many_are_the_few_bit_for_bit(blob: Path) -> None:
    posterior = adapter_io.load_predictive(blob)[0].posterior
    many = antithetic(posterior, 10, 2)
    for count in (1, 2, 5):
        assert all(torch.equal(t, many[name][:count]) for name, t in antithetic(posterior, count, 2).items())
    independent = posterior.draws(0, 5, 2)
    for name, t in many.items():
        assert torch.equal(t[::2], independent[name])
        torch.testing.assert_close(t.mean(0), posterior.mean[name], rtol=0, atol=1e-6)


def test_lm_eval_gets_the_same_answers_in_any_batch_and_other_ones_than_without(blob: Path) -> None:
    requests = instances("loglikelihood", [(text, answer) for text in TEXTS for answer in (" A", " B", " w3 w4")])
    runs = []
    for size, sampling in ((1, "antithetic"), (7, "antithetic"), (7, "independent")):
        model = BayesLoRA(adapter=str(blob), samples=4, sampling=sampling, batch_size=size, device="cpu")
        runs.append([value for value, _ in model.loglikelihood(requests, disable_tqdm=True)])
    assert runs[0] == pytest.approx(runs[1], abs=2e-5)
    assert runs[0] != pytest.approx(runs[2], abs=2e-5)
    assert model.get_model_info()["uqharness"]["sampling"] == "independent"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling": "sobol"}, "choose independent or antithetic"),
        ({"sampling": "antithetic", "samples": "auto"}, "needs independent"),
        ({"draws": "sobol"}, "choose independent or antithetic"),
        ({"draws": "independent", "sampling": "antithetic"}, "draws is an alias of sampling"),
    ],
)
def test_what_cannot_be_mirrored_is_refused(blob: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BayesLoRA(**{"adapter": str(blob), "samples": 4, "device": "cpu", **arguments})


def test_draws_is_an_alias_of_sampling(blob: Path) -> None:
    model = BayesLoRA(adapter=str(blob), samples=4, draws="antithetic", device="cpu")
    assert model.sampling == "antithetic"
    twin = BayesLoRA(adapter=str(blob), samples=4, sampling="antithetic", device="cpu")
    assert model.fingerprint == twin.fingerprint  # of a cache of answers, which either may use


def test_masks_have_no_mirror_image(base: Path) -> None:
    model = make_lora(base)
    with pytest.raises(InputError, match="not symmetric"):
        Engine(model, Dropped(LoraStack(model).mean(), 0, 0.1), 4, pairs=True)
