"""Class logits: one row for each question, draws folded, against one unpadded forward for each draw and question."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import TYPE, Classes, reader_of, with_types
from uqharness.engine.rows import make_rows
from uqharness.posterior import Gaussian, keyed_generator
from uqharness.settings import Run
from uqharness.testing import tiny_encoder
from uqharness.training.base_model import inject, most_tokens
from uqharness.training.targets import default_targets, fresh_modules

# As far as they differ: token types, a pooler or none, relative or rotary positions, fused projections.
KINDS: dict[str, dict[str, Any]] = {
    "roberta": {},
    "bert": {"pad_token_id": 0, "type_vocab_size": 2},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "position_biased_input": False,
        "pad_token_id": 0,
    },
    "modernbert": {"pad_token_id": 0, "local_attention": 8, "bos_token_id": 2, "eos_token_id": 3},
}
TARGETS = {
    "roberta": ("query", "value"),
    "bert": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
    "modernbert": ("Wqkv",),
}
QUESTIONS = [
    ((2, 9, 10, 11, 3), (0, 0, 0, 1, 1)),
    ((2, 30, 31, 32, 33, 34, 35, 36, 3), (0, 0, 0, 0, 1, 1, 1, 1, 1)),
    ((2, 12, 3), (0, 0, 1)),
]


def adapter(kind: str) -> PeftModel:
    """r = 8 with heads of 3 classes: the head is smaller than the rank."""
    model = inject(tiny_encoder(kind=kind, **KINDS[kind]), Run(base="tiny", lora_r=8, lora_alpha=8)).eval()
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=keyed_generator("classes", name))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_folded_answers_equal_one_forward_for_each_draw_and_question(kind: str) -> None:
    model = adapter(kind)
    stack = LoraStack(model)
    assert isinstance(reader_of(model), Classes) and default_targets(model.get_base_model()) == TARGETS[kind]
    mean = stack.mean()
    # The LoRA is folded; with the head random as well, draws run one by one.
    for random in (".lora_A.", ".weight"):
        posterior = Gaussian(mean, {n: torch.full_like(t, 0.1) for n, t in mean.items() if random in n}, train_seed=0)
        rows = make_rows([[(with_types(*q), [c]) for c in range(3)] for q in QUESTIONS], max_length=32)
        assert rows.input_ids.shape == (3, 9)  # one row for all classes of a question
        scores = Engine(model, posterior, samples=3, seed=1).score(rows)
        for i in (-1, 0, 1, 2):
            drawn = {} if i < 0 else {name: t[0] for name, t in posterior.draws(i, i + 1, seed=1).items()}
            with stack.weights(drawn), torch.no_grad():
                expected = torch.cat([one(model, kind, *q) for q in QUESTIONS])  # [3 · 3]
            row = scores.mean if i < 0 else scores.draws[i]
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


def one(model: PeftModel, kind: str, ids: tuple[int, ...], types: tuple[int, ...]) -> torch.Tensor:
    given = {"token_type_ids": torch.tensor([types])} if kind == "bert" else {}
    return model(input_ids=torch.tensor([ids]), **given).logits[0].double().log_softmax(-1)


def test_token_types_reach_a_model_that_has_them() -> None:
    model = adapter("bert")
    plain = [(ids, (0,) * len(ids)) for ids, _ in QUESTIONS]
    tables = []
    for questions in (QUESTIONS, plain):
        rows = make_rows([[(with_types(*q), [c]) for c in range(3)] for q in questions], max_length=32)
        assert (rows.input_ids >= TYPE).any() == (questions is QUESTIONS)
        tables.append(Classes().logits(model, rows))
    assert (tables[0] - tables[1]).abs().max() > 1e-3


def test_positions_of_roberta_begin_behind_its_padding() -> None:
    assert most_tokens(tiny_encoder()) == 64 and most_tokens(tiny_encoder(kind="bert", pad_token_id=0)) == 66


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_checkpoint_lacks_is_drawn_from_the_seed_and_trained_whole(kind: str) -> None:
    def made(seed: int) -> dict[str, torch.Tensor]:
        base: Any = tiny_encoder(kind=kind, **KINDS[kind])
        base.uq_fresh = tuple(name for name in base.state_dict() if "layer" not in name and "embeddings" not in name)
        model = inject(base, Run(base="tiny", seed=seed))
        trained = {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n}
        assert len(trained) == len([n for n, _ in base.named_parameters() if ".modules_to_save." in n]) > 0
        names = {n.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".") for n in trained}
        assert names == set(base.uq_fresh)
        return {n: t for n, t in LoraStack(model).mean().items() if ".lora_" not in n}

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if first[name].ndim == 2]
    assert weights and not any(torch.equal(first[name], other[name]) for name in weights)
    assert all(0.1 < first[name].std() < 0.3 for name in weights if first[name].numel() > 100)


def test_poolers_in_a_checkpoint_stay_frozen() -> None:
    base: Any = tiny_encoder(kind="bert", pad_token_id=0)
    base.uq_fresh = ("classifier.weight", "classifier.bias")
    assert fresh_modules(base) == []
    trained = [n for n, p in inject(base, Run(base="tiny")).named_parameters() if p.requires_grad and "lora" not in n]
    assert [name.rpartition("default.")[2] for name in trained] == ["weight", "bias"]


def test_a_plain_peft_classifier_answers_alike() -> None:
    base = tiny_encoder()
    theirs = get_peft_model(tiny_encoder(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])).eval()
    ours = inject(base, Run(base="tiny", lora_r=4, target_modules=("query",))).eval()
    LoraStack(ours).load(LoraStack(theirs).mean())
    ids, types = QUESTIONS[1]
    rows = make_rows([[(with_types(ids, types), [c]) for c in range(3)]], max_length=32)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
    assert torch.allclose(Classes().logits(ours, rows)[0, 0], expected, atol=1e-6)
    table = Classes().choice_logits(Classes().logits(ours, rows)[0], rows)
    assert torch.allclose(table[0].float(), expected, atol=1e-6) and math.isfinite(float(table.sum()))
