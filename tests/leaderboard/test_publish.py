"""A published file: the source's numbers exactly, its probabilities within the error that is stated."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import PROTOCOL, answers, result

from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.leaderboard import publish, table
from uqharness.leaderboard.aggregate import build
from uqharness.leaderboard.ingest import Row
from uqharness.metrics.registry import combine_draws
from uqharness.results.reading import RECORD
from uqharness.results.record import pack


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


def test_a_first_choice_without_any_probability_leaves_the_others_as_they_are() -> None:
    logp = np.array([[[-60.0, 0.0, -30.0], [-50.0, -20.0, 0.0]]] * 2)
    record = publish.Averaged(
        logp, np.ones(2, int), np.full(2, 3), np.arange(2), ["0" * 16] * 2, "probs", True, averaged=1
    )
    kept = publish.unpack_answers(publish.pack_answers(record), record.choices, 2)
    np.testing.assert_allclose(np.exp(kept), np.exp(logp), atol=publish.STEP / 4)


def test_no_folder_of_this_machine_is_published(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.parquet"
    publish.create([results], out)
    text = json.dumps(pq.read_table(out).drop_columns(list(publish.KEPT)).to_pylist())
    assert str(tmp_path) not in text and not re.search(r'"/\w', text) and "adapters/BLoB" in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/x", "x"),
        ("/home/my name/x", "x"),
        ("/home/my name/a (1)/x y", "x y"),
        ("/home/my name/", ""),
        ('{"out": "/home/my name/x", "b": ["/c d/e"]}', '{"out": "x", "b": ["e"]}'),
        ("eval '/home/my name/x' --out /c/d/e", "eval 'x' --out e"),
        ("adapter=/home/x/y,samples=10", "adapter=y,samples=10"),
        ("/usr/bin/python train.py --out runs/x", "python train.py --out runs/x"),
        ("/home/a/x.json and /home/b/y.json", "x.json and y.json"),
        ("see /a/b/c and d/e", "see c and d/e"),
        ("/home/a/b c: d/e", "b c: d/e"),
        ("/think or /no_think",) * 2,
        ("and/or, 1/2 / 3/4",) * 2,
        ("https://x.org/a/b",) * 2,
        ("'/x' and '/y'",) * 2,
        ("in /home/my name/x", "in my name/x"),  # where it ends is not known
    ],
)
def test_folders_of_paths_with_spaces(text: str, left: str) -> None:
    assert publish.ABSOLUTE.sub("", text) == left


def test_problems_stop_publishing_and_damaged_files_are_problems(results: Path, tmp_path: Path) -> None:
    (results / "results_x.json").write_text("{")
    with pytest.raises(InputError, match="1 problems, nothing is published"):
        publish.create([results], tmp_path / "toy.parquet")
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    board = build([bad])
    assert board.runs.empty and board.problems["kind"].tolist() == ["broken"]
    assert main(["publish", str(results), str(tmp_path / "toy.csv")]) == 2


@pytest.fixture
def rows(results: Path, tmp_path: Path) -> list[Row]:
    publish.create([results], tmp_path / "toy.parquet")
    return pq.read_table(tmp_path / "toy.parquet").to_pylist()


def written(rows: list[Row], out: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, publish.WHOLE_ROW), out)
    return out


BAD: dict[str, tuple[Row, str]] = {
    "path as id": ({"run_id": "../../x"}, "'../../x' is no id of a run"),
    "no id": ({"run_id": None}, "None is no id of a run"),
    "id and a line": ({"run_id": "0123456789abcdef\n"}, "is no id of a run"),
    "name of two lines": ({"method": "a\nb"}, "method is not a short text"),
    "long name": ({"adapter": "a" * 5000}, "adapter is not a short text"),
    "no task": ({"task": None}, "task is not a short text"),
    "no JSON": ({"settings": "{"}, "settings: not valid JSON"),
    "deep JSON": ({"record": "[" * 100_000}, "record: nested too deeply"),
    "no object": ({"record": "[]"}, "record is a list, not a dict"),
    "null": ({"setup": None}, "setup: not valid JSON: it is empty"),
    "half a character": ({"settings": r'{"k": "\ud800"}'}, "not Unicode"),
    "flags": ({"flags": "[1]"}, "a flag is not a short text"),
    "adapter's record": ({"record": '{"source": {"run": [1]}}'}, "run is a list"),
    "protocol": ({"protocol": '{"name": "other"}'}, "its protocol hash is not that of its protocol"),
    "rule": ({"combine": "best"}, "how its draws are combined"),
    "finite": ({"finite": -3}, "finite is -3, less than 1"),
    "endless": ({"date": float("inf")}, "date is not a number"),
    "warning": ({"elsewhere": "\x1b[2J"}, "elsewhere is not a line"),
    "counts": ({"n": [0, 1, 2]}, "its numbers of draws are not those up to 4"),
    "no counts": ({"n": None}, "its numbers of draws"),
    "huge count": ({"n": [2**31 - 1], "draws": 2**31 - 1}, "its numbers of draws"),
    "fewer numbers": ({"nll": [0.5]}, "1 numbers of nll for 5"),
    "no number": ({"acc": [0.5, None, 0.5, 0.5, 0.5]}, "acc is not a number"),
    "NaN": ({"nll": [float("nan")] * 5}, "nll is not a number"),
    "items": ({"items": 39}, "its questions are not as many as it says"),
    "no questions": ({"gold": b"", "choices": b"", "ids": b"", "doc_hashes": b"", "items": 0}, "its questions are not"),
    "half a number": ({"gold": b"123"}, "ValueError: buffer size"),
    "label": ({"gold": b"\x07\x00" * 40}, "a label that is no choice"),
    "twice": ({"ids": bytes(160)}, "a question twice"),
    "answers": ({"answers": b"x"}, "1 bytes of answers for 160 odds"),
    "many choices": ({"choices": b"\xff\xff" * 40}, "bytes of answers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_listed_with_its_reason_and_the_good_ones_are_kept(
    rows: list[Row], tmp_path: Path, name: str
) -> None:
    changes, reason = BAD[name]
    board = build([written([rows[0], {**rows[1], **changes}, rows[2]], tmp_path / "x.parquet")])
    (problem,) = board.problems.to_dict("records")
    assert problem["kind"] == "broken" and problem["reason"].startswith("row 2: ") and reason in problem["reason"]
    assert board.runs["run_id"].tolist() == [rows[0]["run_id"], rows[2]["run_id"]]
    assert main(["validate", str(tmp_path / "x.parquet")]) == 1


def test_files_that_are_none_of_ours(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = written(rows, tmp_path / "good.parquet")
    table = pq.read_table(good)
    wrong = pa.array([b"\xff"] * len(table)).view(pa.binary())
    made = {
        "columns": table.drop_columns(["nll"]),
        "types": table.set_column(0, table.field(0).name, [[[1]] * len(table)]),
        "bytes": table.set_column(table.schema.get_field_index("task"), "task", wrong),
    }
    for name, other in made.items():
        pq.write_table(other, tmp_path / f"{name}.parquet")
    (tmp_path / "empty.parquet").touch()
    os.mkfifo(tmp_path / "pipe.parquet")  # opening it would wait for ever
    paths = [*(tmp_path / f"{name}.parquet" for name in (*made, "empty", "pipe")), good]
    board = build(paths)
    assert len(board.runs) == len(rows) and board.problems["file"].tolist() == [str(paths[4]), *map(str, paths[:4])]
    assert set(board.problems["kind"]) == {"broken"}
    monkeypatch.setattr(publish, "MAX_ROWS", 2)
    assert "5 rows" in build([good]).problems["reason"][0]


def test_a_run_is_there_once(results: Path, rows: list[Row], tmp_path: Path) -> None:
    """Beside what it was made of, copied under another name, and where a file says another's id."""
    out, copy = tmp_path / "toy.parquet", tmp_path / "copy.parquet"
    copy.write_bytes(out.read_bytes())
    board = build([out, results, copy])
    assert len(board.runs) == len(rows) and set(board.runs["origin"]) == {"measured"}
    assert set(board.problems["kind"]) == {"duplicate"} and len(board.problems) == len(rows) + 1
    forged = written([{**rows[0], "task": "boolq_uq", "date": None, "acc": [1.0] * 5}], tmp_path / "x.parquet")
    both = build([results, forged])
    assert both.number(rows[0]["run_id"], "acc", 4) == board.number(rows[0]["run_id"], "acc", 4)
    assert sorted(both.problems["kind"]) == ["duplicate", "mismatch", "mismatch"]
    assert set(both.runs["task"]) == {"arc_easy_uq"}


@pytest.mark.parametrize(("metric", "n"), [("nll", 4), ("nll", 0), ("brier", 0), ("acc", 4)])
def test_numbers_other_than_those_of_the_answers_are_flagged_and_never_crowned(
    rows: list[Row], tmp_path: Path, metric: str, n: int
) -> None:
    values = list(rows[0][metric])
    values[n] *= 0.97 if metric != "acc" else 1.1
    board = build([written([{**rows[0], metric: values}, *rows[1:]], tmp_path / "x.parquet")])
    (problem,) = board.problems.to_dict("records")
    assert problem["kind"] == "mismatch" and f"{metric} = {values[n]:.6g} for N = {n}" in problem["reason"]
    assert len(board.runs) == len(rows) and "mismatch" in board.run(rows[0]["run_id"])["flags"]
    cells = [c for t in table.build(board.sources(), [metric], [n]) for c in t.cells.values()]
    assert [c.suspect for c in cells if rows[0]["run_id"] in c.runs] == [True] and sum(c.suspect for c in cells) == 1


def test_answers_at_the_limit_of_their_steps_are_no_mismatch(tmp_path: Path) -> None:
    path = result(tmp_path, "BLoB")
    data = json.loads(path.read_text())
    made = answers(3, 4)
    for item in made[:5]:  # sure, and wrong: p is e^-200
        item["logp"] = [[0.0 if c == (item["gold"] + 1) % 3 else -200.0 for c in range(3)] for _ in range(5)]
    data["results"]["arc_easy_uq"][f"{RECORD},none"] = pack(made, task="arc_easy_uq", protocol=PROTOCOL)
    path.write_text(json.dumps(data))
    publish.create([path], tmp_path / "x.parquet")
    board = build([tmp_path / "x.parquet"])
    assert len(board.runs) == 1 and board.problems.empty and board.values["nll"].max() > 20


def test_a_run_that_left_the_file_is_an_error_of_one_line(rows: list[Row], tmp_path: Path) -> None:
    board = build([out := tmp_path / "toy.parquet"])
    written(rows[1:], out)
    with pytest.raises(InputError, match="holds no run"):
        board.record(rows[0]["run_id"])
    out.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        board.record(rows[1]["run_id"])


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
