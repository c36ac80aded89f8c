"""The board: its numbers against the metrics of each record alone; what is new, gone, copied, damaged."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import result

from uqharness.errors import InputError
from uqharness.leaderboard import ingest, publish, store, table
from uqharness.leaderboard.aggregate import Board, build
from uqharness.metrics.registry import METRICS, compute_all
from uqharness.results.reading import read_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    results.mkdir()
    for k, method in enumerate(("MLE", "BLoB", "ENS")):
        for seed in range(2):
            result(results, method, seed, finite=1 if method == "MLE" else None, numbers=10 * k + seed)
    result(results, "BLoB", task="boolq_uq", settings={"kl": 2})
    return results


def same(one: Board, other: Board) -> bool:
    frames = ("runs", "values", "problems")
    return one.snapshot == other.snapshot and all(getattr(one, f).equals(getattr(other, f)) for f in frames)


def test_every_number_is_that_of_the_record(folder: Path) -> None:
    board = build([folder])
    assert len(board.runs) == 7 and len(board.values) == 7 * 5 and board.problems.empty
    for row in board.values.to_dict("records"):
        record = board.record(row["run_id"])
        slow = compute_all(record.rows(row["draws"]), record.gold, record.combine)
        for name in METRICS:
            assert row[name] == pytest.approx(slow[name], abs=1e-12, nan_ok=True), name
            assert board.number(row["run_id"], name, row["draws"]) == pytest.approx(row[name], nan_ok=True)


def test_a_table_of_the_board_is_the_table_of_the_files(folder: Path) -> None:
    result(folder, "SWAG", enough=2)
    of_files = table.build(read_results(folder), list(METRICS), [0, 2, None])
    of_board = table.build(build([folder]).sources(), list(METRICS), [0, 2, None])
    assert [t.rows for t in of_board] == [t.rows for t in of_files]
    assert [t.notes for t in of_board] == [t.notes for t in of_files]
    assert [t.auto for t in of_board] == [t.auto for t in of_files] and any(t.auto for t in of_files)
    for one, other in zip(of_board, of_files, strict=True):
        assert one.columns == other.columns and one.cells.keys() == other.cells.keys()
        for place, cell in one.cells.items():
            assert cell.mean == pytest.approx(other.cells[place].mean, abs=1e-12, nan_ok=True)
            assert (cell.rank, list(cell.values)) == (other.cells[place].rank, list(other.cells[place].values))


def test_sources_are_filtered_by_columns_and_rows_have_labels(folder: Path) -> None:
    board = build([folder])
    assert {s.task for s in board.sources(task="boolq_uq")} == {"boolq_uq"}
    assert {(s.method, s.seed) for s in board.sources(method=["MLE", "ENS"], seed=1)} == {("MLE", 1), ("ENS", 1)}
    assert set(board.runs["row"]) == {"MLE", "ENS", "BLoB (kl=not recorded)", "BLoB (kl=2)"}
    for source in board.sources():
        text = vars(source).pop("row"), vars(source).pop("setup_text")
        assert text == (source.row, source.setup_text)


def test_unchanged_files_come_from_the_cache_and_changed_ones_do_not(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "board.parquet"
    first = build([folder], cache)
    rows = pq.read_table(cache)
    wrong = pa.array([[0.25] * 5] * len(rows), pa.list_(pa.float64()))
    pq.write_table(rows.set_column(rows.schema.get_field_index("acc"), "acc", wrong), cache)
    assert set(build([folder], cache).values["acc"]) == {0.25}  # nothing was read again
    touched = sorted(folder.glob("*.json"))[0]
    os.utime(touched, ns=(1, 1))
    again = build([folder], cache)
    assert (again.values["acc"] == 0.25).sum() == 6 * 5
    pq.write_table(rows.replace_schema_metadata({"uqharness": b'{"version": "older"}'}), cache)
    assert same(build([folder], cache), first)  # other code: everything is computed again
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
    assert store.load(cache).runs.num_rows == 7


def test_several_processes_give_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = build([folder])
    monkeypatch.setattr(store, "PER_PROCESS", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert same(build([folder]), alone)


def test_a_file_that_ends_its_process_is_a_problem_and_the_others_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = sorted(folder.glob("*.json"))[3]
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import json, os, sys\nfrom dataclasses import asdict\nfrom uqharness.leaderboard.ingest import read_file\n"
        f"for path in json.load(sys.stdin):\n    if path == {str(deadly)!r}: os._exit(9)\n"
        "    print(json.dumps(asdict(read_file(path))), flush=True)\n"
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {driver}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(store, "PER_PROCESS", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sys, "executable", str(python))
    board = build([folder])
    assert len(board.runs) == 6
    (problem,) = board.problems.to_dict("records")
    assert problem["file"] == str(deadly) and "ended with code 9" in problem["reason"]


def test_a_copy_is_a_duplicate_and_counts_once(folder: Path) -> None:
    path = sorted(folder.glob("*.json"))[0]
    shutil.copy(path, folder / "results_zz.json")
    board = build([folder, path])  # and a file that is given twice is one file
    (problem,) = board.problems.to_dict("records")
    assert len(board.runs) == 7 and problem["kind"] == "duplicate" and problem["file"].endswith("results_zz.json")


def test_of_two_files_that_claim_the_same_run_the_one_that_is_sound_counts(tmp_path: Path) -> None:
    result(tmp_path, numbers=2)  # other answers, but says to be the run of the next
    path = tmp_path / "results_0.json"
    data = json.loads(path.read_text())
    data["results"]["arc_easy_uq"]["acc,none"] = 0.99  # not what its answers give
    path.write_text(json.dumps(data))
    honest = result(tmp_path, numbers=1)
    board = build([tmp_path])
    assert board.runs["file"].tolist() == [str(honest)]
    assert sorted(board.problems["kind"]) == ["conflict", "mismatch"]
    assert set(board.problems["file"]) == {str(path)}


def test_a_result_that_says_other_numbers_is_shown_and_not_marked(tmp_path: Path) -> None:
    path = result(tmp_path, "BLoB", numbers=1)
    for k, method in enumerate(("MLE", "ENS")):
        result(tmp_path, method, numbers=5 + k)
    data = json.loads(path.read_text())
    data["results"]["arc_easy_uq"]["nll,none"] = 0.01
    path.write_text(json.dumps(data))
    board = build([tmp_path])
    (found,) = table.build(board.sources(), ["nll"])
    cells = {row[0]: found.cells["nll", i, 0] for i, row in enumerate(found.rows)}
    assert cells["BLoB"].suspect and cells["BLoB"].rank is None and cells["BLoB"].mean > 0.1
    assert {cells["MLE"].rank, cells["ENS"].rank} == {1, 2}
    assert any("its file says other numbers" in note for note in found.notes)


def test_a_run_that_left_the_disk_is_an_error_of_one_line(folder: Path) -> None:
    board = build([folder])
    run = board.runs.iloc[0]
    Path(run["file"]).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        board.record(run["run_id"])
    with pytest.raises(InputError, match="no run 'nonsense'"):
        board.run("nonsense")


def test_origin_and_file_are_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "submitted" / "someone"
    place.mkdir(parents=True)
    result(place)
    monkeypatch.chdir(tmp_path)
    board = build([Path("submitted")])
    assert board.runs["origin"].tolist() == ["submitted"]
    assert board.runs["file"].tolist() == [os.path.join("submitted", "someone", "results_0.json")]
    assert np.isfinite(board.record(board.runs["run_id"][0]).logp).all()


def test_names_on_the_disk_that_are_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names are Unicode on this file system")
    sound = result(folder).rename(folder / os.fsdecode(b"results_\xfe.json"))
    (folder / os.fsdecode(b"results_\xfd.json")).write_text("{")
    out = tmp_path / os.fsdecode(b"a\xff.parquet")
    assert publish.create([sound], out) == 1
    damaged = out.with_name(os.fsdecode(b"b\xff.parquet"))
    damaged.write_bytes(b"PAR1 no")
    cache = tmp_path / "board.parquet"
    first = build([folder], cache)
    for board in (first, build([folder], cache)):
        assert [Path(file).name for file in board.runs["file"]] == [r"results_\xdcfe.json"]
        assert [Path(file).name for file in board.problems["file"]] == [r"results_\xdcfd.json"]
        assert board.record(board.runs["run_id"].iloc[0]).items == 40
    board = build([out, damaged])
    assert board.record(board.runs["run_id"].iloc[0]).items == 40 and len(board.problems) == 1
    json.dumps([board.runs["file"].tolist(), board.problems["file"].tolist()], ensure_ascii=False).encode()


def test_what_builds_on_an_adapter_costs_that_adapter_too() -> None:
    base = {"costs": {"seconds": 22.0, "peak_memory_bytes": 500, "trainable_parameters": 6144}}
    fitted = {"costs": {"seconds": 5.0, "peak_memory_bytes": 0, "trainable_parameters": 0}, "source": base}
    scaled = {"costs": {"seconds": 1.0}, "source": fitted}
    assert [ingest.cost(record, "seconds", sum) for record in (base, fitted, scaled, {})] == [22.0, 27.0, 28.0, None]
    assert ingest.cost(scaled, "trainable_parameters", max) == 6144 and ingest.cost({"costs": {}}, "x", max) is None


def test_questions_of_the_published_training_data_are_noted_in_tables_and_with_numbers_among_the_problems(
    tmp_path: Path,
) -> None:
    leaks = {"arc_easy_uq": {"items": 40, "leaked": 0, "natural": 1, "natural_ids": [3]}}
    made = tmp_path / "made"
    made.mkdir()
    result(made, "MLE", leaks=leaks)
    result(made, "BLoB", leaks={"arc_easy_uq": {**leaks["arc_easy_uq"], "leaked": 1}})
    board = build([made])
    (found,) = table.build(board.sources())
    assert any(note.startswith("MLE on arc_easy_uq: some questions stand in the published") for note in found.notes)
    told = {(row["kind"], row["reason"].partition(":")[0]) for row in board.problems.to_dict("records")}
    assert ("shared", "1 of 40 questions stand in the published training data too") in told
    assert "leaked" in {kind for kind, _ in told}
    assert found.cells["acc", 1, 0].leaked and not found.cells["acc", 0, 0].leaked
