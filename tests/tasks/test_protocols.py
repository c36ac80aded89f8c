"""The protocols of bayesian-peft and laplace-lora as tasks: prompts, answers, what is left out, and who is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answerer import Answerer
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from tests.harness.test_task import config, evaluate, questions
from tests.tiny import make_base, make_lora
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.harness import keep
from uqharness.harness.task import UQTask
from uqharness.results.provenance import imported, other_protocol
from uqharness.results.reading import read_results

FOLDER = Path(__file__).parents[2] / "tasks"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


# ---------------------------------------------------------------- the rule


@given(sizes=st.lists(st.integers(2, 5), min_size=1, max_size=30), wanted=st.integers(2, 5), batch=st.integers(1, 9))
def test_keep_leaves_out_what_it_says_and_counts_it(sizes: list[int], wanted: int, batch: int) -> None:
    right = [i for i, size in enumerate(sizes) if size == wanted]
    whole = right[: len(right) // batch * batch]
    rule = {"full_batches_of": batch, "choices": wanted}  # in the order that the module says, not in this one
    if not whole:
        with pytest.raises(InputError, match=f"leaves none of {len(sizes)} items"):
            keep.apply(rule, sizes)
        return
    indices, left_out = keep.apply(rule, sizes)
    assert indices == whole and left_out["last_batch"] == len(right) - len(whole)
    assert len(indices) + sum(left_out["choices"].values()) + left_out["last_batch"] == len(sizes)


def test_the_command_line_comes_over_the_yaml_and_nonsense_is_refused() -> None:
    yaml = {"uq": {"keep": {"choices": 4}}}
    assert keep.read_rule(yaml) == {"choices": 4} and keep.read_rule(None) == {}
    assert keep.read_rule({**yaml, "keep": {"full_batches_of": 8}}) == {"choices": 4, "full_batches_of": 8}
    for bad in ({"choice": 4}, {"choices": 0}, {"choices": True}, {"full_batches_of": "8"}, 4):
        with pytest.raises(InputError, match="keep"):
            keep.read_rule({"uq": {"keep": bad}})


def trimmed(**rule: int) -> UQTask:
    uq = {"protocol": "p", "train_choices": 4, **({"keep": rule} if rule else {})}
    return UQTask(config(metadata={"version": 1, "uq": uq}))


def test_a_task_with_a_rule_says_so_in_its_record_and_hash() -> None:
    sizes = [len(doc["choices"]) for doc in questions()["validation"]]
    task = trimmed(choices=3, full_batches_of=4)
    run, plain = (read_results(evaluate(each))[0] for each in (task, trimmed()))
    count = sizes.count(3) // 4 * 4
    assert 0 < count < sizes.count(3) and run.record.items == count and plain.record.items == 30
    others = {str(size): sizes.count(size) for size in (2, 4)}
    assert run.record.protocol["left_out"] == {"choices": others, "last_batch": sizes.count(3) - count}
    assert run.record.protocol["keep"] == {"choices": 3, "full_batches_of": 4}
    assert run.record.ids.tolist() == [i for i, size in enumerate(sizes) if size == 3][:count]
    assert "keep" not in plain.record.protocol and run.protocol_hash != plain.protocol_hash


# ---------------------------------------------------------------- their prompts, on real data

ASK = "Return the label of the correct answer for the question below.\n\nQuestion: "
SELECT = "Select one of the choices that answers the following question: "
DEEP = (
    "Frilled sharks and angler fish live far beneath the surface of the ocean, which is why they are known as",
    ["Deep sea animals", "fish", "Long Sea Fish", "Far Sea Animals"],
)
SURGEON = "Sarah was a much better surgeon than Maria so _ always got the easier cases."
# First evaluated item by hand from their source: prompt, what is asked for, index of the right one.
GOLDEN = {
    "openbookqa_uq_bp": (
        f"{ASK}{DEEP[0]}\nChioces:\n{DEEP[1][0]}) A\n{DEEP[1][1]}) B\n{DEEP[1][2]}) C\n{DEEP[1][3]}) D\nAnswer:",
        ["A", "B", "C", "D"],
        0,
    ),
    "winogrande_s_uq_bp": (f"{ASK}{SURGEON}\nChoices:\nA) Sarah\nB) Maria\nAnswer:", ["A", "B"], 1),
    "mmlu_college_chemistry_uq_bp": (
        f"{ASK}The rate, r, of a zero-order chemical reaction A → B can be expressed as which of the following?\n"
        "Choices:\nA) r = k ln[A]\nB) r = k [A]^2\nC) r = k [A]\nD) r = k\nAnswer:",
        ["A", "B", "C", "D"],
        3,
    ),
    "openbookqa_uq_ll": (
        f"{SELECT}{DEEP[0]} Choices: A. Deep sea animals. B. Fish. C. Long Sea Fish. D. Far Sea Animals. Answer:",
        [" A", " B", " C", " D"],
        0,
    ),
    "winogrande_s_uq_ll": (f"{SELECT}{SURGEON} Choices: A. Sarah. B Maria. Answer:", [" A", " B"], 1),
}
# Evaluated, and what is left out.
COUNTS = {
    "arc_challenge_uq_bp": (299, None),
    "arc_easy_uq_bp": (570, None),
    "openbookqa_uq_bp": (500, None),
    "winogrande_s_uq_bp": (1267, None),
    "winogrande_m_uq_bp": (1267, None),
    "boolq_uq_bp": (3270, None),
    "mmlu_college_chemistry_uq_bp": (100, None),
    "mmlu_college_physics_uq_bp": (102, None),
    "arc_challenge_uq_ll": (295, {"choices": {"3": 3, "5": 1}}),
    "arc_easy_uq_ll": (567, {"choices": {"3": 1, "5": 2}}),
    "openbookqa_uq_ll": (500, None),
    "winogrande_s_uq_ll": (1267, None),
    "winogrande_m_uq_ll": (1267, None),
    "boolq_uq_ll": (3270, None),
}
QUICK = [name for name in COUNTS if not name.startswith(("winogrande_m", "arc_easy"))]


@pytest.fixture(scope="module")
def load(offline_hub: dict[str, str]) -> Callable[[str], UQTask]:
    manager, made = TaskManager(include_defaults=False, include_path=str(FOLDER)), dict[str, UQTask]()

    def one(name: str) -> UQTask:
        return made.setdefault(name, made.get(name) or manager.load([name])["tasks"][name])

    return one


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts_and_answers(load: Callable[[str], UQTask], name: str) -> None:
    prompt, answers, gold = GOLDEN[name]
    task, doc = load(name), load(name).eval_docs[0]
    assert task.doc_to_text(doc) == prompt and task.doc_to_target(doc) == gold
    assert [one.args[1] for one in task.construct_requests(doc, "")] == answers


@pytest.mark.parametrize("name", QUICK)
def test_counts(load: Callable[[str], UQTask], name: str) -> None:
    task, (items, left_out) = load(name), COUNTS[name]
    assert len(task.eval_docs) == items and task.left_out.get(task.eval_role) == left_out
    assert task.uq["protocol"] == ("laplace-lora" if name.endswith("_ll") else "bayesian-peft")


def test_arc_is_five_way_and_keeps_its_own_labels_in_the_prompt(load: Callable[[str], UQTask]) -> None:
    task = load("arc_challenge_uq_bp")
    raw = {row["id"]: row for row in task.dataset["validation"]}
    sizes = set()
    for doc in task.eval_docs:
        row = raw[doc["id"]]["choices"]
        sizes.add(len(row["text"]))
        assert doc["choices"] == list("ABCDE")
        prompt = task.doc_to_text(doc)
        assert all(f"\n{text}) {label}\n" in prompt for label, text in zip(row["label"], row["text"], strict=True))
        key = raw[doc["id"]]["answerKey"]
        assert doc["gold"] == (int(key) - 1 if key.isdigit() else ord(key) - ord("A"))
    assert sizes == {3, 4, 5}


def test_boolq_is_inverted_for_one_and_not_for_the_other(load: Callable[[str], UQTask]) -> None:
    inverted, straight = load("boolq_uq_bp"), load("boolq_uq_ll")
    labels = inverted.dataset["validation"]["label"][:]
    assert [doc["choices"][doc["gold"]] == "False" for doc in inverted.eval_docs] == [x == 1 for x in labels]
    assert [doc["choices"][doc["gold"]] == "True" for doc in straight.eval_docs] == [x == 1 for x in labels]
    text = inverted.doc_to_text(inverted.eval_docs[0])
    assert text.startswith("Read the passage below and answer the question with the words 'true' or 'false'.\n\n")
    assert text.endswith("\nAnswer (true or false):") and max(map(len, inverted.eval_docs["passage"])) == 1024


def test_their_dropped_last_batch_is_a_setting(offline_hub: dict[str, str]) -> None:
    """PITFALLS.md: chemistry 96 of 100, physics 96 of 102."""
    rule = {"keep": {"full_batches_of": 8}}
    manager = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata=rule)
    for name, dropped in (("mmlu_college_chemistry_uq_bp", 4), ("mmlu_college_physics_uq_bp", 6)):
        task = manager.load([name])["tasks"][name]
        assert len(task.eval_docs) == 96 and task.left_out["test"] == {"last_batch": dropped}


# ---------------------------------------------------------------- an imported adapter elsewhere


def test_what_was_built_on_an_imported_adapter_is_imported_too() -> None:
    origin = {"tool": "bayesian-peft", "protocol": "bayesian-peft"}
    record = {"source": {"source": {"imported": origin}}}
    assert imported(record) == origin and imported({"source": {}}) is None is imported(None)
    assert other_protocol(record, "bayesian-peft") is None and other_protocol({}, "uq-v1") is None
    assert "evaluated under uq-v1: not comparable" in str(other_protocol(record, "uq-v1"))
    assert "a stock task" in str(other_protocol(record, None))


def test_the_requests_of_a_task_carry_its_protocol() -> None:
    seen: list[Any] = []

    class Spy(Answerer):
        def loglikelihood(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            seen.extend(request.uq_protocol for request in requests)
            return super().loglikelihood(requests, *args, **kwargs)

    evaluate(trimmed(), lm=Spy(), limit=3)
    assert len(seen) > 5 and set(seen) == {"p"}


def test_an_imported_adapter_under_another_protocol_is_noted_once_everywhere(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = logging.getLogger("lm_eval.uqharness")  # where lm-eval's log goes depends on which test set it up
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    base = make_base(tmp_path / "base")
    make_lora(base).save_pretrained(str(tmp_path / "run" / "step_9"))
    assert main(["import", str(tmp_path / "run"), str(tmp_path / "theirs"), "--base", str(base)]) == 0
    for name, protocol in (("tiny_uq", "uq-v1"), ("tiny_uq_ll", "laplace-lora")):
        make_task(tmp_path / "tasks", name, metadata={"version": 1.0, "uq": {"protocol": protocol}})
    tasks = ["--tasks", "tiny_uq,tiny_uq_ll", "--include_path", str(tmp_path / "tasks")]
    assert main(["eval", str(tmp_path / "theirs"), *tasks, "--output_path", str(tmp_path / "results")]) == 0
    capsys.readouterr()
    records = dict.fromkeys(r for r in caplog.records if "not comparable" in r.getMessage())
    said = [record.getMessage() for record in records]
    assert len(said) == 1 and "trained under the protocol laplace-lora and evaluated under uq-v1" in said[0]
    run = read_results(tmp_path / "results")[0]
    assert list(run.config["uqharness"]["other_protocol"]) == ["tiny_uq"]
    assert main(["table", str(tmp_path / "results"), "--format", "json"]) == 0
    notes = [note for table in json.loads(capsys.readouterr().out)["tables"] for note in table["notes"]]
    assert sum("not comparable with what its authors report" in note for note in notes) == 1
    record = adapter_io.read_record(tmp_path / "theirs")
    assert record is not None and record["data"]["splits"] == [] and record["recipe"] is None
