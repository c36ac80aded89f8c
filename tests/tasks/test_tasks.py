"""The `_uq` YAMLs on real data: counts, prompts, splits, and a real model of lm-eval's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from answerer import Answerer
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model

from uqharness import toyworld
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.harness.task import UQTask
from uqharness.results.reading import RECORD, read_results, require_comparable
from uqharness.training.loop import Batch, choice_loss, choice_table
from uqharness.training.pairs import classes_of, pair_of
from uqharness.training.questions import PairEncoder, read_questions

FOLDER = Path(__file__).parents[2] / "tasks"
# Items evaluated, for tuning, left for training, dropped from training; official numbers (PROVENANCE.md).
COUNTS = {
    "winogrande_s_uq": (1267, None, 640, {}),
    "winogrande_m_uq": (1267, None, 2558, {}),
    "arc_challenge_uq": (299, None, 1117, {"3": 1, "5": 1}),
    "arc_easy_uq": (570, None, 2241, {"3": 6, "5": 4}),
    "arc_challenge_uq_test": (1172, 299, 1117, {"3": 1, "5": 1}),
    "arc_easy_uq_test": (2376, 570, 2241, {"3": 6, "5": 4}),
    "openbookqa_uq": (500, None, 4957, {}),
    "openbookqa_uq_test": (500, 500, 4957, {}),
    "boolq_uq": (3270, None, 1886, {}),  # of 9,427: the offline hub has a fifth of BoolQ's training split
    "boolq_uq_test": (2180, 1090, 1886, {}),
    "mmlu_college_chemistry_uq": (100, None, None, {}),
    "mmlu_college_physics_uq": (102, None, None, {}),
    "mmlu_college_mathematics_uq": (100, None, None, {}),
    "arc_challenge_cloze_uq": (299, None, 1117, {"3": 1, "5": 1}),
    "arc_easy_cloze_uq": (570, None, 2241, {"3": 6, "5": 4}),
    "arc_challenge_cloze_uq_test": (1172, 299, 1117, {"3": 1, "5": 1}),
    "arc_easy_cloze_uq_test": (2376, 570, 2241, {"3": 6, "5": 4}),
    "arc_easy_small_cloze_uq": (1188, 320, 636, {"3": 2, "5": 2}),
    "arc_easy_small_cloze_uq_tune": (320, None, 636, {"3": 2, "5": 2}),
    "arc_challenge_small_cloze_uq": (586, None, None, {}),
    "openbookqa_cloze_uq": (500, None, 4954, {"repeated": 3}),  # "sky", "roots", "sky", "leaves"
    "openbookqa_cloze_uq_test": (500, 500, 4954, {"repeated": 3}),
    "mmlu_college_chemistry_cloze_uq": (100, None, None, {}),
    "mmlu_college_physics_cloze_uq": (102, None, None, {}),
    "mmlu_college_mathematics_cloze_uq": (100, None, None, {}),
    "rte_uq": (277, None, 2490, {}),
    "mrpc_uq": (408, None, 3668, {}),
    "mrpc_small_uq": (408, 459, 641, {}),
    "rte_small_uq": (277, 374, 622, {}),
    "cola_uq": (1043, None, 8551, {}),
    "wnli_uq": (71, None, 635, {}),
    "wic_uq": (638, None, 5428, {}),
    "cb_uq": (56, None, 250, {}),
    "boolq_glue_uq": (3270, None, 1886, {}),  # as boolq_uq
}
ASK = "Select one of the choices that answers the following question: "
# Table 6 of the BLoB paper, filled in by hand with the first evaluated item: prompt, answers, right one.
GOLDEN = {
    "winogrande_s_uq": (
        ASK + "Sarah was a much better surgeon than Maria so _ always got the easier cases. "
        "Choices: A. Sarah. B. Maria. Answer:",
        ["A", "B"],
        1,
    ),
    "arc_easy_uq": (
        ASK + "Which technology was developed most recently? Choices: A. cellular telephone. B. television. "
        "C. refrigerator. D. airplane. Answer:",
        ["A", "B", "C", "D"],
        0,
    ),
    "openbookqa_uq": (
        ASK + "Frilled sharks and angler fish live far beneath the surface of the ocean, which is why they "
        "are known as Choices: A. Deep sea animals. B. fish. C. Long Sea Fish. D. Far Sea Animals. Answer:",
        ["A", "B", "C", "D"],
        0,
    ),
    "mmlu_college_chemistry_uq": (
        ASK + "The rate, r, of a zero-order chemical reaction A → B can be expressed as which of the "
        "following? Choices: A. r = k ln[A]. B. r = k [A]^2. C. r = k [A]. D. r = k. Answer:",
        ["A", "B", "C", "D"],
        3,
    ),
    "arc_easy_cloze_uq": (
        "Question: Which technology was developed most recently?\nAnswer:",
        ["cellular telephone", "television", "refrigerator", "airplane"],
        0,
    ),
    "openbookqa_cloze_uq": (
        "Frilled sharks and angler fish live far beneath the surface of the ocean, which is why they are known as",
        ["Deep sea animals", "fish", "Long Sea Fish", "Far Sea Animals"],
        0,
    ),
    "mmlu_college_chemistry_cloze_uq": (
        "Question: The rate, r, of a zero-order chemical reaction A → B can be expressed as which of the "
        "following?\nAnswer:",
        ["r = k ln[A]", "r = k [A]^2", "r = k [A]", "r = k"],
        3,
    ),
}
PAIRS = {  # of a sequence classifier, as in the code of BLoB and Laplace-LoRA
    "rte_uq": ("sentence1", "sentence2"),
    "mrpc_uq": ("sentence1", "sentence2"),
    "cola_uq": ("sentence",),
    "wnli_uq": ("sentence1", "sentence2"),
    "wic_uq": ("sentence1", "sentence2"),
    "cb_uq": ("premise", "hypothesis"),
    "boolq_glue_uq": ("passage", "question"),
}
STOCK = {  # lm-eval's own task, and its file
    "arc_challenge_cloze_uq_test": ("arc_challenge", "arc/arc_challenge.yaml"),
    "arc_easy_cloze_uq_test": ("arc_easy", "arc/arc_easy.yaml"),
    "openbookqa_cloze_uq_test": ("openbookqa", "openbookqa/openbookqa.yaml"),
    **{
        f"mmlu_college_{subject}_cloze_uq": (
            f"mmlu_college_{subject}_continuation",
            f"mmlu/continuation/mmlu_college_{subject}.yaml",
        )
        for subject in ("chemistry", "physics", "mathematics")
    },
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


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_the_data_sets_own_columns_and_classes(load: Callable[[str], UQTask], name: str) -> None:
    """The classes are those of the data set's label, in its order, and the fields are its texts, as they stand."""
    task = load(name)
    rows, fields = task.dataset["validation"], pair_of(task)
    assert fields == PAIRS[name] and classes_of(task) == tuple(rows.features["label"].names)
    task.build_all_requests(limit=3, rank=0, world_size=1)
    first = task.instances[: len(classes_of(task))]
    assert [first[0].doc[field] for field in fields] == [rows[0][field] for field in fields]
    assert {one.uq_pair for one in task.instances} == {fields}
    assert [one.args for one in first] == [
        ("".join(f"{rows[0][field]}\n" for field in fields), f" {label}") for label in classes_of(task)
    ]
    assert task.labelled(task.eval_docs[0])[1] == rows[0]["label"]


def test_pairs_take_no_shots_and_no_chat_template(load: Callable[[str], UQTask], manager: TaskManager) -> None:
    task = manager.load(["wnli_uq"])["tasks"]["wnli_uq"]
    with pytest.raises(InputError, match="wnli_uq is answered from its documents' own fields, and a system inst"):
        task.build_all_requests(limit=3, rank=0, world_size=1, system_instruction="Think.")
    task.set_config(key="num_fewshot", value=2)
    with pytest.raises(InputError, match="and 2 shots is requested: remove it"):
        task.build_all_requests(limit=3, rank=0, world_size=1)


@pytest.fixture(scope="module")
def stock(offline_hub: dict[str, str]) -> Callable[[str], Any]:
    folder = Path(str(lm_eval.tasks.__file__)).parent

    def one(name: str) -> Any:
        task, path = STOCK[name]
        return TaskManager(include_defaults=False, include_path=str((folder / path).parent)).load([task])["tasks"][task]

    return one


@pytest.mark.parametrize("name", STOCK)
def test_cloze_asks_to_the_letter_as_lm_evals_own_task(
    load: Callable[[str], UQTask], stock: Callable[[str], Any], name: str
) -> None:
    ours, theirs = load(name), stock(name)
    for task in (ours, theirs):
        task.build_all_requests(limit=300, rank=0, world_size=1)
    assert [one.args for one in ours.instances] == [one.args for one in theirs.instances]
    assert len(ours.eval_docs) == len(theirs.eval_docs)
    assert [one.doc["gold"] for one in ours.instances] == [int(theirs.doc_to_target(x.doc)) for x in theirs.instances]


def test_golden_prompt_of_boolq(load: Callable[[str], UQTask]) -> None:
    task, doc = load("boolq_uq"), load("boolq_uq").eval_docs[0]
    text = task.doc_to_text(doc)
    assert text.startswith(
        "Answer the question with only True or False: does ethanol take more energy make "
        "that produces Context: Ethanol fuel -- All biomass goes through at least some of"
    )
    assert text.endswith("than producing gasoline..") and "Answer:" not in text
    assert task.doc_to_choice(doc) == ["True", "False"] and task.doc_to_target(doc) == 1
    assert sum(gold == 0 for gold in task.eval_docs["gold"]) == 2033  # true, as on the dataset's own count


def test_boolq_is_split_one_to_two_without_overlap(load: Callable[[str], UQTask]) -> None:
    whole, parts = load("boolq_uq").validation_docs()["id"][:], load("boolq_uq_test")
    assert parts.tuning_docs()["id"][:] + parts.eval_docs["id"][:] == whole
    assert parts.split_record("test")["split"] == "validation[1090:3270]"


@pytest.mark.parametrize(
    ("name", "three", "five"), [("arc_challenge_uq", 3, 1), ("arc_easy_uq", 1, 2)]
)  # Laplace-LoRA, appendix D, counts the same
def test_arc_items_with_three_and_five_choices_are_kept(
    load: Callable[[str], UQTask], name: str, three: int, five: int
) -> None:
    sizes = [len(choices) for choices in load(name).eval_docs["choices"]]
    assert (sizes.count(3), sizes.count(5)) == (three, five)
    assert sizes.count(4) == len(sizes) - three - five
    doc = next(doc for doc in load(name).eval_docs if len(doc["choices"]) == 5)
    assert load(name).doc_to_text(doc).endswith(f" E. {doc['texts'][4]}. Answer:")


def test_numbered_labels_become_letters(load: Callable[[str], UQTask]) -> None:
    task = load("arc_easy_uq_test")
    raw = {row["id"]: row for row in task.dataset["test"] if row["choices"]["label"][0] == "1"}
    evaluated = [doc for doc in task.eval_docs if doc["id"] in raw]
    assert len(evaluated) == len(raw) > 50
    for doc in evaluated:
        assert doc["choices"] == list("ABCD"[: len(doc["choices"])])
        assert doc["gold"] == int(raw[doc["id"]]["answerKey"]) - 1


def test_groups_have_lm_evals_means(offline_hub: dict[str, str], manager: TaskManager) -> None:
    results = lm_eval.simple_evaluate(model=Answerer(), tasks=["uq_ood_large"], task_manager=manager, limit=7)
    each = [run.metrics()["nll"] for run in read_results(results)]
    assert len(each) == 3
    assert results["groups"]["uq_ood_large"]["nll,none"] == pytest.approx(sum(each) / 3, abs=1e-12)


def test_a_real_model_of_lm_evals(offline_hub: dict[str, str], tiny_real_model: Path, manager: TaskManager) -> None:
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tiny_real_model},dtype=float32",
        device="cpu",
        batch_size=4,
        limit=5,
        tasks=["arc_easy_uq"],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    run = read_results(results)[0]
    assert (run.record.items, run.record.draws, run.record.has_mean) == (5, 1, False)
    for sample, row in zip(results["samples"]["arc_easy_uq"], run.record.logp[1], strict=True):
        plain = [float(value) for value, _ in sample["filtered_resps"]]
        assert row[: len(plain)].tolist() == np.array(plain, dtype=np.float32).tolist()
        assert np.exp(plain) / np.exp(plain).sum() == pytest.approx(sample[RECORD]["probs"], abs=1e-6)


def test_cloze_is_the_softmax_over_summed_log_probabilities(
    load: Callable[[str], UQTask], stock: Callable[[str], Any], tiny_real_model: Path, manager: TaskManager
) -> None:
    """Of answers of several tokens: the headline's probabilities and the training loss, against lm-eval's own sums."""
    limit, ours = 5, load("arc_easy_cloze_uq_test")
    model = HFLM(pretrained=str(tiny_real_model), dtype="float32", device="cpu", batch_size=4)
    evaluated = {"limit": limit, "bootstrap_iters": 0, "log_samples": True, "task_manager": manager}
    theirs = lm_eval.simple_evaluate(model=model, tasks=[stock("arc_easy_cloze_uq_test")], **evaluated)
    results = lm_eval.simple_evaluate(model=model, tasks=[ours], **evaluated)
    questions = read_questions(ours, "test", ours.eval_docs, PairEncoder(model.tokenizer), limit=limit)
    assert all(len(answer) > 1 for question in questions for _, answer in question.pairs)
    rows = make_rows([question.pairs for question in questions], 2048, 0)
    gold = torch.tensor([question.gold for question in questions])
    lora = get_peft_model(model.model, LoraConfig(target_modules=["q_proj"]))  # B = 0: still the base
    loss, table = 0.0, choice_table(lora, rows).tolist()
    for sample, plain, row in zip(
        results["samples"][ours.task_name], theirs["samples"]["arc_easy"], table, strict=True
    ):
        sums = np.array([float(value) for value, _ in plain["filtered_resps"]])
        wanted = sums - np.logaddexp.reduce(sums)
        assert np.log(sample[RECORD]["probs"]) == pytest.approx(wanted, abs=1e-5)
        assert row[: len(sums)] == pytest.approx(wanted, abs=1e-4)
        loss -= wanted[sample[RECORD]["gold"]] / limit
    assert choice_loss(LoraStack(lora), Batch(rows, gold, 0, 0)).item() == pytest.approx(loss, abs=1e-4)
    run, other = read_results(results)[0], theirs["results"]["arc_easy"]
    assert run.metrics()["acc"] == pytest.approx(other["acc,none"])
    assert run.metrics()["nll"] == pytest.approx(loss, abs=1e-4)


def test_answers_by_bytes_are_another_protocol(
    manager: TaskManager, load: Callable[[str], UQTask], tiny_real_model: Path
) -> None:
    by_bytes = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata={"normalise": "bytes"}).load(
        ["arc_easy_cloze_uq_test"]
    )["tasks"]["arc_easy_cloze_uq_test"]
    model = HFLM(pretrained=str(tiny_real_model), dtype="float32", device="cpu", batch_size=8)
    evaluated = {"limit": 12, "bootstrap_iters": 0, "log_samples": True, "task_manager": manager}
    normalised = lm_eval.simple_evaluate(model=model, tasks=[by_bytes], **evaluated)
    summed = lm_eval.simple_evaluate(model=model, tasks=[load("arc_easy_cloze_uq_test")], **evaluated)
    hits = 0
    for sample, plain in zip(
        normalised["samples"][by_bytes.task_name], summed["samples"][by_bytes.task_name], strict=True
    ):
        sizes = [len(text.encode()) for text in sample["doc"]["choices"]]
        rates = np.array([float(value) for value, _ in plain["filtered_resps"]]) / sizes
        assert sample[RECORD]["probs"] == pytest.approx(np.exp(rates) / np.exp(rates).sum(), abs=1e-6)
        hits += np.argmax(rates) == sample["doc"]["gold"]  # lm-eval's acc_bytes
    runs = [read_results(results)[0] for results in (normalised, summed)]
    assert runs[0].metrics()["acc"] == pytest.approx(hits / 12)
    with pytest.raises(InputError, match=r"they differ in .*\bnormalise \("):
        require_comparable(runs)


TOYS = [("toyworld", True), ("near", False), ("far", False), ("cloze", True)]


@pytest.mark.parametrize(("name", "trains"), TOYS)
def test_the_toy_world_needs_no_hub(name: str, trains: bool, manager: TaskManager) -> None:
    if not toyworld.questions_path(name, "test").exists():
        pytest.skip("the toy world's questions have not been made: python -m tools.toyworld")
    task_name = "toyworld_uq" if name == "toyworld" else f"toyworld_{name}_uq"
    task = manager.load([task_name])["tasks"][task_name]
    rows = toyworld.questions(name, "test")
    assert task.has_training_docs() == trains
    assert len(task.tuning_docs()) == toyworld.SIZES[name]["validation"]
    assert [doc["prompt"] for doc in task.eval_docs] == [row["prompt"] for row in rows]
    assert [task.labelled(doc) for doc in task.eval_docs] == [(row["choices"], row["gold"]) for row in rows]


def test_every_yaml_is_found(manager: TaskManager) -> None:
    groups = {"uq_commonsense", "uq_ood_small", "uq_ood_large", "uq_ood", "toyworld"}
    groups |= {"uq_cloze", "uq_cloze_ood", "uq_cloze_ood_small", "uq_cloze_ood_large"}
    toys = {"toyworld_uq", "toyworld_near_uq", "toyworld_far_uq", "toyworld_cloze_uq"}
    theirs = {name for name in manager.all_tasks if name.endswith(("_uq_bp", "_uq_ll"))}  # test_protocols.py
    assert len(theirs) == 14 and set(manager.all_tasks) == set(COUNTS) | groups | toys | theirs
    assert groups <= set(manager.all_groups)
