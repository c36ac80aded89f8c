"""Encoders from training to the record through lm-eval, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from answerer import Answerer
from datasets import load_dataset
from lm_eval.tasks import TaskManager
from peft import PeftModel
from sklearn.metrics import matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import uqharness
from tests.tiny import make_encoder
from uqharness.adapter_io import folder as adapter_io
from uqharness.errors import InputError
from uqharness.metrics.averaging import average

CLASSES = ("not_entailment", "entailment")
# lm-eval's own tasks need not be indexed.
TASKS = TaskManager(include_defaults=False, include_path=str(Path(__file__).parents[2] / "tasks"))


def evaluate(adapter: Path, task: str, manager: TaskManager = TASKS, **arguments: Any) -> list[uqharness.TaskResult]:
    few: dict[str, Any] = {"limit": 6, "batch_size": 4, "bootstrap_iters": 0}
    return uqharness.evaluate(adapter, task, task_manager=manager, **few, **arguments)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), "bert")


@pytest.fixture(scope="module")
def adapter(encoder: Path, tmp_path_factory: pytest.TempPathFactory, offline_hub: object) -> Path:
    out = tmp_path_factory.mktemp("trained") / "blob"
    uqharness.train("blob", base=str(encoder), task="wnli_uq", out=out, steps=3, lr=1e-2, max_length=20, lora_r=4)
    return out


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def by_hand(encoder: Path, adapter: Path, count: int, length: int) -> np.ndarray:
    """log p(class) of the validation items from transformers and PEFT alone, by the adapter's mean."""
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    model, tokenizer = PeftModel.from_pretrained(base, str(adapter)).eval(), AutoTokenizer.from_pretrained(encoder)
    rows = load_dataset("nyu-mll/glue", "wnli", split=f"validation[:{count}]")
    answers = []
    for row in rows:
        inputs = tokenizer(row["sentence1"], row["sentence2"], truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            answers.append(model(**inputs).logits[0].double().log_softmax(-1).numpy())
    return np.stack(answers)


def test_the_record_has_class_probabilities_of_every_draw(encoder: Path, adapter: Path) -> None:
    record = json.loads((adapter / "uq_config.json").read_text())
    assert record["data"]["classes"] == list(CLASSES) and record["data"]["truncated"]["fit"] > 0
    assert record["run"]["target_modules"] == ["query", "value"]  # BERT's
    (run,) = evaluate(adapter, "wnli_uq", samples=3)
    assert (run.record.items, run.record.draws, run.record.has_mean) == (6, 3, True)
    # The classes are all there is, so that log p(class) needs no normalising; inputs are cut as in training.
    np.testing.assert_allclose(np.exp(run.record.logp).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(run.record.logp[0], by_hand(encoder, adapter, 6, 20), atol=1e-5)
    assert len(np.unique(run.record.logp[1:, 0, 0])) == 3
    (other,) = evaluate(adapter, "wnli_uq", samples=1, model_args={"max_length": 60})
    np.testing.assert_allclose(other.record.logp[0], by_hand(encoder, adapter, 6, 60), atol=1e-5)


def test_classes_are_found_by_name(adapter: Path) -> None:
    """RTE has WNLI's classes in the other order."""
    model = uqharness.load(adapter, samples=0)
    (swapped,) = evaluate(adapter, "rte_uq", samples=0)
    task = TASKS.load(["rte_uq"])["tasks"]["rte_uq"]
    task.build_all_requests(limit=6, rank=0, world_size=1)
    values = np.array([float(value) for value, _ in model.lm.answer(task.instances, disable_tqdm=True)]).reshape(6, 2)
    np.testing.assert_allclose(values, swapped.record.logp[0], atol=1e-6)
    tokenised = model.lm._as_classes(task.instances[:2])
    assert [strings[1].strip() for strings, _, _ in tokenised] == ["entailment", "not_entailment"]
    assert [number for _, _, number in tokenised] == [[1], [0]]


def test_a_plain_peft_classifier_has_its_classes_by_number(encoder: Path, adapter: Path, tmp_path: Path) -> None:
    for name in (adapter_io.PEFT_CONFIG, adapter_io.MEAN):
        shutil.copy(adapter / name, tmp_path)
    assert adapter_io.classes(tmp_path, None) == ("0", "1")
    (run,) = evaluate(tmp_path, "wnli_uq", samples=1, model_args={"max_length": 20})
    np.testing.assert_allclose(run.record.logp[-1], by_hand(encoder, adapter, 6, 20), atol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line(adapter: Path, blob: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is a sequence classifier \(not_entailment, entailment\), and toyworld_uq is"
    ):
        evaluate(adapter, "toyworld_uq")
    with pytest.raises(
        InputError, match="wnli_uq is answered by a sequence classifier, and adapter .* is one of a caus"
    ):
        evaluate(blob, "wnli_uq")
    with pytest.raises(InputError, match="cb_uq has the classes entailment, contradiction, neutral, and the head of a"):
        evaluate(adapter, "cb_uq")
    with pytest.raises(InputError, match="mrpc_uq has the classes not_equivalent, equivalent, and the head of adapter"):
        evaluate(adapter, "mrpc_uq")
    with pytest.raises(InputError, match="is an encoder .bert., and the task is answered by a causal language model"):
        uqharness.train("mle", base=str(encoder), task="toyworld_uq", out=tmp_path / "a")
    with pytest.raises(InputError, match="is no encoder .llama., and the task is answered by a sequence classifier"):
        uqharness.train("mle", base="toyworld", task="wnli_uq", out=tmp_path / "a")
    with pytest.raises(InputError, match="wnli_uq is answered from its documents' own fields, and 2 shots"):
        uqharness.train("mle", base=str(encoder), task="wnli_uq", out=tmp_path / "a", num_fewshot=2, max_length=20)
    with pytest.raises(InputError, match="is a sequence classifier"):
        uqharness.load(adapter).predict(["A question?"], ["yes", "no"])


def test_a_lora_in_the_head_is_saved_with_the_weights_below_it(
    encoder: Path, tmp_path: Path, offline_hub: object
) -> None:
    out, targets = tmp_path / "blob", ["query", "value", "classifier"]
    options: dict[str, Any] = {"steps": 3, "lr": 1e-2, "max_length": 20, "lora_r": 4, "target_modules": targets}
    uqharness.train("blob", base=str(encoder), task="wnli_uq", out=out, **options)
    record = json.loads((out / adapter_io.RECORD).read_text())
    assert record["run"]["target_modules"] == targets
    (run,) = evaluate(out, "wnli_uq", samples=2)
    np.testing.assert_allclose(run.record.logp[0], by_hand(encoder, out, 6, 20), atol=1e-5)  # PEFT alone has a head
    assert len(np.unique(run.record.logp[:, 0, 0])) == 3
    random = adapter_io.load_predictive(out)[0].posterior.draws(0, 1, 0)
    assert "base_model.model.classifier.lora_A.weight" in random


def wnli(folder: Path, name: str, split: str) -> TaskManager:
    """A task of another split of WNLI."""
    (folder / f"{name}.yaml").write_text(
        f"class: !function uqharness.harness.task.UQTask\ntask: {name}\noutput_type: multiple_choice\n"
        f"dataset_path: nyu-mll/glue\ndataset_name: wnli\nvalidation_split: {split}\ndoc_to_target: label\n"
        'doc_to_text: "{{sentence1}}\\n{{sentence2}}\\n"\ntarget_delimiter: " "\nmetric_list: []\n'
        "doc_to_choice: [not_entailment, entailment]\n"
        "metadata: {version: 1.0, uq: {protocol: uq-v1, pair: [sentence1, sentence2]}}\n"
    )
    return TaskManager(include_defaults=False, include_path=str(folder))


def test_training_items_are_refused_where_they_are_evaluated(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leak"):
        evaluate(adapter, "leaky", wnli(tmp_path, "leaky", "train"))


def test_labels_outside_the_classes_are_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"item 0 .* has the label -1, none of its 2 choices .*use a labelled split"):
        evaluate(adapter, "hidden", wnli(tmp_path, "hidden", "test"))


def test_cola_prints_mcc(offline_hub: object) -> None:
    how: dict[str, Any] = {"model": Answerer(), "bootstrap_iters": 0, "task_manager": TASKS}
    results = lm_eval.simple_evaluate(**how, tasks=["cola_uq"], limit=40)
    (run,) = uqharness.read_results(results)
    answers = average(run.record.rows(), run.record.gold, run.record.combine)
    expected = matthews_corrcoef(answers.gold, answers.p.argmax(-1))
    shown = results["results"]["cola_uq"]
    assert expected != 0 and shown["mcc,none"] == pytest.approx(expected) and shown["mcc_stderr,none"] > 0.05
    assert "mcc,none" not in lm_eval.simple_evaluate(**how, tasks=["wnli_uq"], limit=4)["results"]["wnli_uq"]


def test_minilm(minilm: Path, offline_hub: object, tmp_path: Path) -> None:
    """Real weights: 6 layers of BERT, with a pooler and no head."""
    options: dict[str, Any] = {"steps": 2, "batch_size": 2, "max_length": 24}
    uqharness.train("ens", base=str(minilm), task="wnli_uq", out=tmp_path / "ens", members=2, **options)
    (run,) = evaluate(tmp_path / "ens", "wnli_uq", samples=2)
    np.testing.assert_allclose(run.record.logp[-2], by_hand(minilm, tmp_path / "ens", 6, 24), atol=1e-5)
    heads = [name for name in adapter_io.tensors_of(tmp_path / "ens" / adapter_io.MEAN) if ".lora_" not in name]
    assert heads == ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]
    assert np.abs(run.record.logp[-1] - run.record.logp[-2]).max() > 1e-3  # each member has a head of its own
