"""`bayeslora` against lm-eval's own `hf` model with the same adapter, and against the slow twin."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from tests.slow_twin import install, per_draw
from tests.tiny import make_base, make_lora
from tests.tiny_adapter import REQUESTS, TEXTS, ask, instances, record, save
from uqharness.adapter_io import folder as adapter_io
from uqharness.engine.predictive import Tempered
from uqharness.harness.model import BayesLoRA

LONG = " ".join(f"w{i % 40}" for i in range(150))
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {"target_modules": ["q_proj", "v_proj"]}),
    "rslora": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True, "target_modules": ["q_proj"]}),
}


def assert_close_per_token(answers: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    for (_, answer), ours, theirs in zip(REQUESTS, answers, wanted, strict=True):
        assert float(ours[0]) == pytest.approx(theirs[0], abs=1e-5 * len(answer.split()))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("logits_cache", [True, False])
def test_a_point_equals_hf(kind: str, size: int, logits_cache: bool, tmp_path: Path) -> None:
    config, lora = BASES[kind]
    base = make_base(tmp_path / "base", **config)
    adapter = save(tmp_path / "adapter", base, std=None, **lora)
    common = {"batch_size": size, "dtype": "float32", "device": "cpu", "logits_cache": logits_cache}
    ours = BayesLoRA(adapter=str(adapter), **common)
    hf = HFLM(pretrained=str(base), peft=str(adapter), **common)
    wanted = hf.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    answers = ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    assert_close_per_token(answers, wanted)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in wanted]
    documents = instances("loglikelihood_rolling", [(LONG,), (TEXTS[0],)])
    for a, b in zip(ours.loglikelihood_rolling(documents), hf.loglikelihood_rolling(documents), strict=True):
        assert float(a) == pytest.approx(b, abs=1e-5 * 150)
    prompts = instances("generate_until", [(text, {"until": ["w7"], "max_gen_toks": 8}) for text in TEXTS])
    assert ours.generate_until(prompts, disable_tqdm=True) == hf.generate_until(prompts, disable_tqdm=True)


def test_values_are_the_log_mean_exp_of_the_slow_twin(base: Path, blob: Path) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=4, seed=3, batch_size=3, device="cpu")
    answers = ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    posterior = adapter_io.load_predictive(blob)[0].posterior
    model = make_lora(base)
    install(model, posterior.mean)
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    draws = per_draw(model, posterior, pairs, samples=4, seed=3)  # [S, K]
    for k, (value, _) in enumerate(answers):
        tokens = len(pairs[k][1])
        assert value.draws == pytest.approx(draws[:, k].tolist(), abs=1e-5 * tokens)
        assert float(value) == pytest.approx(float(draws[:, k].exp().mean().log()), abs=1e-5 * tokens)
        assert value.mean is not None


@pytest.mark.parametrize("size", [7, "auto"])
@pytest.mark.parametrize("tokens", [1, 100])
def test_same_numbers_at_any_batch_size_and_chunking(blob: Path, size: int | str, tokens: int) -> None:
    one = BayesLoRA(adapter=str(blob), samples=3, batch_size=1, device="cpu")
    other = BayesLoRA(adapter=str(blob), samples=3, batch_size=size, device="cpu", max_batch_size=4)
    other.engine.tokens = tokens
    wanted = one.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    answers = other.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    assert_close_per_token(answers, wanted)
    for (ours, _), (theirs, _) in zip(answers, wanted, strict=True):
        assert ours.draws == pytest.approx(theirs.draws, abs=4e-5)


def test_rolling_is_joint_over_the_document(base: Path, blob: Path) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=3, batch_size=2, device="cpu")
    (value,) = ours.loglikelihood_rolling(instances("loglikelihood_rolling", [(LONG,)]))
    posterior = adapter_io.load_predictive(blob)[0].posterior
    totals = []
    for i in range(3):
        model = make_lora(base)
        install(model, {**posterior.mean, **{n: t[0] for n, t in posterior.draws(i, i + 1, 0).items()}})
        hf = HFLM(pretrained=model, tokenizer=ours.tokenizer, batch_size=1)
        totals.append(hf.loglikelihood_rolling(instances("loglikelihood_rolling", [(LONG,)]))[0])
    wanted = float(torch.tensor(totals, dtype=torch.float64).logsumexp(0) - torch.tensor(3.0).log())
    assert float(value) == pytest.approx(wanted, abs=1e-5 * 150)


def test_samples_zero_is_the_mean(blob: Path) -> None:
    mean = BayesLoRA(adapter=str(blob), samples=0, device="cpu")
    drawn = BayesLoRA(adapter=str(blob), samples=2, device="cpu")
    for (a, _), (b, _) in zip(
        mean.loglikelihood(instances("loglikelihood", REQUESTS)),
        drawn.loglikelihood(instances("loglikelihood", REQUESTS)),
        strict=True,
    ):
        assert a.draws == ()
        assert float(a) == pytest.approx(b.mean, abs=1e-5)


def test_answers_survive_copies(blob: Path) -> None:
    model = BayesLoRA(adapter=str(blob), samples=2, device="cpu")
    value, _ = model.loglikelihood(instances("loglikelihood", REQUESTS[:1]))[0]
    assert copy.deepcopy(value).draws == value.draws and len(value.draws) == 2


def test_peft_reads_the_mean(base: Path, blob: Path) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=0, device="cpu")
    hf = HFLM(pretrained=str(base), peft=str(blob), device="cpu")
    assert_close_per_token(
        ours.loglikelihood(instances("loglikelihood", REQUESTS)),
        hf.loglikelihood(instances("loglikelihood", REQUESTS)),
    )


def test_a_combined_answer_is_decided_question_by_question(base: Path, blob: Path, tmp_path: Path) -> None:
    model, source = make_lora(base), adapter_io.load_predictive(blob)[0]
    scaled = Tempered(source, temperature=2.0, samples=3)
    adapter_io.save_adapter(tmp_path / "ts", model, scaled, record(base, model, "tempscale"))
    ours = BayesLoRA(adapter=str(tmp_path / "ts"), samples=3, batch_size=2, device="cpu")
    choices, alone = ask(TEXTS[0], (" A", " B", " w3 w4"), 0), ask(TEXTS[1], (" w3 w4",), 1)
    wanted = [value for value, _ in ours.loglikelihood(choices)]
    assert sum(math.exp(value) for value in wanted) == pytest.approx(1.0, abs=1e-6)
    # lm-eval fills a rank with copies of its last request: neither a choice more nor a choice where there is none.
    for requests in ([*alone, *choices, choices[-1]], [*choices, *alone, alone[0]]):
        values = [value for value, _ in ours.loglikelihood(requests)]
        by_request = dict(zip(map(id, requests), values, strict=True))
        again = [float(by_request[id(request)]) for request in choices]
        assert again == pytest.approx([float(value) for value in wanted], abs=1e-6)
        assert by_request[id(choices[0])].combine == "given" and by_request[id(alone[0])].combine == "probs"
    drawn = BayesLoRA(adapter=str(blob), samples=3, device="cpu").loglikelihood(alone)[0][0]
    assert float(by_request[id(alone[0])]) == pytest.approx(float(drawn), abs=1e-5)
    assert len(by_request[id(alone[0])].draws) == 3
