"""2,200 mutated result files: nothing crashes, every good file is kept as it is, every bad one is listed."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import result

from uqharness.leaderboard import about, comparison, publish, run_view, table
from uqharness.leaderboard.board import Board, build
from uqharness.metrics.registry import METRICS, compute_all
from uqharness.results.reading import read_results

MUTANTS, HALVED = 2000, 200
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../../etc/passwd",
    "=HYPERLINK(1)",
    "<script>alert(1)</script>",
    "\ud800",
    "\x00",
    "A" * 5000,
    [],
    [[]],
    {},
    {"": None},
    [1, 2, 3],
    "none",
)
SETTINGS = ("config", "uqharness", "record", "method", "settings")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(p for key, each in inner for p in places(each, (*path, key)))]


def parent(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def replaced(data: dict[str, Any], rng: random.Random) -> str:
    path = rng.choice(places(data))
    parent(data, path)[path[-1]] = copy.deepcopy(rng.choice(HOSTILE))
    return json.dumps(data)


def removed(data: dict[str, Any], rng: random.Random) -> str:
    path = rng.choice(places(data))
    del parent(data, path)[path[-1]]
    return json.dumps(data)


def moved(data: dict[str, Any], rng: random.Random) -> str:
    """One value in the place of another."""
    one, other = rng.choice(places(data)), rng.choice(places(data))
    value = copy.deepcopy(parent(data, one)[one[-1]])
    parent(data, other)[other[-1]] = value
    return json.dumps(data)


def scratched(data: dict[str, Any], rng: random.Random) -> str:
    """Letters of the file itself: mostly in its packed arrays."""
    text = list(json.dumps(data))
    for _ in range(rng.choice((1, 1, 5, 50))):
        text[rng.randrange(len(text))] = chr(rng.randrange(32, 127))
    return "".join(text)


def halved(data: dict[str, Any], rng: random.Random) -> str:
    """Half a character at the end of a value or a key, of settings as well: those are any text."""
    parent(data, SETTINGS)["settings"] = {"kl": 1, "form": "kron"}
    path = rng.choice([p for p in places(data) if isinstance(p[-1], str)])
    place, key, half = parent(data, path), path[-1], rng.choice(("\ud800", "\udc00", "\ude00\ud83d"))
    if rng.random() < 0.5:
        place[key] = f"{place[key]}{half}"
    else:
        place[f"{key}{half}"] = place.pop(key)
    return json.dumps(data)


def cut(data: dict[str, Any], rng: random.Random) -> str:
    text = json.dumps(data)
    return text[: rng.randrange(len(text))]


def several(data: dict[str, Any], rng: random.Random) -> str:
    for _ in range(3):
        text = rng.choice((replaced, removed))(data, rng)
        data = json.loads(text)
    return text


MUTATIONS: tuple[Callable[[dict[str, Any], random.Random], str], ...] = (
    replaced,
    removed,
    moved,
    scratched,
    cut,
    several,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files at the top, mutants of them in a folder below."""
    top = tmp_path_factory.mktemp("fuzz")
    good = [
        result(top, method, seed, numbers=10 * k + seed) for k, method in enumerate(("MLE", "BLoB")) for seed in (0, 1)
    ]
    below = top / "a"
    below.mkdir()
    rng = random.Random(6)
    originals = [json.loads(path.read_text()) for path in good]
    for k, data in enumerate(originals):  # with what else lm-eval writes
        data["results"]["arc_easy_uq"] |= {"acc,none": build([good[k]]).runs[0].number("acc", 4), "alias": "arc"}
        data["n-samples"] = {"arc_easy_uq": {"original": 40, "effective": 40}}
        good[k].write_text(json.dumps(data))
    for k in range(MUTANTS):
        text = rng.choice(MUTATIONS)(copy.deepcopy(rng.choice(originals)), rng)
        (below / f"results_{k}.json").write_text(text, encoding="utf-8", errors="replace")
    for k in range(HALVED):
        (below / f"results_half_{k}.json").write_text(halved(copy.deepcopy(rng.choice(originals)), rng))
    return top


@pytest.fixture(scope="module")
def board(folder: Path) -> Board:
    return build([folder])


def test_good_files_are_kept_and_bad_ones_listed(folder: Path, board: Board) -> None:
    files = {str(path) for path in folder.rglob("results_*.json")}
    assert len(files) == MUTANTS + HALVED + 4
    shown, listed = {run.file for run in board.runs}, {each.file for each in board.problems}
    assert shown | listed == files  # nothing disappears
    assert all(len(each.reason) > 10 and "\n" not in each.reason for each in board.problems)
    kinds = Counter(each.kind for each in board.problems)
    assert kinds["broken"] > 600 and kinds["mismatch"] > 10 and kinds["foreign"] > 10
    assert {str(path) for path in folder.glob("results_*.json")} <= shown
    assert not any("results_half_" in file for file in shown)


def test_what_is_shown_is_what_its_file_holds(board: Board) -> None:
    """Every number of a mutant that is kept is that of its own answers, by the slow way."""
    for run in random.Random(1).sample(board.runs, 60):
        (again,) = [r for r in read_results(run.file) if r.task == run.task]
        slow = compute_all(again.record.rows(), again.record.gold, again.record.combine)
        for name in METRICS:
            assert run.number(name, run.draws) == pytest.approx(slow[name], abs=1e-9, nan_ok=True)
    assert all(np.isfinite(run.metrics["nll"]).all() for run in board.runs)


def test_tables_of_all_that_is_shown_are_built(board: Board) -> None:
    tables = table.build(board.runs, ["acc", "nll"], [0, 2, None])
    rows = {name for shown in tables for name, _ in shown.rows}
    assert {"MLE", "BLoB"} <= {name.split(" (")[0] for name in rows}
    suspect = {run.run_id for run in board.runs if run.suspect}
    ranked = {run for shown in tables for cell in shown.cells.values() if cell.rank for run in cell.runs}
    assert suspect and not suspect & ranked


# ---------------------------------------------------------------- published files

ROWS, FILES = 1500, 150
TEXTS: tuple[str | None, ...] = (
    None,
    "",
    "x",
    "../../../etc/passwd",
    "<script>alert(1)</script>",
    "\x00",
    "a\nb",
    "A" * 5000,
    "null",
    "[]",
    "{}",
    "[1]",
    "0" * 16,
    r'{"k": "\ud800"}',
    "{" * 5000,
    '{"source": {"run": 1}}',
    '{"method": {"name": [1]}}',
    "given",
)
NUMBERS: tuple[float | None, ...] = (None, 0, 1, -1, 5, 2**31 - 1, float("nan"), float("inf"))


def other(value: Any, kind: pa.DataType, rng: random.Random) -> Any:
    """Another value of a column of this type."""
    if pa.types.is_map(kind):
        key = rng.choice(list(value or {"x": None}))
        changed = other((value or {}).get(key), kind.item_type, rng) if value and value[key] is not None else None
        return rng.choice(
            (None, {}, {**(value or {}), key: changed}, {**(value or {}), rng.choice(TEXTS[1:]): changed})
        )
    if pa.types.is_list(kind):
        held = list(value)
        held[rng.randrange(len(held))] = other(0, kind.value_type, rng)
        return rng.choice((None, [], value[1:], [*value, 0], held))
    if pa.types.is_binary(kind):
        at = rng.randrange(len(value))
        return rng.choice((None, b"", value[1:], value * 2, value[:at] + b"\xff" + value[at + 1 :]))
    if pa.types.is_string(kind):
        cut = (value or "")[: rng.randrange(len(value or "") + 1)]
        return rng.choice((*TEXTS, cut, (value or "").replace(":", ": [", 1)))
    if pa.types.is_boolean(kind):
        return rng.choice((None, not value))
    return rng.choice([n for n in NUMBERS if pa.types.is_floating(kind) or n is None or n == n and abs(n) < 2**31])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good rows, and such with one to three other values; their ids are their own."""
    top = tmp_path_factory.mktemp("rows")
    for k, method in enumerate(("MLE", "BLoB", "ENS")):
        result(top, method, numbers=k)
    publish.create([top], top / "good.parquet")
    table, rng = pq.read_table(top / "good.parquet"), random.Random(7)
    good = table.to_pylist(maps_as_pydicts="strict")
    rows = [dict(rng.choice(good), run_id=f"{k:016x}", date=float(k)) for k in range(ROWS)]
    for row in rows:
        for field in rng.sample(list(publish.WHOLE_ROW), rng.choice((1, 1, 3))):
            row[field.name] = other(row[field.name], field.type, rng)
    bad = pa.Table.from_pylist([*good, *rows], publish.WHOLE_ROW)
    pq.write_table(bad.replace_schema_metadata(table.schema.metadata), top / "bad.parquet")
    return top / "bad.parquet"


def test_every_row_of_a_published_file_is_shown_or_listed(published: Path) -> None:
    board = build([published])
    left_out = [each for each in board.problems if each.kind != "mismatch"]  # such a run is shown as well
    assert len(board.runs) + len(left_out) == ROWS + 3 and len(board.runs) > 100 and len(left_out) > 700
    assert all(len(each.reason) > 10 for each in board.problems)
    ids = [run.run_id for run in board.runs]
    assert all(re.fullmatch("[0-9a-f]{16}", run_id) for run_id in ids) and len(set(ids)) == len(ids)
    table.build(board.runs, ["acc", "nll"], [0, 2, None])
    for run_id in random.Random(1).sample(ids, 60):
        run, record = board.run(run_id), board.record(run_id)
        assert len(run_view.numbers(run, record)[1]) == len(METRICS)
        assert run_view.facts(run, board.label(run)) and about.reproduce(run) and comparison.settings(run)
        assert run_view.warnings(run, board.problems) is not None and about.record_of(run) is not None


def test_a_damaged_published_file_is_one_problem_or_some_rows(published: Path, tmp_path: Path) -> None:
    content, rng = (published.parent / "good.parquet").read_bytes(), random.Random(8)
    for k in range(FILES):
        changed = bytearray(content[: rng.randrange(len(content))] if k % 5 == 0 else content)
        for _ in range(rng.choice((1, 5, 50))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / f"{k}.parquet").write_bytes(changed)
    board = build([published.parent / "good.parquet", *(tmp_path / f"{k}.parquet" for k in range(FILES))])
    assert len(board.runs) >= 3 and len({each.file for each in board.problems}) > FILES / 2
