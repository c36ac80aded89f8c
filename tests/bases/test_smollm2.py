"""A real pretrained model from training to evaluation: SmolLM2-135M-Instruct (tools/real_models.py), fp32, CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main

TASK, QUESTIONS = "toyworld_cloze_uq", 6  # answers of one to three words, so of several tokens


def train(base: Path, out: Path, *flags: str) -> Path:
    words = ["train", "mle", "--base", str(base), "--task", TASK, "--out", str(out), "--device", "cpu"]
    fast = ["--steps", "3", "--batch-size", "2", "--lr", "3e-4", "--warmup", "0", "--schedule", "constant"]
    assert main([*words, *fast, *flags]) == 0
    return out


def answers(
    monkeypatch: pytest.MonkeyPatch, model: str | HFLM, arguments: dict[str, Any] | None = None
) -> list[tuple[str, float]]:
    """(answer, its log-likelihood) of every request."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs pip
    folder = Path(__file__).parents[2] / "tasks"
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        device="cpu",
        batch_size=4,
        limit=QUESTIONS,
        tasks=[TASK],
        task_manager=TaskManager(include_defaults=False, include_path=str(folder)),
        bootstrap_iters=0,
    )
    answers = [answer for one in results["samples"][TASK] for _, answer in one["arguments"]]
    given = [float(value) for one in results["samples"][TASK] for value, _ in one["filtered_resps"]]
    return list(zip(answers, given, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "v_proj", "lm_head"]], ids=["attention", "head"])
def test_a_trained_adapter_answers_as_under_hf(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str]
) -> None:
    adapter = train(smollm2, tmp_path / "mle", "--target-modules", *targets)
    record = adapter_io.read_record(adapter)
    assert record is not None and record["data"]["multi_token_choices"] > 0
    ours = answers(monkeypatch, "bayeslora", {"adapter": str(adapter), "samples": 1})
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    plain = answers(monkeypatch, HFLM(pretrained=base, tokenizer=tokenizer, batch_size=4))
    # HFLM ties the tied head once more, which fails where PEFT wraps it (`peft=` has the same fault).
    monkeypatch.setattr(LlamaForCausalLM, "tie_weights", lambda self: None)
    lora = PeftModel.from_pretrained(base, str(adapter))
    hf = answers(monkeypatch, HFLM(pretrained=lora, tokenizer=tokenizer, batch_size=4))
    assert [text for text, _ in ours] == [text for text, _ in hf] and len(ours) > QUESTIONS
    for (text, value), (_, theirs) in zip(ours, hf, strict=True):
        # 1e-5 a token, and float32's own resolution where an answer is as unlikely as e^-30.
        assert value == pytest.approx(theirs, abs=1e-5 * len(tokenizer.tokenize(text)) + 1e-6 * abs(theirs))
    moved = [abs(theirs - before) for (_, theirs), (_, before) in zip(hf, plain, strict=True)]
    assert sum(moved) / len(moved) > 0.03  # training did something: the comparison is not of two base models
