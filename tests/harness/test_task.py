"""`UQTask` through lm-eval itself, on questions made here and an answerer whose draws are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from answerer import Answerer
from datasets import Dataset
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from uqharness.errors import InputError, RunError
from uqharness.harness.choices import doc_hash
from uqharness.harness.scoring import per_byte
from uqharness.harness.task import UQTask
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import RECORD, metrics, read_results, require_comparable
from uqharness.results.record import BMALogProb, unpack


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's report of the machine, which runs pip and takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def questions(bad: int | None = None) -> dict[str, Dataset]:
    """30 items to evaluate, 2 to 4 choices, and 12 to train on; `bad`: a label outside the choices."""
    rng, rows = np.random.default_rng(5), []
    for i in range(42):
        size = int(rng.integers(2, 5))
        gold = 7 if i == bad else int(rng.integers(size))
        rows.append({"id": f"q{i}", "prompt": f"Question {i}:", "choices": list("ABCD"[:size]), "gold": gold})
    return {"validation": Dataset.from_list(rows[:30]), "train": Dataset.from_list(rows[30:])}


def config(**changes: Any) -> dict[str, Any]:
    return {
        "task": "local_uq",
        "class": UQTask,
        "custom_dataset": questions,
        "dataset_path": "local",
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [],
        "metadata": {"version": 1, "uq": {"protocol": "uq-v1", "train_choices": 4}},
        **changes,
    }


def evaluate(task: UQTask | None = None, lm: LM | None = None, **kwargs: Any) -> dict[str, Any]:
    manager = TaskManager(include_defaults=False)  # the default one indexes thousands of files
    task = task or UQTask(config())
    return lm_eval.simple_evaluate(model=lm or Answerer(), tasks=[task], task_manager=manager, **kwargs)


def values(results: dict[str, Any]) -> dict[str, Any]:
    return {key.partition(",")[0]: value for key, value in results["results"]["local_uq"].items()}


@pytest.mark.parametrize("draws", [None, 0, 1, 3])
@pytest.mark.parametrize("log_samples", [False, True])
def test_every_metric_equals_its_recomputation_from_the_record(draws: int | None, log_samples: bool) -> None:
    results = evaluate(lm=Answerer(draws), log_samples=log_samples)
    packed = values(results)[RECORD]
    record = unpack(packed)
    again, reported = metrics(record), {**packed["metrics"], **values(results)}
    assert set(METRICS) <= set(packed["metrics"]) == set(again)
    assert (record.draws, record.has_mean) == (1 if draws is None else draws, draws is not None)
    for name, value in again.items():
        if np.isnan(value):
            assert reported[name] in (None, "N/A"), name
        else:
            assert reported[name] == pytest.approx(value, abs=1e-12), name


def test_standard_errors_of_items_are_lm_evals_own() -> None:
    results = evaluate(log_samples=True)
    packed = values(results)[RECORD]["metrics"]
    for name in ("acc", "nll", "brier", "entropy", "mutual_information"):
        per_item = [{**sample, **sample[RECORD]["metrics"]}[name] for sample in results["samples"]["local_uq"]]
        assert packed[f"{name}_stderr"] == pytest.approx(mean_stderr(per_item), rel=1e-12)
        if METRICS[name].console:
            assert values(results)[f"{name}_stderr"] == pytest.approx(packed[f"{name}_stderr"], rel=1e-12)


def test_the_answers_are_softmaxes_over_the_items_own_choices() -> None:
    lm = Answerer(3)
    for sample in evaluate(lm=lm, log_samples=True)["samples"]["local_uq"]:
        scores = [lm.answer(*pair) for pair in sample["arguments"]]
        rows = np.exp([score.draws for score in scores])  # [K, S]
        item = sample[RECORD]
        assert item["probs"] == pytest.approx((rows / rows.sum(0)).mean(1), abs=1e-6)
        assert item["logp"][0] == pytest.approx([score.mean for score in scores], abs=1e-6)
        assert np.shape(item["logp"]) == (4, len(sample["doc"]["choices"]))
        assert sample["nll"] == pytest.approx(-np.log(item["probs"][sample["target"]]), abs=1e-12)


def test_the_results_file_and_the_printed_table(tmp_path: Path) -> None:
    tracker = EvaluationTracker(output_path=str(tmp_path))
    results = evaluate(log_samples=True, evaluation_tracker=tracker)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="local_uq", samples=samples["local_uq"])
    run = read_results(tmp_path)[0]
    assert run.metrics() == read_results(results)[0].metrics() and run.record.items == 30
    assert run.reported["ece"] == run.metrics()["ece"]
    line = json.loads(next(tmp_path.rglob("samples_*.jsonl")).read_text().splitlines()[0])
    assert len(line[RECORD]["logp"]) == 4 and line[RECORD]["gold"] == int(line["target"])
    rows = [[cell.strip() for cell in line.split("|")[5:9]] for line in make_table(results).splitlines()[2:]]
    assert [(name, value) for name, _, value, _ in rows] == [
        (name, f"{run.metrics()[name]:.4f}") for name in sorted(name for name, m in METRICS.items() if m.console)
    ]
    assert run.reported["mce"] == run.metrics()["mce"]  # the others are in the file


def test_order_and_share_of_items_do_not_matter() -> None:
    whole = unpack(values(evaluate())[RECORD])
    items: list[Any] = []
    for rank in (1, 0):  # as gathered from two processes
        task = UQTask(config())
        task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=rank, world_size=2)
        for instance in task.instances:
            instance.resps.append((Answerer().answer(*instance.args), False))
        task.apply_filters()
        for _, doc in task.doc_iterator(rank=rank, world_size=2):
            responses = [one.filtered_resps["none"] for one in task.instances if one.doc["uq_id"] == doc["uq_id"]]
            items.append(task.process_results(doc, responses)[RECORD])
    record = unpack(task.aggregation()[RECORD](items))
    assert np.array_equal(record.logp, whole.logp, equal_nan=True) and record.protocol == whole.protocol


def test_what_changes_the_evaluation_changes_the_hash_and_nothing_else_does() -> None:
    base = read_results(evaluate())[0]
    same = [
        evaluate(lm=Answerer(None)),
        evaluate(UQTask(config(task_alias="x", training_split=None))),
        evaluate(log_samples=False, bootstrap_iters=0),
    ]
    assert {read_results(results)[0].protocol_hash for results in same} == {base.protocol_hash}
    other = {
        "prompts": evaluate(UQTask(config(doc_to_text="Q {{id}}:"))),
        "answers": evaluate(UQTask(config(target_delimiter=""))),
        "items": evaluate(limit=10),
        "documents": evaluate(samples={"local_uq": [3, 5]}),
        "fewshot": evaluate(num_fewshot=2),
        "system_instruction": evaluate(system_instruction="Be calm."),
        "version": evaluate(UQTask(config(metadata={"version": 2, "uq": {"protocol": "uq-v1"}}))),
    }
    hashes = {name: read_results(results)[0].protocol_hash for name, results in other.items()}
    assert len({base.protocol_hash, *hashes.values()}) == len(other) + 1
    named = {"prompts": "doc_to_text", "answers": "target_delimiter", "documents": "items"}  # the field, not the hash
    for name, results in other.items():
        with pytest.raises(InputError, match=rf"they differ in (.*, )?{named.get(name, name)} \("):
            require_comparable([base, read_results(results)[0]])


def test_a_document_is_known_by_its_content_wherever_it_stands() -> None:
    doc = {"uq_id": 3, "prompt": "Q:", "choices": ["A", "B"], "gold": 0}
    assert doc_hash(doc) == doc_hash({**doc, "uq_id": 8}) != doc_hash({**doc, "gold": 1})
    whole, part = evaluate(), evaluate(samples={"local_uq": [3, 5]})
    hashes = unpack(values(whole)[RECORD]).doc_hashes
    assert unpack(values(part)[RECORD]).doc_hashes == [hashes[3], hashes[5]] and len(set(hashes)) == 30


def test_items_keep_their_ids_under_samples() -> None:
    assert unpack(values(evaluate(samples={"local_uq": [3, 17, 5]}))[RECORD]).ids.tolist() == [3, 5, 17]


def test_predict_only_still_works() -> None:
    results = evaluate(predict_only=True)
    assert len(results["samples"]["local_uq"]) == 30 and RECORD not in values(results)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_that_is_none_stops_the_run(spoil: float) -> None:
    with pytest.raises(RunError, match="local_uq: item 0 was answered with the log-likelihoods"):
        evaluate(lm=Answerer(None, spoil))


def test_a_label_outside_the_choices_is_named() -> None:
    with pytest.raises(InputError, match=r"item 4 \(id 'q4'\) of validation has the label 7"):
        UQTask(config(dataset_kwargs={"bad": 4}))
    with pytest.raises(InputError, match=r"item 1 \(id 'q31'\) of training has the label 7"):
        UQTask(config(dataset_kwargs={"bad": 31}))


def test_trimming_by_process_docs_is_refused() -> None:
    with pytest.raises(InputError, match="made 30 items of validation into 29; items are never trimmed"):
        UQTask(config(training_split=None, process_docs=lambda rows: rows.select(range(len(rows) - 1))))


def test_training_drops_and_counts_what_evaluation_keeps() -> None:
    task = UQTask(config())
    sizes = [len(doc["choices"]) for doc in questions()["train"]]
    assert len(task.training_docs()) == sizes.count(4) and len(task.eval_docs) == 30
    assert task.train_dropped == {str(k): sizes.count(k) for k in (2, 3) if k in sizes}
    assert unpack(values(evaluate(task))[RECORD]).train_dropped == task.train_dropped
    assert task.tuning_docs() is None and task.split_record("validation")["items"] == 30


def test_training_leaves_out_items_that_have_an_answer_twice() -> None:
    def repeated() -> dict[str, Dataset]:
        rows = questions()
        train = [
            {**row, "choices": ["A", *row["choices"][:-1]]} if i in (2, 7) else row
            for i, row in enumerate(rows["train"].to_list())
        ]
        return {"validation": rows["validation"], "train": Dataset.from_list(train)}

    task = UQTask(config(custom_dataset=repeated, metadata={"version": 1, "uq": {"protocol": "uq-v1"}}))
    assert len(task.training_docs()) == 10 and task.train_dropped == {"repeated": 2}
    assert {"q32", "q37"}.isdisjoint(task.training_docs()["id"])


def test_normalised_draws_are_each_divided_by_the_answers_bytes() -> None:
    def by_bytes(rule: str = "bytes") -> UQTask:
        uq = {"protocol": "uq-v1", "normalise": rule}
        return UQTask(
            config(doc_to_choice="{{ ['ü', 'abc', 'abcdef'] }}", process_docs=three, metadata={"version": 1, "uq": uq})
        )

    def three(rows: Dataset) -> Dataset:
        return Dataset.from_list([{**row, "gold": row["gold"] % 3} for row in rows])

    plain = UQTask(config(doc_to_choice="{{ ['ü', 'abc', 'abcdef'] }}", process_docs=three))
    for draws in (None, 0, 3):
        lm = Answerer(draws)
        per_byte, summed = (unpack(values(evaluate(task, lm))[RECORD]).logp for task in (by_bytes(), plain))
        assert per_byte == pytest.approx(summed / np.array([2, 3, 6]), rel=1e-6, nan_ok=True)
    with pytest.raises(InputError, match="normalise is 'tokens': write bytes, or remove it"):
        evaluate(by_bytes("tokens"))


def test_answers_of_a_posterior_are_not_divided() -> None:
    given = BMALogProb(-1.0, [-1.0], mean=-1.0, combine="given")
    with pytest.raises(InputError, match="remove normalise"):
        per_byte([given, given], ["A", "BC"])
