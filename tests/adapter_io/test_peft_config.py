"""A stranger's adapter_config.json: no pattern of it is run, and adapters that carry patterns keep working."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.tiny import make_lora
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io.folder import PEFT_CONFIG, attach, read_config
from uqharness.adapter_io.peft_config import lora_config
from uqharness.errors import InputError

EVIL = r"(([a-z._0-9]+)+)+$X"
LAYER = "model.layers.{}.self_attn.{}_proj"
SHAPES = {
    f"base_model.model.{LAYER.format(layer, part)}.lora_{matrix}.weight": [2, 8] if matrix == "A" else [8, 2]
    for layer in (0, 1)
    for part in "qv"
    for matrix in "AB"
}
FILE = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
ALL = {LAYER.format(layer, part) for layer in (0, 1) for part in "qv"}


def config(shapes: dict[str, list[int]] = SHAPES, **changes: Any) -> Any:
    return lora_config({**FILE, **changes}, shapes, "x.json")


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": EVIL},
        {"target_modules": [EVIL]},
        {"exclude_modules": EVIL},
        {"exclude_modules": [EVIL]},
        {"layers_to_transform": [0, 1], "layers_pattern": EVIL},
        {"layers_to_transform": [0, 1], "layers_pattern": [EVIL]},
        {"rank_pattern": {EVIL: 2}},
        {"rank_pattern": {f"^{EVIL}": 2}},
    ],
)
def test_no_pattern_of_a_stranger_is_run(base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """Each of these takes PEFT for ever: the names have 30 letters that the expression can split in 2^30 ways."""
    make_lora(base, target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path, save_embedding_layers=False)
    content = json.loads((tmp_path / PEFT_CONFIG).read_text())
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({**content, **change}))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    started = time.process_time()
    posterior = adapter_io.load_predictive(tmp_path)[0].posterior
    adapter_io.check_fits(attach(model, tmp_path, str(base)), posterior, None, str(base))
    assert time.process_time() - started < 5


def test_an_expression_whose_value_no_tensor_says_is_refused() -> None:
    for change, message in (
        ({"alpha_pattern": {EVIL: 8}}, "alpha_pattern: .* is a regular expression, which is not run"),
        ({"modules_to_save": [EVIL]}, "modules_to_save: .* is not a name"),
        ({"target_parameters": ["a.b"], "target_modules": EVIL}, "target_modules is a pattern beside"),
    ):
        with pytest.raises(InputError, match=message):
            config(**change)
    with pytest.raises(InputError, match="does not belong to a module"):
        config({f"base_model.model.{EVIL}.lora_A.weight": [2, 8]})


def test_targets_are_those_of_the_tensors() -> None:
    assert config().target_modules == {"q_proj", "v_proj"}  # the list means just these
    for change in (
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        {"exclude_modules": ["model.layers.1.self_attn.k_proj"]},
        {"layers_to_transform": 0},
    ):
        made = config(**change)
        assert made.target_modules == ALL, change
        assert made.exclude_modules is made.layers_to_transform is made.layers_pattern is None
    first = {name: shape for name, shape in SHAPES.items() if ".0." in name}
    made = config(first, layers_to_transform=[0])
    assert made.target_modules == {LAYER.format(0, part) for part in "qv"}


def test_ranks_and_alphas_by_names() -> None:
    wide = {
        name: ([4, 8] if "lora_A" in name else [8, 4]) if ".0.self_attn.q" in name else shape
        for name, shape in SHAPES.items()
    }
    whole = LAYER.format(0, "q")
    for key in (whole, f"^{whole}", f"{whole}$", whole.replace(".", r"\."), "layers.0.self_attn.q_proj"):
        made = config(wide, rank_pattern={key: 4}, alpha_pattern={key: 8.0})
        assert made.rank_pattern == {whole.replace(".", r"\."): 4} and made.r == 2
        assert made.alpha_pattern == {whole.replace(".", r"\."): 8.0}
    assert (
        config(wide, rank_pattern={r".*layers\.[0]\..*q_proj": 4}).rank_pattern == made.rank_pattern
    )  # the shapes say it
    with pytest.raises(InputError, match="the rank of model.layers.0.self_attn.q_proj is 2, its tensors have 4"):
        config(wide)
    with pytest.raises(InputError, match="its tensors have 4"):
        config(wide, rank_pattern={"^self_attn.q_proj": 4})  # ^: the whole name
    # The first that matches counts; one pattern where the modules of a name agree.
    made = config(alpha_pattern={"layers.1.self_attn.v_proj": 5, "v_proj": 6, "q_proj": 7, "self_attn.q_proj": 8})
    escaped = {LAYER.format(layer, "v").replace(".", r"\."): alpha for layer, alpha in ((0, 6), (1, 5))}
    assert made.alpha_pattern == {**escaped, "q_proj": 7}


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": r".*layers\.1\..*\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["lm_head", "up_proj"]},
        {"rank_pattern": {"q_proj": 2, "^model.layers.0.self_attn.v_proj": 3}, "alpha_pattern": {"v_proj": 3.0}},
        {"use_rslora": True, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 16}},
        {"use_dora": True, "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
    ],
)
def test_adapters_with_patterns_answer_as_pefts_own(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    make_lora(base, **lora).save_pretrained(tmp_path, save_embedding_layers=False)
    models = [AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(3)]
    ids = torch.arange(1, 20)[None]
    plain = models[2](ids).logits
    theirs = PeftModel.from_pretrained(models[0], str(tmp_path)).eval()(ids).logits
    ours = attach(models[1], tmp_path, str(base))
    assert torch.equal(ours.eval()(ids).logits, theirs) and not torch.allclose(plain, theirs, atol=1e-3)
    # What is made of it carries the names alone, and reads the same again.
    adapter_io.save_peft(tmp_path / "again", read_config(tmp_path), adapter_io.read_tensors(tmp_path / adapter_io.MEAN))
    again = PeftModel.from_pretrained(models[2], str(tmp_path / "again")).eval()
    assert torch.equal(again(ids).logits, theirs)
