"""`uqharness export`: N plain PEFT adapters that answer as our draws do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tiny import make_base, make_lora
from uqharness import adapter_io
from uqharness.adapters.mcd import MCDropout
from uqharness.bma import Engine, make_rows
from uqharness.cli import main
from uqharness.lora import LoraStack
from uqharness.posterior import Gaussian

PAIRS = [([1, 12, 13, 14, 4], [6]), ([1, 12, 13, 14, 4], [7, 9]), ([1, 20, 4], [8])]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a BLoB adapter with a std on every A."""
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base")
    model = make_lora(root / "base", use_rslora=True)
    mean = LoraStack(model).mean()
    std = {name: torch.full_like(t, 0.1) for name, t in mean.items() if ".lora_A." in name}
    save(root / "blob", model, Gaussian(mean, std, train_seed=5), "blob", root / "base")
    return root


def save(folder: Path, model: PeftModel, posterior: object, method: str, base: Path) -> None:
    record = {"method": {"name": method}, "base": {"name": str(base)}}
    adapter_io.save_adapter(folder, model, posterior, record)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 3])
def test_every_draw_answers_as_ours(world: Path, tmp_path: Path, seed: int) -> None:
    """Our engine folds all draws into one forward of one model; PEFT loads each by itself."""
    command = ["export", str(world / "blob"), str(tmp_path / "draws"), "--samples", "3", "--seed", str(seed)]
    assert main(command) == 0 and sorted(os.listdir(tmp_path / "draws")) == ["draw0", "draw1", "draw2"]
    posterior, _ = adapter_io.load_posterior(world / "blob")
    base = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(world / "blob")).eval()
    ours = Engine(model, posterior, samples=3, seed=seed).score(make_rows([PAIRS], 32)).draws  # [S, K]
    different = set()
    for i in range(3):
        plain = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "draws" / f"draw{i}")).eval()
        for k, (context, answer) in enumerate(PAIRS):
            tokens = [*context, *answer]
            with torch.no_grad():
                logp = theirs(input_ids=torch.tensor([tokens])).logits.double().log_softmax(-1)[0]
            value = sum(float(logp[n - 1, tokens[n]]) for n in range(len(context), len(tokens)))
            assert value == pytest.approx(float(ours[i, k]), abs=1e-6 * len(answer) + 1e-6)
            different.add(round(value, 4))
    assert len(different) == 9


def test_the_first_of_many_are_the_few_and_the_rest_is_the_mean(world: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        assert main(["export", str(world / "blob"), str(tmp_path / f"n{count}"), "--samples", str(count)]) == 0
    one, two = (load_file(tmp_path / name / "draw0" / adapter_io.MEAN) for name in ("n1", "n2"))
    mean = load_file(world / "blob" / adapter_io.MEAN)
    assert one.keys() == mean.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], mean[name]) == (".lora_B." in name) for name in one)


def test_what_no_weights_can_hold_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_lora(world / "base")
    mean = LoraStack(model).mean()
    kind = MCDropout.posteriors[0]
    token = kind.restore(mean, {}, {"p": 0.5, "mask": "token"}, 0)
    save(tmp_path / "in", model, token, "mcd", world / "base")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--samples", "2"]) == 2
    assert "noise on inputs, which no weights can hold" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]
    column = kind.restore(mean, {}, {"p": 0.5, "mask": "column"}, 0)
    save(tmp_path / "in", model, column, "mcd", world / "base")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--samples", "2"]) == 0
    drawn = load_file(tmp_path / "out" / "draw1" / adapter_io.MEAN)
    assert any(bool((t == 0).all(0).any()) for name, t in drawn.items() if ".lora_A." in name)


@pytest.mark.parametrize(
    "flags, said",
    [(["--samples", "0"], "give 1 to"), (["--samples", "many"], "many"), ([], "--samples")],
)
def test_bad_input_is_code_2_and_no_output(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["export", str(world / "blob"), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not os.listdir(tmp_path)
    assert main(["export", str(world / "base"), str(tmp_path / "out"), "--samples", "1"]) == 2
    assert not os.listdir(tmp_path)
    assert main(["export", str(world / "blob"), str(world / "base"), "--samples", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
