"""`bayeslora` against lm-eval's own `hf` model with the same adapter, and against the slow twin."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

from tests.slow_twin import install, per_draw
from tests.tiny import make_base, make_lora
from uqharness import adapter_io
from uqharness.adapters.tempscale import Scaled
from uqharness.errors import InputError
from uqharness.lora import LoraStack
from uqharness.model import BayesLoRA
from uqharness.posterior import Gaussian, Point

TEXTS = ["w1 w2 w3 Answer:", "w4 Answer:", "w5 w6 w7 w8 w9 w10 Answer:", "w11 w12 Answer:"]
REQUESTS = [(text, answer) for text in TEXTS for answer in (" A", " B", " w3 w4", " C w1 w2 w3")]
LONG = " ".join(f"w{i % 40}" for i in range(150))
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {"target_modules": ["q_proj", "v_proj"]}),
    "rslora": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True, "target_modules": ["q_proj"]}),
}


def instances(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, args, 0, metadata=("some_task", i, 1)) for i, args in enumerate(arguments)]


def save(folder: Path, base: Path, std: float | None, **lora: Any) -> Path:
    """An adapter folder: Gaussian on A, or (std None) what PEFT itself writes."""
    model = make_lora(base, **lora)
    if std is None:
        model.save_pretrained(folder, save_embedding_layers=False)
        return folder
    mean = LoraStack(model).mean()
    posterior = Gaussian(mean, {n: torch.full_like(t, std) for n, t in mean.items() if "lora_A" in n}, 5)
    adapter_io.save_adapter(folder, model, posterior, record(base, model, "blob"))
    return folder


def record(base: Path, model: Any, method: str) -> dict[str, Any]:
    return {
        "method": {"name": method, "label": method, "settings": {}},
        "base": {"name": str(base), "fingerprint": adapter_io.base_fingerprint(model.get_base_model())},
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def blob(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("adapters") / "blob", base, std=0.2)


def assert_close_per_token(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    for (_, answer), ours, theirs in zip(REQUESTS, found, wanted, strict=True):
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
    found = ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    assert_close_per_token(found, wanted)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    documents = instances("loglikelihood_rolling", [(LONG,), (TEXTS[0],)])
    for a, b in zip(ours.loglikelihood_rolling(documents), hf.loglikelihood_rolling(documents), strict=True):
        assert float(a) == pytest.approx(b, abs=1e-5 * 150)
    prompts = instances("generate_until", [(text, {"until": ["w7"], "max_gen_toks": 8}) for text in TEXTS])
    assert ours.generate_until(prompts, disable_tqdm=True) == hf.generate_until(prompts, disable_tqdm=True)


def test_values_are_the_log_mean_exp_of_the_slow_twin(base: Path, blob: Path) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=4, seed=3, batch_size=3, device="cpu")
    found = ours.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    posterior, _ = adapter_io.load_posterior(blob)
    model = make_lora(base)
    install(model, posterior.mean)
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    draws = per_draw(model, posterior, pairs, samples=4, seed=3)  # [S, K]
    for k, (value, _) in enumerate(found):
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
    found = other.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    assert_close_per_token(found, wanted)
    for (ours, _), (theirs, _) in zip(found, wanted, strict=True):
        assert ours.draws == pytest.approx(theirs.draws, abs=4e-5)


def test_rolling_is_joint_over_the_document(base: Path, blob: Path) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=3, batch_size=2, device="cpu")
    (value,) = ours.loglikelihood_rolling(instances("loglikelihood_rolling", [(LONG,)]))
    posterior, _ = adapter_io.load_posterior(blob)
    totals = []
    for i in range(3):
        model = make_lora(base)
        install(model, {**posterior.mean, **{n: t[0] for n, t in posterior.draws(i, i + 1, 0).items()}})
        hf = HFLM(pretrained=model, tokenizer=ours.tokenizer, batch_size=1)
        totals.append(hf.loglikelihood_rolling(instances("loglikelihood_rolling", [(LONG,)]))[0])
    wanted = float(torch.tensor(totals, dtype=torch.float64).logsumexp(0) - torch.tensor(3.0).log())
    assert float(value) == pytest.approx(wanted, abs=1e-5 * 150)


def mixture_text(blob: Path, base: Path, ids: list[int], steps: int, samples: int) -> list[int]:
    """Greedy decoding of the next-token mixture, one full forward per draw and step."""
    posterior, _ = adapter_io.load_posterior(blob)
    models = []
    for i in range(samples):
        models.append(make_lora(base))
        install(models[-1], {**posterior.mean, **{n: t[0] for n, t in posterior.draws(i, i + 1, 0).items()}})
    made: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            probs = [m(input_ids=torch.tensor([ids + made])).logits[0, -1].softmax(-1) for m in models]
        made.append(int(sum(probs).argmax()))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("size", [1, 4])
def test_greedy_text_is_the_mixtures(base: Path, blob: Path, size: int) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=3, batch_size=size, device="cpu")
    prompts = instances("generate_until", [(text, {"until": [], "max_gen_toks": 6}) for text in TEXTS])
    for text, found in zip(TEXTS, ours.generate_until(prompts, disable_tqdm=True), strict=True):
        made = mixture_text(blob, base, ours.tok_encode(text), 6, 3)
        made = made[: made.index(2)] if 2 in made else made
        assert ours.tok_encode(found) == [t for t in made if t > 3]  # special tokens are not printed


def test_sampled_text_does_not_depend_on_the_batch(blob: Path) -> None:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 0.9, "top_k": 20}
    prompts = instances("generate_until", [(text, settings) for text in TEXTS])
    texts = []
    for size, seed in ((1, 0), (4, 0), (4, 1)):
        model = BayesLoRA(adapter=str(blob), samples=3, batch_size=size, seed=seed, device="cpu")
        texts.append(model.generate_until(prompts, disable_tqdm=True))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_beams_are_refused(blob: Path) -> None:
    model = BayesLoRA(adapter=str(blob), samples=2, device="cpu")
    with pytest.raises(InputError, match="num_beams=2"):
        model.generate_until(
            instances("generate_until", [(TEXTS[0], {"until": [], "num_beams": 2, "max_gen_toks": 4})])
        )


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample": 3}, "did you mean samples"),
        ({"pretrained": "x"}, "did you mean base"),
        ({"samples": -1}, "samples=-1"),
        ({"samples": "many"}, "samples='many'"),
        ({"base": "./nowhere"}, "cannot be loaded"),
    ],
)
def test_bad_arguments_are_refused(blob: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BayesLoRA(adapter=str(blob), **{"device": "cpu", **arguments})


def test_a_missing_adapter_is_refused() -> None:
    with pytest.raises(InputError, match="no such folder"):
        BayesLoRA(adapter="./nowhere")


def damaged(blob: Path, tmp_path: Path, **change: Any) -> Path:
    """A copy of the adapter with some fields of its record changed."""
    copied = tmp_path / "copy"
    shutil.copytree(blob, copied)
    path = copied / adapter_io.RECORD
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change}))
    return copied


def test_another_base_is_refused(blob: Path, tmp_path: Path) -> None:
    small = make_base(tmp_path / "small", hidden_size=16)
    with pytest.raises(InputError, match="does not fit"):
        BayesLoRA(adapter=str(blob), base=str(small), device="cpu")
    twin = make_base(tmp_path / "twin", initializer_range=0.1)
    with pytest.raises(InputError, match="is not the one recorded"):
        BayesLoRA(adapter=str(blob), base=str(twin), device="cpu")


def test_damaged_folders_are_refused(blob: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schema version 99"):
        BayesLoRA(adapter=str(damaged(blob, tmp_path / "a", schema=99)))
    with pytest.raises(InputError, match="unknown method 'sgld'.*pip install uq-sgld"):
        BayesLoRA(adapter=str(damaged(blob, tmp_path / "b", method={"name": "sgld", "package": "uq-sgld"})))
    broken = damaged(blob, tmp_path / "c")
    (broken / adapter_io.POSTERIOR).write_bytes(b"not tensors")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        BayesLoRA(adapter=str(broken))
    (broken / adapter_io.POSTERIOR).write_bytes((blob / adapter_io.POSTERIOR).read_bytes())
    (broken / adapter_io.MEAN).unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors is missing"):
        BayesLoRA(adapter=str(broken))


def test_use_cache_refuses_another_adapters_answers(blob: Path, base: Path, tmp_path: Path) -> None:
    arguments = {"adapter": str(blob), "device": "cpu"}
    first = CachingLM(BayesLoRA(samples=2, **arguments), str(tmp_path / "cache.db"))
    wanted = first.loglikelihood(instances("loglikelihood", REQUESTS))
    again = CachingLM(BayesLoRA(samples=2, **arguments), str(tmp_path / "cache.db"))
    found = again.loglikelihood(instances("loglikelihood", REQUESTS))
    assert [value.draws for value, _ in found] == [value.draws for value, _ in wanted]
    for change in ({"samples": 3}, {"samples": 2, "seed": 1}):
        with pytest.raises(InputError, match="another cache file"):
            CachingLM(BayesLoRA(**arguments, **change), str(tmp_path / "cache.db"))
    other = CachingLM(HFLM(pretrained=str(base), device="cpu"), str(tmp_path / "other.db"))
    other.loglikelihood(instances("loglikelihood", REQUESTS[:1]))
    with pytest.raises(InputError, match="another model"):
        CachingLM(BayesLoRA(samples=2, **arguments), str(tmp_path / "other.db"))


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


def test_info_names_the_adapter_and_what_was_used(blob: Path) -> None:
    info = BayesLoRA(adapter=str(blob), samples=2, device="cpu").get_model_info()["uqharness"]
    assert (info["samples"], info["functions"], info["combine"]) == (2, 3, "probs")
    assert info["record"]["method"]["name"] == "blob"
    json.dumps(info)


def test_seen_items_are_refused_or_marked(base: Path, tmp_path: Path) -> None:
    from uqharness.leakage import fingerprint

    model = make_lora(base)
    seen = {
        "split": "train",
        "purpose": "fit",
        "fingerprints": [fingerprint([REQUESTS[0]]), fingerprint([REQUESTS[1]])],
    }
    posterior = Point(LoraStack(model).mean(), 0)
    adapter_io.save_adapter(tmp_path / "mle", model, posterior, record(base, model, "mle"), [seen])
    adapter = str(tmp_path / "mle")
    with pytest.raises(InputError, match="2 of 3 items of some_task were used to fit"):
        BayesLoRA(adapter=adapter, device="cpu").loglikelihood(instances("loglikelihood", REQUESTS[:3]))
    marked = BayesLoRA(adapter=adapter, allow_leak=True, device="cpu")
    marked.loglikelihood(instances("loglikelihood", REQUESTS[:3]))
    assert marked.get_model_info()["uqharness"]["leaks"]["some_task"][0]["shared"] == 2
    few = BayesLoRA(adapter=adapter, device="cpu")
    few.loglikelihood(instances("loglikelihood", REQUESTS))
    assert few.leaks.found["some_task"][0]["shared"] == 2


def ask(text: str, choices: Sequence[str], doc: int) -> list[Instance]:
    """One question's requests, as lm-eval makes them."""
    found = enumerate(choices)
    return [Instance("loglikelihood", {}, (text, c), k, metadata=("some_task", doc, 1)) for k, c in found]


def test_a_combined_answer_is_decided_question_by_question(base: Path, blob: Path, tmp_path: Path) -> None:
    model, source = make_lora(base), adapter_io.load_posterior(blob)[0]
    scaled = Scaled(source, temperature=2.0, samples=3, train_seed=5)
    adapter_io.save_adapter(tmp_path / "ts", model, scaled, record(base, model, "tempscale"))
    ours = BayesLoRA(adapter=str(tmp_path / "ts"), samples=3, batch_size=2, device="cpu")
    choices, alone = ask(TEXTS[0], (" A", " B", " w3 w4"), 0), ask(TEXTS[1], (" w3 w4",), 1)
    wanted = [value for value, _ in ours.loglikelihood(choices)]
    assert sum(math.exp(value) for value in wanted) == pytest.approx(1.0, abs=1e-6)
    # lm-eval fills a rank with copies of its last request: neither a choice more nor a choice where there is none.
    for requests in ([*alone, *choices, choices[-1]], [*choices, *alone, alone[0]]):
        found = [value for value, _ in ours.loglikelihood(requests)]
        by_request = dict(zip(map(id, requests), found, strict=True))
        again = [float(by_request[id(request)]) for request in choices]
        assert again == pytest.approx([float(value) for value in wanted], abs=1e-6)
        assert by_request[id(choices[0])].combine == "given" and by_request[id(alone[0])].combine == "probs"
    drawn = BayesLoRA(adapter=str(blob), samples=3, device="cpu").loglikelihood(alone)[0][0]
    assert float(by_request[id(alone[0])]) == pytest.approx(float(drawn), abs=1e-5)
    assert len(by_request[id(alone[0])].draws) == 3
