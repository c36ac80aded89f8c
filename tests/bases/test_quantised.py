"""Bases in 4 and 8 bit on the CPU, and the precision of the base in evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slow_twin import per_draw
from tests.tiny import make_base
from tests.tiny_adapter import REQUESTS, instances, lines_of, save
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.results.reading import read_results
from uqharness.settings import Run
from uqharness.training.base_model import evaluation_dtype, load_base, pick_device

WIDE = {"hidden_size": 64, "intermediate_size": 96}
QUICK = "--lora-r 2 --steps 3 --lr 0.05 --batch-size 4 --max-length 24 --device cpu".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base", **WIDE)
    make_task(root / "tasks")
    return root


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_bases_train_evaluate_and_reach_the_table(
    bits: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    for method in ("mle", "blob"):
        out, include = tmp_path / method, ["--include-path", str(world / "tasks")]
        command = ["train", method, "--base", str(world / "base"), "--task", "tiny_uq", "--out", str(out), *QUICK]
        assert main([*command, f"--load-in-{bits}", *include]) == 0
        argv = ["eval", str(out), "--model_args", f"samples=2,load_in_{bits}=yes", "--tasks", "tiny_uq"]
        argv += ["--include_path", str(world / "tasks"), "--output_path", str(tmp_path / "results"), "--device", "cpu"]
        assert main(argv) == 0
    assert main(["table", str(tmp_path / "results")]) == 0
    assert "MLE" in capsys.readouterr().out
    runs = read_results(tmp_path / "results")
    kind = {"4bit": "4bit nf4", "8bit": "8bit"}[bits]
    assert [run.config["uqharness"]["quantisation"] for run in runs] == [kind, kind]
    assert all(run.config["uqharness"]["dtype"] == "float32" for run in runs)
    tensors = adapter_io.read_tensors(tmp_path / "blob" / adapter_io.MEAN)
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert any(t.any() for name, t in tensors.items() if "lora_B" in name)
    with lines_of("lm_eval.uqharness") as lines:
        BayesLoRA(adapter=str(tmp_path / "mle"), device="cpu")
    assert f"trained on a base in {bits}, evaluated on one in full" in lines


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_draws_on_a_quantised_base_are_those_of_the_slow_twin(bits: str, world: Path, tmp_path: Path) -> None:
    """Quantised it is, nothing depends on the batch, and draws that share a forward answer as one by one."""
    pytest.importorskip("bitsandbytes")
    adapter = save(tmp_path / "adapter", world / "base")
    # Outliers are looked for in the whole batch: with them, an answer in 8 bit depends on its neighbours.
    exact = {"load_in_8bit": True, "llm_int8_threshold": 0.0} if bits == "8bit" else {"load_in_4bit": "on"}
    ours = BayesLoRA(adapter=str(adapter), samples=3, batch_size=2, device="cpu", **exact)
    kinds = {type(module).__name__ for module in ours.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
    values = [value.draws for value, _ in ours.loglikelihood(instances("loglikelihood", REQUESTS))]
    pairs = [ours._encode_pair(*request) for request in REQUESTS]
    wanted = per_draw(ours.model, ours.predictive.posterior, pairs, samples=3, seed=0)  # [S, K]
    tolerance = 1e-4 if bits == "4bit" else 2e-2  # 8 bit computes in float16
    for k, draws in enumerate(values):
        assert draws == pytest.approx(wanted[:, k].tolist(), abs=tolerance * len(pairs[k][1]))
    full = BayesLoRA(adapter=str(adapter), samples=3, device="cpu")
    other = [value.draws for value, _ in full.loglikelihood(instances("loglikelihood", REQUESTS))]
    assert (torch.tensor(values) - torch.tensor(other)).abs().max() > 1e-3


def test_4bit_answers_do_not_depend_on_the_mode(world: Path) -> None:
    """bitsandbytes would pack its layers for evaluation, rounding their scales, and then not train on."""
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(Run(base=str(world / "base"), device="cpu", load_in_4bit=True))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        train, evaluated = model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
        assert torch.equal(train, evaluated)
        assert torch.equal(model.train()(input_ids=ids).logits, train)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "choose one"),
        ({"bnb_4bit_quant_type": "nf4"}, "without load_in_4bit or load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": 3}, "BitsAndBytesConfig"),
        ({"load_in_4bit": "perhaps"}, "load_in_4bit"),
        ({"dtype": "floaty"}, "dtype=floaty: no precision"),
    ],
)
def test_bad_precision_is_one_line(world: Path, tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = save(tmp_path / "adapter", world / "base")
    with pytest.raises(InputError, match=words) as caught:
        BayesLoRA(adapter=str(adapter), device="cpu", **arguments)
    assert "\n" not in str(caught.value)


def test_without_bitsandbytes_one_line_says_what_to_install(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save(tmp_path / "adapter", world / "base")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python marks what cannot be imported
    command = ["train", "mle", "--base", str(world / "base"), "--task", "tiny_uq", "--out", str(tmp_path / "out")]
    assert main([*command, *QUICK, "--load-in-4bit", "--include-path", str(world / "tasks")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install uqharness[quantized]")
    with pytest.raises(InputError, match=r"pip install uqharness\[quantized\]"):
        BayesLoRA(adapter=str(adapter), device="cpu", load_in_8bit=True)


# -------------------------------------------------------------------- precision


def test_a_bfloat16_checkpoint_is_evaluated_in_float32_on_a_cpu(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    assert json.loads((base / "config.json").read_text())["dtype"] == "bfloat16"
    adapter = save(tmp_path / "adapter", base)
    for arguments, wanted in (({}, "float32"), ({"dtype": "auto"}, "bfloat16"), ({"dtype": "bfloat16"}, "bfloat16")):
        ours = BayesLoRA(adapter=str(adapter), device="cpu", **arguments)
        assert ours.model.get_input_embeddings().weight.dtype == getattr(torch, wanted)
        assert ours.get_model_info()["uqharness"]["dtype"] == wanted
        assert ours.get_model_info()["uqharness"]["quantisation"] is None


def test_elsewhere_the_precision_is_that_of_training(world: Path, tmp_path: Path) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    command = ["train", "mle", "--base", str(world / "base"), "--task", "tiny_uq", "--out", str(tmp_path / "mle")]
    assert main([*command, *QUICK, "--include-path", str(world / "tasks")]) == 0
    record = adapter_io.read_record(tmp_path / "mle")
    assert record is not None and record["run"]["dtype"] == "auto" and record["base"]["dtype"] == "float32"
    assert evaluation_dtype(cuda, record) == "float32"
    assert evaluation_dtype(cuda, {"base": {"dtype": "bfloat16"}}) == "bfloat16"
    assert evaluation_dtype(cpu, {"base": {"dtype": "bfloat16"}}) == "float32"
    assert evaluation_dtype(cuda, {"base": {}, "run": {"dtype": "bfloat16"}}) == "bfloat16"  # records of before
    assert evaluation_dtype(cuda, None) == evaluation_dtype(cuda, {"run": {"dtype": "auto"}}) == "auto"


def test_each_process_of_a_launch_loads_its_base_on_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All on the first one, a quantised base could not be trained: it cannot move."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:3", "cuda:3", "cpu"]
