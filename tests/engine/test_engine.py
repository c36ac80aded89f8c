"""The engine against its slow twin: a loop over draws with one full forward each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.slow_twin import install, logprob, per_draw
from tests.tiny import make_base, make_lora
from tests.tiny_adapter import gaussian
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import choice_logprobs, reader_of
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.posterior import Gaussian, Members, Point

QUESTIONS = [
    [([1, 12, 13], [4]), ([1, 12, 13], [5]), ([1, 12, 13], [6])],
    [([1, 7, 8, 9, 10, 11], [4, 9, 2]), ([1, 7, 8, 9, 10, 11], [5, 1])],
    [([1, 20], [4]), ([1, 21, 22], [5, 6])],
]
PAIRS = [pair for question in QUESTIONS for pair in question]
BASES = {
    "plain": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {"target_modules": ["q_proj", "v_proj"]}),
    "head": ({}, {"target_modules": ["lm_head"]}),
    "rslora": ({}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "dora": ({}, {"use_dora": True, "target_modules": ["q_proj", "v_proj"]}),
    "mlp": ({}, {"target_modules": ["up_proj", "down_proj", "o_proj"], "lora_bias": True}),
}


@pytest.fixture(scope="module", params=BASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config, lora = BASES[request.param]
    base: Path = make_base(tmp_path_factory.mktemp(request.param), **config)
    return make_lora(base, **lora)


TOKENS = torch.tensor([len(continuation) for _, continuation in PAIRS])


def assert_equal_per_token(values: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(values / TOKENS, wanted / TOKENS, rtol=0, atol=atol)


@pytest.mark.parametrize("tokens", [1, 40, None])
def test_scores_equal_the_slow_twin_for_any_chunking(model, tokens: int | None) -> None:
    posterior = gaussian(model)
    wanted = per_draw(model, posterior, PAIRS, samples=4, seed=7)
    scores = Engine(model, posterior, samples=4, seed=7, tokens=tokens).score(make_rows(QUESTIONS, 64))
    assert_equal_per_token(scores.draws, wanted)
    mean = torch.tensor([logprob(model, *pair) for pair in PAIRS], dtype=torch.float64)
    assert_equal_per_token(scores.mean, mean)


def test_float64_agrees_to_1e_10(tmp_path: Path) -> None:
    model = make_lora(make_base(tmp_path)).double()
    posterior = gaussian(model)
    engine = Engine(model, posterior, samples=3, seed=1)
    rows = make_rows(QUESTIONS, 64)
    logits_of_draws = torch.cat([logits.double() for logits in engine._chunks(rows)])[1:]
    read = logits_of_draws[:, rows.at, rows.token] - logits_of_draws.logsumexp(-1)[:, rows.at]
    scores = torch.zeros(3, len(PAIRS), dtype=torch.float64).index_add(1, rows.slot, read)
    torch.testing.assert_close(scores, per_draw(model, posterior, PAIRS, 3, 1), rtol=0, atol=1e-10)


def test_first_draws_are_the_draws_bit_for_bit(model) -> None:
    posterior = gaussian(model)
    few, many = posterior.draws(0, 5, seed=2), posterior.draws(0, 10, seed=2)
    assert all(torch.equal(few[name], many[name][:5]) for name in many)
    late = posterior.draws(5, 10, seed=2)
    assert all(torch.equal(late[name], many[name][5:]) for name in many)
    other = Gaussian(posterior.mean, posterior.std, train_seed=4).draws(0, 5, seed=2)
    assert not any(torch.equal(few[name], other[name]) for name in few)


def test_zero_variance_with_three_draws_is_the_mean(model) -> None:
    scores = Engine(model, gaussian(model, std=0.0), samples=3).score(make_rows(QUESTIONS, 64))
    for draw in scores.draws:
        torch.testing.assert_close(draw, scores.mean, rtol=0, atol=1e-6)


def test_a_point_is_one_forward_and_its_mean(model) -> None:
    engine = Engine(model, Point(LoraStack(model).mean(), 0), samples=10)
    scores = engine.score(make_rows(QUESTIONS, 64))
    assert engine.count == 1 and len(scores.draws) == 1
    assert torch.equal(scores.draws[0], scores.mean)


def test_members_are_used_once_each_and_member_0_is_the_mean(model) -> None:
    mean = LoraStack(model).mean()
    members = [{n: t + 0.1 * k for n, t in mean.items()} for k in range(3)]
    posterior = Members(members, 0)
    engine = Engine(model, posterior, samples=10)
    scores = engine.score(make_rows(QUESTIONS, 64))
    assert engine.count == 3 and scores.mean is not None
    assert_equal_per_token(scores.draws, per_draw(model, posterior, PAIRS, 3, 0))
    torch.testing.assert_close(scores.mean, scores.draws[0])


def test_samples_zero_is_the_mean_alone(model) -> None:
    engine = Engine(model, gaussian(model), samples=0)
    scores = engine.score(make_rows(QUESTIONS, 64))
    assert engine.count == 1 and scores.draws.shape == (0, len(PAIRS)) and scores.mean is not None
    wanted = [logprob(model, *pair) for pair in PAIRS]
    assert_equal_per_token(scores.mean, torch.tensor(wanted).double())


def test_greedy_is_the_argmax_of_the_next_token_mixture(model) -> None:
    posterior = gaussian(model, std=1.0)
    context, mixture = [1, 12, 13], 0.0
    for i in range(4):
        install(model, {**posterior.mean, **{n: t[0] for n, t in posterior.draws(i, i + 1, 0).items()}})
        with torch.no_grad():
            mixture = mixture + model(input_ids=torch.tensor([context])).logits[0, -1].softmax(-1)
    install(model, posterior.mean)
    best = int(mixture.argmax())
    scores = Engine(model, posterior, samples=4).score(make_rows([[(context, [t]) for t in range(51)]], 64))
    assert scores.greedy.nonzero().flatten().tolist() == [best]


def test_choice_logprobs_normalise_over_each_questions_own_choices(model) -> None:
    rows = make_rows(QUESTIONS, 64)
    with torch.no_grad():
        reader = reader_of(model)
        logprobs = reader.log_likelihoods(reader.logits(model, rows), rows)
    table = choice_logprobs(logprobs, rows)[0]
    assert table.shape == (3, 3)
    assert math.isinf(table[1, 2])
    for q, question in enumerate(QUESTIONS):
        values = torch.tensor([logprob(model, *pair) for pair in question]).log_softmax(-1)
        torch.testing.assert_close(table[q, : len(question)].float(), values, rtol=0, atol=1e-5)


def test_single_token_choices_of_a_question_share_a_row() -> None:
    assert make_rows(QUESTIONS[:1], 64).input_ids.tolist() == [[1, 12, 13]]
    assert make_rows(QUESTIONS, 64).input_ids.shape == (5, 8)


def test_long_inputs_lose_tokens_on_the_left() -> None:
    rows = make_rows([[(list(range(1, 20)), [30, 31])]], max_length=8)
    assert rows.input_ids.tolist() == [[13, 14, 15, 16, 17, 18, 19, 30]]


@pytest.mark.parametrize(
    ("pair", "words"), [(([1], []), "nothing"), (([], [1]), "no context"), (([1], [2] * 9), "9 tok")]
)
def test_bad_pairs_are_refused(pair: tuple[list[int], list[int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_rows([[pair]], max_length=8)
