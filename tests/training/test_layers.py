"""`--layers`: a LoRA in some of the layers, as stock PEFT reads it, and what training then leaves out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.tiny import make_base
from tests.tiny_adapter import gaussian, lines_of, record
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io.folder import attach
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import model_input
from uqharness.errors import InputError
from uqharness.testing import TINY, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import Batch, choice_loss, collate, fit_loop, prepare_memory
from uqharness.training.prefix_cache import _KEPT, PrefixCache, read

RUN = dataclasses.replace(TINY, layers="last:2", target_modules=("q_proj", "v_proj"))


def with_lora(model: PeftModel) -> set[str]:
    """Modules with a LoRA, by the names of their tensors."""
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in LoraStack(model).mean()}


def names(layers: tuple[int, ...], *parts: str) -> set[str]:
    return {f"model.layers.{layer}.{part}" for layer in layers for part in parts}


@pytest.mark.parametrize(
    ("layers", "targets", "wanted"),
    [
        ("last:2", ("q_proj",), names((2, 3), "self_attn.q_proj")),
        ("0,3", ("v_proj", "lm_head"), names((0, 3), "self_attn.v_proj") | {"lm_head"}),
        ("1", ("self_attn.q_proj", "model.layers.1.mlp.up_proj"), names((1,), "self_attn.q_proj", "mlp.up_proj")),
        (
            "last:1",
            ("all-linear",),
            names((3,), *(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("up", "down", "gate"))),
        ),
    ],
)
def test_these_layers_get_a_lora_and_the_head_if_it_is_a_target(
    layers: str, targets: tuple[str, ...], wanted: set[str]
) -> None:
    run = dataclasses.replace(RUN, layers=layers, target_modules=targets)
    assert with_lora(inject(tiny_llama(num_hidden_layers=4), run)) == wanted


def test_many_layers_are_still_these_layers() -> None:
    """PEFT shortens lists of twenty names and more."""
    run = dataclasses.replace(RUN, layers="last:12", target_modules=("q_proj", "v_proj", "lm_head"))
    model = inject(tiny_llama(num_hidden_layers=14), run)
    wanted = names(tuple(range(2, 14)), "self_attn.q_proj", "self_attn.v_proj") | {"lm_head"}
    assert with_lora(model) == wanted and len(wanted) > 20


def test_all_layers_is_what_it_was() -> None:
    run = dataclasses.replace(RUN, layers="all")
    model = inject(tiny_llama(), run)
    assert model.peft_config["default"].target_modules == {"q_proj", "v_proj"}


def test_layers_that_do_not_exist_or_have_no_target_are_refused() -> None:
    with pytest.raises(InputError, match="last:40: the base has 2 layers"):
        inject(tiny_llama(), dataclasses.replace(RUN, layers="last:40"))
    with pytest.raises(InputError, match="layers last:1 have none of lm_head"):
        inject(tiny_llama(), dataclasses.replace(RUN, layers="last:1", target_modules=("lm_head",)))


def test_stock_peft_and_our_reader_load_the_same_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", num_hidden_layers=4)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    run = dataclasses.replace(RUN, base=str(base), target_modules=("q_proj", "v_proj", "lm_head"))
    model = inject(load(), run)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "adapter"
    adapter_io.save_adapter(folder, model, gaussian(model), record(base, model, "blob"))
    ids = torch.tensor([[1, 7, 9]])
    with torch.no_grad():
        wanted, plain = model.eval()(input_ids=ids).logits, load()(input_ids=ids).logits
        stock = PeftModel.from_pretrained(load(), str(folder)).eval()(input_ids=ids).logits
        own = attach(load(), folder, str(base)).eval()(input_ids=ids).logits
    assert torch.equal(stock, wanted) and torch.equal(own, wanted)
    assert float((wanted - plain).abs().max()) > 0.1


# ---------------------------------------------------------------- training


def graph_of(model: PeftModel, run: Any) -> list[bool]:
    """Whether autograd keeps something of each layer in a training step that is prepared as `fit_loop` does it."""
    data = tiny_data()
    layers: Any = model.get_base_model().model.layers
    tracked: list[bool] = [False] * len(layers)
    for number, layer in enumerate(layers):

        def note(_: object, __: object, output: torch.Tensor, number: int = number) -> None:
            tracked[number] |= output.requires_grad

        layer.register_forward_hook(note)
    fit_loop(model, data, dataclasses.replace(run, steps=1))
    return tracked


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_keeps_no_graph_below_the_first_lora(checkpointing: bool) -> None:
    run = dataclasses.replace(RUN, gradient_checkpointing=checkpointing)
    model = inject(tiny_llama(num_hidden_layers=4), run)
    assert graph_of(model, run) == [False, False, True, True]
    embedded = model.get_input_embeddings()(torch.tensor([[1, 2]]))
    assert not embedded.requires_grad
    on = any(getattr(layer, "gradient_checkpointing", False) for layer in model.get_base_model().model.layers)
    assert on == checkpointing


@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_gradient_checkpointing_gives_the_same_gradients(layers: str) -> None:
    run, gradients = dataclasses.replace(RUN, layers=layers), []
    rows, gold = collate(tiny_data().train[:4], tiny_data())
    for checkpointing in (False, True):
        model = inject(tiny_llama(num_hidden_layers=4), run).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.1)
        prepare_memory(model, dataclasses.replace(run, gradient_checkpointing=checkpointing))
        choice_loss(LoraStack(model), Batch(rows, gold, 0, 0)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- command line


def test_from_training_to_an_adapter_that_is_built_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny_task import make_task
    from uqharness.cli import main

    base = make_base(tmp_path / "base", num_hidden_layers=3)
    make_task(tmp_path / "tasks")
    fast = ["--steps", "4", "--lr", "1e-2", "--max-length", "32", "--device", "cpu", "--lora-r", "2"]
    where = ["--include-path", str(tmp_path / "tasks"), *fast]
    first = ["train", "mle", "--base", str(base), "--task", "tiny_uq", "--layers", "last:1", *where]
    assert main([*first, "--out", str(tmp_path / "mle")]) == 0
    saved = adapter_io.read_record(tmp_path / "mle")
    assert saved is not None and saved["run"]["layers"] == "last:1" == saved["recipe"]["layers"]
    assert saved["run"]["target_modules"] == ["q_proj", "v_proj", "lm_head"]
    listed = json.loads((tmp_path / "mle" / "adapter_config.json").read_text())["target_modules"]
    assert sorted(listed) == ["lm_head", *(f"model.layers.2.self_attn.{x}_proj" for x in "qv")]
    build = ["train", "laplace", "--adapter", str(tmp_path / "mle"), *where[:2], "--device", "cpu"]
    assert main([*build, "--out", str(tmp_path / "lap")]) == 0
    built = adapter_io.read_record(tmp_path / "lap")
    assert built is not None and built["run"]["layers"] == "last:1" and built["recipe_hash"] == saved["recipe_hash"]
    assert built["run"]["target_modules"] == saved["run"]["target_modules"]
    capsys.readouterr()
    assert main([*build, "--layers", "last:2", "--out", str(tmp_path / "no")]) == 2
    assert "layers is last:2 in the command and last:1 in the adapter" in capsys.readouterr().err
    assert main([*first[: -len(where) - 1], "last:40", *where, "--out", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err
    assert "layers is last:40: the base has 3 layers, numbered 0 to 2" in said and "Traceback" not in said
    assert not (tmp_path / "no").exists()


# ---------------------------------------------------------------- states that are kept


@contextmanager
def counted(model: PeftModel) -> Iterator[list[int]]:
    """Rows that the first and the last layer have run on within."""
    layers: Any = model.get_base_model().model.layers
    counts, handles = [0, 0], []
    for n, layer in enumerate((layers[0], layers[-1])):

        def count(_: object, args: tuple[torch.Tensor], n: int = n) -> None:
            counts[n] += len(args[0])

        handles.append(layer.input_layernorm.register_forward_pre_hook(count))
    yield counts
    for handle in handles:
        handle.remove()


def trained(run: Any, **config: Any) -> tuple[dict[str, torch.Tensor], list[float], list[int]]:
    model = inject(tiny_llama(num_hidden_layers=4, **config), run)
    with counted(model) as counts:
        course = fit_loop(model, tiny_data(), run)
    return LoraStack(model).mean(), course.losses, counts


@pytest.mark.parametrize("change", [{}, {"lora_dropout": 0.3}, {"gradient_checkpointing": True}])
def test_later_epochs_start_at_the_first_lora_with_the_same_numbers(change: dict[str, Any]) -> None:
    _KEPT.clear()
    run = dataclasses.replace(RUN, steps=8, **change)  # two epochs of 16 questions
    cached = dataclasses.replace(run, cache_prefix=1.0)
    one, losses, _ = trained(run)
    two, others, (first, last) = trained(cached)
    questions = [[model_input(*pair, 24) for pair in question.pairs] for question in tiny_data().train]
    # Choices share their prompt, and are kept with it; under dropout each input is a row.
    inputs = set(sum(questions, [])) if run.lora_dropout else {tuple(inputs) for inputs in questions}
    checked = 4 * 3  # rows of the first batch, at most, that run in full once more
    assert len(inputs) <= first <= len(inputs) + checked < last
    assert others == pytest.approx(losses, abs=1e-5)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    _, again, (first, _) = trained(dataclasses.replace(cached, seed=1))  # another seed in the same process
    assert first <= 2 * checked and again != others


def test_another_base_gets_nothing_of_the_first_and_the_budget_holds() -> None:
    _KEPT.clear()
    run = dataclasses.replace(RUN, steps=4, cache_prefix=1.0)
    trained(run)
    (key,) = _KEPT
    fit_loop(inject(tiny_llama(seed=1, num_hidden_layers=4), run), tiny_data(), run)
    (other,) = _KEPT
    assert other != key
    _KEPT.clear()
    small = 3000 / 2**30  # bytes: a few inputs of 32 numbers a token
    with lines_of("uqharness.train") as lines:
        _, losses, _ = trained(dataclasses.replace(run, steps=8, cache_prefix=small))
    (states,) = _KEPT.values()
    assert 0 < sum(state.nbytes for state in states.values()) <= 3000
    assert [line for line in lines if "is full after" in line] == lines and len(lines) == 1
    assert losses == pytest.approx(trained(dataclasses.replace(run, steps=8, cache_prefix=0.0))[1], abs=1e-5)


def test_a_file_hands_the_states_to_other_commands_and_methods(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=8, cache_prefix=1.0)
    plain, losses, _ = trained(run)
    filed = dataclasses.replace(run, cache_prefix_dir=str(tmp_path / "states"))
    trained(filed)  # writes what an earlier run has left in memory
    _KEPT.clear()  # as in another process
    one, again, (first, last) = trained(filed)
    assert first <= 2 * 4 * 3 < last and again == pytest.approx(losses, abs=1e-5)  # the check of the first batch alone
    for name, tensor in plain.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-5)
    (file,) = (tmp_path / "states").iterdir()
    assert file.suffix == ".safetensors"


def test_another_base_depth_or_a_merged_one_gets_another_file(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=2, cache_prefix=1.0, cache_prefix_dir=str(tmp_path))
    trained(run)
    trained(dataclasses.replace(run, layers="last:1"))
    merged = tiny_llama(num_hidden_layers=4)
    with torch.no_grad():  # norms and embeddings, which the base's fingerprint reads, stay as they are
        merged.model.layers[1].self_attn.q_proj.weight.addmm_(torch.ones(32, 1), torch.ones(1, 32), alpha=1e-3)
    fit_loop(inject(merged, run), tiny_data(), run)
    trained(run, rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    assert len(list(tmp_path.iterdir())) == 4


def test_states_of_two_processes_lie_in_one_file_within_the_budget(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=1, cache_prefix=1.0, cache_prefix_dir=str(tmp_path))

    def states_after(run: Any) -> set[str]:
        _KEPT.clear()
        trained(run)
        return set(read(next(tmp_path.iterdir())))

    one = states_after(run)
    (file,) = tmp_path.iterdir()
    cache = PrefixCache(LoraStack(inject(tiny_llama(num_hidden_layers=4), run)), run)
    more = states_after(dataclasses.replace(run, seed=4))  # written after the other has read the file
    assert more > one
    cache.state(collate(tiny_data().train, tiny_data(), True)[0])
    for key in more - one:
        del cache.states[key]
    own = set(cache.states)
    assert own - more and more - own
    cache.save()
    assert set(read(file)) == own | more
    size = sum(state.nbytes for state in read(file).values())
    small = dataclasses.replace(run, steps=8, cache_prefix=size / 2 / 2**30)
    states_after(small)
    assert sum(state.nbytes for state in next(iter(_KEPT.values())).values()) <= size / 2


def test_a_file_that_is_not_whole_or_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, steps=2, cache_prefix=1.0, cache_prefix_dir=str(tmp_path / "states"))
    _KEPT.clear()
    _, losses, _ = trained(run)
    (file,) = (tmp_path / "states").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    _KEPT.clear()
    with lines_of("uqharness.train") as lines:
        assert trained(run)[1] == losses
    assert any("cannot be read" in line and "computed again" in line for line in lines)
    assert len(file.read_bytes()) == len(whole)
    (tmp_path / "file").write_text("")
    with lines_of("uqharness.train") as lines:
        trained(dataclasses.replace(run, cache_prefix_dir=str(tmp_path / "file"), seed=1))
    assert any("cannot be written" in line for line in lines)
    with pytest.raises(InputError, match="cache_prefix_dir is set without a budget"):
        dataclasses.replace(run, cache_prefix=0.0)


def test_kept_states_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(InputError, match="no layers that are known to be alike"):
        trained(dataclasses.replace(RUN, layers="all", cache_prefix=1.0))
    with pytest.raises(InputError, match="dropout of its own"):
        trained(dataclasses.replace(RUN, cache_prefix=1.0), attention_dropout=0.1)
