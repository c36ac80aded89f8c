"""Layers that all draws share run once: against the slow twin, on every architecture and kind of posterior."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from tests.adapters.test_mcd import masked
from tests.engine.test_shortcuts import PAIRS, QUESTIONS
from tests.slow_twin import logprob, per_draw
from tests.tiny import random_base
from tests.tiny_adapter import gaussian, lines_of
from uqharness.adapters.mcd import Dropped, TokenMasks
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import as_predictive
from uqharness.engine.rows import Rows, make_rows
from uqharness.engine.shortcuts import SHARES, may_branch, trunk
from uqharness.posterior import Gaussian, Members, Posterior
from uqharness.registry import get_method, methods
from uqharness.testing import TINY, fit_tiny

LAYERS, FIRST = 4, 2
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 8, "tie_word_embeddings": True},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
    },
    "smollm3": {"no_rope_layers": [1, 1, 0, 1], "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 2},
}
TARGETS = {"phi3": ["qkv_proj", "down_proj"], "mixtral": ["q_proj"], "qwen3_moe": ["q_proj"]}


def model_of(kind: str = "llama", names: Sequence[str] | None = None, head: bool = False, **lora: Any) -> PeftModel:
    """A random model of four layers, in float64 where it can be, with a LoRA in the last two (and on the head)."""
    shape: dict[str, Any] = {"num_hidden_layers": LAYERS, "head_dim": 8, **OWN.get(kind, {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = random_base(kind, "eager", **shape)
        names = TARGETS.get(kind, ["q_proj", "v_proj", "down_proj"]) if names is None else names
        modules = [
            name
            for name, _ in base.named_modules()
            if any(f".layers.{layer}." in name for layer in range(FIRST, LAYERS)) and name.endswith(tuple(names))
        ]
        targets = (modules if names else []) + ["lm_head"] * head
        config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **lora)
        model = get_peft_model(base, config).eval()
        return model if "moe" in kind or kind == "mixtral" else model.double()  # grouped experts are not for float64


@contextmanager
def rows_of_layers(model: PeftModel) -> Iterator[list[int]]:
    """Rows that each layer has run on within, whatever stands in for its forward."""
    layers: Any = model.get_base_model().model.layers
    counts = [0] * len(layers)
    handles = []
    for number, layer in enumerate(layers):
        count = lambda _, args, number=number: counts.__setitem__(number, counts[number] + len(args[0]))  # noqa: E731
        handles.append(layer.input_layernorm.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def exact(engine: Engine, rows: Rows) -> Tensor:
    """The engine's log-likelihoods without its own float32."""
    logits = torch.cat(list(engine._chunks(rows, state=engine._shared(rows))))  # [F, U, V]
    read = logits.double().log_softmax(-1)[:, rows.at, rows.token]
    return read.new_zeros(len(logits), len(rows.question)).index_add(1, rows.slot, read)


def twin(model: PeftModel, posterior: Posterior, samples: int, mean: bool) -> Tensor:
    drawn = per_draw(model, posterior, PAIRS, samples, seed=7)
    own = torch.tensor([[logprob(model, *pair) for pair in PAIRS]], dtype=torch.float64)
    return torch.cat([own, drawn]) if mean else drawn


def alone(engine: Engine) -> Engine:
    """The same engine, every function in full."""
    engine.trunk = None
    return engine


@pytest.mark.parametrize("kind", SHARES)
def test_shared_layers_run_once_and_the_numbers_are_the_slow_twins(kind: str) -> None:
    model = model_of(kind)
    posterior = gaussian(model)
    wanted = twin(model, posterior, 3, mean=True)
    for branch in {False, may_branch(model, 64)}:
        rows = make_rows(QUESTIONS, 64, branch=branch)
        for tokens in (1, 100, None):
            engine = Engine(model, posterior, samples=3, seed=7, tokens=tokens)
            assert engine.trunk is not None and engine.trunk.depth == FIRST
            values = exact(engine, rows)  # with the check of the first batch
            # eager attention and some norms compute in float32, whatever the model is
            torch.testing.assert_close(values, wanted, rtol=0, atol=2e-5)
            assert engine.trunk is not None  # the check has passed
            with rows_of_layers(model) as counts:
                engine.score(rows)
            count = len(rows.input_ids)
            assert counts == [count] * FIRST + [4 * count] * (LAYERS - FIRST)
    assert float((wanted[0] - wanted[1]).abs().max()) > 1e-2  # the draws differ


def test_in_float32_the_shared_way_is_within_1e_5_a_token() -> None:
    model = model_of("llama", head=True).float()
    posterior, tokens = gaussian(model), torch.tensor([len(answer) for _, answer in PAIRS])
    scores = Engine(model, posterior, samples=4, seed=7).score(make_rows(QUESTIONS, 64, branch=True))
    wanted = twin(model, posterior, 4, mean=True)
    assert scores.mean is not None
    rows_of_scores = torch.cat([scores.mean[None], scores.draws])
    torch.testing.assert_close(rows_of_scores / tokens, wanted / tokens, rtol=0, atol=1e-5)


def test_ensembles_share_what_is_below_their_first_lora() -> None:
    model = model_of(head=True)
    mean = LoraStack(model).mean()
    posterior = Members([{n: t + 0.1 * k for n, t in mean.items()} for k in range(3)], 0)
    engine, rows = Engine(model, posterior), make_rows(QUESTIONS, 64, branch=True)
    torch.testing.assert_close(exact(engine, rows), twin(model, posterior, 3, mean=False), rtol=0, atol=2e-5)
    assert engine.trunk is not None and engine.trunk.depth == FIRST and not engine.separate_mean


def test_what_is_drawn_decides_and_not_what_is_trained() -> None:
    """A last-layer posterior: the LoRA of the layer before it is the mean's in all draws."""
    model = model_of(head=True)
    posterior = gaussian(model)
    last = {name: std for name, std in posterior.std.items() if f"layers.{LAYERS - 1}." in name}
    posterior = Gaussian(posterior.mean, last, 3)
    engine, rows = Engine(model, posterior, 3, 7), make_rows(QUESTIONS, 64)
    torch.testing.assert_close(exact(engine, rows), twin(model, posterior, 3, mean=True), rtol=0, atol=2e-5)
    assert engine.trunk is not None and engine.trunk.depth == LAYERS - 1


@pytest.mark.parametrize("branch", [False, True])
def test_where_only_the_head_is_drawn_the_whole_stack_runs_once(branch: bool) -> None:
    model = model_of(names=(), head=True)
    posterior, rows = gaussian(model), make_rows(QUESTIONS, 64, branch=branch)
    engine = Engine(model, posterior, 3, 7)
    torch.testing.assert_close(exact(engine, rows), twin(model, posterior, 3, mean=True), rtol=0, atol=2e-5)
    with rows_of_layers(model) as counts:
        engine.score(rows)
    assert counts == [len(rows.input_ids)] * LAYERS


def test_masks_on_weights_share_the_layers_below() -> None:
    model = model_of()
    posterior = Dropped(LoraStack(model).mean(), 0, 0.4)
    engine, rows = Engine(model, posterior, 3, 7), make_rows(QUESTIONS, 64, branch=True)
    torch.testing.assert_close(exact(engine, rows), twin(model, posterior, 3, mean=True), rtol=0, atol=2e-5)
    assert engine.trunk is not None and engine.trunk.depth == FIRST


def test_noise_on_inputs_differs_at_its_own_layers() -> None:
    model = model_of()
    predictive = TokenMasks(Dropped(LoraStack(model).mean(), 0, 0.4))
    wanted = []
    for draw in range(3):
        answers = []
        for context, continuation in PAIRS:
            with masked(model, [*context, *continuation], draw, p=0.4, seed=7):
                answers.append(logprob(model, context, continuation))
        wanted.append(answers)
    engine = predictive.engine(model, samples=3, seed=7)
    for branch in (False, True):
        values = exact(engine, make_rows(QUESTIONS, 64, branch=branch))[1:]
        torch.testing.assert_close(values, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-5)
    assert engine.trunk is not None and engine.trunk.depth == FIRST
    assert float((values[0] - values[1]).abs().max()) > 1e-2


def test_draws_that_run_one_by_one_share_them_too() -> None:
    model = model_of(use_dora=True)
    engine, rows = Engine(model, gaussian(model), 3, 7), make_rows(QUESTIONS, 64)
    torch.testing.assert_close(exact(engine, rows), twin(model, gaussian(model), 3, mean=True), rtol=0, atol=2e-5)
    assert engine.one_by_one and engine.trunk is not None


def test_questions_that_go_on_alone_start_from_their_own_states() -> None:
    model = model_of().float()
    make = lambda: Engine(model, gaussian(model, 0.5), 10, 3, auto=0.1)  # noqa: E731
    for branch in (False, True):
        rows = make_rows(QUESTIONS, 64, branch=branch)
        one, other = make().score(rows), alone(make()).score(rows)
        torch.testing.assert_close(one.draws, other.draws, rtol=0, atol=3e-5, equal_nan=True)
        assert one.taken.tolist() == other.taken.tolist() and len(set(one.taken.tolist())) > 1


def test_a_model_that_hands_something_on_from_its_first_layers_runs_in_full() -> None:
    """As shared keys and values do: the last layer adds what the first one said."""
    model, said = model_of(), {}
    layers: Any = model.get_base_model().model.layers
    layers[0].register_forward_hook(lambda _, __, output: said.__setitem__("first", output))
    layers[-1].register_forward_hook(lambda _, __, output: output + said["first"])
    posterior, rows = gaussian(model), make_rows(QUESTIONS, 64)
    engine = Engine(model, posterior, 3, 7)
    with lines_of("uqharness.engine.engine") as lines:
        values = exact(engine, rows)
    torch.testing.assert_close(values, twin(model, posterior, 3, mean=True), rtol=0, atol=2e-5)
    assert engine.trunk is None and "each draw runs in full" in lines[0] and len(lines) == 1


def test_nothing_is_shared_where_nothing_is_common_or_known() -> None:
    model = model_of()
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    assert trunk(model, [name.format(3), name.format(0)]) is None
    assert trunk(model, [name.format(3), "base_model.model.model.embed_tokens.weight"]) is None
    assert trunk(model, []) is None
    assert Engine(model, gaussian(model), samples=0).trunk is None
    model.get_base_model().config.model_type = "gemma3n_text"
    assert trunk(model, [name.format(3)]) is None


def test_a_forward_is_as_before_when_the_engine_is_done() -> None:
    model, ids = model_of(), torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    layers: Any = model.get_base_model().model.layers
    layers[0].forward = own = layers[0].forward  # as accelerate sets it
    Engine(model, gaussian(model), 3).score(make_rows(QUESTIONS, 64))
    assert vars(layers[0])["forward"] is own and "forward" not in vars(layers[1])
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_answers_the_same_with_shared_layers(name: str) -> None:
    """Fitted with `--layers last:1` on the tiny Llama."""
    run = dataclasses.replace(TINY, steps=4, layers="last:1", target_modules=("q_proj", "v_proj"))
    settings = {"swag": {"every": 1}, "tfb": {"min_items": 1}, "tempscale": {"min_items": 1}}.get(name, {})
    made, model, data = fit_tiny(get_method(name)(**settings), run)
    rows = make_rows([question.pairs for question in data.train[:4]], 24)
    form = as_predictive(made).open_form()
    one, other = form.engine(model.eval(), 3).score(rows), alone(form.engine(model, 3)).score(rows)
    torch.testing.assert_close(one.draws, other.draws, rtol=0, atol=1e-5)
