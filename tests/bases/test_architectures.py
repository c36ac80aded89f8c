"""The architectures that people have, with the defaults of the command line: train, evaluate, export, reload, table.

Tiny random models of each, whose heads are tied as those of the checkpoints named in docs/adapters.md are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, XGLMConfig

from tests.slow_twin import logprob, per_draw
from tests.tiny import WORDS, make_base
from tests.tiny_adapter import REQUESTS, instances, lines_of
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.engine.readers import Continuations
from uqharness.engine.rows import make_rows
from uqharness.engine.shortcuts import SKIPS, may_branch
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.settings import Run, recipe_hash
from uqharness.training.targets import default_targets

TINY = "--steps 3 --max-length 24 --device cpu --lr 0.05".split()
QUERY_VALUE_HEAD = ["q_proj", "v_proj", "lm_head"]
PADDED = 64  # rows of the embedding; the tokenizer has 51 tokens

CHAT = "{% for turn in messages %}w1 {{ turn['content'] }} w2 {% endfor %}{% if add_generation_prompt %}w3 {% endif %}"
HEADER = "| base | model type | default targets | tied head | LoRA on the head | chat | 4 bit |\n"
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True)
class Architecture:
    kind: str
    tied: bool
    targets: list[str] = field(default_factory=lambda: QUERY_VALUE_HEAD)
    config: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "Llama 3.2, SmolLM2": Architecture("llama", True),
    "Qwen3": Architecture("qwen3", True, config={"vocab_size": PADDED}),
    "Gemma 3 (text)": Architecture("gemma3_text", True, config={"vocab_size": PADDED, **WINDOWS}),
    "Gemma 3 (multimodal)": Architecture("gemma3", True),
    "Mistral": Architecture("mistral", False, config={"sliding_window": 6}),
    "Phi-3, Phi-4": Architecture("phi3", False, ["qkv_proj", "lm_head"], {"vocab_size": PADDED}),
    "SmolLM3": Architecture("smollm3", True, config={"no_rope_layers": [1, 0]}),
    "GPT-2": Architecture("gpt2", True, ["c_attn", "lm_head"]),
    "Mixtral": Architecture("mixtral", False),
    "Qwen3-MoE": Architecture("qwen3_moe", False, config={"vocab_size": PADDED}),
}


@dataclass(frozen=True)
class Made:
    name: str
    root: Path

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.name]

    def load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.root / "base", dtype=torch.float32).eval()

    def record(self, method: str) -> dict[str, Any]:
        record = adapter_io.read_record(self.root / method)
        assert record is not None
        return record

    def train(self, method: str, out: str, *more: str) -> int:
        words = ["train", method, "--base", str(self.root / "base"), "--task", "tiny_uq", "--out", str(self.root / out)]
        return main([*words, "--include-path", str(self.root / "tasks"), *TINY, *more])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A base and the adapters that mle and blob make of it."""
    name, root = request.param, tmp_path_factory.mktemp("architecture")
    architecture = ARCHITECTURES[name]
    make_base(root / "base", architecture.kind, tie_word_embeddings=architecture.tied, **architecture.config)
    make_task(root / "tasks")
    result = Made(name, root)
    for method in ("mle", "blob"):
        with lines_of("uqharness.train") as lines:
            assert result.train(method, method) == 0
        chosen = [line for line in lines if line.startswith("target modules: ")]
        assert len(chosen) == 1 and chosen[0].startswith(f"target modules: {' '.join(architecture.targets)} (auto, for")
    yield result


def test_default_targets_are_recorded_and_trained(made: Made) -> None:
    """The LoRA is in the language model and its head alone, and every part of it moves."""
    wanted = set(made.architecture.targets)
    for method in ("mle", "blob"):
        assert made.record(method)["run"]["target_modules"] == made.architecture.targets
        tensors = load_file(made.root / method / adapter_io.MEAN)
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in tensors} == wanted
        assert not any("vision" in name or "embed" in name for name in tensors)
        assert all(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name)
        assert len(tensors) == 2 * (2 * (len(wanted) - 1) + 1)  # A and B, of two layers and the head
    base = made.load()
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) == made.architecture.tied


def test_draws_are_those_of_stock_peft_and_of_the_slow_twin(made: Made) -> None:
    ours = BayesLoRA(adapter=str(made.root / "blob"), samples=2, device="cpu", batch_size=3)
    values = [value for value, _ in ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)]
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    assert ours.truncated == 0
    twin = per_draw(ours.model, ours.predictive.posterior, pairs, samples=2, seed=0)
    drawn = torch.tensor([value.draws for value in values], dtype=torch.float64).T
    tolerance = 1e-5 * torch.tensor([len(answer) for _, answer in pairs], dtype=torch.float64)
    assert ((drawn - twin).abs() <= tolerance).all()
    assert (twin[0] - twin[1]).abs().max() > 1e-4  # the draws differ
    assert main(["export", str(made.root / "blob"), str(made.root / "draws"), "--samples", "2"]) == 0
    for i in range(2):
        theirs = PeftModel.from_pretrained(made.load(), str(made.root / "draws" / f"draw{i}")).eval()
        for k, pair in enumerate(pairs):
            assert logprob(theirs, *pair) == pytest.approx(float(drawn[i, k]), abs=float(tolerance[k]))
    mean = PeftModel.from_pretrained(made.load(), str(made.root / "blob")).eval()
    plain = made.load()
    for value, pair in zip(values, pairs, strict=True):
        assert logprob(mean, *pair) == pytest.approx(value.mean, abs=1e-5 * len(pair[1]))
    assert max(abs(logprob(plain, *pair) - value.mean) for value, pair in zip(values, pairs, strict=True)) > 1e-3


def test_what_nobody_reads_changes_nothing(made: Made) -> None:
    """Shared prompts and the last layer's shortcut, where the architecture has them, on and off."""
    ours = BayesLoRA(adapter=str(made.root / "blob"), samples=2, device="cpu")
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    questions = [pairs[k : k + 4] for k in range(0, len(pairs), 4)]
    alternatives = []
    with torch.no_grad():
        for branch in {False, may_branch(ours.model, 24)}:
            rows = make_rows(questions, 24, branch=branch)
            for skip in (False, True):
                with ours.engine.using(0, 3):  # the mean and two draws
                    logits = Continuations().logits(ours.model, rows, 3, skip=skip)
                    alternatives.append(Continuations().log_likelihoods(logits, rows))
    for values in alternatives[1:]:
        torch.testing.assert_close(values, alternatives[0], rtol=0, atol=3e-5)


def test_a_base_in_4_bit(made: Made) -> None:
    """The projections are quantised, the head is not; the adapter moves the answers of the quantised base."""
    pytest.importorskip("bitsandbytes")
    assert made.train("mle", "four", "--load-in-4bit") == 0
    ours = BayesLoRA(adapter=str(made.root / "four"), samples=1, device="cpu", load_in_4bit=True)
    kinds = {name.split(".base_layer")[0]: type(module).__name__ for name, module in ours.model.named_modules()}
    quantised = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    adapted = {name.split(".lora_")[0] for name in ours.predictive.posterior.mean}
    assert {name for name in adapted if not name.endswith("lm_head")} <= quantised
    assert not any(name.endswith("lm_head") for name in quantised)
    values = [float(value) for value, _ in ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)]
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    assert values == pytest.approx([logprob(ours.model, *pair) for pair in pairs], abs=1e-4)
    with ours.model.disable_adapter():
        plain = [logprob(ours.model, *pair) for pair in pairs]
    assert max(abs(a - b) for a, b in zip(values, plain, strict=True)) > 1e-3


def test_it_is_asked_through_a_chat_template(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    tokenizer = AutoTokenizer.from_pretrained(made.root / "base")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made.root / "base")
    assert made.train("mle", "chat", "--apply-chat-template", "--steps", "1") == 0
    command = ["eval", str(made.root / "chat"), "--tasks", "tiny_uq", "--include_path", str(made.root / "tasks")]
    words = ["--apply_chat_template", "--limit", "2", "--device", "cpu", "--log_samples"]
    assert main([*command, *words, "--output_path", str(made.root / "chat results")]) == 0
    (samples,) = (made.root / "chat results").rglob("samples_tiny_uq_*.jsonl")
    prompt = json.loads(samples.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("w1 w") and prompt.rstrip().endswith("Answer: w2 w3")


def test_the_documented_table_is_what_these_tests_show() -> None:
    page = (Path(__file__).parents[2] / "docs/adapters.md").read_text(encoding="utf-8")
    _, _, rows = page.partition(HEADER)
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.split("\n\n")[0].splitlines()[1:]]
    assert "shared prompts\n([performance](performance.md)) are for `llama`, `mistral`, `qwen2` and `qwen3`" in page
    assert SKIPS == ("llama", "mistral", "qwen2", "qwen3")
    shown = {name: cells for name, *cells in table}
    assert shown.keys() == ARCHITECTURES.keys()
    for name, made in ARCHITECTURES.items():
        kind, targets, tied, *others = shown[name]
        assert (kind, targets) == (f"`{made.kind}`", f"`{' '.join(made.targets)}`"), name
        assert tied.split()[0] == ("yes" if made.tied else "no"), name
        assert others == ["yes", "yes", "yes"], name  # the tests above, for each


def test_it_is_evaluated_and_stands_in_the_table(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs pip
    for method in ("mle", "blob"):
        command = ["eval", str(made.root / method), "--tasks", "tiny_uq", "--include_path", str(made.root / "tasks")]
        words = ["--model_args", "samples=2", "--device", "cpu", "--output_path", str(made.root / "results")]
        assert main([*command, *words]) == 0
    capsys.readouterr()
    assert main(["table", str(made.root / "results"), "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]  # one: they compare
    assert {row["method"] for row in table["rows"]} == {"MLE", "BLoB"}


# ---------------------------------------------------------------- what is chosen, and what is refused


@pytest.fixture
def tiny(tmp_path: Path) -> Made:
    make_base(tmp_path / "base", tie_word_embeddings=True)
    make_task(tmp_path / "tasks")
    return Made("Llama 3.2, SmolLM2", tmp_path)


def test_the_choice_is_the_same_recipe_as_its_names(tiny: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.train("mle", "auto") == 0
    assert tiny.train("mle", "named", "--target-modules", "lm_head", "v_proj", "q_proj") == 0
    auto, named = tiny.record("auto"), tiny.record("named")
    assert auto["recipe_hash"] == named["recipe_hash"]
    tensors, others = (load_file(tiny.root / out / adapter_io.MEAN) for out in ("auto", "named"))
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    # What adapters of before the choice have: their default was these names.
    run = Run(base="b", task="t", target_modules=("q_proj", "v_proj", "lm_head"))
    assert recipe_hash(run, {"splits": []}) == "v2-344c42efeea3e96f"
    capsys.readouterr()
    assert tiny.train("mle", "dry", "--dry-run") == 0
    assert "target_modules: q_proj v_proj lm_head  (auto, for llama)" in capsys.readouterr().out


def test_a_seed_of_other_targets_is_not_taken_for_complete(tiny: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.train("mle", "runs", "--seeds", "1") == 0
    assert tiny.train("mle", "runs", "--seeds", "1") == 0
    assert "complete, skipped" in capsys.readouterr().out
    assert tiny.train("mle", "runs", "--seeds", "1", "--target-modules", "q_proj") == 2


def test_an_unknown_architecture_is_refused_with_its_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"d_model": 32, "ffn_dim": 16, "num_layers": 1, "attention_heads": 2, "vocab_size": len(WORDS)}
    xglm = AutoModelForCausalLM.from_config(XGLMConfig(**shape))
    assert default_targets(xglm) == ("q_proj", "v_proj", "lm_head")  # not in PEFT's mapping, and named as usual
    make_base(tmp_path / "base", "openai-gpt")
    make_task(tmp_path / "tasks")
    assert Made("", tmp_path).train("mle", "mle") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uqharness: ")]
    assert "no default target modules are known for openai-gpt" in line
    assert "--target-modules" in line and "c_attn, c_fc, c_proj, lm_head" in line
    assert Made("", tmp_path).train("mle", "mle", "--target-modules", "c_attn") == 0


def test_words_beside_names_and_missing_layers_are_refused(tiny: Made, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="target_modules has auto beside names"):
        Run(target_modules=("auto", "q_proj"))
    assert tiny.train("mle", "x", "--target-modules", "c_attn") == 2
    assert "target module 'c_attn' does not exist in LlamaForCausalLM" in capsys.readouterr().err


@pytest.mark.parametrize("targets", [["q_proj"], ["all-linear"], ["fc1"]])
def test_named_targets_of_a_multimodal_base_are_in_its_language_model(
    targets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base(tmp_path / "base", "gemma3", tie_word_embeddings=True)
    make_task(tmp_path / "tasks")
    code = Made("", tmp_path).train("mle", "mle", "--target-modules", *targets)
    if targets == ["fc1"]:  # the vision tower's
        assert code == 2 and "target module 'fc1' does not exist" in capsys.readouterr().err
        return
    assert code == 0
    names = {name.split(".lora_")[0] for name in load_file(tmp_path / "mle" / adapter_io.MEAN)}
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    assert len(names) == 2 * (7 if targets == ["all-linear"] else 1)


def test_a_multimodal_base_that_is_no_causal_language_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen2.5-VL and its like: transformers loads them for images and text only."""
    made = Made("", tmp_path)
    make_base(tmp_path / "base")
    make_task(tmp_path / "tasks")
    assert made.train("mle", "mle") == 0
    AutoConfig.for_model("qwen2_5_vl").save_pretrained(tmp_path / "base")
    capsys.readouterr()
    evaluate = ["eval", str(tmp_path / "mle"), "--tasks", "tiny_uq", "--include_path", str(tmp_path / "tasks")]
    for command in (
        lambda: made.train("mle", "x"),
        lambda: made.train("mle", "x", "--target-modules", "q_proj"),
        lambda: main([*evaluate, "--device", "cpu"]),
    ):
        assert command() == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uqharness: ")]
        assert "Qwen2_5_VLConfig" in line or "qwen2_5_vl" in line
        assert "language model" in line and "give a base" in line
