"""MC dropout: column masks are draws of weights; token masks against a twin in Python integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from tests.slow_twin import logprob
from tests.tiny import make_base, make_lora
from uqharness.adapters.mcd import Dropped, MCDropout, TokenMasks
from uqharness.engine.lora import LoraStack
from uqharness.engine.prefixes import key64, mix, uniform53
from uqharness.engine.rows import Pair, make_rows
from uqharness.errors import InputError
from uqharness.posterior import keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny

GAMMA, ALL = 0x9E3779B97F4A7C15, (1 << 64) - 1
QUESTIONS: list[list[Pair]] = [
    [([1, 12, 13], [4]), ([1, 12, 13], [5]), ([1, 12, 13], [6])],
    [([1, 7, 8, 9, 10, 11], [4, 9, 2]), ([1, 7, 8, 9, 10, 11], [5, 1])],
    [([20], [4]), ([1, 21, 22], [5, 6])],
]
PAIRS = [pair for question in QUESTIONS for pair in question]


@pytest.fixture(scope="module", params=["lm_head", "o_proj"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PeftModel:
    targets = ["q_proj", "v_proj", request.param]
    return make_lora(make_base(tmp_path_factory.mktemp("mcd")), target_modules=targets)


@pytest.mark.parametrize("mask", ["column", "token"])
def test_contract(mask: str) -> None:
    assert check_method(MCDropout, mask=mask).finite is None


def test_training_drops_with_p_and_the_config_says_so() -> None:
    predictive, model, _ = fit_tiny(MCDropout(p=0.3))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert [module.lora_dropout["default"].p for module in layers] == [0.3] * 5
    assert model.peft_config["default"].lora_dropout == 0.3
    plain, _, _ = fit_tiny(MCDropout(p=0.0))
    mean = predictive.posterior.mean
    assert any(not torch.equal(tensor, plain.posterior.mean[name]) for name, tensor in mean.items())


def test_a_column_draw_drops_whole_columns_and_keeps_the_mean() -> None:
    generator = keyed_generator("mcd test")
    name = "q_proj.lora_A.weight"
    mean = {name: torch.randn(3, 400, generator=generator), "q_proj.lora_B.weight": torch.ones(5, 3)}
    draws = Dropped(mean, 0, 0.1).draws(0, 200, seed=0)
    factor = draws[name] / mean[name]
    assert set(draws) == {name} and torch.equal(factor[:, 0] == 0, factor[:, 2] == 0)
    torch.testing.assert_close(factor[factor > 0], torch.full_like(factor[factor > 0], 1 / 0.9))
    dropped = (factor[:, 0] == 0).double()  # 80,000 Bernoulli(0.1): a standard error of 0.0011
    assert abs(float(dropped.mean()) - 0.1) < 0.005
    # Columns and draws are independent: frequencies spread as a binomial's do.
    assert float(dropped.mean(0).var()) == pytest.approx(0.1 * 0.9 / 200, rel=0.25)


def test_split_mix_gives_its_published_numbers() -> None:
    """The sequence of seed 1234567 as listed for SplitMix64 on Rosetta Code."""
    seeds = torch.tensor([1234567 + k * GAMMA & ALL for k in (1, 2, 3)], dtype=torch.uint64).view(torch.int64)
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(seeds).view(torch.uint64).tolist() == wanted


def test_token_masks_have_the_rate_and_are_independent() -> None:
    prefix = torch.arange(500)
    u = uniform53(prefix, key64("rate"), 400).double() / 2**53
    assert 0 <= float(u.min()) and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.003  # standard error 0.00065
    other = uniform53(prefix, key64("rate", 1), 400).double() / 2**53
    for left, right in ((u, other), (u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        both = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))
        assert abs(float(both[0, 1])) < 0.012  # standard error 0.0022


def mixed(z: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & ALL
    return z ^ (z >> 31)


def masks(tokens: Sequence[int], key: int, width: int, p: float) -> torch.Tensor:
    """`[T, n]`, one Python integer at a time."""
    state, rows = 0, []
    for token in tokens:
        state = mixed(((state + GAMMA) & ALL) ^ token)
        stream = mixed(state ^ (key & ALL))
        bits = [mixed((stream + (j + 1) * GAMMA) & ALL) >> 11 for j in range(width)]
        rows.append([(b >= round(p * 2**53)) / (1 - p) for b in bits])
    return torch.tensor(rows)


@contextmanager
def masked(model: PeftModel, tokens: Sequence[int], draw: int, p: float, seed: int) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if name.endswith(".lora_A.default"):
            saved = name.removesuffix(".default") + ".weight"
            factor = masks(tokens, key64("mask", 0, seed, draw, saved), module.in_features, p)
            handles.append(module.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f,)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def twin(model: PeftModel) -> torch.Tensor:
    values = []
    for draw in range(3):
        answers = []
        for context, continuation in PAIRS:
            with masked(model, [*context, *continuation], draw, p=0.4, seed=7):
                answers.append(logprob(model, context, continuation))
        values.append(answers)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("tokens", [1, 60, None])
def test_token_masks_equal_the_twin_for_any_chunking_and_batching(model, twin, tokens: int | None) -> None:
    predictive = TokenMasks(Dropped(LoraStack(model).mean(), 0, 0.4))
    engine = predictive.engine(model, samples=3, seed=7, tokens=tokens)
    scores = engine.score(make_rows(QUESTIONS, 64))  # rows of other lengths: padded
    torch.testing.assert_close(scores.draws, twin, rtol=0, atol=3e-5)
    mean = torch.tensor([logprob(model, *pair) for pair in PAIRS], dtype=torch.float64)
    assert scores.mean is not None
    torch.testing.assert_close(scores.mean, mean, rtol=0, atol=3e-5)
    assert float((twin - mean).abs().max()) > 0.1  # the masks do something
    alone = [engine.score(make_rows([[pair]], 64)).draws for pair in PAIRS]
    torch.testing.assert_close(torch.cat(alone, 1), scores.draws, rtol=0, atol=3e-5)


def test_token_masks_refuse_what_they_cannot_do(model) -> None:
    engine = TokenMasks(Dropped(LoraStack(model).mean(), 0, 0.1)).engine(model, samples=2)
    with pytest.raises(InputError, match="cannot generate"), engine.using(0, 1):
        pass
    plain = TokenMasks(Dropped(LoraStack(model).mean(), 0, 0.1)).engine(model, samples=0)
    with plain.using(0, 1):
        assert plain.count == 1


def test_token_masks_refuse_layers_that_read_their_weights(tmp_path: Path) -> None:
    dora = make_lora(make_base(tmp_path), use_dora=True, target_modules=["q_proj"])
    engine = TokenMasks(Dropped(LoraStack(dora).mean(), 0, 0.1)).engine(dora, samples=2)
    with pytest.raises(InputError, match="read their weights"):
        engine.score(make_rows(QUESTIONS, 64))


def test_two_dropout_rates_are_refused() -> None:
    with pytest.raises(InputError, match="p=0.1, lora_dropout is 0.2"):
        fit_tiny(MCDropout(), dataclasses.replace(TINY, lora_dropout=0.2))
