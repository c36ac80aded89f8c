"""The command line on tiny real models: train -> eval -> table, bad input, exit codes, nothing half-written."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.failures import last_line
from tests.tiny import make_base
from tests.tiny_task import make_task
from uqharness import __version__
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import COMMANDS, main
from uqharness.commands.tasks_only import complete
from uqharness.errors import did_you_mean
from uqharness.results.reading import read_results

FAST = "--lora-r 2 --steps 4 --lr 0.02 --batch-size 4 --max-length 24 --device cpu".split()
METHODS = {"mle": [], "ens": ["--set", "members=2"], "blob": []}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a task, and one adapter per method with its results."""
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base")
    make_task(root / "tasks")
    for method, extra in METHODS.items():
        assert train(root, method, root / "adapters" / method, *extra) == 0
        evaluate = ["eval", str(root / "adapters" / method), "--tasks", "tiny_uq"]
        evaluate += ["--include_path", str(root / "tasks"), "--model_args", "samples=3", "--batch_size", "8"]
        assert main([*evaluate, "--output_path", str(root / "results")]) == 0
    return root


def train(root: Path, method: str, out: Path, *more: str, task: str = "tiny_uq") -> int:
    where = ["--base", str(root / "base"), "--task", task, "--include-path", str(root / "tasks")]
    return main(["train", method, *where, "--out", str(out), *FAST, *more])


# ---------------------------------------------------------------- train, eval, table


def test_the_folder_is_a_peft_adapter_with_a_full_record(world: Path) -> None:
    for method in METHODS:
        folder = world / "adapters" / method
        record = adapter_io.read_record(folder)
        assert record is not None and record["method"]["name"] == method
        assert record["base"]["name"] == str((world / "base").resolve()) and record["base"]["fingerprint"]
        assert record["run"]["steps"] == 4 and record["costs"]["steps"] == (8 if method == "ens" else 4)
        assert record["costs"]["trainable_parameters"] > 0 and record["costs"]["peak_memory_bytes"] > 0
        assert record["versions"]["uqharness"] == __version__ and record["versions"]["lm-eval"]
        assert record["command"].startswith(f"uqharness train {method} --base")
        assert [split["items"] for split in record["data"]["splits"]] == [24]
        assert "fingerprints" not in json.dumps(record)
        assert len(adapter_io.read_splits(folder)[0]["fingerprints"]) == 24
        base = AutoModelForCausalLM.from_pretrained(world / "base")
        state = PeftModel.from_pretrained(base, str(folder)).state_dict()
        mean = load_file(folder / adapter_io.MEAN)
        assert all(torch.equal(state[k.replace(".weight", ".default.weight")], v) for k, v in mean.items())


def test_the_record_counts_the_draws_that_a_posterior_has(world: Path) -> None:
    runs = {run.config["uqharness"]["record"]["method"]["name"]: run for run in read_results(world / "results")}
    assert {name: run.record.draws for name, run in runs.items()} == {"mle": 1, "ens": 2, "blob": 3}
    assert len({run.protocol_hash for run in runs.values()}) == 1


def test_the_table_is_what_lm_eval_reported(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(world / "results"), "--metric", "acc,ece", "nll", "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    reported = {run.config["uqharness"]["record"]["method"]["label"]: run for run in read_results(world / "results")}
    assert {row["method"] for row in table["rows"]} == {"MLE", "ENS", "BLoB"} == set(reported)
    for cell in table["cells"]:
        run = reported[table["rows"][cell["row"]]["method"]]
        assert cell["mean"] == pytest.approx(run.reported[cell["metric"]], abs=1e-9)
        if cell["metric"] == "ece":
            assert cell["floor"] == pytest.approx(run.reported["ece_floor"], abs=1e-9)


def test_fewer_draws_come_from_the_same_record(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(world / "results"), "--metric", "nll", "--samples", "0,1,3", "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    rows = [(row["method"], row["samples"]) for row in table["rows"]]
    assert rows.count(("MLE", 1)) == 1 and {n for m, n in rows if m == "BLoB"} == {0, 1, 3}
    assert {n for m, n in rows if m == "ENS"} == {0, 1, 2}


def test_train_ends_with_what_to_type_next(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(world, "mle", tmp_path / "a") == 0
    command, table = capsys.readouterr().out.splitlines()[-2:]
    assert (
        command.split()
        == (
            f"lm_eval --model bayeslora --model_args adapter={tmp_path}/a,samples=10 --tasks tiny_uq "
            f"--include_path {world}/tasks --output_path results"
        ).split()
    )
    assert table.split() == ["uqharness", "table", "results"]


def test_eval_puts_lm_eval_back_as_it_was(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval import tasks
    from lm_eval.config.evaluate_config import EvaluatorConfig

    before = tasks.TaskManager, EvaluatorConfig.process_tasks
    common = ["--tasks", "tiny_uq", "--include_path", str(world / "tasks"), "--limit", "2"]
    assert main(["eval", str(world / "adapters/mle"), *common]) == 0
    assert "--output_path" in capsys.readouterr().err.splitlines()[-1]  # what to add to keep the draws
    assert main(["eval", str(world / "nothing"), *common]) == 2
    assert (tasks.TaskManager, EvaluatorConfig.process_tasks) == before


@pytest.mark.parametrize("program", ["uqharness", "__main__.py"])
def test_eval_says_once_that_nothing_was_kept(world: Path, program: str) -> None:
    code = f"import sys; sys.argv[0] = '/bin/{program}'; from uqharness.cli import main; sys.exit(main())"
    argv = ["eval", str(world / "adapters/mle"), "--tasks", "tiny_uq", "--include_path", str(world / "tasks")]
    done = subprocess.run([sys.executable, "-c", code, *argv, "--limit", "2"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("add --output_path DIR") == 1, done.stderr


@pytest.mark.slow
def test_eval_writes_what_lm_eval_writes_in_half_the_time_to_the_first_request(world: Path, tmp_path: Path) -> None:
    args = f"adapter={world}/adapters/blob,samples=3"
    common = ["--model_args", args, "--tasks", "tiny_uq", "--include_path", str(world / "tasks")]
    ours, quick = first_request(["-m", "uqharness", "eval", *common, "--output_path", str(tmp_path / "ours")])
    theirs, slow = first_request(
        ["-m", "lm_eval", "--model", "bayeslora", *common, "--output_path", str(tmp_path / "theirs")]
    )
    assert ours == theirs == 0
    files = [next((tmp_path / name).glob("*/results_*.json")) for name in ("ours", "theirs")]
    assert files[0].parent.name == files[1].parent.name
    left, right = (json.loads(path.read_text()) for path in files)
    assert left["results"] == right["results"] and left["configs"] == right["configs"]
    assert set(left) == set(right) and left["config"].keys() == right["config"].keys()
    assert quick <= 0.5 * slow, f"{quick:.1f} s of processor time against {slow:.1f} s"


def first_request(argv: list[str]) -> tuple[int, float]:
    """(exit code, processor seconds until lm-eval logs the first request); wall time would see the neighbours."""
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    used = float("nan")
    assert process.stderr is not None
    for line in process.stderr:
        if "Running loglikelihood requests" in line and used != used:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            used = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return process.wait(), used


# ---------------------------------------------------------------- what train does with --out


def test_a_complete_adapter_is_not_written_over_by_accident(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert train(world, "mle", out) == 0
    before = (out / adapter_io.MEAN).read_bytes()
    capsys.readouterr()
    assert train(world, "mle", out, "--seed", "1") == 2
    assert "--overwrite" in last_line(capsys) and (out / adapter_io.MEAN).read_bytes() == before
    assert train(world, "mle", out, "--seed", "1", "--overwrite") == 0
    assert (out / adapter_io.MEAN).read_bytes() != before and os.listdir(tmp_path) == ["a"]
    assert train(world, "mle", tmp_path) == 2  # a folder of something else: not even with --overwrite
    assert train(world, "mle", tmp_path, "--overwrite") == 2


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/a", "file/a/b"):
        assert train(world, "mle", tmp_path / name) == 2
        assert f"--out {tmp_path / name}" in last_line(capsys)
    blob, results, out = str(world / "adapters/blob"), str(world / "results"), str(tmp_path / "file/a.parquet")
    for argv in (["export", blob, out, "--samples", "1"], ["publish", results, out], ["export-site", results, out]):
        assert main(argv) == 2
        assert f"{tmp_path / 'file'} is a file" in last_line(capsys)
    assert os.listdir(tmp_path) == ["file"]


def test_seeds_are_skipped_when_complete_and_refused_when_other_settings(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert train(world, "mle", out, "--seeds", "2") == 0
    shutil.rmtree(out / "seed1")
    before = (out / "seed0" / adapter_io.RECORD).read_bytes()
    capsys.readouterr()
    assert train(world, "mle", out, "--seeds", "2") == 0
    printed = capsys.readouterr().out
    assert f"{out}/seed0: complete, skipped" in printed and f"{out}/seed1: complete" not in printed
    assert (out / "seed0" / adapter_io.RECORD).read_bytes() == before
    seeds = [adapter_io.read_record(out / f"seed{k}")["posterior"]["train_seed"] for k in (0, 1)]  # type: ignore[index]
    assert seeds == [0, 1]
    assert train(world, "mle", out, "--seeds", "2", "--lr", "0.5") == 2
    assert "lr=0.02" in last_line(capsys)


def test_a_dry_run_estimates_and_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(world, "blob", tmp_path / "a", "--dry-run", "--seeds", "3", "--set", "prior_std=0.1") == 0
    printed = capsys.readouterr().out
    assert "prior_std: 0.1" in printed and "cells: 3" in printed and "lr: 0.02  (given)" in printed
    assert re.search(r"time: .* a cell, .* for 3; from 2 real steps of \d+\.\d+ s", printed)
    assert re.search(r"memory: \d+.* MiB|GiB", printed) and re.search(r"disk: \d.* for 3", printed)
    assert not os.listdir(tmp_path)


def test_resume_ends_where_the_uninterrupted_run_ended(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    flags = ["blob", tmp_path / "a", "--save-every", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(adapter_io, "save_adapter", full)
        assert train(world, *flags) == 1
    (tmp_path / "a.checkpoints/checkpoint-4/complete.json").unlink()  # as if it had been stopped there
    assert train(world, *flags, "--resume") == 0 and train(world, "blob", tmp_path / "whole") == 0
    whole, again = (load_file(tmp_path / name / adapter_io.POSTERIOR) for name in ("whole", "a"))
    record = adapter_io.read_record(tmp_path / "a")
    assert record is not None and record["training"][0]["resumed_from"] == 2
    assert set(whole) == set(again) and all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("method", ["blob", "ens"])
def test_checkpoints_are_gone_once_the_adapter_is_written(world: Path, tmp_path: Path, method: str) -> None:
    saving = ["--save-every", "2", *METHODS[method]]
    assert train(world, method, tmp_path / "a", *saving) == 0
    assert os.listdir(tmp_path) == ["a"]
    logs = tmp_path / "a.checkpoints" / "runs" / "log"
    logs.parent.mkdir(parents=True)
    logs.write_text("a logger's")
    assert train(world, method, tmp_path / "a", *saving, "--overwrite") == 0
    assert [p for p in (tmp_path / "a.checkpoints").rglob("*") if p.is_file()] == [logs]


def test_selection_is_recorded_and_its_items_are_not_trained_on(world: Path, tmp_path: Path) -> None:
    flags = ["--eval-every", "2", "--select", "best:nll", "--select-split", "train[-25%]"]
    assert train(world, "mle", tmp_path / "a", *flags) == 0
    splits = {split["purpose"]: set(split["fingerprints"]) for split in adapter_io.read_splits(tmp_path / "a")}
    assert splits["fit"] and splits["select"] and not splits["fit"] & splits["select"]
    record = adapter_io.read_record(tmp_path / "a")
    assert record is not None and len(record["training"][0]["evaluations"]) == 2


def test_settings_flags_before_set_before_file(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("lr: 0.5\nwarmup: 0.5\nprior_std: 0.3\nsettings: {eps: 0.04}\n")
    more = ["--config", str(file), "--set", "warmup=0.25", "kl_lr=0.02"]
    assert train(world, "blob", tmp_path / "a", *more) == 0
    record = adapter_io.read_record(tmp_path / "a")
    assert record is not None and (record["run"]["lr"], record["run"]["warmup"]) == (0.02, 0.25)
    settings = record["method"]["settings"]
    assert (settings["prior_std"], settings["eps"], settings["kl_lr"]) == (0.3, 0.04, 0.02)


def test_a_file_whose_settings_are_none_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("settings: 5\n")
    assert train(world, "blob", tmp_path / "out", "--config", str(tmp_path / "a.yaml")) == 2
    assert "settings is 5" in last_line(capsys)


# ---------------------------------------------------------------- leaks


def test_training_on_the_evaluated_split_is_refused_or_marked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_task(world / "tasks", "leaky_uq", training_split="validation")
    out = tmp_path / "a"
    assert train(world, "mle", out, task="leaky_uq") == 2
    assert "--allow-leak" in last_line(capsys) and not out.exists()
    assert train(world, "mle", out, "--allow-leak", task="leaky_uq") == 0
    record = adapter_io.read_record(out)
    assert record is not None and record["data"]["leak_allowed"] is True
    common = ["--tasks", "leaky_uq", "--include_path", str(world / "tasks"), "--output_path", str(tmp_path / "r")]
    capsys.readouterr()
    assert main(["eval", str(out), *common]) == 2
    assert "allow_leak" in last_line(capsys) and not list((tmp_path).rglob("results_*"))
    assert main(["eval", str(out), *common, "--allow-leak"]) == 0
    capsys.readouterr()
    assert main(["table", str(tmp_path / "r")]) == 0
    assert "†" in capsys.readouterr().out


# ---------------------------------------------------------------- bad input

BAD_TRAIN: dict[str, tuple[list[str], str]] = {
    "method": (["melo"], "unknown method 'melo' (did you mean"),
    "flag": (["mle", "--stps", "3"], "did you mean --steps?"),
    "abbreviated flag": (["mle", "--step", "3"], "did you mean --steps?"),
    "number": (["mle", "--steps", "many"], "steps"),
    "range": (["mle", "--steps", "0"], "steps is 0: it must be at least 1"),
    "choice": (["mle", "--schedule", "linar"], "did you mean linear?"),
    "set": (["blob", "--set", "prior=1"], "did you mean prior_std?"),
    "set with an abbreviation": (["blob", "--set", "klr=1"], "did you mean kl_lr?"),
    "members": (["ens", "--set", "members=1000000000", "--dry-run"], "members is 1000000000: it must be"),
    "set without =": (["blob", "--set", "prior_std"], "is not key=value"),
    "config": (["mle", "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
    "include path": (["mle", "--include-path", "/nowhere"], "--include-path /nowhere is not a folder"),
    "seeds": (["mle", "--seeds", "0"], "must be an integer from 1 to 1000"),
    "base": (["mle", "--base", "/nowhere/base"], "base model /nowhere/base cannot be loaded"),
    "target": (["mle", "--target-modules", "q_prj"], "did you mean q_proj?"),
    "no choices": (["mle", "--task", "generate_uq"], "generate_until"),
    "no training split": (["mle", "--task", "untrained_uq"], "no training split"),
    "label": (["mle", "--task", "label_uq"], "label"),
    "same choices": (["mle", "--task", "twins_uq"], "same tokens"),
    "empty choice": (["mle", "--task", "empty_uq"], "tokenises to nothing"),
    "select": (["mle", "--select", "best:nll"], "--eval-every"),
    "select split": (["mle", "--eval-every", "1", "--select-split", "validation"], "select_split"),
}


@pytest.fixture(scope="module")
def bad_tasks(world: Path) -> Path:
    folder = world / "tasks"
    make_task(folder, "generate_uq", uq=False, output_type="generate_until", doc_to_choice=None)
    make_task(folder, "untrained_uq", training_split=None)
    for name, change in {
        "label_uq": {"gold": 7},
        "twins_uq": {"choices": ["A", "A", "B"]},
        "empty_uq": {"choices": ["A", "", "B"]},
    }.items():
        make_task(folder, name, uq=False)
        path = folder / f"{name}_train.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**item, **change}) + "\n" for item in items))
    return folder


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_bad_input_to_train_is_one_line_code_2_and_no_output(
    name: str, world: Path, bad_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (method, *more), said = BAD_TRAIN[name]
    assert train(world, method, tmp_path / "out", *more) == 2
    assert said in last_line(capsys)
    assert not os.listdir(tmp_path)


def test_a_loss_that_is_no_number_is_code_1_and_no_output(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(world, "mle", tmp_path / "out", "--lr", "1e30", "--steps", "12") == 1
    assert "step" in last_line(capsys) and not os.listdir(tmp_path)


BAD_EVAL: dict[str, tuple[list[str], str]] = {
    "negative draws": (["--model_args", "samples=-1"], "samples"),
    "draws no number": (["--model_args", "samples=many"], "samples"),
    "unknown argument": (["--model_args", "sample=3"], "did you mean samples?"),
    "lm-eval's --samples": (["--samples", "5"], "--model_args samples=5"),
    "flag": (["--task", "tiny_uq"], "did you mean --tasks?"),
    "model": (["--model", "bayeslorra"], "bayeslorra"),
    "log_samples": (["--log_samples"], "--output_path"),
    "include path": (["--include_path", "/nowhere"], "/nowhere is not a folder"),
    "file": (["--tasks", "/nowhere.yaml"], "no such file"),
    "limit": (["--limit", "-3"], "--limit -3: give a number"),
    "batch size": (["--batch_size", "many"], "--batch_size many: must be an integer"),
    "batch of none": (["--batch_size", "0"], "--batch_size 0: must be an integer"),
}


@pytest.mark.parametrize("name", BAD_EVAL)
def test_bad_input_to_eval_is_one_line_and_code_2(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, said = BAD_EVAL[name]
    common = ["--tasks", "tiny_uq", "--include_path", str(world / "tasks")]
    assert main(["eval", str(world / "adapters/mle"), *common, *more]) == 2
    assert said in last_line(capsys) and not os.listdir(tmp_path)


def damage(folder: Path, kind: str) -> None:
    record = json.loads((folder / adapter_io.RECORD).read_text())
    if kind == "missing":
        (folder / adapter_io.MEAN).unlink()
    elif kind == "cut":
        (folder / adapter_io.POSTERIOR).write_bytes((folder / adapter_io.POSTERIOR).read_bytes()[:100])
    elif kind == "schema":
        record["schema"] = 99
    elif kind == "method":
        record["method"] |= {"name": "sgld_noise", "package": "uqharness-sgld-noise"}
    elif kind == "base":
        record["base"]["fingerprint"] = "0" * 16
    (folder / adapter_io.RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "kind, said",
    [
        ("missing", "adapter_model.safetensors is missing"),
        ("cut", "not a complete safetensors file"),
        ("schema", "schema version 99"),
        ("method", "pip install uqharness-sgld-noise"),
        ("base", "is not the one recorded"),
    ],
)
def test_a_damaged_adapter_is_one_line_and_code_2(
    kind: str, said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(world / "adapters/blob", folder)
    damage(folder, kind)
    results = tmp_path / "results"
    common = ["--tasks", "tiny_uq", "--include_path", str(world / "tasks"), "--output_path", str(results)]
    assert main(["eval", str(folder), *common]) == 2
    assert said in last_line(capsys) and not results.exists()


BAD_REST: dict[str, tuple[list[str], str]] = {
    "command": (["trian"], "did you mean train?"),
    "no results": (["table", "/nowhere"], "/nowhere does not exist"),
    "format": (["table", ".", "--format", "lateks"], "did you mean latex?"),
    "metric": (["table", ".", "--metric", "nil"], "did you mean nll?"),
    "draws": (["table", ".", "--samples", "all"], "give integers from 0"),
    "results behind a list": (["table", "--metric", "nll", "."], "write RESULTS before --metric and --samples"),
    "no tasks": (["eval", "x"], "no tasks"),
    "no adapter": (["eval", "--tasks", "toyworld_uq"], "no adapter"),
    "no base": (["train", "mle", "--task", "tiny_uq", "--out", "x"], "no base: give --base"),
    "no method": (["train"], "METHOD"),
}


@pytest.mark.parametrize("name", BAD_REST)
def test_other_bad_input_is_one_line_and_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, said = BAD_REST[name]
    assert main(argv) == 2
    assert said in last_line(capsys)


# ---------------------------------------------------------------- the rest of the program


ENDS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


def stop(argv: list[str], sent: signal.Signals, log: Path, when: Callable[[str], bool]) -> tuple[int, list[str]]:
    """Send a signal once `when` holds of what the command has said; (exit code, the lines after it)."""
    # A shell starts its background jobs with Ctrl-C ignored, and so would be what they start.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "from uqharness.cli import main; sys.exit(main())"
    with (
        open(log, "w") as file,
        subprocess.Popen([sys.executable, "-c", start, *argv], stdout=subprocess.DEVNULL, stderr=file) as process,
    ):
        try:
            while not when(log.read_text()) and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(sent)
            code = process.wait(timeout=60)
        finally:
            process.kill()
    said = log.read_text()
    assert "Traceback" not in said
    return code, said.splitlines()


@pytest.mark.parametrize("sent, code, word", ENDS)
def test_a_signal_ends_training_in_one_line(
    sent: signal.Signals, code: int, word: str, world: Path, tmp_path: Path
) -> None:
    argv = ["train", "mle", "--base", str(world / "base"), "--task", "tiny_uq", "--include-path", str(world / "tasks")]
    argv += [*FAST, "--out", str(tmp_path / "runs/out"), "--steps", "100000"]
    done, said = stop(argv, sent, tmp_path / "log", lambda text: "loss=" in text)  # the bar moves: it is training
    assert done == code and said[-1] == f"uqharness: {word}" and not (tmp_path / "runs").exists()
    if sent is signal.SIGTERM:
        where, saving = tmp_path / "runs/out.checkpoints", [*argv, "--save-every", "3"]
        done, said = stop(saving, sent, tmp_path / "log", lambda _: any(where.glob("checkpoint-*/complete.json")))
        assert done == code
        assert said[-1] == f"uqharness: {word}; checkpoints are in {where}: add --resume to the command to continue"
        newest = max(int(path.parent.name.partition("-")[2]) for path in where.glob("*/complete.json"))
        resumed = where / f"checkpoint-{newest + 3}/complete.json"
        done, said = stop([*saving, "--resume"], sent, tmp_path / "log", lambda _: resumed.exists())
        assert done == code and json.loads(resumed.read_text())["step"] == newest + 3
        assert not [line for line in said if "step 0" in line]


@pytest.mark.parametrize("sent, code, word", ENDS)
def test_a_signal_ends_an_evaluation_in_one_line(
    sent: signal.Signals, code: int, word: str, world: Path, tmp_path: Path
) -> None:
    argv = ["eval", str(world / "adapters/blob"), "--tasks", "tiny_uq", "--include_path", str(world / "tasks")]
    argv += ["--model_args", "samples=1000", "--output_path", str(tmp_path / "results")]
    done, said = stop(argv, sent, tmp_path / "log", lambda text: "Running loglikelihood requests" in text)
    assert done == code and said[-1] == f"uqharness: {word}", said
    assert not list(tmp_path.rglob("*.json"))


def test_a_method_that_builds_on_an_adapter_says_that_it_trains_one_first(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uqharness"), "propagate", True)
    out, source = tmp_path / "a", ["--adapter", str(world / "adapters/mle")]
    assert train(world, "tempscale", out, "--dry-run", "--tune-fraction", "0.5") == 0
    (line,) = {line for line in caplog.messages if "--adapter" in line}
    assert "MLE for 4 steps" in line and line.endswith(f"uqharness train tempscale --adapter DIR --out {out}")
    caplog.clear()
    assert train(world, "tempscale", out, "--dry-run", "--tune-fraction", "0.5", *source) == 0
    assert train(world, "mle", out, "--dry-run") == 0
    assert not [line for line in caplog.messages if "--adapter" in line]


def test_help_is_quick_and_names_every_command() -> None:
    used = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "uqharness", "--help"], capture_output=True, text=True)
        after = os.times()
        used.append(after.children_user - before.children_user + after.children_system - before.children_system)
        assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert min(used) < 0.5


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_help_of_each_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text and all(example in text for example in COMMANDS[name][2])


def test_version_and_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"uqharness {__version__}"
    with pytest.raises(Exception, match="unknown command"):
        main(["nothing", "--debug"])


def test_methods_and_tasks_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    methods = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"mle", "ens", "blob"} <= set(methods)
    assert methods["blob"]["settings"]["prior_std"]["default"] == 0.2 and methods["blob"]["package"] == "uqharness"
    assert main(["tasks", "--json"]) == 0
    tasks = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert tasks["arc_easy_uq"]["trains_on"] == "train" and tasks["arc_easy_uq"]["protocol"] == "uq-v1"
    assert tasks["arc_easy_uq"]["shift"] == ["small from openbookqa_uq"]
    assert tasks["uq_ood"]["kind"] == "group"


def test_the_tasks_listed_are_those_lm_eval_finds(capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.tasks import TaskManager

    from uqharness.commands.tasks_only import our_tasks

    assert main(["tasks", "--json"]) == 0
    listed = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert listed == set(TaskManager(include_path=our_tasks(), include_defaults=False).all_tasks)


def test_doctor_reports_checks_and_fails_when_one_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uqharness.commands import doctor, evaluate

    code = main(["doctor", "--json"])
    statuses = {line["check"]: line["status"] for line in json.loads(capsys.readouterr().out)}
    assert set(statuses) == set(doctor.CHECKS) and code == int("failed" in statuses.values())
    assert statuses["entry points"] == statuses["methods"] == "ok"  # as the tests need them
    with monkeypatch.context() as patch:
        patch.setitem(evaluate.MODELS, "another", "uqharness.harness.model:Another")
        assert doctor.entries() == ("failed", "no lm_eval.models another: pip install uqharness again")
    monkeypatch.setattr(doctor, "CHECKS", {"bad": lambda: 1 // 0, "good": lambda: ("ok", "fine")})  # type: ignore[dict-item]
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and out.splitlines()[-1] == "failed: bad"


def test_only_names_that_mean_the_same_in_the_full_index_skip_it(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    make_task(tmp_path, "one_uq", tag="mine")
    (tmp_path / "own.yaml").write_text("group: own\ntask: [one_uq, {group: inner, task: [one_uq]}]\n")
    (tmp_path / "mixed.yaml").write_text("group: mixed\ntask: [one_uq, arc_easy]\n")
    index: Any = TaskManager(include_path=str(tmp_path), include_defaults=False).task_index
    assert complete("one_uq", index) and not complete("one_*", index)
    assert not complete("mine", index) and not complete("mixed", index) and not complete("arc_easy", index)


def test_suggestions_are_near_or_absent() -> None:
    assert did_you_mean("stpes", ["steps", "seeds"]) == " (did you mean steps?)"
    assert did_you_mean("zzz", ["steps"]) == ""


def test_time_is_said_in_two_units() -> None:
    from uqharness.commands.dryrun import duration, size

    assert [duration(s) for s in (4.23, 200, 4320)] == ["4.2 s", "3 min 20 s", "1 h 12 min"]
    assert [size(n) for n in (12, 2048, 3 * 2**20, 5 * 2**30)] == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
