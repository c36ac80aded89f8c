"""What an adapter has seen: no evaluated item of it passes, in whatever form, but those that were published twice."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.tiny import make_base
from tests.tiny_task import make_task, questions
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.results import leakage
from uqharness.results.leakage import LeakCheck, document_fingerprint, read_splits
from uqharness.results.reading import read_results
from uqharness.tasks import docs, protocol_docs
from uqharness.training.questions import load_task

EASY = {
    "id": "Q1",
    "question": "Which  is hot?",
    "answerKey": "2",
    "choices": {"text": ["ice", "The sun", "a ﬁsh"], "label": ["1", "2", "3"]},
}
BOOK = {**{k: v for k, v in EASY.items() if k != "question"}, "question_stem": "Which is hot?"}
GAP = {"sentence": "Ann met Eve and _ sang.", "option1": "Ann", "option2": "Eve", "answer": "1"}
TRUE = {"question": "is it so", "passage": "It is. " * 400, "idx": 3, "label": 1}


def made(make: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row as `process_docs` of a task has it."""
    item: dict[str, Any] = make(Dataset.from_list([row]))[0]
    return item


# ---------------------------------------------------------------- items


@pytest.mark.parametrize(
    ("row", "forms"),
    [
        (EASY, (docs.lettered, protocol_docs.bp_arc, protocol_docs.ll_lettered)),
        (BOOK, (docs.lettered, protocol_docs.bp_lettered, protocol_docs.ll_lettered)),
        (GAP, (docs.winogrande, protocol_docs.winogrande)),
        (TRUE, (docs.boolq, protocol_docs.bp_boolq, protocol_docs.ll_boolq)),
    ],
    ids=("arc", "openbookqa", "winogrande", "boolq"),
)
def test_an_item_is_the_same_in_every_form(row: dict[str, Any], forms: Any) -> None:
    """The hub's own row, as stock tasks have it, and what our protocols make of it."""
    assert {document_fingerprint(made(make, row)) for make in forms} == {document_fingerprint(row)}
    assert document_fingerprint(made(forms[0], row) | {"uq_id": 7}) == document_fingerprint(row)


def test_spelling_does_not_make_another_item_and_another_question_or_choice_does() -> None:
    spelled = {**EASY, "question": "Which is\u00a0hot?\n", "choices": {"text": ["the sun.", "a fish", "Ice"]}}
    assert document_fingerprint(spelled) == document_fingerprint(EASY) == document_fingerprint(BOOK)
    others = [
        {**EASY, "question": "Which is cold?"},
        {**EASY, "choices": {"text": ["ice", "the sun", "a dog"]}},
        {**TRUE, "question": "is it not so"},
        {"premise": "It rained.", "question": "cause", "choice1": "clouds", "choice2": "dogs", "idx": 1},  # COPA
        {"premise": "It snowed.", "question": "cause", "choice1": "clouds", "choice2": "dogs", "idx": 1},
        {"text": "w1 w2", "choices": list("ABC")},
        {"text": "w1 w3", "choices": list("ABC")},
        {"x": 1},
        {"x": 2},
    ]
    prints = {document_fingerprint(row) for row in (EASY, TRUE, *others)}
    assert len(prints) == len(others) + 2


# ---------------------------------------------------------------- an adapter and its evaluation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose evaluated split shares two items with train, or none, or is the split trained on; one adapter."""
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base")
    twins = questions(24, 0)[:2]  # of tiny_uq's train
    for name, uq in (("tiny_uq", True), ("stock_mc", False), ("other_uq", True), ("clean_uq", True)):
        make_task(root / "tasks", name, seed=0 if name in ("tiny_uq", "stock_mc") else 3, uq=uq)
        if name != "clean_uq":
            path = root / "tasks" / f"{name}_validation.jsonl"
            path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in twins))
    make_task(root / "tasks", "cloze_uq", doc_to_text="Fill: {{text}}", doc_to_choice='{{["w1 A", "w1 B", "w1 C"]}}')
    path = root / "tasks" / "cloze_uq_validation.jsonl"
    path.write_text(path.read_text() + json.dumps(twins[0]) + "\n")
    command = ["train", "mle", "--base", str(root / "base"), "--include-path", str(root / "tasks"), "--device", "cpu"]
    command += ["--steps", "1", "--lora-r", "2", "--max-length", "24"]
    for name in ("tiny_uq", "stock_mc"):
        assert main([*command, "--task", name, "--out", str(root / name)]) == 0
    return root


def evaluate(world: Path, adapter: Path, task: str, out: Path, *more: str) -> int:
    command = ["eval", str(adapter), "--tasks", task, "--include_path", str(world / "tasks"), "--output_path", str(out)]
    return main([*command, "--device", "cpu", *more])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.rstrip().splitlines()[-1]


def task_of(world: Path, name: str) -> Any:
    return load_task(name, world / "tasks")


def requests_of(task: Any, **how: Any) -> list[Any]:
    task.build_all_requests(rank=0, world_size=1, **how)
    requests: list[Any] = task.instances
    return requests


def check_of(world: Path, adapter: Path, allow: bool = False, load: Any = None, whole: bool = False) -> LeakCheck:
    record = adapter_io.read_record(adapter)
    return LeakCheck(adapter, record, allow, load or (lambda name: task_of(world, name)), whole)


def with_splits(world: Path, out: Path, change: Any) -> Path:
    """A copy of the adapter whose splits are what `change` makes of them."""
    shutil.copytree(world / "tiny_uq", out)
    path = out / leakage.SPLITS
    splits = json.loads(path.read_text())["splits"]
    path.write_text(json.dumps({"splits": change(splits)}))
    return out


def evaluated(world: Path, version: int, name: str = "tiny_uq") -> list[str]:
    """Fingerprints of the evaluated items that are not in train."""
    items = leakage.asked_items(requests_of(task_of(world, name)))
    return [item.prints[version] for item in items][:12]


def test_the_folder_says_which_version_its_fingerprints_are(world: Path) -> None:
    (split,) = read_splits(world / "tiny_uq")
    rows = [document_fingerprint(row) for row in task_of(world, "tiny_uq").training_docs()]
    assert split["fingerprint_version"] == 2 and split["fingerprints"] == rows and "prompts" not in split


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("task", ["tiny_uq", "clean_uq"])
def test_one_planted_item_refuses(world: Path, tmp_path: Path, version: int, task: str) -> None:
    """Also by the hashes of older folders, and in a task that the adapter was not trained on."""
    planted = {"purpose": "select", "split": "planted", "fingerprints": evaluated(world, version, task)[3:4]}
    adapter = with_splits(world, tmp_path / "a", lambda splits: [*splits, {**planted, "fingerprint_version": version}])
    words = rf"^1 of (12|14) items of {task} were used to .*select this adapter .*allow_leak=True"
    with pytest.raises(InputError, match=words):
        check_of(world, adapter).check(requests_of(task_of(world, task)))
    marked = check_of(world, adapter, allow=True)
    marked.check(requests_of(task_of(world, task)))
    assert marked.found[task]["leaked"] == 1 and marked.found[task]["natural"] == (2 if task == "tiny_uq" else 0)


def test_a_planted_item_ends_the_command_and_is_marked_where_allowed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = {"purpose": "fit", "split": "planted", "fingerprints": evaluated(world, 2)[:1], "fingerprint_version": 2}
    adapter = with_splits(world, tmp_path / "a", lambda splits: [*splits, planted])
    assert evaluate(world, adapter, "tiny_uq", tmp_path / "r") == 2
    assert last_line(capsys).startswith("uqharness: 1 of 14 items of tiny_uq were used to fit this adapter")
    assert not list(tmp_path.rglob("results_*"))
    assert evaluate(world, adapter, "tiny_uq", tmp_path / "r", "--model_args", "allow_leak=yes") == 0
    capsys.readouterr()
    assert main(["table", str(tmp_path / "r")]) == 0
    assert "†" in capsys.readouterr().out


@pytest.mark.parametrize("version", [1, 2])
def test_half_fitted_and_half_tuned_on_is_all_of_it(world: Path, tmp_path: Path, version: int) -> None:
    prints = evaluated(world, version)
    halves = [{"purpose": p, "split": p, "fingerprint_version": version} for p in ("fit", "tune")]
    adapter = with_splits(
        world,
        tmp_path / "a",
        lambda splits: [*splits, {**halves[0], "fingerprints": prints[:6]}, {**halves[1], "fingerprints": prints[6:]}],
    )
    with pytest.raises(InputError, match="12 of 14 items of tiny_uq were used to fit and tune"):
        check_of(world, adapter).check(requests_of(task_of(world, "tiny_uq")))


def test_items_that_train_and_evaluation_share_pass_and_are_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(world, world / "tiny_uq", "tiny_uq", tmp_path / "r") == 0
    (run,) = read_results(tmp_path / "r")
    leak = run.config["uqharness"]["leaks"]["tiny_uq"]
    assert (leak["leaked"], leak["natural"], leak["natural_ids"], leak["items"]) == (0, 2, [12, 13], 14)
    capsys.readouterr()
    assert main(["table", str(tmp_path / "r"), "--metric", "acc"]) == 0
    out = capsys.readouterr().out
    right = (run.record.logp[-1, :12].argmax(-1) == run.record.gold[:12]).mean()
    assert f"2 of 14 questions are also in the published training data; without them: ACC {100 * right:.2f}" in out
    assert "†" not in out
    assert main(["validate", str(tmp_path / "r")]) == 0
    assert "2 of 14 questions are also in the published training data: ACC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("adapter", "task"), [("tiny_uq", "other_uq"), ("tiny_uq", "stock_mc"), ("stock_mc", "stock_mc")]
)
def test_the_training_data_are_found_by_the_name_of_their_task(
    world: Path, tmp_path: Path, adapter: str, task: str
) -> None:
    """Of an adapter evaluated on another task, and of a task that is not of our class."""
    assert evaluate(world, world / adapter, task, tmp_path / "r") == 0
    (path,) = (tmp_path / "r").rglob("results_*.json")
    leak = json.loads(path.read_text())["config"]["uqharness"]["leaks"][task]
    assert (leak["leaked"], leak["natural"]) == (0, 2)


@pytest.mark.parametrize(
    ("name", "shots", "shared"), [("cloze_uq", 0, [12]), ("tiny_uq", 2, [12, 13])], ids=("cloze", "few-shot")
)
def test_another_prompt_does_not_make_another_item(world: Path, name: str, shots: int, shared: list[int]) -> None:
    """Version 1, of the prompt, did not see it."""
    task = task_of(world, name)
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(1)
    requests = requests_of(task)
    check = check_of(world, world / "tiny_uq")
    check.check(requests)
    assert check.found[name]["natural_ids"] == shared
    rows = {(request.args[0], request.args[1]) for request in requests_of(task_of(world, "tiny_uq"))}
    assert not rows & {(request.args[0], request.args[1]) for request in requests}


def test_refused_where_the_training_data_cannot_be_had(world: Path) -> None:
    def nowhere(name: str) -> Any:
        raise InputError(f"unknown task {name!r}")

    requests = requests_of(task_of(world, "other_uq"))
    words = "2 of 14 items of other_uq .* is unknown: unknown task 'tiny_uq'.*allow_leak"
    with pytest.raises(InputError, match=words):
        check_of(world, world / "tiny_uq", load=nowhere).check(requests)
    with pytest.raises(InputError, match="does not name the task"):
        check = check_of(world, world / "tiny_uq")
        check.record = {"data": {}}
        check.check(requests)


def test_the_evaluated_split_is_never_taken_for_training_data(world: Path, tmp_path: Path) -> None:
    """By its rows, where another task trains on it; and as a copy under another name."""
    copy = tmp_path / "tasks"
    shutil.copytree(world / "tasks", copy)
    text = (copy / "tiny_uq.yaml").read_text().replace(str(world / "tasks"), str(copy))
    (copy / "tiny_uq.yaml").write_text(text)
    swapped = text.replace('task: "tiny_uq"', 'task: "swapped_uq"')
    for other, here in (("training", "validation"), ("validation", "train")):
        swapped = re.sub(rf'^{other}_split: "\w+"', f'{other}_split: "{here}"', swapped, flags=re.MULTILINE)
    (copy / "swapped_uq.yaml").write_text(swapped)
    shutil.copy(copy / "tiny_uq_validation.jsonl", copy / "copy.jsonl")
    copied = text.replace('task: "tiny_uq"', 'task: "copied_uq"').replace("tiny_uq_train.jsonl", "copy.jsonl")
    (copy / "copied_uq.yaml").write_text(copied)
    prints = evaluated(world, 2)
    adapter = with_splits(world, tmp_path / "a", lambda splits: [{**splits[0], "fingerprints": prints, "items": 12}])
    for name in ("swapped_uq", "copied_uq"):
        path = adapter / adapter_io.RECORD
        record = json.loads(path.read_text())
        record["data"] |= {"task": name, "splits": []}
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match="12 of 14 items of tiny_uq"):
            check_of(world, adapter, load=lambda name: load_task(name, copy)).check(
                requests_of(load_task("tiny_uq", copy))
            )


def test_a_process_that_is_asked_a_part_counts_the_whole_split(world: Path) -> None:
    requests = requests_of(task_of(world, "tiny_uq"))
    check = check_of(world, world / "tiny_uq", whole=True)
    check.check(requests[: 3 * 5])
    assert check.found["tiny_uq"]["natural_ids"] == [12, 13] and check.found["tiny_uq"]["items"] == 14
    part = check_of(world, world / "tiny_uq")
    part.check(requests[: 3 * 5])
    assert part.found == {}


# ---------------------------------------------------------------- the file of splits


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "uq_splits.json is missing"),
        ("", "it is empty"),
        ("{}", "expected a list"),
        ('{"splits": []}', "not the 24 items to fit"),
        ('{"splits": [{"purpose": "fit", "split": "train", "fingerprints": "abc"}]}', "fingerprints: expected a list"),
        ('{"splits": [{"purpose": "fit", "split": "a", "fingerprints": [], "fingerprint_version": 3}]}', "version 3"),
    ],
)
def test_a_missing_or_damaged_record_of_splits_is_refused(
    world: Path, tmp_path: Path, content: str | None, words: str
) -> None:
    shutil.copytree(world / "tiny_uq", tmp_path / "a")
    (tmp_path / "a" / leakage.SPLITS).unlink()
    if content is not None:
        (tmp_path / "a" / leakage.SPLITS).write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        check_of(world, tmp_path / "a")
    assert "allow_leak=True" in str(caught.value) and "\n" not in str(caught.value)
    allowed = check_of(world, tmp_path / "a", allow=True)
    allowed.check(requests_of(task_of(world, "tiny_uq")))
    assert allowed.found == {}


def test_an_item_cut_out_of_the_record_is_missed(world: Path, tmp_path: Path) -> None:
    adapter = with_splits(
        world, tmp_path / "a", lambda splits: [{**splits[0], "fingerprints": splits[0]["fingerprints"][1:]}]
    )
    with pytest.raises(InputError, match="not the 24 items to fit"):
        check_of(world, adapter)


def test_a_plain_adapter_has_no_record_and_a_line_says_so(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(world / "tiny_uq", tmp_path / "plain")
    for name in (leakage.SPLITS, adapter_io.RECORD):
        (tmp_path / "plain" / name).unlink()
    with caplog.at_level(logging.INFO, "lm_eval.uqharness"):
        check = check_of(world, tmp_path / "plain")
    check.check(requests_of(task_of(world, "tiny_uq")))
    assert check.found == {} and "does not record its training items" in caplog.text
