"""`mle` on an encoder against a plain transformers + PEFT loop, and sentence pairs as the tokenizer makes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, get_linear_schedule_with_warmup

from tests.tiny import make_encoder
from uqharness.adapters.mle import MLE
from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import TYPE
from uqharness.errors import InputError
from uqharness.settings import Run
from uqharness.testing import TINY, fit_tiny, tiny_data, tiny_encoder
from uqharness.training.base_model import inject, load_base
from uqharness.training.loop import Stream
from uqharness.training.pairs import PairReader


def test_mle_is_a_plain_loop_of_transformers_and_peft() -> None:
    run = dataclasses.replace(TINY, lr=1e-2, warmup=0.25)
    posterior, _, _ = fit_tiny(MLE(), run, encoder=True)
    config = LoraConfig(task_type="SEQ_CLS", r=run.lora_r, lora_alpha=run.lora_alpha, target_modules=["query", "value"])
    model = get_peft_model(tiny_encoder(), config)
    LoraStack(model).load(LoraStack(inject(tiny_encoder(), run)).mean())  # the same start
    data, trained = tiny_data(encoder=True), [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=run.lr, eps=run.adam_eps, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, 3, run.steps)
    stream = Stream(data.train, run.seed, run.steps * run.batch_size)
    model.train()
    for step in range(run.steps):
        questions = [stream[step * run.batch_size + k][1] for k in range(run.batch_size)]
        inputs = [list(question.pairs[0][0]) for question in questions]
        width = max(map(len, inputs))
        loss = model(
            input_ids=torch.tensor([ids + [1] * (width - len(ids)) for ids in inputs]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in inputs]),
            labels=torch.tensor([question.gold for question in questions]),
        ).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    plain = LoraStack(model).mean()
    assert set(plain) == set(posterior.mean) and len(plain) == 2 * 2 * 2 + 4
    for name, tensor in plain.items():
        torch.testing.assert_close(posterior.mean[name], tensor, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), "bert")


def request(choice: str, **doc: str) -> Instance:
    return Instance("loglikelihood", doc, ("", f" {choice}"), 0, ("pairs", 0, 1))


def test_the_tokenizer_pairs_and_cuts(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    read = PairReader(tokenizer, ("a", "b"), ("no", "yes"), max_length=8)
    (first, second) = read([request("no", a="w1 w2", b="w3"), request("yes", a="w1 w2 w3 w4 w5 w6 w7", b="w8")])
    made = tokenizer("w1 w2", "w3")
    assert [each % TYPE for each in first[0]] == made["input_ids"] and first[1] == [0]
    assert [each // TYPE for each in first[0]] == [0, 0, 0, 0, 1, 1]
    # The longer field is cut, on its right, and only that item counts.
    assert [each % TYPE for each in second[0]] == tokenizer("w1 w2 w3 w4", "w8")["input_ids"] and second[1] == [1]
    assert read.cut == {second[0]}
    single = PairReader(tokenizer, ("a",), ("no", "yes"), max_length=8)
    assert [each % TYPE for each in single([request("no", a="w1")])[0][0]] == tokenizer("w1")["input_ids"]
    with pytest.raises(InputError, match=r"names 'c', which is no text of its documents; they have a, b"):
        PairReader(tokenizer, ("a", "c"), ("no", "yes"), 8)([request("no", a="w1", b="w2")])


def test_bases_that_do_not_fit_are_refused(encoder: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an encoder .bert., and the task is answered by a causal language model"):
        load_base(Run(base=str(encoder), device="cpu"))
    with pytest.raises(InputError, match="is no encoder .llama., and the task is answered by a sequence classifier"):
        load_base(Run(base=str(base), device="cpu"), classes=2)
    with pytest.raises(InputError, match="max_length is 300: base model .* takes 130 tokens"):
        load_base(Run(base=str(encoder), device="cpu"), classes=2)
    tiny_encoder(kind="bert", pad_token_id=0).save_pretrained(tmp_path / "trained")
    with pytest.raises(InputError, match="has a classification head of 3 classes and the task has 2"):
        load_base(Run(base=str(tmp_path / "trained"), device="cpu", max_length=64), classes=2)


def test_a_trained_head_of_as_many_classes_is_kept(encoder: Path, tmp_path: Path) -> None:
    trained = tiny_encoder(kind="bert", pad_token_id=0)
    trained.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    model = inject(load_base(Run(base=str(tmp_path), device="cpu", max_length=64), classes=3)[0], Run(base="tiny"))
    saved = LoraStack(model).mean()
    assert torch.equal(saved["base_model.model.classifier.weight"], trained.classifier.weight)


def test_a_module_that_the_checkpoint_lacks_gets_no_lora(encoder: Path) -> None:
    base = load_base(Run(base=str(encoder), device="cpu", max_length=64), classes=2)[0]
    base.uq_fresh = (*base.uq_fresh, "bert.pooler.dense.weight", "bert.pooler.dense.bias")
    with pytest.raises(InputError, match="'pooler.dense' is not in the checkpoint, so it is drawn from the seed"):
        inject(base, Run(base="tiny", target_modules=("query", "pooler.dense")))


def test_parts_of_a_head_without_a_lora_are_trained_in_full() -> None:
    base = tiny_encoder()
    base.uq_fresh = tuple(f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias"))
    model = inject(base, dataclasses.replace(TINY, target_modules=("query", "classifier.out_proj")))
    trained = {name for name, parameter in LoraStack(model).parameters.items() if parameter.requires_grad}
    head = {name.removeprefix("base_model.model.classifier.") for name in trained if "classifier" in name}
    assert head == {"dense.weight", "dense.bias", "out_proj.lora_A.weight", "out_proj.lora_B.weight"}
    again = inject(tiny_encoder(seed=1), dataclasses.replace(TINY, target_modules=("query", "classifier.out_proj")))
    saved, other = LoraStack(model).mean(), LoraStack(again).mean()
    last = dataclasses.replace(TINY, target_modules=("query", "classifier.out_proj"), layers="last:1")
    few = LoraStack(inject(tiny_encoder(), last)).mean()
    assert {name.partition(".lora_A")[0][17:] for name in few if ".lora_A" in name} == {
        "roberta.encoder.layer.1.attention.self.query",
        "classifier.out_proj",
    }
    frozen = "base_model.model.classifier.out_proj.base_layer.weight"
    assert set(saved) == set(other) and frozen in saved
    assert abs(float(saved[frozen].std()) / 0.2 - 1) < 0.3 and not torch.equal(saved[frozen], other[frozen])
