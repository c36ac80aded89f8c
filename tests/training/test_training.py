from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import make_base
from torch import Tensor

from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import Pair
from uqharness.errors import InputError, RunError
from uqharness.posterior import keyed_generator
from uqharness.settings import Run
from uqharness.testing import TINY, tiny_data, tiny_llama
from uqharness.training.base_model import build_model, inject
from uqharness.training.checkpoints import thin
from uqharness.training.data import ChoiceData
from uqharness.training.loop import Stream, choice_loss, fit_loop, learning_rate, score
from uqharness.training.questions import Question

torch.set_num_threads(1)


def run_of(**changes: Any) -> Run:
    return dataclasses.replace(TINY, **changes)


def fit(run: Run, data: ChoiceData | None = None, **options: Any) -> tuple[PeftModel, ChoiceData, Any]:
    model, data = inject(tiny_llama(), run), data or tiny_data()
    return model, data, fit_loop(model, data, run, **options)


def adapter(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}


def by_hand(model: PeftModel, pairs: list[Pair], max_length: int) -> Tensor:
    """log p(choice | question): one full forward per choice, all logits, no shared rows."""
    total = []
    for context, answer in pairs:
        tokens = [*context, *answer]
        ids = tokens[-(max_length + 1) : -1]
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)  # [T, V]
        total.append(sum(logp[len(ids) - len(answer) + k, token] for k, token in enumerate(answer)))
    return torch.stack(total).log_softmax(-1)


def plain_loop(run: Run, data: ChoiceData) -> tuple[list[float], dict[str, Tensor]]:
    """The same training in plain PyTorch."""
    model = inject(tiny_llama(), run)
    model.train()
    parameters = [p for n, p in model.named_parameters() if ".lora_" in n]
    optimizer = torch.optim.AdamW(parameters, lr=run.lr, eps=run.adam_eps, weight_decay=run.weight_decay)
    size, losses, order = run.batch_size * run.grad_accumulation, [], []
    warm = math.ceil(run.steps * run.warmup)
    for epoch in range(run.steps * size // len(data.train) + 1):
        generator = keyed_generator("order", run.seed, epoch)
        order += torch.randperm(len(data.train), generator=generator).tolist()
    for step in range(run.steps):
        factor = step / warm if step < warm else (run.steps - step) / (run.steps - warm)
        optimizer.param_groups[0]["lr"] = run.lr * factor
        batch = [data.train[i] for i in order[step * size : (step + 1) * size]]
        loss = -torch.stack([by_hand(model, q.pairs, run.max_length)[q.gold] for q in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, adapter(model)


@pytest.mark.parametrize("changes", [{}, {"adam_eps": 0.1}, {"grad_accumulation": 2, "batch_size": 3, "max_length": 4}])
def test_equals_a_plain_pytorch_loop(changes):
    run = run_of(lr=2e-2, weight_decay=0.1, **changes)
    data = dataclasses.replace(tiny_data(), max_length=run.max_length)
    losses, expected = plain_loop(run, data)
    model, _, course = fit(run, data)
    assert course.losses == pytest.approx(losses, abs=2e-4)
    for name, tensor in adapter(model).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-3, rtol=1e-2)


def test_first_losses_are_the_zero_shot_ones():
    """No choice of letters, B = 0: the loss before any step is the base model's, per batch exactly."""
    run, data = run_of(steps=1), tiny_data()
    model, _, course = fit(run)
    base = inject(tiny_llama(), run)
    order = torch.randperm(len(data.train), generator=keyed_generator("order", 0, 0)).tolist()
    batch = [data.train[i] for i in order[:4]]
    with torch.no_grad():
        expected = -sum(float(by_hand(base, q.pairs, run.max_length)[q.gold]) for q in batch) / 4
    assert course.losses == pytest.approx([expected], abs=1e-5)


def test_learning_rate_is_the_usual_linear_schedule():
    from transformers import get_linear_schedule_with_warmup

    run = run_of(steps=50, warmup=0.06)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    usual = get_linear_schedule_with_warmup(optimizer, 3, 50)
    for step in range(51):
        assert learning_rate(step, run) == pytest.approx(usual.get_last_lr()[0])
        optimizer.step()
        usual.step()
    assert learning_rate(40, run_of(schedule="constant")) == 1.0 and learning_rate(0, run_of(warmup=0)) == 1.0


def test_order_sees_every_item_once_per_epoch_and_depends_on_the_seed():
    data = tiny_data()
    first, again, other = (Stream(data.train, seed, 48) for seed in (0, 0, 1))
    names = [first[k][1].fingerprint for k in range(48)]
    for epoch in range(3):
        assert sorted(names[16 * epoch : 16 * epoch + 16]) == sorted(q.fingerprint for q in data.train)
    assert names[:16] != names[16:32]
    assert [again[k][1].fingerprint for k in reversed(range(48))] == names[::-1]  # a pure function of k
    assert [other[k][1].fingerprint for k in range(48)] != names


def test_grouped_by_length_every_item_is_still_seen_once_per_epoch_and_there_is_less_padding():
    lengths = torch.randint(3, 60, (151,), generator=keyed_generator("lengths")).tolist()
    questions = [Question([([9] * n, [1])], 0, str(k)) for k, n in enumerate(lengths)]
    padded = {}
    for grouped in (0, 4):
        stream, again = (Stream(questions, 0, 604, grouped) for _ in range(2))
        seen = [stream[k][1] for k in range(604)]
        assert [again[k][1] for k in reversed(range(604))] == seen[::-1]  # a pure function of k
        for start in range(0, 604, 151):
            assert sorted(q.fingerprint for q in seen[start : start + 151]) == sorted(map(str, range(151)))
        batches = [seen[k : k + 4] for k in range(0, 604, 4)]  # some run across the ends of epochs
        padded[grouped] = sum(4 * max(q.tokens for q in batch) for batch in batches) / sum(q.tokens for q in seen)
        assert batches[0] != batches[1] and seen[:151] != seen[151:302]
    assert padded[0] > 1.4 and padded[4] < 1.1


def test_resume_with_dropout_accumulation_and_selection_is_exact(tmp_path):
    run = run_of(lora_dropout=0.3, grad_accumulation=2, eval_every=3, select="best:nll", lr=0.2)
    straight, _, whole = fit(run)
    saving = dataclasses.replace(run, out=str(tmp_path / "a"), save_every=4)
    stopped, calls = inject(tiny_llama(), saving), []

    def stop(step: int) -> None:
        calls.append(step)
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_loop(stopped, tiny_data(), saving, after_step=stop)
    assert calls == list(range(10))
    resumed, _, course = fit(dataclasses.replace(saving, resume=True))
    assert course.resumed_from == 8 and course.losses == whole.losses
    assert course.evaluations == whole.evaluations and course.selected == whole.selected
    for name, tensor in adapter(straight).items():
        assert torch.equal(adapter(resumed)[name], tensor), name
    done, _, course = fit(dataclasses.replace(saving, resume=True))  # nothing left to do
    assert course.resumed_from == 12 and course.losses == whole.losses
    assert all(torch.equal(adapter(done)[name], tensor) for name, tensor in adapter(straight).items())


def test_a_checkpoint_without_its_marker_does_not_count(tmp_path):
    run = run_of(out=str(tmp_path / "a"), save_every=4)
    fit(run)
    names = sorted(p.name for p in (tmp_path / "a.checkpoints").iterdir())
    assert names == ["checkpoint-12", "checkpoint-8"]  # two are kept
    (tmp_path / "a.checkpoints" / "checkpoint-12" / "complete.json").unlink()
    _, _, course = fit(dataclasses.replace(run, resume=True))
    assert course.resumed_from == 8
    assert not (tmp_path / "a").exists()


def test_costs_of_a_resumed_run_hold_those_before_it(tmp_path):
    run = run_of(out=str(tmp_path / "a"), save_every=4)
    fit(run)
    marker = tmp_path / "a.checkpoints" / "checkpoint-8" / "complete.json"
    state = json.loads(marker.read_text())
    assert state["peak_memory"] > 1e7 and state["seconds"] > 0
    marker.write_text(json.dumps({**state, "peak_memory": 10**15, "seconds": 10**6}))
    (tmp_path / "a.checkpoints" / "checkpoint-12" / "complete.json").unlink()
    _, data, _ = fit(dataclasses.replace(run, resume=True))
    (record,) = data.record["training"]
    assert record["peak_memory_bytes"] == 10**15 and record["seconds"] > 10**6


def test_resume_with_other_settings_or_data_is_refused(tmp_path):
    run = run_of(out=str(tmp_path / "a"), save_every=6)
    fit(run)
    with pytest.raises(InputError, match="another lr"):
        fit(dataclasses.replace(run, resume=True, lr=1e-3))
    data = tiny_data()
    data.record["splits"][0]["hash"] = "other"
    with pytest.raises(InputError, match="another data"):
        fit(dataclasses.replace(run, resume=True), data)


@pytest.mark.parametrize(
    "save_every, words", [(0, "no checkpoint was written"), (2, "the last good checkpoint is checkpoint-4")]
)
def test_nan_stops_names_the_step_and_keeps_the_last_checkpoint(tmp_path, save_every, words):
    def loss(stack: LoraStack, batch: Any) -> Tensor:
        return choice_loss(stack, batch) * (math.nan if batch.step == 5 else 1.0)

    run = run_of(out=str(tmp_path / "a"), save_every=save_every)
    with pytest.raises(RunError, match=f"nan at step 6 of 12; {words}") as caught:
        fit(run, loss=loss)
    assert caught.value.exit_code == 1
    assert (tmp_path / "a.checkpoints" / "checkpoint-4" / "complete.json").exists() == bool(save_every)


def test_weights_that_overflow_in_the_last_step_are_refused():
    def spoil(step: int) -> None:
        if step == TINY.steps - 1:
            model.base_model.model.lm_head.lora_B["default"].weight.data.fill_(math.inf)

    model = inject(tiny_llama(), TINY)
    with pytest.raises(RunError, match="lm_head.*not finite"):
        fit_loop(model, tiny_data(), TINY, after_step=spoil)


@pytest.mark.parametrize("select, key, best", [("best:nll", "nll", min), ("best:acc", "acc", max)])
def test_select_keeps_the_best_step(select, key, best):
    run = run_of(eval_every=1, select=select, lr=0.5)
    model, data, course = fit(run)
    values = [scores[key] for scores in course.evaluations]
    assert len(values) == 12 and course.selected == values.index(best(values)) + 1
    assert score(LoraStack(model), data)[key] == pytest.approx(best(values))
    assert values[-1] != best(values), "the test needs a run whose last step is not its best"


def test_score_is_nll_and_accuracy_of_the_selection_split():
    model, data, _ = fit(run_of(steps=4))
    with torch.no_grad():
        tables = [(by_hand(model.eval(), q.pairs, data.max_length), q.gold) for q in data.select]
    scores = score(LoraStack(model), data)
    assert scores["nll"] == pytest.approx(-sum(float(t[g]) for t, g in tables) / len(tables), abs=1e-5)
    assert scores["acc"] == sum(int(t.argmax()) == g for t, g in tables) / len(tables)


def test_eval_without_a_split_is_an_input_error():
    data = tiny_data()
    data.select = []
    with pytest.raises(InputError, match="select-split"):
        fit(run_of(eval_every=2), data)


def test_costs_and_curves_are_recorded():
    model, data, course = fit(run_of(steps=5))
    (record,) = data.record["training"]
    assert record["steps"] == 5 and record["seconds"] > 0 and record["peak_memory_bytes"] > 1e7
    assert record["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [value for _, value in record["loss"]] == course.losses
    assert json.loads(json.dumps(record)) == record
    assert thin([1.0, 2.0, 3.0, 6.0, 5.0], points=2) == [[3, 2.0], [5, 5.5]]


def test_the_callers_generators_are_left_alone():
    before = torch.random.get_rng_state()
    fit(run_of(steps=2, lora_dropout=0.2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradient_checkpointing_changes_nothing():
    plain, _, one = fit(run_of(steps=4))
    saving, _, two = fit(run_of(steps=4, gradient_checkpointing=True))
    assert one.losses == pytest.approx(two.losses, abs=1e-6)
    for name, tensor in adapter(plain).items():
        torch.testing.assert_close(adapter(saving)[name], tensor, atol=1e-5, rtol=1e-4)


TWIN = """
import dataclasses, json, os, sys, torch
torch.set_num_threads(1)
from uqharness.adapters.mle import MLE
from uqharness.testing import TINY, fit_tiny
run = dataclasses.replace(TINY, batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")))
posterior, _, data = fit_tiny(MLE(), run)
sums = {name: float(tensor.double().abs().sum()) for name, tensor in posterior.mean.items()}
path = os.path.join(sys.argv[1], f"{run.batch_size}-{os.environ.get('RANK', '0')}.json")
json.dump([sums, data.record["training"][0]["loss"]], open(path, "w"))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    (tmp_path / "twin.py").write_text(TWIN)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable], two):
        subprocess.run([*command, str(tmp_path / "twin.py"), str(tmp_path)], check=True, timeout=90)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("4-0", "2-0", "2-1"))
    assert first == second
    assert first[0] == pytest.approx(one[0], rel=1e-4)
    assert [v for _, v in first[1]] == pytest.approx([v for _, v in one[1]], abs=1e-4)


def test_a_logger_that_is_not_installed_is_an_input_error():
    with pytest.raises(InputError, match="report_to names nologger"):
        fit(run_of(report_to=("nologger",)))


# -------------------------------------------------------------------- the base and its adapter


def test_initialisation_follows_the_seed_and_not_the_global_generator():
    torch.manual_seed(1)
    one = adapter(inject(tiny_llama(), run_of(seed=3)))
    torch.manual_seed(2)
    two, other = adapter(inject(tiny_llama(), run_of(seed=3))), adapter(inject(tiny_llama(), run_of(seed=4)))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        if ".lora_A." in name:
            bound = 1 / math.sqrt(tensor.shape[1])
            assert not torch.equal(tensor, other[name])
            assert 0.8 * bound < float(tensor.abs().max()) <= bound
        else:
            assert not tensor.any()


@pytest.mark.parametrize("tied", [False, True])
def test_a_lora_on_the_head_leaves_the_embedding_alone(tied):
    base = tiny_llama(tie_word_embeddings=tied)
    before = base.get_input_embeddings().weight.detach().clone()
    model = inject(base, TINY)
    fit_loop(model, tiny_data(), TINY)
    assert torch.equal(model.get_input_embeddings().weight, before)
    names = set(LoraStack(model).mean())
    assert any("lm_head.lora_B" in name for name in names) and not any("embed" in name for name in names)
    assert all(".lora_" in name for name in names)


def test_build_model_loads_in_the_wanted_precision(tmp_path):
    base = make_base(tmp_path / "base")
    run = run_of(base=str(base), dtype="bfloat16", target_modules=("q_proj",))
    model, tokenizer = build_model(run)
    q = model.base_model.model.model.layers[0].self_attn.q_proj
    assert q.base_layer.weight.dtype == torch.bfloat16 and q.lora_A["default"].weight.dtype == torch.float32
    assert tokenizer.encode("A B", add_special_tokens=False) == [6, 7]
    assert model.peft_config["default"].base_model_name_or_path == str(base)
    model, _ = build_model(dataclasses.replace(run, dtype="auto"))
    assert next(model.parameters()).dtype == torch.float32
    fit_loop(build_model(run)[0], tiny_bf16_data(), dataclasses.replace(run, steps=2))


def tiny_bf16_data() -> ChoiceData:
    """Tokens within the 51-word vocabulary of tests/tiny.py."""
    data = tiny_data()
    for question in data.train:
        question.pairs[:] = [([t % 50 for t in context], answer) for context, answer in question.pairs]
    return data


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"target_modules": ("q_prj",)}, ["'q_prj' does not exist", "did you mean q_proj?", "lm_head"]),
        ({"target_modules": ("embed_tokens",)}, ["no linear layer"]),
        ({"base": "./nowhere"}, ["base model ./nowhere cannot be loaded: "]),
        ({"base": "./toyworl"}, ["base model ./toyworl cannot be loaded (did you mean toyworld?): "]),
        ({"base": ""}, ["--base"]),
    ],
)
def test_bad_bases_and_targets_give_one_line(tmp_path, changes, words):
    run = run_of(**{"base": str(make_base(tmp_path / "base")), **changes})
    with pytest.raises(InputError) as caught:
        build_model(run)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
