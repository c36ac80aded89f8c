"""Bases whose head is the embedding, padded vocabularies, and weights of the base in an adapter's file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import WORDS, make_base, make_lora
from tests.tiny_adapter import REQUESTS, instances, lines_of, record, save
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import Point
from uqharness.training.base_model import fit_vocabulary, untie

PADDED = 64  # rows of the embedding; the tokenizer has 51 tokens
BASES = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {}),
    "llama, padded": ("llama", {"vocab_size": PADDED}),
    "untied, padded": ("llama", {"vocab_size": PADDED, "tie_word_embeddings": False}),
}


def load(base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 13)[None]).logits


def train(root: Path, method: str, out: Path, *more: str) -> int:
    command = ["train", method, "--base", str(root / "base"), "--task", "tiny_uq", "--out", str(out), "--lora-r", "2"]
    quick = "--steps 3 --lr 0.05 --batch-size 4 --max-length 24 --device cpu".split()
    return main([*command, *quick, "--include-path", str(root / "tasks"), *more])


@pytest.mark.parametrize("name", BASES)
def test_default_targets_train_evaluate_export_and_load(name: str, tmp_path: Path) -> None:
    """The default recipe has a LoRA on the head: of the head alone, whatever the head is tied to."""
    kind, config = BASES[name]
    tied = config.get("tie_word_embeddings", True)
    base = make_base(tmp_path / "base", kind, **{"tie_word_embeddings": True, **config})
    make_task(tmp_path / "tasks")
    note = "ties its output head to its embedding"
    with lines_of("uqharness.train") as lines:
        assert train(tmp_path, "blob", tmp_path / "blob") == 0
    assert sum(note in line for line in lines) == tied
    tensors = load_file(tmp_path / "blob" / adapter_io.MEAN)
    assert any("lm_head.lora_B" in key and tensor.any() for key, tensor in tensors.items())
    assert all(".lora_" in key and "embed" not in key for key in tensors)
    with lines_of("lm_eval.uqharness") as lines:
        ours = BayesLoRA(adapter=str(tmp_path / "blob"), samples=2, device="cpu")
    assert sum(note in line for line in lines) == tied
    plain = load(base)
    assert torch.equal(ours.model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    assert (logits(ours.model) - logits(plain)).abs().max() > 1e-3  # the adapter is there
    values = [value for value, _ in ours.loglikelihood(instances("loglikelihood", REQUESTS))]
    assert main(["export", str(tmp_path / "blob"), str(tmp_path / "draws"), "--samples", "2"]) == 0
    for i in range(2):
        theirs = PeftModel.from_pretrained(load(base), str(tmp_path / "draws" / f"draw{i}")).eval()
        for (context, answer), value in zip(REQUESTS, values, strict=True):
            prompt, tokens = ours._encode_pair(context, answer)
            with torch.no_grad():
                logp = theirs(input_ids=torch.tensor([[*prompt, *tokens]])).logits.double().log_softmax(-1)[0]
            wanted = sum(float(logp[len(prompt) + k - 1, token]) for k, token in enumerate(tokens))
            assert value.draws[i] == pytest.approx(wanted, abs=1e-5 * len(tokens))
    mean = PeftModel.from_pretrained(load(base), str(tmp_path / "blob")).eval()
    assert torch.allclose(logits(mean), logits(ours.model), atol=1e-5)


def test_what_stock_tools_make_of_a_head_adapter(tmp_path: Path) -> None:
    """docs/adapters.md says it: PEFT loads both, `--model hf,peft=` fails; once they work, that page is to change."""
    for name, config in {"tied": {"tie_word_embeddings": True}, "padded": {"vocab_size": PADDED}}.items():
        base = make_base(tmp_path / f"{name} base", **config)
        adapter = save(tmp_path / name, base)
        assert torch.isfinite(logits(PeftModel.from_pretrained(load(base), str(adapter)))).all()
        with pytest.raises((KeyError, RuntimeError), match="already exists|size mismatch"):
            HFLM(pretrained=str(base), peft=str(adapter), device="cpu")
        BayesLoRA(adapter=str(adapter), device="cpu")


def test_a_merge_after_untying_keeps_the_embedding(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = save(tmp_path / "adapter", base, std=None)
    wanted = logits(PeftModel.from_pretrained(load(base), str(adapter)).eval())
    spoiled = PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload()
    assert (logits(spoiled) - wanted).abs().max() > 1  # why `untie` is there
    plain = load(base)
    before = plain.get_input_embeddings().weight.detach().clone()
    untie(plain)
    merged = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert torch.equal(again.get_input_embeddings().weight, before)
    assert torch.allclose(logits(again), wanted, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_grow_to_a_longer_tokenizer_and_never_shrink(tied: bool, tmp_path: Path) -> None:
    """New rows are the same in training and in evaluation: an adapter of ours holds no embedding."""
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["w40", "w41"])
    tokenizer.save_pretrained(base)
    make_task(tmp_path / "tasks")
    assert train(tmp_path, "mle", tmp_path / "mle") == 0
    ours = BayesLoRA(adapter=str(tmp_path / "mle"), device="cpu")
    head = next(t for n, t in load_file(tmp_path / "mle" / adapter_io.MEAN).items() if "lm_head.lora_B" in n)
    assert len(head) == len(WORDS) + 2 == ours.model.get_input_embeddings().weight.shape[0]
    (value,) = ours.loglikelihood(instances("loglikelihood", [("w1 w40", " w41")]))
    assert torch.isfinite(torch.tensor(float(value[0])))
    longer, old = load(base), load(base).get_input_embeddings().weight
    fit_vocabulary(longer, len(WORDS) - 5)
    assert longer.get_input_embeddings().weight.shape == old.shape
    fit_vocabulary(longer, len(WORDS) + 2)
    rows = longer.get_input_embeddings().weight
    assert torch.equal(rows[: len(WORDS)], old) and torch.allclose(rows[len(WORDS) :], old.mean(0).expand(2, -1))
    assert (longer.get_output_embeddings().weight is rows) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_base_weights_of_a_plain_adapter_are_ignored_where_equal_else_refused(tied: bool, tmp_path: Path) -> None:
    """PEFT saves `lm_head.base_layer.weight` where the head has a LoRA, and on request the embedding."""
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)
    make_lora(base).save_pretrained(tmp_path / "plain", save_embedding_layers=True)
    path = tmp_path / "plain" / adapter_io.MEAN
    names = [name for name in load_file(path) if ".lora_" not in name]
    assert "base_model.model.lm_head.base_layer.weight" in names
    bare = save(tmp_path / "bare", base, std=None)
    ours, wanted = (BayesLoRA(adapter=str(a), device="cpu") for a in (tmp_path / "plain", bare))
    assert set(ours.predictive.posterior.mean) == set(wanted.predictive.posterior.mean)
    assert torch.equal(logits(ours.model), logits(wanted.model))
    half = BayesLoRA(adapter=str(tmp_path / "plain"), device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    for name in names:
        tensors = load_file(path)
        tensors[name][3, 4] += 0.5
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / adapter_io.PEFT_CONFIG).write_text((path.parent / adapter_io.PEFT_CONFIG).read_text())
        save_file(tensors, tmp_path / "other" / adapter_io.MEAN, {"format": "pt"})
        with pytest.raises(InputError, match=f"{name} .*differs from the base's by up to 0.5"):
            BayesLoRA(adapter=str(tmp_path / "other"), device="cpu")
    save_file({**load_file(path), names[0]: torch.zeros(64, 32)}, tmp_path / "other" / adapter_io.MEAN)
    with pytest.raises(InputError, match=r"\[64, 32\], which the base has as torch.float32 \[51, 32\]"):
        BayesLoRA(adapter=str(tmp_path / "other"), device="cpu")


def test_trained_copies_and_biases_are_no_weights_of_the_base(tmp_path: Path) -> None:
    """What PEFT trains whole belongs to the adapter, and may differ from the base."""
    base = make_base(tmp_path / "base", mlp_bias=True)
    model = make_lora(base, target_modules=["up_proj"], modules_to_save=["lm_head"], bias="lora_only")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or name.endswith("up_proj.base_layer.bias"):
                parameter.add_(0.5)
    model.save_pretrained(tmp_path / "whole")
    ours = BayesLoRA(adapter=str(tmp_path / "whole"), device="cpu")
    assert any(name.endswith("lm_head.weight") for name in ours.predictive.posterior.mean)
    assert torch.allclose(logits(ours.model), logits(model), atol=1e-5)


def test_a_tensor_that_the_configuration_asks_for_and_the_file_lacks_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = make_lora(base)
    mean = LoraStack(model).mean()
    mean.pop("base_model.model.lm_head.lora_A.weight")
    adapter_io.save_adapter(tmp_path / "adapter", model, Point(mean, train_seed=0), record(base, model, "mle"))
    with pytest.raises(InputError, match="1 of 10 tensors that adapter_config.json asks for .*lm_head.lora_A"):
        BayesLoRA(adapter=str(tmp_path / "adapter"), device="cpu")
