"""Files that anyone can send: each kind of bad one is listed with its reason, and validate ends as it says."""

from __future__ import annotations

import base64
import copy
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import answers, result

from uqharness.cli import main
from uqharness.leaderboard.board import build
from uqharness.results.reading import MAX_BYTES, RECORD
from uqharness.results.record import digest, pack
from uqharness.settings import MAX_DRAWS

TASK = "arc_easy_uq"
KEY = f"{RECORD},none"
Data = dict[str, Any]


def zipped(values: Any, kind: str = "<f4") -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, dtype=kind).tobytes())).decode()


def record(data: Data) -> Data:
    return data["results"][TASK][KEY]


def adapter(data: Data) -> Data:
    return data["config"]["uqharness"]["record"]


def protocol(data: Data, **changes: Any) -> None:
    """Another protocol, with the hash that goes with it."""
    packed = record(data)
    packed["protocol"] = {**packed["protocol"], **changes}
    packed["protocol_hash"] = digest(packed["protocol"])


SURE = np.where(np.arange(3) == 0, 0.0, -9.0) * np.ones((5, 40, 1)) + 1.0
HALF = "not Unicode: surrogates not allowed"
BAD: dict[str, tuple[Callable[[Data], Any], str, str]] = {
    "not a record": (lambda d: d["results"][TASK].update({KEY: [1]}), "broken", "the record is a list"),
    "schema": (lambda d: record(d).update(schema=7), "broken", "schema 7"),
    "no answers": (lambda d: record(d).pop("logp"), "broken", "'logp' is missing"),
    "NaN": (lambda d: record(d).update(logp=zipped(np.full((5, 40, 3), np.nan))), "broken", "log-likelihood nan"),
    "infinite": (lambda d: record(d).update(logp=zipped(np.full((5, 40, 3), np.inf))), "broken", "log-likelihood inf"),
    "above one": (lambda d: record(d).update(logp=zipped(SURE)), "broken", "no probability is above 1"),
    "label": (lambda d: record(d).update(gold=zipped([5] * 40, "<u2")), "broken", "label 5 but 3 choices"),
    "bomb": (lambda d: record(d).update(logp=zipped(np.zeros(3_000_000))), "broken", "5 x 40 x 3 values"),
    "endless": (lambda d: record(d).update(draws=10**12), "broken", "draws is 1000000000000, not"),
    "rule": (lambda d: record(d).update(combine="given"), "broken", "4 draws under the rule 'given'"),
    "other rule": (lambda d: d["config"]["uqharness"].update(combine="logits"), "broken", "combines draws by 'logits'"),
    "other task": (lambda d: record(d).update(task="boolq_uq"), "broken", "of the task boolq_uq"),
    "protocol": (lambda d: record(d)["protocol"].update(name="mine"), "broken", "protocol hash"),
    "fewer questions": (lambda d: protocol(d, items=39), "broken", "its protocol has 39 questions, its record 40"),
    "other questions": (lambda d: protocol(d, documents="0" * 16), "broken", "not those that its protocol"),
    "beyond the split": (lambda d: protocol(d, rows=[0, 30]), "broken", "question number 39 of a split of 30"),
    "own numbers": (lambda d: d["results"][TASK].update({"acc,none": 1.0}), "mismatch", "the file reports acc = 1"),
    "NaN number": (lambda d: d["results"][TASK].update({"nll,none": float("nan")}), "mismatch", "nll = nan"),
    "own count": (lambda d: d.update({"n-samples": {TASK: {"effective": 50}}}), "mismatch", "the file reports 50"),
    "trimmed": (lambda d: d.update({"n-samples": {TASK: {"original": 50}}}), "trimmed", "40 of 50 questions"),
    "rows left out": (lambda d: protocol(d, rows=[10, 80]), "trimmed", "40 of 70 questions"),
    "seed": (
        lambda d: adapter(d)["posterior"].update(train_seed="0; DROP"),
        "broken",
        'posterior: train_seed: expected an integer or null, got "0; DROP"',
    ),
    "method": (lambda d: adapter(d)["method"].update(label="x" * 10_000), "broken", "method is not a short text"),
    "surrogate": (lambda d: adapter(d)["method"].update(label="\ud800"), "broken", HALF),
    "surrogate in a setting": (lambda d: adapter(d)["method"].update(settings={"k": "\ud800"}), "broken", HALF),
    "surrogate in a key": (lambda d: adapter(d)["method"].update(settings={"\udfff": 1}), "broken", HALF),
    "surrogate in a task": (lambda d: d["results"].update({"\ud800_uq": {}}), "broken", HALF),
    "surrogates the wrong way round": (lambda d: d.update(more=["\ude00\ud83d"]), "broken", HALF),
    "settings": (
        lambda d: adapter(d)["method"].update(settings=[1]),
        "broken",
        "settings: expected an object or null, got a list of 1",
    ),
    "control character": (lambda d: adapter(d)["method"].update(label="a\nb"), "broken", "method is not a short text"),
    "finite": (lambda d: adapter(d)["posterior"].update(finite=-3), "broken", "finite is -3, less than 1"),
    "built on": (
        lambda d: adapter(d).update(source={"run": [1]}),
        "broken",
        "source: run: expected an object or null, got a list of 1",
    ),
    "its settings": (
        lambda d: adapter(d).update(source={"method": {"settings": [1]}}),
        "broken",
        "settings: expected an object or null, got a list of 1",
    ),
    "direction": (lambda d: adapter(d)["method"].update(label="a\u202eb"), "broken", "method is not a short text"),
    "escape": (lambda d: adapter(d)["method"].update(label="\x1b[2J"), "broken", r"text: '\x1b[2J'"),
    "adapter": (lambda d: d["config"].update(uqharness="no"), "broken", "uqharness: expected an object or null, got"),
    "date": (lambda d: d.update(date="yesterday"), "broken", "date is not a number"),
    "costs": (
        lambda d: adapter(d).update(costs={"seconds": [1]}),
        "broken",
        "costs: seconds: expected a finite number or null, got a list of 1",
    ),
    "no record": (lambda d: d["results"][TASK].pop(KEY), "foreign", "no record of draws"),
    "no results": (lambda d: d.pop("results"), "broken", 'it has no "results"'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_listed_with_its_reason_and_the_good_one_is_kept(tmp_path: Path, name: str) -> None:
    change, kind, reason = BAD[name]
    good = result(tmp_path, "MLE", numbers=3)
    data = json.loads(result(tmp_path, "BLoB", numbers=1).read_text())
    change(data)
    (tmp_path / "results_1.json").write_text(json.dumps(data))
    board = build([tmp_path])
    if kind == "trimmed":  # said of the run: nothing is wrong with its file
        assert not board.problems and reason in board.runs[1].remarks[kind]
    else:
        (problem,) = board.problems
        assert problem.file.endswith("results_1.json") and problem.kind == kind and reason in problem.reason
    shown = 1 if kind in ("broken", "foreign") else 2
    assert len(board.runs) == shown and board.runs[0].file == str(good)
    errors = kind in ("broken", "mismatch")
    assert main(["validate", str(tmp_path)]) == (1 if errors else 0)
    assert main(["validate", str(tmp_path), "--submit"]) == (1 if errors or kind == "trimmed" else 0)


def test_choices_whose_probabilities_are_more_than_one_together(tmp_path: Path) -> None:
    data = json.loads(result(tmp_path).read_text())
    record(data)["logp"] = zipped(np.full((5, 40, 3), np.log(0.5)))
    (tmp_path / "results_0.json").write_text(json.dumps(data))
    board = build([tmp_path])
    assert [each.kind for each in board.problems] == ["range"] and "1.5 together" in board.problems[0].reason
    assert board.runs[0].suspect == ("it contains probabilities above 1",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"  \n", "empty file"),
        (b"PAR1\x15\x04\x15\xd0", "as `uqharness publish` writes"),
        (b'{"results": {', "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" * 2_000_000, "2,000,000 JSON values"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", 'no "results"'),
        (b'{"results": []}', 'no "results"'),
        (b'{"results": {"a": "\xed\xa0\x80"}}', "not Unicode"),
        (b'{"results": {"a": 3}}', "no record of draws"),
        (b'{"a": 1' + b"0" * 9000 + b"}", "an integer of 9,001 digits"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "results_x.json").write_bytes(content)
    board = build([tmp_path])
    assert not board.runs and reason in board.problems[0].reason
    assert main(["validate", str(tmp_path)]) == 1


def test_a_whole_character_as_two_escapes_is_text(tmp_path: Path) -> None:
    for seed in range(2):
        path = result(tmp_path, seed=seed, settings={"k": "\U0001f600" * seed})
    assert r"\ud83d\ude00" in path.read_text()
    board = build([tmp_path])
    assert not board.problems and "BLoB (k=\U0001f600)" in {board.label(run) for run in board.runs}


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results_pipe.json")  # opening it would wait for ever
    (tmp_path / "results_loop.json").symlink_to(tmp_path / "results_loop.json")
    (tmp_path / "results_zero.json").symlink_to("/dev/zero")
    with (tmp_path / "results_large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (tmp_path / "elsewhere").symlink_to("/")  # links to folders are not followed
    good = result(tmp_path)
    board = build([tmp_path])
    reasons = {Path(each.file).name: each.reason for each in board.problems}
    assert [run.file for run in board.runs] == [str(good)]
    assert set(reasons) == {f"results_{name}.json" for name in ("pipe", "loop", "zero", "large")}
    assert "not a regular file" in reasons["results_pipe.json"] and f"{MAX_BYTES:,}" in reasons["results_large.json"]


def many_draws(path: Path, items: int, draws: int, names: Sequence[str] = (TASK,)) -> Path:
    """A small file whose record is zeros for all of these draws, which nothing in it contradicts."""
    packed = dict(pack(answers(0, 1)[:items], task=TASK))
    packed |= {"items": items, "draws": draws, "mean_taken": float(draws), "choice_counts": {"3": items}}
    packed["logp"] = zipped(np.zeros((draws + 1, items, 3)))
    data = {"results": {name: {KEY: {**packed, "task": name}} for name in names}, "config": {}}
    path.write_text(json.dumps(data))
    return path


def test_a_small_file_of_millions_of_draws_is_refused_before_it_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = many_draws(tmp_path / "results_draws.json", 1, 4_000_000)
    assert path.stat().st_size < 100_000
    reason = f"draws is 4000000, not an integer from 0 to {MAX_DRAWS:,}"
    tracemalloc.start()
    try:
        assert main(["validate", str(path)]) == 1 and reason in capsys.readouterr().out
        assert main(["table", str(path)]) == 2 and reason in capsys.readouterr().err
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20  # the answers alone would be 48 MB
    finally:
        tracemalloc.stop()


def test_many_tasks_in_one_file_share_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = many_draws(tmp_path / "results_tasks.json", 40, MAX_DRAWS, [f"t{k}" for k in range(60)])
    tracemalloc.start()
    try:
        assert main(["validate", str(path)]) == 1
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 and "72,007,200 answers" in out and "evaluate fewer tasks at once" in out


@pytest.mark.parametrize("command", ["table", "validate"])
def test_pipes_devices_and_huge_files_are_refused_at_once(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(pipe := tmp_path / "results_pipe.json")  # opening it would wait for ever
    with (large := tmp_path / "results_large.json").open("wb") as file:
        file.truncate(6 * 2**30)
    for path, reason in ((pipe, "not a regular file"), (Path("/dev/zero"), "not a regular file"), (large, "too large")):
        assert main([command, str(path)]) == {"table": 2, "validate": 1}[command]
        printed = capsys.readouterr()
        line = (printed.err if command == "table" else printed.out).splitlines()[0]
        assert str(path) in line and reason in line and len((printed.out + printed.err).splitlines()) <= 2


def test_one_bad_task_of_a_file_leaves_the_others(tmp_path: Path) -> None:
    path = result(tmp_path)
    data = json.loads(path.read_text())
    data["results"]["boolq_uq"] = copy.deepcopy(data["results"][TASK])
    data["results"]["../../etc_uq"] = {KEY: pack(answers(5, 1), task="../../etc_uq")}
    path.write_text(json.dumps(data))
    board = build([tmp_path])
    assert {run.task for run in board.runs} == {TASK, "../../etc_uq"}  # a name is text, and no path
    (problem,) = board.problems
    assert problem.task == "boolq_uq" and "of the task arc_easy_uq" in problem.reason


def test_text_of_files_reaches_the_terminal_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "results_\x1b[31m\n::error::x,y%.json"
    (tmp_path / name).write_text(json.dumps({"results": {"\x1b[2J\n::stop-commands::a": {KEY: []}}}))
    for kind in ("rich", "github", "json"):
        assert main(["validate", str(tmp_path), "--format", kind]) == 1
        text = capsys.readouterr().out
        assert "\x1b" not in text and not any(line.startswith("::stop") for line in text.splitlines())
        if kind == "github":
            assert text.count("\n") == 2 and text.startswith("::error file=") and "x%2Cy%25.json,title=broken::" in text
        if kind == "json":
            assert json.loads(text)["errors"] == 1


def test_a_table_prints_no_character_that_steers_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a label it is refused; in a setting, which may be any text, it is escaped; so it is in a file's name."""
    for k, label in enumerate(("a\u202eb", "\x1b[2J")):
        path = result(tmp_path, label, numbers=k)
        assert main(["table", str(path)]) == 2
        printed = capsys.readouterr()
        assert (
            "method is not a short text" in printed.err
            and not printed.out
            and not {"\x1b", "\u202e"} & set(printed.err)
        )
        path.unlink()
    for k in range(3):
        name = result(tmp_path, settings={"kl": f"\x1b[2J\u202e{k}"}, numbers=k, date=k).name
        (tmp_path / name).rename(tmp_path / f"results_\x1b\u202e{k}.json")
    result(tmp_path, settings={"kl": "\x1b[2J\u202e0"}, numbers=9, date=9)  # two of one row: a note names a file
    assert main(["table", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert r"\u001b[2J" in out.replace("\\[", "[").replace("\\\\", "\\") and not {"\x1b", "\u202e"} & set(out)


def test_exit_codes_and_submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 2 and "no results_*.json below" in capsys.readouterr().err
    assert main(["validate", str(tmp_path / "nowhere")]) == 2
    result(tmp_path)
    assert main(["validate", str(tmp_path)]) == 0 and "1 valid runs, 0 errors" in capsys.readouterr().out
    assert main(["validate", str(tmp_path), "--format", "githb"]) == 2
    assert main(["submit", "--dry-run", str(tmp_path)]) == 0 and "pull request" not in capsys.readouterr().out
    for words in (["validate", "--submit"], ["submit"]):
        assert main([*words, str(tmp_path)]) == 0 and "pull request" in capsys.readouterr().out
    (tmp_path / "results_bad.json").write_text("{")
    assert main(["submit", str(tmp_path)]) == 1 and "pull request" not in capsys.readouterr().out
