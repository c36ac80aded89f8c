"""Bases in GGUF files: a tiny Llama written here, and SmolLM2's own file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.settings import Run
from uqharness.training.base_model import base_location, load_base
from uqharness.training.fingerprint import base_fingerprint

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 32
SPECIAL = ["<|endoftext|>", "<s>", "</s>"]
# The byte alphabet of GPT-2's tokenizer: printable ASCII as it is, the space as Ġ.
TOKENS = [*SPECIAL, *(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "th", "Ġa"]


def model(tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def write(path: Path, architecture: str = "llama", tied: bool = True) -> LlamaForCausalLM:
    """`model` as llama.cpp's converter writes it, in float32."""
    made = model(tied)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(made.config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in made.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = tensor.numpy()
        for kind, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if kind in name:  # llama.cpp interleaves the halves that rotate together
                half = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
                values = np.ascontiguousarray(half.swapaxes(1, 2).reshape(values.shape))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_those_of_the_file(tmp_path: Path, tied: bool) -> None:
    wanted = write(tmp_path / "tiny.gguf", tied=tied)
    base, tokenizer = load_base(Run(base=str(tmp_path / "tiny.gguf"), device="cpu"))
    ids = tokenizer("the A cat", return_tensors="pt").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["th", "e", "Ġ", "A", "Ġ", "c", "a", "t"]
    with torch.inference_mode():
        assert torch.allclose(base(ids).logits, wanted(ids).logits, atol=1e-5)
    base.save_pretrained(tmp_path / "saved")  # refused by transformers as long as it takes it for quantised
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.tie_word_embeddings == tied


def train(base: Path, out: Path, *flags: str) -> int:
    words = ["train", "mle", "--base", str(base), "--task", "toyworld_cloze_uq", "--out", str(out), "--device", "cpu"]
    fast = ["--steps", "2", "--batch-size", "2", "--lr", "1e-2", "--warmup", "0"]
    return main([*words, *fast, *flags])


REQUESTS = [
    Instance("loglikelihood", {}, ("the A cat", answer), i, ("t", 0, 1)) for i, answer in enumerate((" sat", " a b"))
]


def test_train_and_evaluate_name_the_file_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    assert train(Path("base/tiny.gguf"), tmp_path / "mle") == 0
    record = adapter_io.read_record(tmp_path / "mle")
    assert record is not None and record["base"]["name"] == str(tmp_path / "base" / "tiny.gguf")
    monkeypatch.chdir("/")
    named: list[dict[str, str]] = [
        {},
        {"base": str(tmp_path / "base" / "tiny.gguf")},
        {"gguf_file": "tiny.gguf"},
        {"base": str(tmp_path / "base"), "gguf_file": "tiny.gguf"},
    ]
    scores = []
    for arguments in named:
        lm = BayesLoRA(adapter=str(tmp_path / "mle"), samples=1, device="cpu", batch_size=2, **arguments)
        scores.append([float(value) for value, _ in lm.loglikelihood(REQUESTS, disable_tqdm=True)])
        assert lm.quantised is None and "evaluated on one in" not in capfd.readouterr().err
    assert scores == [scores[0]] * len(named)
    with pytest.raises(InputError, match="gguf_file=other.gguf: the base is .*tiny.gguf already"):
        BayesLoRA(adapter=str(tmp_path / "mle"), gguf_file="other.gguf", device="cpu")
    with pytest.raises(InputError, match="is dequantised when it is read: remove load_in_4bit and load_in_8bit"):
        BayesLoRA(adapter=str(tmp_path / "mle"), load_in_8bit=True, device="cpu")


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tiny.gguf")
    assert train(tmp_path / "tiny.gguf", tmp_path / "mle") == 0
    write(tmp_path / "rwkv.gguf", architecture="rwkv6")
    (tmp_path / "text.gguf").write_text("not a model" * 20)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:2000])
    wrong = {
        "rwkv.gguf": "rwkv6 is not supported yet",
        "text.gguf": "cannot be read",
        "cut.gguf": "cannot be read",
        "none.gguf": "no such GGUF file",
    }
    for name, message in wrong.items():
        capfd.readouterr()
        assert train(tmp_path / name, tmp_path / "out") == 2
        said = [line for line in capfd.readouterr().err.splitlines() if "base model" in line]
        assert len(said) == 1 and message in said[0], said
        with pytest.raises(InputError, match=message):
            BayesLoRA(adapter=str(tmp_path / "mle"), base=str(tmp_path / name), device="cpu")
    assert train(tmp_path / "tiny.gguf", tmp_path / "out", "--load-in-8bit") == 2
    assert "remove load_in_4bit and load_in_8bit" in capfd.readouterr().err


def test_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="GGUF files need the gguf package, which is missing: pip install gguf"):
        load_base(Run(base=str(tmp_path / "x.gguf"), device="cpu"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("user/name/x.gguf", ("user/name", "x.gguf")),
        ("user/name/sub/x.gguf", ("user/name", "sub/x.gguf")),
        ("user/name", ("user/name", None)),
    ],
)
def test_gguf_files_of_the_hub(name: str, wanted: tuple[str, str | None]) -> None:
    assert base_location(name) == wanted


@pytest.mark.slow
def test_smollm2s_own_file_equals_the_converted_folder(smollm2_folder: Path) -> None:
    read, tokenizer = load_base(
        Run(base=str(smollm2_folder / "gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"), device="cpu")
    )
    converted, own = load_base(Run(base=str(smollm2_folder), device="cpu"))
    assert tokenizer.chat_template == own.chat_template and len(tokenizer) == len(own)
    ids = own("Question: Which technology was developed most recently?\nAnswer:", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(read(ids).logits, converted(ids).logits)
    assert base_fingerprint(read) == base_fingerprint(converted)
