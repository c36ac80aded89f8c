"""A real pretrained model from training to evaluation: SmolLM2-135M-Instruct (tools/real_models.py), fp32, CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from uqharness import adapter_io
from uqharness.cli import main

TASK, QUESTIONS = "toyworld_cloze_uq", 6  # answers of one to three words, so of several tokens


def train(base: Path, out: Path, *flags: str) -> Path:
    words = ["train", "mle", "--base", str(base), "--task", TASK, "--out", str(out), "--device", "cpu"]
    fast = ["--steps", "3", "--batch-size", "2", "--lr", "1e-3", "--warmup", "0", "--schedule", "constant"]
    assert main([*words, *fast, *flags]) == 0
    return out


def answers(monkeypatch: pytest.MonkeyPatch, model: str, arguments: dict[str, Any]) -> list[tuple[str, float]]:
    """(answer, its log-likelihood) of every request."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs pip
    folder = Path(__file__).parents[1] / "tasks"
    results = lm_eval.simple_evaluate(
        model=model, model_args={**arguments, "dtype": "float32"}, device="cpu", batch_size=4, limit=QUESTIONS,
        tasks=[TASK], task_manager=TaskManager(include_defaults=False, include_path=str(folder)), bootstrap_iters=0,
    )  # fmt: skip
    asked = [answer for one in results["samples"][TASK] for _, answer in one["arguments"]]
    given = [float(value) for one in results["samples"][TASK] for value, _ in one["filtered_resps"]]
    return list(zip(asked, given, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "v_proj", "lm_head"]], ids=["attention", "head"])
def test_a_trained_adapter_answers_as_under_hf(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str]
) -> None:
    from transformers import AutoTokenizer

    adapter = train(smollm2, tmp_path / "mle", "--target-modules", *targets)
    record = adapter_io.read_record(adapter)
    assert record is not None and record["data"]["multi_token_choices"] > 0
    ours = answers(monkeypatch, "bayeslora", {"adapter": str(adapter), "samples": 1})
    hf = answers(monkeypatch, "hf", {"pretrained": str(smollm2), "peft": str(adapter)})
    plain = answers(monkeypatch, "hf", {"pretrained": str(smollm2)})
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert [text for text, _ in ours] == [text for text, _ in hf] and len(ours) > QUESTIONS
    for (text, mine), (_, theirs) in zip(ours, hf, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5 * len(tokenizer.tokenize(text)))
    moved = [abs(theirs - before) for (_, theirs), (_, before) in zip(hf, plain, strict=True)]
    assert sum(moved) / len(moved) > 0.1  # training did something: the comparison is not of two base models
