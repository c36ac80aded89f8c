"""`uqharness train METHOD --adapter DIR`: a method that builds on a trained adapter, ours or someone else's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.failures import last_line
from tests.tiny import make_base, make_lora
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapters.laplace import Laplace
from uqharness.adapters.mle import MLE
from uqharness.cli import main
from uqharness.commands import source as sources
from uqharness.results import leakage
from uqharness.results.reading import read_results

MADE = "--lora-r 2 --lora-alpha 6 --target-modules q_proj v_proj --steps 4 --lr 0.02 --batch-size 4".split()
WHERE = "--max-length 24 --device cpu".split()
QUICK = ["--set", "structure=diag", "mc_samples=100", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another base, a task, an MLE adapter with a held-out split, and a plain PEFT LoRA."""
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base")
    make_base(root / "other", hidden_size=16, intermediate_size=24)
    make_task(root / "tasks")
    make_task(root / "tasks", "held_uq", seed=7)
    command = ["train", "mle", "--base", str(root / "base"), "--task", "tiny_uq", *MADE, *WHERE, "--seed", "3"]
    command += ["--eval-every", "2", "--select-split", "train[-25%]", *include(root)]
    assert main([*command, "--out", str(root / "mle")]) == 0
    plain = make_lora(root / "base", r=3, target_modules=["q_proj"], use_rslora=True)
    plain.save_pretrained(str(root / "plain"))
    return root


def include(root: Path) -> list[str]:
    return ["--include-path", str(root / "tasks")]


def laplace(root: Path, adapter: str, out: Path, *more: str) -> int:
    command = ["train", "laplace", "--adapter", str(root / adapter), "--out", str(out)]
    return main([*command, *include(root), *QUICK, *more])


def test_our_adapter_says_everything(world: Path, tmp_path: Path) -> None:
    """Weights stay bit for bit, the record nests the source's, and its splits are known to the leak check."""
    assert laplace(world, "mle", tmp_path / "lap") == 0
    before, after = (load_file(folder / adapter_io.MEAN) for folder in (world / "mle", tmp_path / "lap"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    record, source = (adapter_io.read_record(folder) for folder in (tmp_path / "lap", world / "mle"))
    assert record is not None and source is not None
    assert "files" in record and source.pop("files")  # the list is of the folder's own files, a hash names the source's
    assert {**record["source"], **source} == record["source"]
    assert record["source"]["content_hash"] == adapter_io.content_hash(world / "mle")
    run = record["run"]
    assert (run["lora_r"], run["lora_alpha"], run["target_modules"]) == (2, 6, ["q_proj", "v_proj"])
    assert (run["base"], run["task"], run["seed"], run["max_length"]) == (str(world / "base"), "tiny_uq", 3, 24)
    assert record["recipe_hash"] == source["recipe_hash"] and record["costs"]["steps"] == 0
    own = {(s["purpose"], s["hash"]) for s in adapter_io.read_splits(tmp_path / "lap")}
    theirs = {(s["purpose"], s["hash"]) for s in adapter_io.read_splits(world / "mle")}
    assert theirs < own and {purpose for purpose, _ in theirs} == {"fit", "select"}
    config = json.loads((tmp_path / "lap" / adapter_io.PEFT_CONFIG).read_text())
    assert config["r"] == 2 and config["base_model_name_or_path"] == str(world / "base")


def test_a_plain_peft_adapter_will_do(world: Path, tmp_path: Path) -> None:
    """rsLoRA, rank and targets come from PEFT's own file; how it was trained is not known."""
    assert laplace(world, "plain", tmp_path / "lap", "--task", "tiny_uq", "--max-length", "24") == 0
    record = adapter_io.read_record(tmp_path / "lap")
    assert record is not None and record["source"]["method"]["name"] == "peft" and record["recipe_hash"] is None
    config = LoraConfig.from_pretrained(str(tmp_path / "lap"))
    assert (config.r, config.use_rslora, set(config.target_modules or ())) == (3, True, {"q_proj"})
    before, after = (load_file(folder / adapter_io.MEAN) for folder in (world / "plain", tmp_path / "lap"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_evaluates_and_stands_beside_its_source(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laplace(world, "mle", tmp_path / "lap") == 0
    for adapter in (world / "mle", tmp_path / "lap"):
        command = ["eval", str(adapter), "--tasks", "tiny_uq", "--include_path", str(world / "tasks")]
        assert main([*command, "--model_args", "samples=2", "--output_path", str(tmp_path / "results")]) == 0
    runs = read_results(tmp_path / "results")
    assert {run.config["uqharness"]["record"]["recipe_hash"] for run in runs} == {
        runs[0].config["uqharness"]["record"]["recipe_hash"]
    }
    capsys.readouterr()
    assert main(["table", str(tmp_path / "results"), "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]  # one: they compare
    assert {row["method"] for row in table["rows"]} == {"MLE", "LAP"}


def test_tuning_on_items_that_the_source_was_fitted_on_is_counted(world: Path) -> None:
    source = sources.read(str(world / "mle"), Laplace)
    fitted = next(s["fingerprints"] for s in adapter_io.read_splits(world / "mle") if s["purpose"] == "fit")
    tune = {"purpose": "tune", "fingerprints": [*fitted[:5], "unseen"], "prompts": list("abcdef")}
    assert source.tuned_on_fitted([tune, {"purpose": "fit", "fingerprints": fitted, "prompts": fitted}]) == 5
    assert source.tuned_on_fitted([{**tune, "fingerprints": ["unseen"], "prompts": ["a"]}]) == 0
    older = {"purpose": "fit", "fingerprints": ["b", fitted[1]]}  # of version 1: prompts
    assert leakage.count_seen([tune], [older]) == 1


def test_a_method_that_tunes_says_so_in_its_record(world: Path, tmp_path: Path) -> None:
    command = ["train", "tempscale", "--adapter", str(world / "mle"), "--out", str(tmp_path / "ts"), *include(world)]
    assert main([*command, "--device", "cpu", "--tune-fraction", "0.5"]) == 0
    splits = {s["purpose"]: set(s["fingerprints"]) for s in adapter_io.read_splits(tmp_path / "ts") if "of" not in s}
    older = [set(s["fingerprints"]) for s in adapter_io.read_splits(tmp_path / "ts") if s.get("of") == "source"]
    fitted = next(set(s["fingerprints"]) for s in adapter_io.read_splits(world / "mle") if s["purpose"] == "fit")
    record = adapter_io.read_record(tmp_path / "ts")
    assert record is not None and record["data"]["tuned_on_fitted"] == len(splits["tune"] & fitted) > 0
    assert fitted in older and len(older) == 2


def test_what_is_given_counts_where_it_may(world: Path) -> None:
    source = sources.read(str(world / "mle"), Laplace)
    inherited = sources.inherit(
        source, {"seed": 0, "base": "elsewhere", "lora_r": "2", "target_modules": "v_proj,q_proj"}
    )
    assert "seed" not in inherited and "base" not in inherited and inherited["max_length"] == 24
    assert inherited["target_modules"] == ("q_proj", "v_proj") and inherited["lora_r"] == 2


def test_a_dry_run_says_what_comes_from_the_adapter_and_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laplace(world, "mle", tmp_path / "lap", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "builds on" in printed and "lora_r: 2  (from the adapter)" in printed and "from doing it once" in printed
    assert not os.listdir(tmp_path)


def test_another_source_is_not_the_same_cell(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--task", "tiny_uq", "--max-length", "24", "--seeds", "1"]
    assert laplace(world, "plain", tmp_path / "lap", *args) == 0
    capsys.readouterr()
    assert laplace(world, "plain", tmp_path / "lap", *args) == 0
    assert "complete, skipped" in capsys.readouterr().out
    twin = make_lora(world / "base", seed=1, r=3, target_modules=["q_proj"], use_rslora=True)
    twin.save_pretrained(str(world / "twin"))
    assert laplace(world, "twin", tmp_path / "lap", *args) == 2
    assert "adapter=" in last_line(capsys)


BAD: dict[str, tuple[str, list[str], str]] = {
    "rank": ("mle", ["--lora-r", "4"], "lora_r is 4 in the command and 2 in the adapter"),
    "alpha": ("mle", ["--lora-alpha", "16"], "remove --lora-alpha"),
    "targets": ("mle", ["--target-modules", "q_proj"], "target_modules is q_proj in the command"),
    "dropout": ("mle", ["--lora-dropout", "0.1"], "remove --lora-dropout"),
    "base of another shape": ("mle", ["--base", "other"], "does not match base model"),
    "no task": ("plain", [], "no task: give --task"),
    "no folder": ("nothing/at/all", [], "no such folder"),
    "no adapter": ("base", [], "this is not an adapter folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_code_2_and_no_output(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, more, said = BAD[name]
    more = [str(world / "other") if word == "other" else word for word in more]
    assert laplace(world, adapter, tmp_path / "out", *more) == 2
    assert said in last_line(capsys)
    assert not os.listdir(tmp_path)


def test_the_same_shape_is_not_the_same_base(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base(tmp_path / "twin", rms_norm_eps=1e-6)
    folder = tmp_path / "twin"
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] += 0.5
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert laplace(world, "mle", tmp_path / "out", "--base", str(folder)) == 2
    assert "is not the one recorded" in last_line(capsys) and not (tmp_path / "out").exists()


def test_methods_that_train_from_scratch_refuse_an_adapter(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Laplace.uses_source and not MLE.uses_source
    assert main(["train", "blob", "--adapter", str(world / "mle"), "--out", str(tmp_path / "a")]) == 2
    assert "blob trains an adapter of its own" in last_line(capsys) and not os.listdir(tmp_path)


def test_an_ensemble_goes_on_from_its_own_first_member_only(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Member 0 is the MLE of the same recipe and seed: with it the ensemble is bit for bit the one without."""
    command = ["train", "ens", "--base", str(world / "base"), "--task", "tiny_uq", *MADE, *WHERE, "--seed", "3"]
    command += ["--eval-every", "2", "--select-split", "train[-25%]", "--set", "members=2", *include(world)]
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    assert main([*command, "--out", str(tmp_path / "built"), "--adapter", str(world / "mle")]) == 0
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        one, other = load_file(tmp_path / "alone" / name), load_file(tmp_path / "built" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    alone, built = (adapter_io.read_record(tmp_path / name) for name in ("alone", "built"))
    assert alone and built and alone["recipe_hash"] == built["recipe_hash"] and built["costs"]["steps"] == 4
    capsys.readouterr()
    more = ["--out", str(tmp_path / "other"), "--adapter", str(world / "mle")]
    assert main([*command, *more, "--lr", "0.01"]) == 2
    assert "trained in another way (lr=0.02, here 0.01)" in last_line(capsys)
    assert main([*command, *more, "--seed", "4"]) == 2
    assert "(seed=3, here 4)" in last_line(capsys)
    assert not (tmp_path / "other").exists()
