"""The board: its numbers against the metrics of each record alone; what is new, gone, copied, damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_results import read_or_die, result

from uqharness.errors import InputError
from uqharness.leaderboard import cache, publish, table
from uqharness.leaderboard.board import Board, build
from uqharness.leaderboard.columns import SCHEMA, arrow_type, to_runs, to_table
from uqharness.loose_json import nest, value_of
from uqharness.metrics.registry import METRICS, compute_all
from uqharness.results.reading import read_results
from uqharness.results.runs import RunSummary, hints, read_runs, summarise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    results.mkdir()
    for k, method in enumerate(("MLE", "BLoB", "ENS")):
        for seed in range(2):
            result(results, method, seed, finite=1 if method == "MLE" else None, numbers=10 * k + seed)
    result(results, "BLoB", task="boolq_uq", settings={"kl": 2})
    return results


def plain(run: RunSummary) -> dict[str, Any]:
    row = {name: getattr(run, name) for name in RunSummary.__dataclass_fields__}
    return {**row, "metrics": {name: values.tolist() for name, values in run.metrics.items()}}


def same(one: Board, other: Board) -> bool:
    """As text, where a NaN equals itself."""
    return one.snapshot == other.snapshot and one.problems == other.problems and shown(one) == shown(other)


def shown(board: Board) -> list[str]:
    return [repr(plain(run)) for run in board.runs]


def test_every_number_is_that_of_the_record(folder: Path) -> None:
    board = build([folder])
    assert len(board.runs) == 7 and not board.problems
    for run in board.runs:
        assert list(run.counts) == [0, 1, 2, 3, 4]
        record = board.record(run.run_id)
        for draws in run.counts:
            slow = compute_all(record.rows(draws), record.gold, record.combine)
            for name in METRICS:
                assert run.number(name, draws) == pytest.approx(slow[name], abs=1e-12, nan_ok=True), name


def test_a_table_of_the_board_is_the_table_of_the_files(folder: Path) -> None:
    result(folder, "SWAG", enough=2)
    of_files = table.build(read_runs([folder]), list(METRICS), [0, 2, None])
    of_board = table.build(build([folder]).runs, list(METRICS), [0, 2, None])
    assert [t.rows for t in of_board] == [t.rows for t in of_files]
    assert [t.notes for t in of_board] == [t.notes for t in of_files]
    assert [t.auto for t in of_board] == [t.auto for t in of_files] and any(t.auto for t in of_files)
    for one, other in zip(of_board, of_files, strict=True):
        assert one.columns == other.columns and one.cells.keys() == other.cells.keys()
        for place, cell in one.cells.items():
            assert cell.mean == pytest.approx(other.cells[place].mean, abs=1e-12, nan_ok=True)
            assert (cell.rank, list(cell.values)) == (other.cells[place].rank, list(other.cells[place].values))


def test_runs_are_selected_by_attributes_and_rows_have_labels(folder: Path) -> None:
    board = build([folder])
    assert {run.task for run in board.select(task="boolq_uq")} == {"boolq_uq"}
    assert {(r.method, r.seed) for r in board.select(method=["MLE", "ENS"], seed=1)} == {("MLE", 1), ("ENS", 1)}
    assert {board.label(r) for r in board.runs} == {"MLE", "ENS", "BLoB"}  # alone on its data set, whatever its kl
    result(folder, "BLoB", task="boolq_uq", settings={"kl": 3})
    board = build([folder])
    names = {(r.task, board.label(r)) for r in board.select(method="BLoB")}
    assert names == {("arc_easy_uq", "BLoB"), ("boolq_uq", "BLoB (kl=2)"), ("boolq_uq", "BLoB (kl=3)")}


def test_columns_hold_every_field_and_a_run_comes_back_as_it_was(folder: Path) -> None:
    """Also where there is nothing: a base without a record, maps that are empty, numbers that are not known."""
    result(folder, plain=True)
    leaks = {"arc_easy_uq": {"items": 40, "leaked": 0, "natural": 1, "natural_ids": [3]}}
    result(folder, "SWAG", leaks=leaks, enough=2)
    before = read_runs([folder])
    place = [name for name, known in RunSummary.__dataclass_fields__.items() if known.metadata]
    assert [*SCHEMA.names, *place] == list(RunSummary.__dataclass_fields__)
    for run, again in zip(before, to_runs(to_table(before)), strict=True):
        one, other = plain(run), plain(again)
        assert repr({k: one[k] for k in SCHEMA.names}) == repr({k: other[k] for k in SCHEMA.names})


def test_a_new_field_is_a_column_without_a_line_more() -> None:
    """What the cached table and published files hold derives from the dataclass."""
    winds = ("winds", dict[str, float], field(default_factory=dict))
    more = make_dataclass("More", [("weather", str | None, None), winds], bases=(RunSummary,), frozen=True)
    kinds = {name: arrow_type(hint) for name, hint in hints(more).items()}
    assert kinds.pop("weather") == pa.string() and kinds.pop("winds") == pa.map_(pa.string(), pa.float64())
    assert kinds == dict(zip(SCHEMA.names, SCHEMA.types, strict=True))


def test_unchanged_files_come_from_the_cache_and_changed_ones_do_not(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "board.parquet"
    first = build([folder], cache)
    rows = pq.read_table(cache)
    wrong = pa.array(["XYZ"] * len(rows))
    pq.write_table(rows.set_column(rows.schema.get_field_index("method"), "method", wrong), cache)
    assert {run.method for run in build([folder], cache).runs} == {"XYZ"}  # nothing was read again
    touched = sorted(folder.glob("*.json"))[0]
    os.utime(touched, ns=(1, 1))
    assert [run.method for run in build([folder], cache).runs].count("XYZ") == 6
    pq.write_table(rows.replace_schema_metadata({"uqharness": b'{"version": "older"}'}), cache)
    assert same(build([folder], cache), first)  # other code: everything is read again
    cache.write_bytes(cache.read_bytes()[:2000])
    assert same(build([folder], cache), first)


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same(build([folder], tmp_path / "file" / "board.parquet"), build([folder]))


def test_new_and_removed_files(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "board.parquet"
    before = build([folder], cache)
    path = result(folder, "MAP", numbers=99)
    more = build([folder], cache)
    assert same(more, build([folder])) and len(more.runs) == 8 and more.snapshot != before.snapshot
    path.unlink()
    assert same(build([folder], cache), before)
    assert pq.read_table(cache).num_rows == 7


def test_several_processes_give_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = build([folder])
    monkeypatch.setattr(cache, "FEW", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert same(build([folder]), alone)


def test_a_script_that_guards_nothing_is_not_run_again(folder: Path) -> None:
    """As Streamlit's is not: processes start by spawning, which runs the main module once more."""
    script = folder.parent / "script.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom uqharness.leaderboard import board, cache\n"
        "print('once')\ncache.FEW, os.cpu_count = 2, lambda: 2\n"
        "print(len(board.build([Path(sys.argv[1])]).runs))\n"
    )
    done = subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["once", "7"] and not done.stderr


def test_a_file_that_ends_its_process_is_a_problem_and_the_others_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = sorted(folder.glob("*.json"))[3]
    monkeypatch.setattr(cache, "FEW", 2)
    monkeypatch.setattr(cache, "AT_ONCE", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cache, "read_file", read_or_die)
    monkeypatch.setenv("DEADLY", str(deadly))
    board = build([folder])
    assert len(board.runs) == 6
    (problem,) = board.problems
    assert problem.file == str(deadly) and "the process that read it ended" in problem.reason


def test_a_copy_is_a_duplicate_and_counts_once(folder: Path) -> None:
    path = sorted(folder.glob("*.json"))[0]
    shutil.copy(path, folder / "results_zz.json")
    board = build([folder, path])  # and a file that is given twice is one file
    (problem,) = board.problems
    assert len(board.runs) == 7 and problem.kind == "duplicate" and problem.file.endswith("results_zz.json")


def test_of_two_files_that_claim_the_same_run_the_one_that_is_sound_counts(tmp_path: Path) -> None:
    result(tmp_path, numbers=2)  # other answers, but says to be the run of the next
    path = tmp_path / "results_0.json"
    data = json.loads(path.read_text())
    data["results"]["arc_easy_uq"]["acc,none"] = 0.99  # not what its answers give
    path.write_text(json.dumps(data))
    honest = result(tmp_path, numbers=1)
    board = build([tmp_path])
    assert [run.file for run in board.runs] == [str(honest)]
    assert sorted(each.kind for each in board.problems) == ["conflict", "mismatch"]
    assert {each.file for each in board.problems} == {str(path)}


def test_a_result_that_says_other_numbers_is_shown_and_not_marked(tmp_path: Path) -> None:
    path = result(tmp_path, "BLoB", numbers=1)
    for k, method in enumerate(("MLE", "ENS")):
        result(tmp_path, method, numbers=5 + k)
    data = json.loads(path.read_text())
    data["results"]["arc_easy_uq"]["nll,none"] = 0.01
    path.write_text(json.dumps(data))
    board = build([tmp_path])
    (made,) = table.build(board.runs, ["nll"])
    cells = {row[0]: made.cells["nll", i, 0] for i, row in enumerate(made.rows)}
    assert cells["BLoB"].suspect and cells["BLoB"].rank is None and cells["BLoB"].mean > 0.1
    assert {cells["MLE"].rank, cells["ENS"].rank} == {1, 2}
    assert any("its file reports other numbers" in note for note in made.notes)


def test_a_run_that_left_the_disk_is_an_error_of_one_line(folder: Path) -> None:
    board = build([folder])
    run = board.runs[0]
    Path(run.file).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        board.record(run.run_id)
    with pytest.raises(InputError, match="no run 'nonsense'"):
        board.run("nonsense")


def test_origin_and_file_are_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "submitted" / "someone"
    place.mkdir(parents=True)
    result(place)
    monkeypatch.chdir(tmp_path)
    board = build([Path("submitted")])
    (run,) = board.runs
    assert (run.origin, run.file) == ("submitted", os.path.join("submitted", "someone", "results_0.json"))
    assert np.isfinite(board.record(run.run_id).logp).all()


def test_names_on_the_disk_that_are_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names are Unicode on this file system")
    sound = result(folder).rename(folder / os.fsdecode(b"results_\xfe.json"))
    (folder / os.fsdecode(b"results_\xfd.json")).write_text("{")
    out = tmp_path / os.fsdecode(b"a\xff.parquet")
    assert publish.create([sound], out).runs == 1
    damaged = out.with_name(os.fsdecode(b"b\xff.parquet"))
    damaged.write_bytes(b"PAR1 no")
    cache = tmp_path / "board.parquet"
    first = build([folder], cache)
    for board in (first, build([folder], cache)):
        assert [Path(run.file).name for run in board.runs] == [r"results_\xdcfe.json"]
        assert [Path(each.file).name for each in board.problems] == [r"results_\xdcfd.json"]
        assert board.record(board.runs[0].run_id).items == 40
    board = build([out, damaged])
    assert board.record(board.runs[0].run_id).items == 40 and len(board.problems) == 1
    files_shown = [each.file for each in (*board.runs, *board.problems)]
    json.dumps(files_shown, ensure_ascii=False).encode()


def test_what_an_adapter_cost_and_saw_includes_what_it_is_built_on(tmp_path: Path) -> None:
    """A split that both used counts once; a step of fitting or tuning trains no LoRA of its own, members do."""
    fit = {"purpose": "fit", "split": "train", "hash": "a", "items": 400}
    tune = {"purpose": "tune", "split": "validation", "hash": "b", "items": 1000}
    costs = {"seconds": 22.0, "peak_memory_bytes": 500, "trainable_parameters": 6144, "steps": 800}
    base = {"costs": costs, "data": {"splits": [fit]}}
    fitted = {"costs": {"seconds": 5.0, "steps": 0}, "data": {"splits": [fit]}, "source": base}
    scaled = {"costs": {"seconds": 1.0, "steps": 0}, "data": {"splits": [fit, tune]}, "source": fitted}
    members = {**base, "posterior": {"members": 3, "finite": 3}}

    def of(record: dict[str, Any]) -> RunSummary:
        path = result(tmp_path)
        data = json.loads(path.read_text())
        own = {"posterior": {"train_seed": 0}, "method": {"label": "X"}, "recipe_hash": "r"}
        data["config"]["uqharness"]["record"] = {**own, **record}
        path.write_text(json.dumps(data))
        (run,) = read_runs([path])
        return run

    numbers = [of(record) for record in (base, fitted, scaled, members)]
    assert [run.train_seconds for run in numbers] == [22.0, 27.0, 28.0, 22.0]
    assert {run.trainable for run in numbers} == {6144.0} and {run.peak_memory for run in numbers} == {500.0}
    assert [run.labels_seen for run in numbers] == [400, 400, 1400, 400]
    assert [run.training_passes for run in numbers] == [1, 1, 1, 3]
    nothing = of({"costs": {}})
    assert (nothing.train_seconds, nothing.labels_seen, nothing.training_passes) == (None, None, 1)
    (plain_lora,) = read_runs([result(tmp_path, plain=True)])
    assert (plain_lora.train_seconds, plain_lora.labels_seen, plain_lora.training_passes) == (None, None, None)


def test_how_a_model_without_a_record_came_to_be(tmp_path: Path) -> None:
    """An oracle and a base alone are no models of unknown training; a plain adapter is."""

    def of(**config: Any) -> RunSummary:
        path = result(tmp_path, plain=True)
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "config": config}))
        (run,) = read_runs([path])
        return run

    oracle = of(model="toyworld_oracle")
    base = of(model="hf", model_args={"pretrained": "org/tiny"})
    adapter = of(model="bayeslora", model_args="adapter=org/lora,pretrained=org/tiny")
    assert [run.training for run in (oracle, base, adapter)] == ["oracle", "none", "unknown"]
    (made,) = table.build([*read_runs([result(tmp_path, "MLE", numbers=1)]), oracle, base, adapter])
    assert {note for note in made.notes if note.endswith("for reference, not ranked")} == {
        f"toyworld_oracle {table.UNTRAINED['oracle']}: for reference, not ranked",
        "tiny (zero-shot) is the base, not trained here: for reference, not ranked",
        "lora on tiny was trained in a way that is not known: for reference, not ranked",
    }


def test_questions_of_the_published_training_data_are_noted_in_tables_and_remarked_of_the_run(tmp_path: Path) -> None:
    leaks = {"arc_easy_uq": {"items": 40, "leaked": 0, "natural": 1, "natural_ids": [3]}}
    result(tmp_path, "MLE", leaks=leaks)
    result(tmp_path, "BLoB", leaks={"arc_easy_uq": {**leaks["arc_easy_uq"], "leaked": 1}})
    board = build([tmp_path])
    (made,) = table.build(board.runs)
    wanted = "MLE on arc_easy_uq: 1 of 40 questions are also in the published training data; without them: ACC"
    assert any(note.startswith(wanted) for note in made.notes)
    said = board.runs[0].remarks["shared"]
    assert said.startswith("1 of 40 questions are also in the published training data: ACC") and not board.problems
    assert set(board.runs[1].remarks) == {"leaked", "shared"}
    assert made.cells["acc", 1, 0].leaked and not made.cells["acc", 0, 0].leaked


def test_long_lists_in_settings_and_what_simple_evaluate_returns_are_read(tmp_path: Path) -> None:
    """All modules of a large model by name; a device and a type that are no text yet."""
    modules = [f"model.layers.{k}.self_attn.q_proj" for k in range(300)]
    data = json.loads(result(tmp_path, run={"target_modules": modules}).read_text())
    data["config"] |= {"device": torch.device("cpu"), "model_dtype": torch.bfloat16}
    (run,) = map(summarise, read_results(data))
    assert value_of(run.recipe["target_modules"]) == sorted(modules)
    assert (run.device, run.dtype) == ("cpu", "bfloat16")
    assert nest(run.adapter_record)["run"]["target_modules"] == modules
