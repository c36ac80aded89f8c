"""What `bayeslora` refuses, what it marks, and what it says about itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

from tests.tiny import make_base, make_lora
from tests.tiny_adapter import REQUESTS, instances, record
from uqharness.adapter_io import folder as adapter_io
from uqharness.engine.lora import LoraStack
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import Point
from uqharness.results.leakage import fingerprint
from uqharness.settings import Run
from uqharness.training.base_model import load_base


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample": 3}, "did you mean samples"),
        ({"pretrained": "x"}, "takes no pretrained=x: write adapter=.*blob,base=x instead"),
        ({"adapter": "", "peft": "x"}, "takes no peft=x: write adapter=x instead"),
        ({"adapter": ""}, "no adapter: add adapter=DIR"),
        ({"samples": -1}, "samples=-1"),
        ({"samples": "many"}, "samples='many'"),
        ({"samples": 10**6}, "samples=1000000: must be an integer from 0 to 10,000"),
        ({"samples": 1e6}, "samples=1000000.0: must be an integer"),
        ({"samples": "²"}, "samples='²': must be an integer"),
        ({"seed": "9" * 6000}, "must be an integer"),
        ({"base": "./nowhere"}, "cannot be loaded"),
        ({"backend": "nonsense"}, "backend='nonsense': bayeslora takes causal language models"),
        ({"backend": "seq2seq"}, "backend='seq2seq': bayeslora takes causal"),
        ({"softmax_dtype": "float31"}, "softmax_dtype='float31': give float32"),
        ({"softmax_dtype": "int8"}, "softmax_dtype='int8': give float32"),
        ({"mixed_precision_dtype": "nonsense"}, "mixed_precision_dtype='nonsense'"),
        ({"max_length": "long"}, "max_length='long': must be an integer from 1"),
        ({"max_length": 0}, "max_length=0: must be an integer from 1"),
        ({"max_length": 10**9}, "max_length=1000000000: must be an integer from 1"),
        ({"batch_size": 10**9}, "batch_size='1000000000': must be an integer"),
        ({"allow_leak": "maybe"}, "allow_leak is 'maybe': it must be true or false"),
        ({"mean": 2}, "mean is 2: it must be true"),
        ({"load_in_4bit": "si"}, "load_in_4bit is 'si': it must be true"),
        ({"logits_cache": "never"}, "logits_cache is 'never': it must be true"),
    ],
)
def test_bad_arguments_are_refused(blob: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BayesLoRA(**{"adapter": str(blob), "device": "cpu", **arguments})


def test_booleans_of_the_command_line_are_what_they_say(blob: Path) -> None:
    """lm-eval's own reader makes booleans of `true` and `false` alone: `no` arrives as a text that counts as true."""
    words = {"no": False, "OFF": False, "0": False, "False": False, "yes": True, "on": True, "1": True}
    for word, value in words.items():
        given = f"adapter={blob},allow_leak={word},mean={word},logits_cache={word},add_bos_token={word},samples=1"
        model = BayesLoRA.create_from_arg_string(given, {"device": "cpu"})
        switches = (model.leaks.allow, model.mean, model.logits_cache, model.add_bos_token)
        assert switches == (value,) * 4, word
    model = BayesLoRA.create_from_arg_string(f"adapter={blob},add_bos_token=none", {"device": "cpu"})
    assert model.add_bos_token is None


def test_a_missing_adapter_is_refused() -> None:
    with pytest.raises(InputError, match="no such folder"):
        BayesLoRA(adapter="./nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**8}, "its num_hidden_layers is 100,000,000; at most 4,096 are loaded"),
        ({"vocab_size": 10**30}, "its vocab_size is 100 bits long"),
        ({"text_config": {"n_layer": 10**8}}, "its n_layer is 100,000,000"),
    ],
)
def test_a_base_of_endless_layers_is_refused_before_it_is_made(
    blob: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=words):
        BayesLoRA(adapter=str(blob), base=str(base), device="cpu")
    with pytest.raises(InputError, match=words):
        load_base(Run(base=str(base)))


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
    with pytest.raises(InputError, match="does not match base model"):
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
    with pytest.raises(InputError, match="not a complete safetensors file"):
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
    answers = again.loglikelihood(instances("loglikelihood", REQUESTS))
    assert [value.draws for value, _ in answers] == [value.draws for value, _ in wanted]
    for change in ({"samples": 3}, {"samples": 2, "seed": 1}):
        with pytest.raises(InputError, match="another cache file"):
            CachingLM(BayesLoRA(**arguments, **change), str(tmp_path / "cache.db"))
    other = CachingLM(HFLM(pretrained=str(base), device="cpu"), str(tmp_path / "other.db"))
    other.loglikelihood(instances("loglikelihood", REQUESTS[:1]))
    with pytest.raises(InputError, match="another model"):
        CachingLM(BayesLoRA(samples=2, **arguments), str(tmp_path / "other.db"))


def test_info_names_the_adapter_and_what_was_used(blob: Path) -> None:
    info = BayesLoRA(adapter=str(blob), samples=2, device="cpu").get_model_info()["uqharness"]
    assert (info["samples"], info["functions"], info["combine"]) == (2, 3, "probs")
    assert info["record"]["method"]["name"] == "blob"
    json.dumps(info)


def test_seen_items_are_refused_or_marked(base: Path, tmp_path: Path) -> None:
    """Any of them, over all splits together; by the hashes of version 1, as older folders have them."""
    model = make_lora(base)
    seen = [
        {"split": "train", "purpose": "fit", "fingerprints": [fingerprint([REQUESTS[0]])]},
        {"split": "spare", "purpose": "tune", "fingerprints": [fingerprint([REQUESTS[1]])]},
    ]
    posterior = Point(LoraStack(model).mean(), 0)
    adapter_io.save_adapter(tmp_path / "mle", model, posterior, record(base, model, "mle"), seen)
    adapter, requests = str(tmp_path / "mle"), instances("loglikelihood", REQUESTS)
    words = f"2 of {len(REQUESTS)} items of some_task were used to fit and tune this adapter .split train, spare"
    for given in (False, "no"):
        with pytest.raises(InputError, match=words):
            BayesLoRA(adapter=adapter, device="cpu", allow_leak=given).loglikelihood(requests)
    marked = BayesLoRA(adapter=adapter, allow_leak="yes", device="cpu")
    marked.loglikelihood(requests)
    assert marked.get_model_info()["uqharness"]["leaks"]["some_task"]["leaked"] == 2
