"""What predictives declare; noise that depends on the input (as C-LoRA's does) against a plain forward per draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.slow_twin import logprob
from uqharness.adapter_io.folder import read_record, save_adapter
from uqharness.engine.lora import InputTransform, LoraStack
from uqharness.engine.predictive import DrawAverage, Tempered
from uqharness.engine.prefixes import STEP, key64, mix, normal
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.posterior import Gaussian, Members, Point
from uqharness.testing import tiny_adapter

QUESTIONS = [
    [([1, 12, 13], [4]), ([1, 12, 13], [5, 9]), ([1, 12, 13], [6, 9])],
    [([1, 7, 8, 9, 10, 11], [4]), ([1, 7, 8, 9, 10, 11], [5])],
]
PAIRS = [pair for question in QUESTIONS for pair in question]


class Contextual(DrawAverage):
    """z ↦ z + tanh(z) ∘ (1 + ε): what is between A and B varies as the input says, and is not z at the mean."""

    kind = "contextual"
    draws_weights: ClassVar[bool] = False
    mean_is_plain: ClassVar[bool] = False

    def inputs(self, seed: int) -> Mapping[str, InputTransform]:
        return {name: partial(self.mixed, name, seed) for name in self.posterior.mean if ".lora_B." in name}

    def mixed(self, name: str, seed: int, z: Tensor, draw: int | None, prefix: Tensor) -> Tensor:
        if draw is None:
            return z + z.tanh()
        return z + z.tanh() * (1 + normal(prefix, key64("contextual", seed, draw, name), z.shape[-1])).to(z.dtype)


class Free(Point):
    """Any number of draws, none of them of weights."""

    finite = None


@contextmanager
def by_hand(model: PeftModel, predictive: Contextual, tokens: list[int], draw: int | None) -> Iterator[None]:
    """Within: PEFT's own forward of these tokens, with hooks that change what goes into every B."""
    state, hashes = torch.zeros((), dtype=torch.long), []
    for token in tokens:
        state = mix(state + STEP ^ token)
        hashes.append(state)
    prefix, handles = torch.stack(hashes)[None], []
    for name, module in model.named_modules():
        if name.endswith(".lora_B.default"):
            saved = f"{name.removesuffix('.default')}.weight"
            mixed = partial(predictive.mixed, saved, 7)
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, mixed=mixed: (mixed(args[0], draw, prefix[:, -args[0].shape[1] :]),)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("branch", [False, True])
def test_noise_that_depends_on_the_input_is_the_same_in_any_batch(branch: bool) -> None:
    model = tiny_adapter()
    predictive = Contextual(Free(LoraStack(model).mean(), 0))
    wanted = []
    for draw in (None, 0, 1, 2):
        values = []
        for context, answer in PAIRS:
            with by_hand(model, predictive, [*context, *answer], draw):
                values.append(logprob(model, context, answer))
        wanted.append(values)
    mean, *draws = torch.tensor(wanted, dtype=torch.float64)
    rows = make_rows(QUESTIONS, 32, branch=branch)
    for tokens in (1, None):
        scores = predictive.engine(model, samples=3, seed=7, tokens=tokens).score(rows)
        torch.testing.assert_close(scores.draws, torch.stack(draws), rtol=0, atol=3e-5)
        assert scores.mean is not None
        torch.testing.assert_close(scores.mean, mean, rtol=0, atol=3e-5)
    alone = predictive.engine(model, samples=0).score(rows).mean
    assert alone is not None
    torch.testing.assert_close(alone, mean, rtol=0, atol=3e-5)
    assert float((scores.draws.std(0)).min()) > 1e-3


def test_a_temperature_keeps_a_mean_that_depends_on_the_input() -> None:
    model = tiny_adapter()
    predictive, rows = Contextual(Free(LoraStack(model).mean(), 0)), make_rows(QUESTIONS, 32)
    expected = predictive.engine(model, samples=0).score(rows).mean
    for samples in (0, 1):
        mean = Tempered(predictive, 2.0, samples=2).engine(model, samples).score(rows).mean
        assert mean is not None and expected is not None and torch.equal(mean, expected)


def test_noise_on_inputs_refuses_what_it_cannot_do() -> None:
    model = tiny_adapter()
    predictive = Contextual(Free(LoraStack(model).mean(), 0))
    for either in (predictive, Tempered(predictive, 2.0)):
        with pytest.raises(InputError, match="contextual draws transform layer inputs"):
            either.exportable()
    with pytest.raises(InputError, match="remove sampling=antithetic"):
        predictive.engine(model, samples=2, pairs=True)
    for samples, advice in ((2, "use samples=0"), (0, "without generation")):
        with pytest.raises(InputError, match=advice), predictive.engine(model, samples).using(0, 1):
            pass


@pytest.mark.parametrize("plain", [True, False])
def test_the_record_and_the_card_say_whether_peft_answers_as_the_mean(plain: bool, tmp_path: Path) -> None:
    model = tiny_adapter()
    kind = DrawAverage if plain else Contextual
    record = {"method": {"name": "mle", "settings": {}}, "base": {"name": "tiny"}, "data": {}}
    save_adapter(tmp_path / "adapter", model, kind(Point(LoraStack(model).mean(), 0)), record)
    saved = read_record(tmp_path / "adapter")
    assert saved is not None and saved["predictive"].get("mean_is_plain", True) is plain
    assert ("PEFT loads the posterior's mean;" in (tmp_path / "adapter" / "README.md").read_text()) is plain


def test_a_predictive_declares_how_it_answers() -> None:
    mean = LoraStack(tiny_adapter()).mean()
    ensemble = DrawAverage(Members([mean, mean, mean], 0), "logits")
    assert (ensemble.rows(10), ensemble.finite, ensemble.mean_is_member, ensemble.stops_early) == (3, 3, True, False)
    gaussian = DrawAverage(Gaussian(mean, {}, 0))
    assert (gaussian.rows(10), gaussian.whole_questions, gaussian.stops_early) == (10, False, True)
    scaled = Tempered(ensemble, 2.0)
    assert (scaled.rows(10), scaled.rows(0), scaled.rule, scaled.whole_questions) == (1, 0, "given", True)
    assert scaled.open_form() is ensemble and scaled.exportable() is ensemble.posterior
    again = Tempered.restore(DrawAverage.restore(ensemble.posterior, ensemble.record()), scaled.record())
    assert again.record() == scaled.record() and again.inner.rule == "logits"


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_samples_auto_is_for_averaged_probabilities_alone(rule: str) -> None:
    model = tiny_adapter()
    mean = LoraStack(model).mean()
    predictive = DrawAverage(Gaussian(mean, {n: torch.full_like(t, 1e-3) for n, t in mean.items()}, 0), rule)
    taken = predictive.engine(model, 10, auto=0.5).score(make_rows(QUESTIONS, 32)).taken
    assert taken.tolist() == [3 if rule == "probs" else 10] * len(PAIRS)


def test_tempered_answers_are_the_inner_average_to_a_power() -> None:
    model: Any = tiny_adapter()
    mean = LoraStack(model).mean()
    inner = DrawAverage(Gaussian(mean, {n: torch.full_like(t, 0.3) for n, t in mean.items()}, 0))
    rows = make_rows([QUESTIONS[0]], 32)
    p = inner.engine(model, 4).score(rows).average(rows)[0].exp()
    answers = Tempered(inner, 0.5, samples=4).engine(model, 1).score(rows).draws
    torch.testing.assert_close(answers[0].exp(), p**2 / (p**2).sum(), rtol=1e-9, atol=0)
    assert math.isclose(float(answers.exp().sum()), 1.0, rel_tol=1e-9)
