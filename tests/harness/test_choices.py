"""Our metrics and record on multiple-choice tasks that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from answerer import Answerer
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from uqharness.errors import InputError
from uqharness.harness.choices import ChoiceTask
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import RECORD, read_results, require_comparable

ROOT = Path(__file__).parents[2]
CONSOLE = {name for name, metric in METRICS.items() if metric.console}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def rows(count: int = 20) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    made = []
    for i in range(count):
        size = int(rng.integers(2, 5))
        made.append({"q": f"Question {i}:", "choices": list("ABCD"[:size]), "gold": int(rng.integers(size))})
    return made


def config(data: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "task": "stock",
        "custom_dataset": lambda **kwargs: {"test": Dataset.from_list(data)},
        "dataset_path": "local",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "q",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1},
        **changes,
    }


def evaluate(tasks: list[Any], draws: int | None = 3, manager: Any = None, **kwargs: Any) -> dict[str, Any]:
    manager = manager or TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(model=Answerer(draws), tasks=tasks, task_manager=manager, **kwargs)


def values(results: dict[str, Any], name: str = "stock") -> dict[str, Any]:
    return {key.partition(",")[0]: value for key, value in results["results"][name].items()}


def test_the_example_is_a_stock_task_with_our_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    manager = TaskManager(include_defaults=False, include_path=str(ROOT / "docs" / "examples" / "any-task"))
    results = evaluate(["capitals"], manager=manager)
    (run,) = read_results(results)
    assert run.record.items == 8 and run.record.draws == 3 and run.record.choice_counts == {"2": 2, "3": 4, "4": 2}
    numbers, printed = run.metrics(), values(results, "capitals")
    rows = {name for name in printed if not name.endswith("_stderr")} - {"alias", "name", "sample_len", "sample_count"}
    assert rows == CONSOLE | {"acc_norm"}
    assert {name: printed[name] for name in CONSOLE} == pytest.approx({name: numbers[name] for name in CONSOLE})
    assert run.reported["mutual_information"] == pytest.approx(numbers["mutual_information"])


def test_a_model_without_draws_gets_the_numbers_of_the_stock_task() -> None:
    stock = values(evaluate([ConfigurableTask(config=config(rows()))], None))
    ours = values(evaluate([ChoiceTask(config(rows()))], None))
    assert {name: ours[name] for name in ("acc", "acc_norm")} == {name: stock[name] for name in ("acc", "acc_norm")}
    assert ours["acc_stderr"] == pytest.approx(stock["acc_stderr"]) and RECORD not in stock


def test_questions_that_are_the_same_text_are_two_items() -> None:
    data = [*rows(6), rows(6)[2]]
    record = read_results(evaluate([ChoiceTask(config(data))]))[0].record
    assert record.ids.tolist() == list(range(7)) and record.doc_hashes[6] == record.doc_hashes[2]
    assert np.array_equal(record.logp[:, 6], record.logp[:, 2], equal_nan=True)


def test_extra_requests_and_contexts_that_vary_by_choice() -> None:
    """acc_mutual_info asks each choice again without its prompt; a task like WinoGrande varies the context."""
    mutual = ChoiceTask(config(rows(), metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}]))
    results = evaluate([mutual])
    record, plain = (read_results(r)[0].record for r in (results, evaluate([ChoiceTask(config(rows()))])))
    assert np.array_equal(record.logp, plain.logp, equal_nan=True) and "acc_mutual_info" in values(results)
    contexts = [{"label": i % 2, "options": [f"{i} a", f"{i} b"], "end": "is it."} for i in range(9)]
    varied = config(contexts, doc_to_text="label", doc_to_choice="options", doc_to_target="end")
    record = read_results(evaluate([ChoiceTask(varied)]))[0].record
    assert record.gold.tolist() == [i % 2 for i in range(9)] and record.choice_counts == {"2": 9}


def test_two_runs_are_compared_by_what_was_asked() -> None:
    one, same, other = (
        read_results(evaluate([ChoiceTask(config(rows(), **changes))], draws))[0]
        for draws, changes in ((3, {}), (1, {}), (3, {"doc_to_text": "Q {{q}}"}))
    )
    assert require_comparable([one, same])
    with pytest.raises(InputError, match=r"they differ in doc_to_text \(.*: evaluate"):
        require_comparable([one, other])


def test_it_can_be_put_before_a_class_of_ones_own() -> None:
    class Theirs(ConfigurableTask):
        def doc_to_choice(self, doc: Any) -> list[str]:
            return super().doc_to_choice(doc)[::-1]

        def doc_to_target(self, doc: Any) -> int:
            return len(doc["choices"]) - 1 - doc["gold"]

    class Reversed(ChoiceTask, Theirs):
        pass

    ours, plain = (read_results(evaluate([kind(config(rows()))]))[0].metrics() for kind in (Reversed, ChoiceTask))
    assert ours["nll"] == pytest.approx(plain["nll"])


def test_what_has_no_single_right_choice_is_refused() -> None:
    with pytest.raises(InputError, match="stock: output_type is generate_until: our metrics need multiple_choice"):
        ChoiceTask(config(rows(), output_type="generate_until", metric_list=[{"metric": "exact_match"}]))
    several = [{**row, "gold": [0, 1]} for row in rows()]
    with pytest.raises(InputError, match=r"item 0 .* has the label \[0, 1\], none of its"):
        evaluate([ChoiceTask(config(several))])
