"""Rows that branch, and work that nobody needs, against the slow twin: on every architecture they are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MistralConfig

from tests.slow_twin import logprob, per_draw
from tests.tiny import make_base, make_lora, random_base
from tests.tiny_adapter import gaussian
from uqharness.adapters.mcd import Dropped, TokenMasks
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import Rows, make_rows
from uqharness.engine.shortcuts import LAST, SKIPS, may_branch, skip_unread
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import keyed_generator

CONTEXT = list(range(10, 22))
# Choices with a common start, one that is another's start, contexts that differ, a shared tail; and one token each.
QUESTIONS = [
    [(CONTEXT, [4, 9, 2]), (CONTEXT, [4, 9, 7, 3]), (CONTEXT, [5]), (CONTEXT, [5, 1])],
    [(CONTEXT[:7] + [3], [8, 2, 1]), (CONTEXT[:7] + [6], [8, 2, 1])],
    [(CONTEXT[3:], [4]), (CONTEXT[3:], [5])],
]
PAIRS = [pair for question in QUESTIONS for pair in question]


def model_of(kind: str, attention: str = "sdpa", **config: Any) -> PeftModel:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = random_base(kind, attention, head_dim=8, **config)
        return get_peft_model(base, lora).eval().double()


def exact(engine: Engine, rows: Rows) -> torch.Tensor:
    """The engine's log-likelihoods without its own float32."""
    logits = torch.cat(list(engine._chunks(rows)))  # [F, U, V]
    read = logits.log_softmax(-1)[:, rows.at, rows.token]
    return read.new_zeros(len(logits), len(rows.question)).index_add(1, rows.slot, read)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SKIPS)
def test_branching_rows_equal_the_slow_twin(kind: str, attention: str) -> None:
    model = model_of(kind, attention)
    assert may_branch(model, 64)
    posterior, rows = gaussian(model), make_rows(QUESTIONS, 64, branch=True)
    assert rows.input_ids.shape[0] == 3 and 2 * len(rows.row) < rows.input_ids.numel()
    mean = torch.tensor([[logprob(model, *pair) for pair in PAIRS]], dtype=torch.float64)
    wanted = torch.cat([mean, per_draw(model, posterior, PAIRS, samples=3, seed=7)])
    for tokens in (1, 100, None):
        values = exact(Engine(model, posterior, samples=3, seed=7, tokens=tokens), rows)
        # eager attention takes its softmax in float32, whatever the model is
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-10 if attention == "sdpa" else 1e-5)


def test_padding_has_no_place_that_no_input_has() -> None:
    """Dynamic RoPE stretches for the last place it is told of, in all rows of the batch."""
    model = model_of("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    long = [([7] * 50, [choice, *range(10, 19)]) for choice in (4, 5)]
    questions = [long, QUESTIONS[2]]
    rows = make_rows(questions, 64, branch=True)
    assert rows.input_ids.shape[1] == 68  # the model has 64 places
    wanted = torch.tensor([[logprob(model, *pair) for pair in [*long, *QUESTIONS[2]]]], dtype=torch.float64)
    values = exact(Engine(model, gaussian(model), samples=0), rows)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-10)


def test_the_last_layer_runs_where_it_is_read_alone() -> None:
    model, rows, seen = model_of("llama"), make_rows(QUESTIONS, 64), {}
    layer = model.get_base_model().model.layers[-1]
    for name in (*LAST, "self_attn.k_proj"):
        part = layer.get_submodule(name)
        part = getattr(part, "base_layer", getattr(part, "gate_proj", part))
        part.register_forward_hook(lambda _, args, output, name=name: seen.__setitem__(name, args[0].shape[:2].numel()))
    with torch.no_grad(), skip_unread(model, rows, draws=1):
        model(input_ids=rows.input_ids)
    assert seen == {**dict.fromkeys(LAST, len(rows.row)), "self_attn.k_proj": rows.input_ids.numel()}


def random_questions(seed: int) -> list[list[tuple[list[int], list[int]]]]:
    generator = keyed_generator("tries", seed)

    def ids(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(0, 2, (size,), generator=generator).tolist()  # two words: much is shared

    return [[(ids(1, 6), ids(1, 6)) for _ in range(1 + seed % 5)] for _ in range(3)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("max_length", [5, 64])
def test_every_token_sees_the_tokens_of_its_own_input(seed: int, max_length: int) -> None:
    questions = random_questions(seed)
    rows = make_rows(questions, max_length, branch=True)
    width = rows.input_ids.shape[1]
    attention = rows.attention(torch.float32)
    mask = attention.get("attention_mask", torch.full((width, width), -1.0).triu(1).expand(len(questions), 1, -1, -1))
    pairs, n = [pair for question in questions for pair in question], 0
    for k, (context, continuation) in enumerate(pairs):
        whole = [*context, *continuation][-(max_length + 1) :]
        for j in range(len(continuation)):
            row, place = rows.row[rows.at[n]], rows.pos[rows.at[n]]
            seen = (mask[row, 0, place] == 0).nonzero().flatten()
            wanted = whole[: len(whole) - len(continuation) + j]
            assert rows.input_ids[row, seen].tolist() == wanted
            assert rows.depth[row, seen].tolist() == list(range(len(wanted)))
            assert (int(rows.slot[n]), int(rows.token[n])) == (k, continuation[j])
            n += 1
    assert n == len(rows.at)
    trie = {
        (q, ids[:i]) for q, pairs in enumerate(questions) for ids in inputs(pairs, max_length) for i in range(1, 99)
    }
    sizes = [len({ids for number, ids in trie if number == q}) for q in range(len(questions))]
    assert width == max(sizes)  # nothing is there twice


def inputs(pairs: list[tuple[list[int], list[int]]], max_length: int) -> list[tuple[int, ...]]:
    return [tuple([*context, *continuation][-(max_length + 1) : -1]) for context, continuation in pairs]


def test_other_architectures_and_windows_do_not_branch() -> None:
    assert not may_branch(model_of("gemma2", "eager"), 64)
    assert not may_branch(model_of("llama", "flex_attention"), 64)
    mistral = model_of("mistral")
    mistral.get_base_model().config = MistralConfig(sliding_window=32, attn_implementation="sdpa")
    assert may_branch(mistral, 32) and not may_branch(mistral, 33)


def test_lm_eval_gets_the_same_answers_whether_rows_branch_or_not(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    make_lora(base).save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    choices = (" A", " A w3 w4", " B w1", " A w3 w5 w6")
    requests = [
        Instance("loglikelihood", {}, (" ".join(f"w{n + i}" for i in range(9 + n)), choice), k, ("t", n, 1))
        for n in range(5)
        for k, choice in enumerate(choices)
    ]
    answers, widths = [], []
    for cache in (True, False):
        model = BayesLoRA(adapter=str(tmp_path / "adapter"), batch_size=2, device="cpu", logits_cache=cache)
        embedding = model.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _, args, out, into=widths: into.append(args[0].numel()))
        answers.append([value for value, _ in model.loglikelihood(requests, disable_tqdm=True)])
        widths.append(-1)
    assert answers[0] == pytest.approx(answers[1], abs=4e-5)
    end = widths.index(-1)
    assert 2 * sum(widths[:end]) < sum(widths[end:])


def test_noise_on_tokens_depends_on_the_way_to_them_alone() -> None:
    model = model_of("llama")
    predictive = TokenMasks(Dropped(LoraStack(model).mean(), 0, 0.4))
    engine = predictive.engine(model, samples=3, seed=7)
    apart, shared = (exact(engine, make_rows(QUESTIONS, 64, branch=branch)) for branch in (False, True))
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-10)
    assert float((shared[0] - shared[1]).abs().max()) > 0.01  # the masks do something
