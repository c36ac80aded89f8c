"""Results as metadata of model repositories, read back by the hub's own library."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from made_results import result

from uqharness.cli import main
from uqharness.results.metadata import eval_results, stated
from uqharness.results.runs import read_runs

ARC = {"dataset": "allenai/ai2_arc", "subset": "ARC-Easy", "split": "test", "rows": [0, 40]}


def test_a_model_index_is_read_by_the_hubs_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        result(tmp_path, seed=seed, protocol=ARC)
    result(tmp_path, "MLE", protocol={**ARC, "rows": [0, 50]})  # trimmed
    assert main(["table", str(tmp_path), "--format", "model-index"]) == 0
    shown = capsys.readouterr()
    assert "results_2.json: arc_easy_uq: skipped: 40 of 50 questions" in shown.err
    card = ModelCard(f"---\n{shown.out}---\n")
    runs = stated(read_runs([tmp_path]))
    entries = card.data.eval_results or []
    assert card.data.model_name == "BLoB" and len(entries) == 2 * 3
    assert {each.dataset_type for each in entries} == {"allenai/ai2_arc"} and entries[0].dataset_config == "ARC-Easy"
    values = {each.metric_value for each in entries if each.metric_type == "nll"}
    assert values == {round(run.number("nll", 4), 6) for run in runs}


def test_an_entry_of_eval_results_has_the_accuracy_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub's own class reads it where it is new enough; a data set that is not on the hub has no entry."""
    result(tmp_path, protocol=ARC)
    result(tmp_path, task="openbookqa_uq", protocol={"dataset": "/home/me/data"})
    assert main(["table", str(tmp_path), "--format", "eval-results"]) == 0
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    (run,) = (each for each in read_runs([tmp_path]) if each.task == "arc_easy_uq")
    assert entry == eval_results([run])[0]
    assert entry["dataset"] == {"id": "allenai/ai2_arc", "task_id": "ARC-Easy"}
    assert entry["value"] == round(100 * run.number("acc", 4), 2) and entry["date"] == "1970-01-01"
    assert f"NLL (nats) {run.number('nll', 4):.2f}" in entry["notes"] and "4 draws, 40 questions" in entry["notes"]
    huggingface_hub = pytest.importorskip("huggingface_hub")
    if hasattr(huggingface_hub, "parse_eval_result_entries"):
        (parsed,) = huggingface_hub.parse_eval_result_entries([entry])
        assert (parsed.dataset_id, parsed.task_id, parsed.value) == ("allenai/ai2_arc", "ARC-Easy", entry["value"])
