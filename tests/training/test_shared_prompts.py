"""Training on choices of several tokens: a question's choices share their prompt, and the numbers stay what they are.

The slow twin is the same training with a row for every choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.tiny import random_base
from uqharness.adapters.bbb import BBB
from uqharness.adapters.blob import BLoB
from uqharness.adapters.mcd import MCDropout
from uqharness.adapters.melora import MeLoRA
from uqharness.adapters.mle import MLE
from uqharness.adapters.scalabl import ScalaBL
from uqharness.engine.engine import Engine
from uqharness.engine.rows import make_rows
from uqharness.method import Method
from uqharness.posterior import Point, keyed_generator
from uqharness.settings import Run
from uqharness.testing import TINY
from uqharness.training import loop as training
from uqharness.training.base_model import inject
from uqharness.training.data import ChoiceData
from uqharness.training.loop import LossModel, collate, score, tune_table
from uqharness.training.prefix_cache import _KEPT
from uqharness.training.questions import Question

RUN = dataclasses.replace(TINY, steps=4, batch_size=3)
Step = tuple[list[float], dict[str, Tensor], list[int]]


def model_of(run: Run, kind: str = "llama", attention: str = "sdpa") -> PeftModel:
    """A LoRA whose B is not zero, so that all of its tensors have a gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = random_base(kind, attention, vocab_size=64, num_hidden_layers=3)
    model = inject(base, run)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.1, generator=keyed_generator(name))
    return model


def data_of(lengths: tuple[int, ...] = (2, 4, 5), seed: int = 0) -> ChoiceData:
    """Three choices each, of these lengths in tokens, the last two with a common start of two; prompts of 7 to 10."""
    generator, questions = keyed_generator("long answers", seed), []

    def ids(count: int) -> list[int]:
        return torch.randint(8, 64, (count,), generator=generator).tolist()

    for n in range(7):
        context, tails = ids(7 + n % 4), [ids(length - 1) for length in lengths]
        tails[2][:1] = tails[1][:1]
        pairs: Any = [(context, [first, *tail]) for first, tail in zip((1, 2, 2), tails, strict=True)]
        if max(lengths) == 1:
            pairs = [(context, [letter]) for letter in (1, 2, 3)]
        questions.append(Question(pairs, n % 3, f"{seed}-{n}"))
    return ChoiceData(questions, questions[:5], questions[:5], 32, 0, {"task": "long", "splits": []})


def trained(
    patches: pytest.MonkeyPatch, method: Method, run: Run, shared: bool, data: ChoiceData | None = None, **model: Any
) -> Step:
    """Losses of the steps, the first step's gradients, and how many tokens ran through the model in each."""
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    tokens: list[int] = []
    forward = LossModel.forward

    def watched(self: LossModel, batch: Any) -> Tensor:
        loss = forward(self, batch)
        own = self.trainable()
        if not losses:
            of_loss = torch.autograd.grad(loss, list(own.values()), retain_graph=True, allow_unused=True)
            gradients.update({name: g for name, g in zip(own, of_loss, strict=True) if g is not None})
        losses.append(float(loss))
        tokens.append(batch.rows.input_ids.numel())
        return loss

    with patches.context() as patch:
        patch.setattr(LossModel, "forward", watched)
        if not shared:
            patch.setattr(training, "may_branch", lambda *_: False)
        method.fit(model_of(run, **model), data or data_of(), run, None)
    return losses, gradients, tokens


def assert_same(one: Step, other: Step) -> None:
    assert len(one[0]) == RUN.steps and one[0] == pytest.approx(other[0], abs=1e-5)
    close(one[1], other[1])


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and any(float(g.abs().max()) > 1e-3 for g in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


METHODS = [
    MLE(),
    BLoB(eps=0.5),
    BLoB(eps=0.5, flipout="none", train_samples=2),
    MeLoRA(eps=0.5),
    MeLoRA(eps=0.5, flipout="example"),
    BBB(),
    ScalaBL(),
]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'flipout', '')}")
def test_losses_and_gradients_are_those_of_a_row_for_every_choice(
    method: Method, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, apart = (trained(monkeypatch, method, RUN, share, kind=kind) for share in (True, False))
    assert_same(shared, apart)
    assert 3 * sum(shared[2]) < 2 * sum(apart[2])


@pytest.mark.parametrize(
    ("change", "attention"),
    [({}, "eager"), ({"gradient_checkpointing": True}, "sdpa"), ({"grad_accumulation": 2}, "sdpa")],
)
def test_so_they_are_under_other_settings(
    change: dict[str, Any], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(RUN, **change)
    shared, apart = (trained(monkeypatch, BLoB(), run, share, attention=attention) for share in (True, False))
    assert shared[0] == pytest.approx(apart[0], abs=1e-5) and sum(shared[2]) < sum(apart[2])
    close(shared[1], apart[1])


@pytest.mark.parametrize("change", [{}, {"gradient_checkpointing": True}])
def test_kept_states_are_those_of_shared_prompts(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--layers last:1 --cache-prefix`, over more than an epoch: a batch that is all hits has the gradients too."""
    _KEPT.clear()
    run = dataclasses.replace(RUN, layers="last:1", target_modules=("q_proj", "v_proj"), **change)
    apart = trained(monkeypatch, MLE(), run, shared=False)
    cached = dataclasses.replace(run, cache_prefix=1.0)
    first = trained(monkeypatch, MLE(), cached, shared=True)
    (states,) = _KEPT.values()
    assert len(states) == 7  # a row for each question
    again = trained(monkeypatch, MLE(), cached, shared=True)
    assert len(states) == 7
    for run_scores in (first, again):
        assert_same(run_scores, apart)
        assert sum(run_scores[2]) < sum(apart[2])


def test_rows_of_the_same_tokens_that_branch_elsewhere_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question's row has the tokens of another's in the same order: 5 6 and 5 7 beside 5 6 7."""
    _KEPT.clear()
    prompt = [9, 12, 30, 17, 25, 11]
    forked = [(prompt, [5, 6, 1]), (prompt, [5, 7, 1]), (prompt, [8])]
    straight = [(prompt, [5, 6, 7, 1]), (prompt, [8])]
    tries = [make_rows([pairs], 32, branch=True) for pairs in (forked, straight)]
    assert tries[0].input_ids.tolist() == tries[1].input_ids.tolist()
    data = ChoiceData([Question(p, 0, str(n)) for n, p in enumerate((forked, straight))], [], [], 32, 0, {})
    run = dataclasses.replace(RUN, layers="last:1", target_modules=("q_proj", "v_proj"), batch_size=2)
    apart = trained(monkeypatch, MLE(), run, shared=False, data=data)
    cached = trained(monkeypatch, MLE(), dataclasses.replace(run, cache_prefix=1.0), shared=True, data=data)
    assert_same(cached, apart)
    assert sum(cached[2]) < sum(apart[2])


NOISY = [MLE(), MCDropout(), *(cls(flipout="token") for cls in (BLoB, BBB, MeLoRA))]


@pytest.mark.parametrize("method", NOISY, ids=lambda m: m.name)
def test_noise_for_each_token_keeps_a_row_for_every_choice(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataclasses.replace(RUN, lora_dropout=0.3 if isinstance(method, MLE) else 0.0)
    one, other = (trained(monkeypatch, method, run, share) for share in (True, False))
    assert one[0] == other[0] and one[2] == other[2]
    assert all(torch.equal(gradient, other[1][name]) for name, gradient in one[1].items())


@pytest.mark.parametrize("method", [MLE(), BLoB(), MeLoRA()], ids=lambda m: m.name)
def test_choices_of_one_token_stay_bit_for_bit_what_they_were(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of((1, 1, 1))
    one, other = (trained(monkeypatch, method, RUN, share, data) for share in (True, False))
    assert one[0] == other[0] and one[2] == other[2]
    assert all(torch.equal(gradient, other[1][name]) for name, gradient in one[1].items())
    plain, shared = (collate(data.train, data, branch)[0] for branch in (False, True))
    assert all(torch.equal(tensor, vars(shared)[name]) for name, tensor in vars(plain).items())
    assert not shared.attention(torch.float32)  # the model is told nothing new


def test_rows_branch_only_where_that_leaves_fewer_tokens() -> None:
    """Contexts that have nothing in common gain nothing from one row, and would pay for the mask."""
    apart = ChoiceData([Question([([n, *range(9, 15)], [5, 6]) for n in (1, 2)], 0, "q")], [], [], 32)
    assert len(collate(apart.train, apart, branch=True)[0].input_ids) == 2
    data = data_of()
    plain, shared = (collate(data.train, data, branch)[0] for branch in (False, True))
    assert len(shared.input_ids) == 7 and len(plain.input_ids) == 21
    assert shared.attention(torch.float32) and not plain.attention(torch.float32)  # they do fork


def test_selecting_and_tuning_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from uqharness.engine.lora import LoraStack

    data, model = data_of(), model_of(RUN).eval()
    stack, widths = LoraStack(model), list[int]()
    model.get_input_embeddings().register_forward_hook(lambda _, args, out: widths.append(args[0].numel()))
    engine = Engine(model, Point(stack.mean(), 0), 1)
    selected, tuned = score(stack, data), tune_table(engine, data)
    count, sizes = len(widths), sum(widths)
    monkeypatch.setattr(training, "may_branch", lambda *_: False)
    assert score(stack, data) == pytest.approx(selected, abs=1e-5)
    torch.testing.assert_close(tune_table(engine, data), tuned, rtol=0, atol=1e-5)
    assert len(widths) == 2 * count and sizes < sum(widths) - sizes


def test_other_architectures_train_as_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (trained(monkeypatch, MLE(), RUN, share, kind="gpt2") for share in (True, False))
    assert one[0] == other[0] and one[2] == other[2]
