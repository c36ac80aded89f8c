"""The `_uq` YAMLs on real data: counts, prompts, splits, and a real model of lm-eval's."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lm_eval
import numpy as np
import pytest
from answerer import Answerer
from lm_eval.tasks import TaskManager

from uqharness import toyworld
from uqharness.results import read_results
from uqharness.task import UQTask

FOLDER = Path(__file__).parents[1] / "tasks"
# Items evaluated, for tuning, left for training, dropped from training; official numbers (PROVENANCE.md).
COUNTS = {
    "winogrande_s_uq": (1267, None, 640, {}), "winogrande_m_uq": (1267, None, 2558, {}),
    "arc_challenge_uq": (299, None, 1117, {"3": 1, "5": 1}),
    "arc_easy_uq": (570, None, 2241, {"3": 6, "5": 4}),
    "arc_challenge_uq_test": (1172, 299, 1117, {"3": 1, "5": 1}),
    "arc_easy_uq_test": (2376, 570, 2241, {"3": 6, "5": 4}),
    "openbookqa_uq": (500, None, 4957, {}), "openbookqa_uq_test": (500, 500, 4957, {}),
    "boolq_uq": (3270, None, 1886, {}),  # of 9,427: the offline hub has a fifth of BoolQ's training split
    "boolq_uq_test": (2180, 1090, 1886, {}),
    "mmlu_college_chemistry_uq": (100, None, None, {}), "mmlu_college_physics_uq": (102, None, None, {}),
    "mmlu_college_mathematics_uq": (100, None, None, {}),
}
ASK = "Select one of the choices that answers the following question: "
# Table 6 of the BLoB paper, filled in by hand with the first evaluated item: prompt, answers, right one.
GOLDEN = {
    "winogrande_s_uq": (
        ASK + "Sarah was a much better surgeon than Maria so _ always got the easier cases. "
        "Choices: A. Sarah. B. Maria. Answer:", ["A", "B"], 1),
    "arc_easy_uq": (
        ASK + "Which technology was developed most recently? Choices: A. cellular telephone. B. television. "
        "C. refrigerator. D. airplane. Answer:", ["A", "B", "C", "D"], 0),
    "openbookqa_uq": (
        ASK + "Frilled sharks and angler fish live far beneath the surface of the ocean, which is why they "
        "are known as Choices: A. Deep sea animals. B. fish. C. Long Sea Fish. D. Far Sea Animals. Answer:",
        ["A", "B", "C", "D"], 0),
    "mmlu_college_chemistry_uq": (
        ASK + "The rate, r, of a zero-order chemical reaction A → B can be expressed as which of the "
        "following? Choices: A. r = k ln[A]. B. r = k [A]^2. C. r = k [A]. D. r = k. Answer:",
        ["A", "B", "C", "D"], 3),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's report of the machine, which runs pip and takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_defaults=False, include_path=str(FOLDER))


@pytest.fixture(scope="module")
def load(offline_hub: dict[str, str], manager: TaskManager) -> Callable[[str], UQTask]:
    made: dict[str, UQTask] = {}

    def one(name: str) -> UQTask:
        return made.setdefault(name, made.get(name) or manager.load([name])["tasks"][name])

    return one


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_real_data(load: Callable[[str], UQTask], name: str) -> None:
    task, (evaluated, tuning, training, dropped) = load(name), COUNTS[name]
    assert len(task.eval_docs) == evaluated
    assert (None if task.tuning_docs() is None else len(task.tuning_docs())) == tuning
    assert (len(task.training_docs()) if task.has_training_docs() else None) == training
    assert task.train_dropped == dropped and task.eval_docs["uq_id"][:] == list(range(evaluated))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_prompts(load: Callable[[str], UQTask], name: str) -> None:
    task, doc = load(name), load(name).eval_docs[0]
    assert (task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)) == GOLDEN[name]
    assert [one.args[1] for one in task.construct_requests(doc, "")] == [f" {x}" for x in GOLDEN[name][1]]


def test_golden_prompt_of_boolq(load: Callable[[str], UQTask]) -> None:
    task, doc = load("boolq_uq"), load("boolq_uq").eval_docs[0]
    text = task.doc_to_text(doc)
    assert text.startswith("Answer the question with only True or False: does ethanol take more energy make "
                           "that produces Context: Ethanol fuel -- All biomass goes through at least some of")
    assert text.endswith("than producing gasoline..") and "Answer:" not in text
    assert task.doc_to_choice(doc) == ["True", "False"] and task.doc_to_target(doc) == 1
    assert sum(gold == 0 for gold in task.eval_docs["gold"]) == 2033  # true, as on the dataset's own count


def test_boolq_is_split_one_to_two_without_overlap(load: Callable[[str], UQTask]) -> None:
    whole, parts = load("boolq_uq").validation_docs()["id"][:], load("boolq_uq_test")
    assert parts.tuning_docs()["id"][:] + parts.eval_docs["id"][:] == whole
    assert parts.split_record("test")["split"] == "validation[1090:3270]"


@pytest.mark.parametrize(("name", "three", "five"), [
    ("arc_challenge_uq", 3, 1), ("arc_easy_uq", 1, 2)])  # Laplace-LoRA, appendix D, counts the same
def test_arc_items_with_three_and_five_choices_are_kept(
        load: Callable[[str], UQTask], name: str, three: int, five: int) -> None:
    sizes = [len(choices) for choices in load(name).eval_docs["choices"]]
    assert (sizes.count(3), sizes.count(5)) == (three, five)
    assert sizes.count(4) == len(sizes) - three - five
    doc = next(doc for doc in load(name).eval_docs if len(doc["choices"]) == 5)
    assert load(name).doc_to_text(doc).endswith(f" E. {doc['texts'][4]}. Answer:")


def test_numbered_labels_become_letters(load: Callable[[str], UQTask]) -> None:
    task = load("arc_easy_uq_test")
    raw = {row["id"]: row for row in task.dataset["test"] if row["choices"]["label"][0] == "1"}
    found = [doc for doc in task.eval_docs if doc["id"] in raw]
    assert len(found) == len(raw) > 50
    for doc in found:
        assert doc["choices"] == list("ABCD"[:len(doc["choices"])])
        assert doc["gold"] == int(raw[doc["id"]]["answerKey"]) - 1


def test_groups_have_lm_evals_means(offline_hub: dict[str, str], manager: TaskManager) -> None:
    results = lm_eval.simple_evaluate(model=Answerer(), tasks=["uq_ood_large"], task_manager=manager, limit=7)
    each = [run.metrics()["nll"] for run in read_results(results)]
    assert len(each) == 3
    assert results["groups"]["uq_ood_large"]["nll,none"] == pytest.approx(sum(each) / 3, abs=1e-12)


def test_a_real_model_of_lm_evals(
        offline_hub: dict[str, str], tiny_real_model: Path, manager: TaskManager) -> None:
    results = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={tiny_real_model},dtype=float32", device="cpu", batch_size=4,
        limit=5, tasks=["arc_easy_uq"], task_manager=manager, bootstrap_iters=0, log_samples=True)
    run = read_results(results)[0]
    assert (run.record.items, run.record.draws, run.record.has_mean) == (5, 1, False)
    for sample, row in zip(results["samples"]["arc_easy_uq"], run.record.logp[1], strict=True):
        plain = [float(value) for value, _ in sample["filtered_resps"]]
        assert row[:len(plain)].tolist() == np.array(plain, dtype=np.float32).tolist()
        assert np.exp(plain) / np.exp(plain).sum() == pytest.approx(sample["uq_record"]["probs"], abs=1e-6)


TOYS = [("toyworld", True), ("near", False), ("far", False), ("cloze", True)]


@pytest.mark.parametrize(("name", "trains"), TOYS)
def test_the_toy_world_needs_no_hub(name: str, trains: bool, manager: TaskManager) -> None:
    if not toyworld.questions_path(name, "test").exists():
        pytest.skip("the toy world's questions have not been made: python -m uqharness.toyworld")
    task_name = "toyworld_uq" if name == "toyworld" else f"toyworld_{name}_uq"
    task = manager.load([task_name])["tasks"][task_name]
    rows = toyworld.questions(name, "test")
    assert task.has_training_docs() == trains
    assert len(task.tuning_docs()) == toyworld.SIZES[name]["validation"]
    assert [doc["prompt"] for doc in task.eval_docs] == [row["prompt"] for row in rows]
    assert [task.labelled(doc) for doc in task.eval_docs] == [(row["choices"], row["gold"]) for row in rows]


def test_every_yaml_is_found(manager: TaskManager) -> None:
    groups = {"uq_commonsense", "uq_ood_small", "uq_ood_large", "uq_ood", "toyworld"}
    toys = {"toyworld_uq", "toyworld_near_uq", "toyworld_far_uq", "toyworld_cloze_uq"}
    theirs = {name for name in manager.all_tasks if name.endswith(("_uq_bp", "_uq_ll"))}  # test_protocols.py
    assert len(theirs) == 14 and set(manager.all_tasks) == set(COUNTS) | groups | toys | theirs
    assert groups <= set(manager.all_groups)
