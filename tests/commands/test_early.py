"""A command line that cannot work is refused in one line, before torch or lm-eval's 14,000 task files are read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from uqharness.cli import main
from uqharness.commands import early
from uqharness.errors import InputError, did_you_mean

GIVEN = ["--base", "toyworld", "--task", "toyworld_uq", "--out", "out"]
WRONG = {
    "method": (["train", "blb", *GIVEN], "unknown method 'blb' (did you mean blob?)"),
    "no out": (["train", "blob", *GIVEN[:4]], "no out: give --out"),
    "no base": (["train", "blob", *GIVEN[2:]], "no base: give --base"),
    "our task": (["train", "blob", *GIVEN, "--task", "toywrld_uq"], "(did you mean toyworld_uq?)"),
    "lm-eval's task": (["train", "blob", *GIVEN, "--task", "helaswag"], "(did you mean hellaswag?)"),
    "no task at all": (["train", "blob", *GIVEN, "--task", "qqqqqqqq"], "unknown task 'qqqqqqqq'; see"),
    "task of eval": (["eval", "runs/x", "--tasks", "toyworld_uq,arc_esy_uq"], "unknown task 'arc_esy_uq' (did"),
    "rank": (["train", "blob", *GIVEN, "--lora-r", "100000000"], "lora_r is 100000000: it must be at least 1"),
    "rank as a float": (["train", "blob", *GIVEN, "--lora-r", "1e8"], "lora_r is '1e8': it must be an integer"),
    "batch": (["train", "blob", *GIVEN, "--batch-size", "1000000000"], "batch_size is 1000000000: it must be"),
    "digits": (["train", "blob", *GIVEN, "--steps", "9" * 4000], "steps is an integer of 13288 bits: it must be"),
    "more digits": (["train", "blob", *GIVEN, "--steps", "9" * 6000], "…: it must be an integer"),
    "seeds": (["train", "blob", *GIVEN, "--seeds", "1000000000"], "'1000000000' must be an integer from 1 to 1000"),
    "root": (["train", "blob", *GIVEN, "--out", "/"], "--out /: this is the root folder"),
    "long name": (["train", "blob", *GIVEN, "--out", "a" * 300], "a name of 300 bytes; at most 255 are possible"),
    "long name of letters": (["train", "blob", *GIVEN, "--out", "x/" + "é" * 128], "a name of 256 bytes"),
    "long base": (["train", "blob", *GIVEN, "--base", "a" * 300], "a name of 300 bytes"),
    "long task": (["train", "blob", *GIVEN, "--task", "a" * 300], "a name of 300 bytes"),
    "superscript": (["table", "r", "--samples", "²"], "--samples '²': give integers from 0 to 10,000"),
    "limit": (["eval", "r", "--tasks", "toyworld_uq", "--limit", "nan"], "--limit nan: give a number of questions"),
    "infinite limit": (["eval", "r", "--tasks", "toyworld_uq", "--limit", "inf"], "--limit inf: give"),
    "limit 0": (["eval", "r", "--tasks", "toyworld_uq", "--limit", "0"], "--limit 0: give"),
    "eval batch": (["eval", "r", "--tasks", "toyworld_uq", "--batch_size", "1000000000"], "from 1 to 99999"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_is_one_line_and_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, said = WRONG[name]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and len(err) < 500 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["method", "no out", "our task", "lm-eval's task", "task of eval"])
def test_the_answer_takes_less_than_a_second_of_processor_time(name: str, tmp_path: Path) -> None:
    argv, said = WRONG[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "importtime", "-m", "uqharness", *argv]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 2 and said in done.stderr
    assert not loaded & {"torch", "transformers", "lm_eval.tasks", "lm_eval.evaluator"}
    # 0.2 to 0.4 s on an idle machine; a busy one takes up to twice as long for the same work.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_names_of_lm_eval_and_patterns_are_left_to_lm_eval(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("task: mine_uq\n")
    early.check_tasks(["arc_easy", "boolq", "openbookqa", "mmlu_anatomy", "arc_*", "hellaswag", str(own)])
    early.check_tasks(["mine_uq", "toyworld", "uq_ood"], [tmp_path])
    with pytest.raises(InputError, match="unknown task 'mine_uq'"):
        early.check_tasks(["mine_uq"])


def test_every_task_and_group_of_ours_is_known_to_the_quick_check() -> None:
    from uqharness.commands.listing import list_tasks

    early.check_tasks([row["name"] for row in list_tasks()])


def test_a_nul_byte_in_a_settings_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text('out: "a\\0b"\n')
    assert main(["train", "blob", *GIVEN[:4], "--config", str(tmp_path / "c.yaml")]) == 2
    assert "a NUL byte" in capsys.readouterr().err


def test_suggestions_ignore_hyphens_and_underscores() -> None:
    names = ["prior_std", "eps", "kl_lr", "lr", "lora_r", "steps"]
    assert did_you_mean("klr", names) == " (did you mean kl_lr?)"
    assert did_you_mean("lora-r", names) == " (did you mean lora_r?)" and did_you_mean("xyz", names) == ""
