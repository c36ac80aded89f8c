"""A published file: the source's numbers exactly, its probabilities within the error that is stated."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import PROTOCOL, answers, result

from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.leaderboard import publish, table
from uqharness.leaderboard.board import build
from uqharness.loose_json import text_of
from uqharness.metrics.averaging import combine_draws
from uqharness.metrics.points import nll_items
from uqharness.metrics.registry import METRICS
from uqharness.results.reading import RECORD
from uqharness.results.record import encode, pack, unpack

Row = dict[str, Any]
VERSION_1 = Path(__file__).parents[1] / "golden" / "published" / "toyworld.parquet"


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
    made = publish.create([results], out)
    assert (made.runs, made.whole, made.size) == (5, 4, out.stat().st_size)
    source, published = build([results]), build([out])
    assert {(run.origin, run.file) for run in published.runs} == {("published", "toy.parquet")}
    for run in source.runs:
        again = published.run(run.run_id)
        assert (again.settings, again.recipe, again.protocol) == (run.settings, run.recipe, run.protocol)
        assert all(np.array_equal(run.metrics[m], again.metrics[m], equal_nan=True) for m in METRICS)
    one, other = (table.build(board.runs, ["acc", "ece", "nll"], [0, 2, None]) for board in (source, published))
    assert [t.cells.keys() for t in one] == [t.cells.keys() for t in other]
    assert all(a.cells[k].mean == b.cells[k].mean for a, b in zip(one, other, strict=True) for k in a.cells)


@pytest.mark.parametrize("budget", [publish.BUDGET, 0])
def test_published_answers_are_within_the_stated_error(results: Path, tmp_path: Path, budget: int) -> None:
    """Every draw within the budget; without one the averages alone."""
    result(results, "SWAG", enough=2)
    out = tmp_path / "toy.parquet"
    made = publish.create([results], out, budget)
    assert made.whole == (5 if budget else 0)
    source, published = build([results]), build([out])
    for run in source.runs:
        held, stored = source.record(run.run_id), published.record(run.run_id)
        assert (stored.draws, stored.doc_hashes, stored.items) == (held.draws, held.doc_hashes, held.items)
        np.testing.assert_array_equal(stored.gold, held.gold)
        np.testing.assert_array_equal(stored.choices, held.choices)
        counts = range(held.draws + 1) if budget else (0, held.draws)
        for n in (*counts, None):
            exact = combine_draws(held.rows(n), held.combine)
            np.testing.assert_allclose(
                combine_draws(stored.rows(n), stored.combine), exact, atol=publish.STEP / 4 + 1e-6
            )
        if budget and held.combine == "probs":
            np.testing.assert_array_equal(stored.taken, held.taken)
        elif held.draws > 1:
            with pytest.raises(InputError, match="published without its single draws"):
                stored.rows(1)


def test_a_budget_keeps_the_draws_of_one_seed_before_it_keeps_none(results: Path, tmp_path: Path) -> None:
    result(results, "BLoB", 0, task="boolq_uq")
    runs = build([results]).runs
    levels = publish.with_draws(runs)
    whole = [{(r.method, r.task, r.seed) for r in runs if r.run_id in ids} for ids in levels]
    assert [len(each) for each in whole] == [5, 3, 2, 0]
    assert whole[1] == {("MLE", "arc_easy_uq", 0), ("BLoB", "arc_easy_uq", 0), ("BLoB", "boolq_uq", 0)}
    assert whole[2] <= whole[1] and {method for method, _, _ in whole[2]} == {"MLE", "BLoB"}
    out = tmp_path / "toy.parquet"
    sizes = [publish.create([results], out).size]
    for count in (3, 2, 0):
        made = publish.create([results], out, sizes[-1] - 1)
        assert made.whole == count and out.stat().st_size == made.size < sizes[-1]
        sizes.append(made.size)


def test_questions_of_different_sizes_and_sure_answers() -> None:
    choices = np.array([2, 5, 3])
    logp = np.where(np.arange(5) < choices[:, None], np.random.default_rng(0).normal(0, 3, (2, 3, 5)), np.nan)
    logp[:, 1, 0] = 500.0
    back = publish.unpack_rows(publish.pack_rows(logp, choices), choices, 2)
    exact = np.stack([combine_draws(logp[n : n + 1]) for n in (0, 1)])
    np.testing.assert_allclose(np.exp(back), exact, atol=publish.STEP / 4)
    assert (np.isnan(back) == np.isnan(logp)).all()


def test_a_first_choice_without_any_probability_leaves_the_others_as_they_are() -> None:
    logp = np.array([[[-60.0, 0.0, -30.0], [-50.0, -20.0, 0.0]]] * 2)
    unpacked = publish.unpack_rows(publish.pack_rows(logp, np.full(2, 3)), np.full(2, 3), 2)
    np.testing.assert_allclose(np.exp(unpacked), np.exp(logp), atol=publish.STEP / 4)


def test_answers_far_below_others_keep_their_log_probability(tmp_path: Path) -> None:
    """Texts are a hundred nats apart; cut off at 30, the NLL of the board's tests was not that of the run."""
    choices, rng = np.array([4, 3, 4]), np.random.default_rng(0)
    logp = np.where(np.arange(4) < choices[:, None], rng.normal(0, 60, (2, 3, 4)), np.nan)
    logp[0, 2] = np.nan  # samples=auto took no such draw
    content = publish.pack_rows(logp, choices)
    assert publish.kind_of(content, 2 * 8) == publish.WIDE
    back = publish.unpack_rows(content, choices, 2)
    exact = publish.normalised(logp)
    assert np.nanmin(exact) < -100
    np.testing.assert_allclose(back, exact, atol=2 * publish.STEP)
    file = result(tmp_path, "BLoB", draws=3)
    data = json.loads(file.read_text())
    (values,) = data["results"].values()
    (packed,) = (value for key, value in values.items() if key.startswith(RECORD))
    record = unpack(packed)
    far = replace(record, logp=np.asarray(record.logp * 40, np.float32))
    values[next(iter(values))] = encode(far)
    file.write_text(json.dumps(data))
    publish.create([file], tmp_path / "far.parquet")
    (run,) = (board := build([tmp_path / "far.parquet"])).runs
    stored = board.record(run.run_id)
    for draws in (0, 1, 3):
        exact_nll = nll_items(combine_draws(far.rows(draws), far.combine), far.gold).mean()
        assert nll_items(combine_draws(stored.rows(draws), stored.combine), stored.gold).mean() == pytest.approx(
            exact_nll, abs=publish.STEP
        )
    assert "mismatch" not in run.remarks


def test_no_folder_of_this_machine_is_published(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.parquet"
    publish.create([results], out)
    text = repr(pq.read_table(out).drop_columns(list(publish.APART)).to_pylist())
    assert str(tmp_path) not in text and not re.search(r"['\"]/\w", text) and "adapters/BLoB" in text


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
    assert not board.runs and [each.kind for each in board.problems] == ["broken"]
    assert main(["publish", str(results), str(tmp_path / "toy.csv")]) == 2


@pytest.fixture
def rows(results: Path, tmp_path: Path) -> list[Row]:
    publish.create([results], tmp_path / "toy.parquet")
    return pq.read_table(tmp_path / "toy.parquet").to_pylist(maps_as_pydicts="strict")


def written(rows: list[Row], out: Path) -> Path:
    table = pa.Table.from_pylist(rows, publish.WHOLE_ROW)
    pq.write_table(table.replace_schema_metadata({publish.VERSION_KEY: b"2"}), out)
    return out


def metric(name: str, values: list[float]) -> Row:
    return {"metrics": {**dict.fromkeys(("acc", "nll", "brier"), [0.5] * 5), name: values}}


BAD: dict[str, tuple[Row, str]] = {
    "path as id": ({"run_id": "../../x"}, "'../../x' is no id of a run"),
    "no id": ({"run_id": None}, "it has no id of a run"),
    "no hash and no id": ({"run_id": "", "sha256": ""}, "it has no id of a run"),
    "id and a line": ({"run_id": "0123456789abcdef\n"}, "run_id is not a short text"),
    "name of two lines": ({"method": "a\nb"}, "method is not a short text"),
    "direction": ({"method": "a\u202eb"}, "method is not a short text"),
    "long name": ({"adapter": "a" * 5000}, "adapter is not a short text"),
    "no task": ({"task": None}, "task: expected a string, got null"),
    "no settings": ({"settings": None}, "settings: expected an object, got null"),
    "a setting of two lines": ({"settings": {"a": "b\nc"}}, "settings is not a short text"),
    "nothing in a map": ({"recipe": {"a": None}}, "recipe: a: expected a string, got null"),
    "protocol": ({"protocol": {"name": "other"}}, "its protocol hash is not that of its protocol"),
    "adapter's record": ({"adapter_record": {"source.method": "x"}}, "source: method: expected an object or null"),
    "rule": ({"combine": "best"}, "how its draws are combined"),
    "finite": ({"finite": -3}, "finite is -3, less than 1"),
    "endless": ({"date": float("inf")}, "date: expected a finite number or null"),
    "remark": ({"remarks": {"elsewhere": "\x1b[2J"}}, "remarks is not a short text"),
    "no mean": ({"has_mean": None}, "has_mean: expected true or false, got null"),
    "huge count": ({"draws": 2**31 - 1}, "numbers of acc for 2147483648"),
    "no metrics": ({"metrics": None}, "expected an object, got null"),
    "no number of one": ({"metrics": {"acc": [0.5] * 5}}, "no numbers of brier"),
    "fewer numbers": (metric("nll", [0.5]), "1 numbers of nll for 5"),
    "NaN": (metric("nll", [float("nan")] * 5), "nll is not a number"),
    "items": ({"items": 39}, "its questions are not as many as it says"),
    "no questions": ({"gold": b"", "choices": b"", "ids": b"", "doc_hashes": b""}, "its questions are not"),
    "half a number": ({"gold": b"123"}, "ValueError: buffer size"),
    "label": ({"gold": b"\x07\x00" * 40}, "a label that is not a choice"),
    "twice": ({"ids": bytes(160)}, "a question twice"),
    "answers": ({"answers": b"x"}, "1 bytes of answers for 160 odds"),
    "draws": ({"single_draws": b"x"}, "1 bytes of single_draws for 320 odds"),
    "many choices": ({"choices": b"\xff\xff" * 40}, "bytes of answers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_listed_with_its_reason_and_the_good_ones_are_kept(
    rows: list[Row], tmp_path: Path, name: str
) -> None:
    changes, reason = BAD[name]
    board = build([written([rows[0], {**rows[1], **changes}, rows[2]], tmp_path / "x.parquet")])
    (problem,) = board.problems
    assert problem.kind == "broken" and problem.reason.startswith("row 2: ") and reason in problem.reason
    assert [run.run_id for run in board.runs] == [rows[0]["run_id"], rows[2]["run_id"]]
    assert main(["validate", str(tmp_path / "x.parquet")]) == 1


BAD_1: dict[str, tuple[Row, str]] = {
    "no JSON": ({"settings": "{"}, "settings: not valid JSON"),
    "deep JSON": ({"record": "[" * 100_000}, "record: nested too deeply"),
    "no object": ({"record": "[]"}, "record: expected an object, got a list of 0"),
    "null": ({"setup": None}, "setup: not valid JSON: it is empty"),
    "half a character": ({"settings": r'{"k": "\ud800"}'}, "not Unicode"),
    "flags": ({"flags": "[1]"}, "flags[0]: expected a string"),
    "adapter's record": ({"record": '{"source": {"run": [1]}}'}, "source: run: expected an object or null"),
    "protocol": ({"protocol": '{"name": "other"}'}, "its protocol hash is not that of its protocol"),
    "no number": ({"acc": [0.5, None] * 5 + [0.5]}, "acc is not a number"),
}


@pytest.mark.parametrize("name", BAD_1)
def test_a_bad_row_of_version_1(tmp_path: Path, name: str) -> None:
    """That a sound file of version 1 gives its numbers is tests/test_golden.py."""
    changes, reason = BAD_1[name]
    old = pq.read_table(VERSION_1)
    old = old.filter(pa.compute.equal(old["draws"], 10)).slice(0, 2)
    rows = old.to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0], {**rows[1], **changes}], old.schema), tmp_path / "x.parquet")
    board = build([tmp_path / "x.parquet"])
    assert [run.run_id for run in board.runs] == [rows[0]["run_id"]]
    (problem,) = board.problems
    assert problem.reason.startswith("row 2: ") and reason in problem.reason


def test_version_1_has_what_version_2_has(tmp_path: Path) -> None:
    """Maps of texts, remarks of flags, what was seen and trained; and what was not kept then is refused by name."""
    board, rows = build([VERSION_1]), {row["run_id"]: row for row in pq.read_table(VERSION_1).to_pylist()}
    assert not board.problems and len(board.runs) == len(rows)
    seen = {(run.method, run.labels_seen, run.training_passes) for run in board.runs}
    assert {("MLE", 400, 1), ("ENS", 400, 3), ("TS", 1400, 1)} <= seen
    for run in board.runs:
        row = rows[run.run_id]
        assert run.settings == {k: text_of(v) for k, v in json.loads(row["settings"]).items()}
        assert run.recipe == {k: text_of(v) for k, v in json.loads(row["setup"]).items()}
        assert list(run.remarks) == json.loads(row["flags"]) == ["trimmed"]
    several = next(run for run in board.runs if run.draws > 1)
    with pytest.raises(InputError, match="published without its single draws"):
        board.record(several.run_id).rows(1)


def test_a_version_to_come_is_refused_and_a_column_to_come_is_empty(rows: list[Row], tmp_path: Path) -> None:
    good = pq.read_table(written(rows, tmp_path / "good.parquet"))
    later = tmp_path / "later.parquet"
    pq.write_table(good.replace_schema_metadata({publish.VERSION_KEY: b"4"}), later)
    assert "version 4: this uqharness reads up to 3" in build([later]).problems[0].reason
    pq.write_table(good.drop_columns(["labels_seen"]), later)
    board = build([later])
    assert len(board.runs) == len(rows) and {run.labels_seen for run in board.runs} == {None}


def test_files_that_are_none_of_ours(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = written(rows, tmp_path / "good.parquet")
    table = pq.read_table(good)
    wrong = pa.array([b"\xff"] * len(table)).view(pa.binary())
    made = {
        "columns": table.drop_columns(["metrics"]),
        "types": table.set_column(0, table.field(0).name, [[[1]] * len(table)]),
        "bytes": table.set_column(table.schema.get_field_index("task"), "task", wrong),
    }
    for name, other in made.items():
        pq.write_table(other, tmp_path / f"{name}.parquet")
    (tmp_path / "empty.parquet").touch()
    os.mkfifo(tmp_path / "pipe.parquet")  # opening it would wait for ever
    paths = [*(tmp_path / f"{name}.parquet" for name in (*made, "empty", "pipe")), good]
    board = build(paths)
    assert len(board.runs) == len(rows)
    assert sorted(each.file for each in board.problems) == sorted(map(str, paths[:-1]))
    assert {each.kind for each in board.problems} == {"broken"}
    monkeypatch.setattr(publish, "MAX_ROWS", 2)
    assert "5 rows" in build([good]).problems[0].reason


def test_a_file_that_was_written_again_is_read_again(rows: list[Row], tmp_path: Path) -> None:
    path = written(rows, tmp_path / "toy.parquet")
    board = build([path])
    first, last = board.runs[0], board.runs[-1]
    assert board.record(first.run_id).items == first.items
    written(rows[:1], path)
    assert board.record(rows[0]["run_id"]).items
    gone = first if last.run_id == rows[0]["run_id"] else last
    with pytest.raises(InputError, match="holds no run .* any more; build the board again"):
        board.record(gone.run_id)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not a published file"):
        board.record(rows[0]["run_id"])


def test_a_run_is_there_once(results: Path, rows: list[Row], tmp_path: Path) -> None:
    """Beside what it was made of, copied under another name, and where a file says another's id."""
    out, copy = tmp_path / "toy.parquet", tmp_path / "copy.parquet"
    copy.write_bytes(out.read_bytes())
    board = build([results, out, copy])
    assert len(board.runs) == len(rows) and {run.origin for run in board.runs} == {"measured"}
    assert {each.kind for each in board.problems} == {"duplicate"} and len(board.problems) == len(rows) + 1
    lie = {**rows[0]["metrics"], "acc": [1.0] * 5}
    forged = written([{**rows[0], "task": "boolq_uq", "date": None, "metrics": lie}], tmp_path / "x.parquet")
    both = build([results, forged])
    assert both.run(rows[0]["run_id"]).number("acc", 4) == board.run(rows[0]["run_id"]).number("acc", 4)
    assert sorted(each.kind for each in both.problems) == ["duplicate", "mismatch"]
    assert {run.task for run in both.runs} == {"arc_easy_uq"}


@pytest.mark.parametrize(("metric", "n"), [("nll", 4), ("nll", 0), ("brier", 0), ("acc", 4)])
def test_numbers_other_than_those_of_the_answers_are_flagged_and_never_crowned(
    rows: list[Row], tmp_path: Path, metric: str, n: int
) -> None:
    values = list(rows[0]["metrics"][metric])
    values[n] *= 0.97 if metric != "acc" else 1.1
    changed = {**rows[0], "metrics": {**rows[0]["metrics"], metric: values}}
    board = build([written([changed, *rows[1:]], tmp_path / "x.parquet")])
    (problem,) = board.problems
    assert problem.kind == "mismatch" and f"{metric} = {values[n]:.6g} for N = {n}" in problem.reason
    assert len(board.runs) == len(rows) and "mismatch" in board.run(rows[0]["run_id"]).remarks
    cells = [c for t in table.build(board.runs, [metric], [n]) for c in t.cells.values()]
    assert [c.suspect for c in cells if rows[0]["run_id"] in c.runs] == [True] and sum(c.suspect for c in cells) == 1


def test_draws_that_do_not_have_their_average_are_flagged(rows: list[Row], tmp_path: Path) -> None:
    one, other = (row for row in rows if row["method"] == "BLoB")
    board = build([written([{**one, "single_draws": other["single_draws"]}, other], tmp_path / "x.parquet")])
    (problem,) = board.problems
    assert problem.kind == "mismatch" and "its single draws do not have the average" in problem.reason
    assert [bool(run.suspect) for run in board.runs] == [True, False]


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
    assert len(board.runs) == 1 and not board.problems and board.runs[0].number("nll", 4) > 20


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
    assert sum(path.stat().st_size for path in files) < publish.BUDGET
    assert not board.problems and {run.origin for run in board.runs} <= {"published", "submitted"}
    whole = set()
    for run in board.runs:
        record = board.record(run.run_id)
        probs = combine_draws(record.rows(), record.combine)
        right = np.nanargmax(probs, axis=1) == record.gold
        assert right.mean() == pytest.approx(run.number("acc", record.draws), abs=0.003)  # ties may turn
        whole |= {run.method} if not isinstance(record, publish.Averaged) else set()
    assert whole == {run.method for run in board.runs if run.draws > 1 and run.combine != "given"}
