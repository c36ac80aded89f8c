"""The stock `lm_eval` command on our model: results whole or not at all, errors and signals in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_task import make_task
from uqharness.cli import main
from uqharness.errors import RunError
from uqharness.harness.saving import check_place, collect
from uqharness.results.reading import read_results
from uqharness.results.runs import base_of, summarise

# `lm_eval` itself, without the index of its 14,000 YAMLs, which takes over ten seconds.
STOCK = """
import uqharness.harness.hook as hook
hook.install()
from uqharness.commands.tasks_only import lean_tasks
from lm_eval.__main__ import cli_evaluate
with lean_tasks():
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_task(tmp_path_factory.mktemp("tasks"))


def words(tasks: Path, model_args: str, *more: str) -> list[str]:
    common = ["--tasks", "tiny_uq", "--include_path", str(tasks), "--device", "cpu", "--batch_size", "8"]
    return [sys.executable, "-c", STOCK, "--model", "bayeslora", "--model_args", model_args, *common, *more]


def stock(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


def test_the_habits_of_hf_are_answered_with_what_to_write_instead(blob: Path, tasks: Path, tmp_path: Path) -> None:
    command = words(tasks, f"pretrained=X,peft={blob}")
    done = stock(command, tmp_path)
    line = f"uqharness: bayeslora takes no pretrained=X,peft={blob}: write adapter={blob},base=X instead"
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == line and "Traceback" not in done.stderr
    debug = stock(command, tmp_path, UQHARNESS_DEBUG="1")
    assert debug.returncode == 1 and "Traceback" in debug.stderr


def test_eval_answers_them_too(blob: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--tasks", "tiny_uq", "--include_path", str(tasks)]
    assert main(["eval", "--model_args", f"pretrained=X,peft={blob}", *common]) == 2
    assert f"write adapter={blob},base=X instead" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    blob: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    done = stock(words(tasks, f"adapter={blob}", "--output_path", "file/results"), tmp_path)
    assert done.returncode == 2 and "Running loglikelihood" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"uqharness: --output_path file/results: {tmp_path / 'file'} is a file; choose another location"
    )
    common = ["--tasks", "tiny_uq", "--include_path", str(tasks), "--output_path", "/proc/results"]
    assert main(["eval", str(blob), *common]) == 2
    err = capsys.readouterr().err
    assert "uqharness: --output_path /proc/results cannot be written" in err and "Running loglikelihood" not in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 8 KiB, too small for results and large enough for a probe."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_exit_code_1_and_a_copy_is_rescued(
    blob: Path, tasks: Path, small_disk: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    more = ["--output_path", str(small_disk), "--log_samples"]
    done = stock(words(tasks, f"adapter={blob},samples=3", *more), here)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "No space left on device; a copy is in " in last, done.stderr
    assert "|tiny_uq" in done.stdout  # the numbers are shown all the same
    assert not [path for path in small_disk.rglob("*") if path.is_file()]  # nothing that is half a file
    (run,) = read_results(here)
    assert run.record.items == 12 and run.record.draws == 3
    json.loads(next(here.glob("results_*.json")).read_text())


def test_whole_results_and_samples_lie_where_lm_eval_puts_them(blob: Path, tasks: Path, tmp_path: Path) -> None:
    more = ["--output_path", "results/a.json", "--log_samples"]
    done = stock(words(tasks, f"adapter={blob},samples=2", *more), tmp_path)
    assert done.returncode == 0, done.stderr
    (results,), (samples,) = (list((tmp_path / "results").glob(name)) for name in ("a_*.json", "samples_*.jsonl"))
    assert json.loads(results.read_text())["model_name"] and len(samples.read_text().splitlines()) == 12
    assert "Saving per-task samples to results/*.jsonl" in done.stderr  # not the folder that they are staged in
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_sigterm_ends_lm_eval_in_one_line(blob: Path, tasks: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "w") as file, subprocess.Popen(words(tasks, f"adapter={blob},samples=2000"), stderr=file) as process:
        try:
            while "Running loglikelihood requests" not in log.read_text() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
        finally:
            process.kill()
    assert code == 143 and log.read_text().splitlines()[-1] == "uqharness: terminated"
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "argv, ours",
    [
        ("--model bayeslora --tasks x", True),
        ("--model hf --tasks arc_easy_uq", True),
        ("--model hf --tasks boolq_uq,x", True),
        ("--model hf --tasks uq_ood", True),
        ("--model hf --tasks arc_easy --output_path requested", False),
    ],
)
def test_runs_that_use_nothing_of_ours_stay_as_lm_eval_has_them(argv: str, ours: bool) -> None:
    code = "from uqharness.harness.saving import concerns_us; print(concerns_us())"
    done = subprocess.run([sys.executable, "-c", code, *argv.split()], capture_output=True, text=True)
    assert done.stdout == f"{ours}\n", done.stderr


def test_a_full_disk_is_seen_before_the_work(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b" " * 8192)
    with pytest.raises(RunError, match="--output_path .* cannot be written: No space left on device"):
        check_place(str(small_disk / "results"))


def test_failures_are_raised_at_the_end_of_a_command() -> None:
    from uqharness.harness import saving

    with pytest.raises(RunError, match="one; two"), collect():
        saving._fail("one")
        saving._fail("two")
    with pytest.raises(RunError, match="three"):
        saving._fail("three")  # no command: whoever calls the tracker must know


@pytest.mark.parametrize("model", ["hf", "bayeslora"])
def test_results_and_board_call_a_base_what_its_folder_calls_itself(
    base: Path, blob: Path, tasks: Path, tmp_path: Path, model: str
) -> None:
    """tools/real_models.py makes folders whose names do not say that their weights were 4 bit once."""
    folder = shutil.copytree(base, tmp_path / "tiny-1m")
    (folder / "provenance.json").write_text(json.dumps({"label": "Tiny-1M, dequantised Q4_1"}))
    given = f"pretrained={folder},dtype=float32" if model == "hf" else f"adapter={blob},base={folder}"
    words = ["--tasks", "tiny_uq", "--include_path", str(tasks), "--device", "cpu"]
    assert main(["eval", "--model", model, "--model_args", given, *words, "--output_path", str(tmp_path / "out")]) == 0
    (run,) = read_results(tmp_path / "out")
    assert base_of(run) == "Tiny-1M, dequantised Q4_1"
    assert summarise(run).method == ("Tiny-1M, dequantised Q4_1 (zero-shot)" if model == "hf" else "blob")
