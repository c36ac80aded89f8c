"""A published file: the source's numbers exactly, its probabilities within the error that is stated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_results import result

from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.leaderboard import publish, table
from uqharness.leaderboard.aggregate import build
from uqharness.metrics import combine_draws


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "place" / "results"
    folder.mkdir(parents=True)
    for k, method in enumerate(("MLE", "BLoB")):
        for seed in range(2):
            result(folder, method, seed, numbers=10 * k + seed, run={"out": f"{tmp_path}/place/adapters/{method}"})
    path = result(folder, "LAP", draws=1)
    data = json.loads(path.read_text())
    data["results"]["arc_easy_uq"]["uq_record_stderr,none"]["combine"] = "given"
    path.write_text(json.dumps(data))
    return folder


def test_published_numbers_are_those_of_the_source(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.parquet"
    assert publish.create([results], out) == 5
    source, published = build([results]), build([out])
    assert set(published.runs["origin"]) == {"published"} and set(published.runs["file"]) == {"toy.parquet"}
    key = ["run_id", "draws"]
    assert source.values.sort_values(key, ignore_index=True).equals(
        published.values.sort_values(key, ignore_index=True)
    )
    one, other = (table.build(board.sources(), ["acc", "ece", "nll"], [0, 2, None]) for board in (source, published))
    assert [t.cells.keys() for t in one] == [t.cells.keys() for t in other]
    assert all(a.cells[k].mean == b.cells[k].mean for a, b in zip(one, other, strict=True) for k in a.cells)


def test_published_answers_are_the_averages_within_the_stated_error(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.parquet"
    publish.create([results], out)
    source, published = build([results]), build([out])
    for run in source.runs["run_id"]:
        held, kept = source.record(run), published.record(run)
        assert (kept.draws, kept.doc_hashes, kept.items) == (held.draws, held.doc_hashes, held.items)
        np.testing.assert_array_equal(kept.gold, held.gold)
        np.testing.assert_array_equal(kept.choices, held.choices)
        for n in (0, held.draws, None):
            exact = combine_draws(held.rows(n), held.combine)
            np.testing.assert_allclose(combine_draws(kept.rows(n), kept.combine), exact, atol=publish.STEP / 4 + 1e-6)
        if held.draws > 1:
            with pytest.raises(InputError, match="published without its single draws"):
                kept.rows(1)


def test_questions_of_different_sizes_and_sure_answers() -> None:
    choices = np.array([2, 5, 3])
    logp = np.where(np.arange(5) < choices[:, None], np.random.default_rng(0).normal(0, 3, (2, 3, 5)), np.nan)
    logp[:, 1, 0] = 500.0
    record = publish.Averaged(logp, np.zeros(3, int), choices, np.arange(3), ["0" * 16] * 3, "probs", True, averaged=1)
    back = publish.unpack_answers(publish.pack_answers(record), choices, 2)
    exact = np.stack([combine_draws(logp[n : n + 1]) for n in (0, 1)])
    np.testing.assert_allclose(np.exp(back), exact, atol=publish.STEP / 4)
    assert (np.isnan(back) == np.isnan(logp)).all()


def test_no_folder_of_this_machine_is_published(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.parquet"
    publish.create([results], out)
    text = json.dumps(pq.read_table(out).drop_columns(list(publish.KEPT)).to_pylist())
    assert str(tmp_path) not in text and not re.search(r'"/\w', text) and "adapters/BLoB" in text


def test_problems_stop_publishing_and_damaged_files_are_problems(results: Path, tmp_path: Path) -> None:
    (results / "results_x.json").write_text("{")
    with pytest.raises(InputError, match="1 problems, nothing is published"):
        publish.create([results], tmp_path / "toy.parquet")
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    board = build([bad])
    assert board.runs.empty and board.problems["kind"].tolist() == ["broken"]
    assert main(["publish", str(results), str(tmp_path / "toy.csv")]) == 2


def test_what_is_shipped_is_sound_and_small() -> None:
    board = build([])
    files = [path for path in publish.shipped() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6
    assert board.problems.empty and set(board.runs["origin"]) <= {"published", "submitted"}
    for run in board.runs["run_id"]:
        record = board.record(run)
        probs = combine_draws(record.rows(), record.combine)
        right = np.nanargmax(probs, axis=1) == record.gold
        assert right.mean() == pytest.approx(board.number(run, "acc", record.draws), abs=0.003)  # ties may turn
