"""`uqharness import` and `export` on checkpoints that PEFT itself writes, wrapped twice as bayesian-peft does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.failures import last_line
from tests.tiny import make_lora
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.importers import read_checkpoint
from uqharness.posterior import Gaussian, Point

IDS = torch.tensor([[1, 12, 13, 14, 4]])
WEIGHTS = "adapter_model.safetensors"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def doubled(base: Path, folder: Path, *names: str) -> dict[str, Tensor]:
    """What bayesian-peft's `WrapperBase(PeftModel)` saves: PEFT in PEFT; logits of each of its adapters."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    inner = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    outer = PeftModel(inner, config)
    for name in names:
        outer.add_adapter(name, config)
    for k, (_, parameter) in enumerate(p for p in outer.named_parameters() if ".lora_" in p[0]):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(k))
    outer.save_pretrained(str(folder))
    tensors = {}
    for name in ("default", *names):
        outer.set_adapter(name)
        tensors[name] = logits(outer)
    return tensors


def add_rho(folder: Path) -> dict[str, Tensor]:
    """The std parameter beside every A, as bayesian-peft's patched layers save it."""
    tensors = load_file(folder / WEIGHTS)
    rho = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        tensors[name.replace(".lora_A.weight", ".lora_A_rho")] = torch.rand(tensors[name].shape) * 0.1 - 0.02
        rho[name.removeprefix("base_model.model.")] = tensors[name.replace(".lora_A.weight", ".lora_A_rho")]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return rho


# ---------------------------------------------------------------- bayesian-peft


def test_the_checkpoints_made_here_look_like_theirs(base: Path, tmp_path: Path) -> None:
    doubled(base, tmp_path / "mle")
    names = set(load_file(tmp_path / "mle" / WEIGHTS))
    assert "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.base_model.model.lm_head.base_layer.weight" in names
    # ... and PEFT alone finds nothing in them.
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "mle"))
    assert all(float(p.abs().max()) == 0 for name, p in loaded.named_parameters() if ".lora_B." in name)


def test_an_mle_checkpoint_answers_as_it_did(base: Path, tmp_path: Path) -> None:
    expected = doubled(base, tmp_path / "theirs")["default"]
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--base", str(base)]) == 0
    predictive, record = adapter_io.load_predictive(tmp_path / "ours")
    posterior = predictive.posterior
    assert isinstance(posterior, Point) and record is not None
    assert record["imported"]["tool"] == record["imported"]["protocol"] == "bayesian-peft"
    assert record["imported"]["dropped"] == ["base_model.model.base_model.model.lm_head.base_layer.weight"]
    assert record["recipe_hash"] is None and record["base"]["name"] == str(base)
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "ours"))
    adapter_io.check_fits(ours, posterior, record, str(base))
    assert torch.equal(logits(ours), expected)


@pytest.mark.parametrize("eps", [0.05, 0.0, -5.0])
def test_blobs_std_follows_the_sign_of_its_eps(base: Path, tmp_path: Path, eps: float) -> None:
    doubled(base, tmp_path / "theirs")
    rho = add_rho(tmp_path / "theirs")
    command = ["import", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--base", str(base)]
    assert main([*command, f"--eps={eps}"]) == 0
    predictive, record = adapter_io.load_predictive(tmp_path / "ours")
    posterior = predictive.posterior
    assert isinstance(posterior, Gaussian) and posterior.std.keys() == rho.keys() and len(rho) == 5
    assert record is not None and record["method"]["name"] == "blob" and record["imported"]["eps"] == eps
    for name, parameter in rho.items():
        expected = parameter**2 if eps >= 0 else torch.log1p(torch.exp(parameter))
        assert torch.allclose(posterior.std[name], expected, atol=1e-7, rtol=1e-6), name


def test_an_ensembles_members_are_its_adapters(base: Path, tmp_path: Path) -> None:
    expected = doubled(base, tmp_path / "theirs", "adapter_1", "adapter_2")
    command = ["import", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--base", str(base)]
    assert main([*command, "--members", "3", "--average", "logits"]) == 0
    predictive, record = adapter_io.load_predictive(tmp_path / "ours")
    assert (predictive.finite, predictive.rule, predictive.mean_is_member) == (3, "logits", True)
    assert record is not None and record["imported"]["members"] == 3
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "draws"), "--samples", "10"]) == 0
    assert sorted(os.listdir(tmp_path / "draws")) == ["README.md", "draw0", "draw1", "draw2"]
    for k, values in enumerate(expected.values()):
        plain = AutoModelForCausalLM.from_pretrained(base)
        member = PeftModel.from_pretrained(plain, str(tmp_path / "draws" / f"draw{k}"))
        assert torch.equal(logits(member), values)


# ---------------------------------------------------------------- laplace-lora


@pytest.fixture
def steps(base: Path, tmp_path: Path) -> Path:
    for number in (0, 999, 1999):
        make_lora(base, seed=number).save_pretrained(str(tmp_path / "run" / f"step_{number}"))
    (tmp_path / "run" / "step_1999" / "all_results.json").write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize("where, flags, number", [("", [], 1999), ("", ["--step", "999"], 999), ("step_999", [], 999)])
def test_a_step_of_laplace_lora(steps: Path, tmp_path: Path, where: str, flags: list[str], number: int) -> None:
    assert main(["import", str(steps / where), str(tmp_path / "ours"), *flags]) == 0
    predictive, record = adapter_io.load_predictive(tmp_path / "ours")
    posterior = predictive.posterior
    theirs = {k: t for k, t in load_file(steps / f"step_{number}" / WEIGHTS).items() if ".lora_" in k}
    assert posterior.mean.keys() == theirs.keys()
    assert all(torch.equal(posterior.mean[name], tensor) for name, tensor in theirs.items())
    assert record is not None and record["imported"]["step"] == number
    assert record["imported"]["protocol"] == "laplace-lora" and record["method"]["name"] == "mle"


def test_laplace_refits_what_laplace_lora_did_not_save(steps: Path, tmp_path: Path) -> None:
    make_task(tmp_path / "tasks")
    assert main(["import", str(steps), str(tmp_path / "map")]) == 0
    command = ["train", "laplace", "--adapter", str(tmp_path / "map"), "--out", str(tmp_path / "lap")]
    command += ["--device", "cpu", "--task", "tiny_uq", "--include-path", str(tmp_path / "tasks"), "--max-length", "24"]
    assert main([*command, "--set", "structure=diag", "mc_samples=10"]) == 0
    record = adapter_io.read_record(tmp_path / "lap")
    assert record is not None and record["source"]["imported"]["step"] == 1999
    # A linearised predictive is more than its weights; draws of those can be exported all the same.
    assert main(["export", str(tmp_path / "lap"), str(tmp_path / "draws"), "--samples", "2"]) == 0
    mean, one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("map", "draws/draw0", "draws/draw1"))
    assert mean.keys() == one.keys() and not any(torch.equal(one[name], two[name]) for name in mean)


# ---------------------------------------------------------------- bad input


def spoil(folder: Path, kind: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    one = next(name for name in tensors if name.endswith(".lora_A.weight"))
    if kind == "bin":
        (folder / WEIGHTS).rename(folder / "adapter_model.bin")
        return
    if kind == "no config":
        (folder / "adapter_config.json").unlink()
    elif kind == "deep config":
        (folder / "adapter_config.json").write_text("[" * 200_000)
    elif kind == "rank as text":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": "2"}))
    elif kind == "gap":
        shutil.rmtree(folder / "adapter_1")
    elif kind == "rank of a member":
        config = json.loads((folder / "adapter_2" / "adapter_config.json").read_text())
        (folder / "adapter_2" / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    elif kind == "half":
        del tensors[one]
    elif kind == "rank":
        tensors[one] = torch.cat([tensors[one]] * 2)
    elif kind == "one rho":
        tensors[one.replace(".lora_A.weight", ".lora_A_rho")] = tensors[one].clone()
    elif kind == "mixed":
        tensors["base_model.model.x.lora_A.weight"] = tensors[one].clone()
    elif kind == "nothing":
        tensors = {f"transformer.{k}": torch.zeros(1) for k in range(3)}
    elif kind == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])
        return
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


BAD = {
    "bin": ([], "only safetensors are read"),
    "no config": ([], "neither adapter_config.json nor step_"),
    "deep config": ([], "nested too deeply"),
    "rank as text": ([], 'r: expected an integer, got "2"'),
    "gap": ([], "holds the members adapter_2 beside its own"),
    "rank of a member": ([], "is 4, its tensors have 2"),
    "half": ([], "was not saved completely"),
    "rank": ([], "is 2, its tensors have 4"),
    "one rho": (["--eps", "0.05"], "give a checkpoint of one method"),
    "mixed": ([], "is not named as bayesian-peft does"),
    "nothing": ([], "none of its 3 tensors is named"),
    "cut": ([], "not a complete safetensors file"),
    "too few members": (["--members", "5"], "holds 3 members, --members says 5"),
    "eps without rho": (["--eps", "0.05"], "--eps has no meaning"),
    "step": (["--step", "3"], "--step has no meaning for bayesian-peft"),
}


@pytest.fixture(scope="module")
def theirs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "run"
    doubled(base, folder, "adapter_1", "adapter_2")
    return folder


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_checkpoint_is_one_line_code_2_and_no_output(
    kind: str, theirs: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(theirs, tmp_path / "in" / "run")
    spoil(tmp_path / "in" / "run", kind)
    flags, said = BAD[kind]
    assert main(["import", str(tmp_path / "in" / "run"), str(tmp_path / "out"), "--base", str(base), *flags]) == 2
    assert said in last_line(capsys) and os.listdir(tmp_path) == ["in"]


def test_what_a_checkpoint_does_not_say_is_asked_for(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    doubled(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert main(["import", str(folder), str(tmp_path / "out")]) == 2
    assert "--base" in last_line(capsys)
    add_rho(folder)
    assert main(["import", str(folder), str(tmp_path / "out"), "--base", str(base)]) == 2
    assert "add --eps" in last_line(capsys) and os.listdir(tmp_path) == ["in"]


def test_wrong_folders_are_named(steps: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_lora(base).save_pretrained(str(tmp_path / "plain"))
    for source, flags, said in (
        (tmp_path / "nothing", [], "no such folder"),
        (base, [], "not a checkpoint"),
        (tmp_path / "plain", [], "is a plain PEFT adapter, which needs no import"),
        (steps, ["--step", "5"], "it has step_0, step_999, step_1999"),
        (steps, ["--eps", "0.05"], "--eps has no meaning for laplace-lora"),
        (steps / "step_999", ["--step", "0"], "is step 999, --step says 0"),
    ):
        assert main(["import", str(source), str(tmp_path / "out"), *flags]) == 2
        assert said in last_line(capsys) and not (tmp_path / "out").exists()
    assert main(["import", str(steps), str(tmp_path / "plain")]) == 2
    assert "exists already" in last_line(capsys)


def test_rho_of_some_layers_only_is_refused(base: Path, tmp_path: Path) -> None:
    doubled(base, tmp_path / "in")
    spoil(tmp_path / "in", "one rho")
    with pytest.raises(Exception, match="1 lora_A_rho for 5 lora_A"):
        read_checkpoint(tmp_path / "in", eps=0.05)
