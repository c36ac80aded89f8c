"""The page Shift: the numbers of `uqharness ood`, apart by recipe, and nothing hostile as markup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_results import result

from uqharness.cli import main
from uqharness.leaderboard import markup, ood, site
from uqharness.leaderboard.board import build
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import Figure, Grid, Page, Text, View
from uqharness.leaderboard.results import Results
from uqharness.results.reading import RECORD
from uqharness.results.record import encode, unpack

HOME, NEAR, FAR = "openbookqa_uq", "arc_challenge_uq", "mmlu_college_physics_uq"
EVIL = "<script>alert(1)</script>"


def made(folder: Path, *methods: str, **changes: object) -> Path:
    for method in methods:
        for seed in range(2):
            for task in (HOME, NEAR, FAR):
                finite = {"finite": 1} if method == "MLE" else {}
                result(folder, method, seed, task, 1 if finite else 4, trained_on=HOME, **finite, **changes)
    return folder


def page_of(folder: Path, **params: str) -> Page:
    return PAGES["shift"].make(View(Results(build([folder])), {name: [value] for name, value in params.items()}))


def of(page: Page, kind: type) -> list:
    return [block for block in page.blocks if isinstance(block, kind)]


def test_the_page_shows_the_numbers_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "MLE", "BLoB")
    page = page_of(tmp_path)
    detection, changes = [grid for grid in of(page, Grid) if not grid.folded]
    assert main(["ood", str(tmp_path), "--against", "MLE"]) == 0
    table = capsys.readouterr().out.split("### ")[1]
    printed = [
        [cell.replace("\\", "") for cell in line[2:-2].split(" | ")] for line in table.splitlines() if "| BLoB" in line
    ]
    assert [row for grid in (detection, changes) for row in grid.rows if row[0] == "BLoB"] == printed
    assert changes.header.count("than MLE") == 3 and page.notes == []
    assert main(["ood", str(tmp_path), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    aurocs, values = (figure.figure["data"] for figure in of(page, Figure))
    expected = [
        sum(r["auroc_entropy"] for r in rows if (r["method"], r["shifted"]) == ("BLoB", t)) * 50 for t in (NEAR, FAR)
    ]
    (line,) = [trace for trace in aurocs if trace["name"] == "BLoB"]
    assert line["x"] == [NEAR, FAR] and line["y"] == pytest.approx(expected)
    (line,) = [trace for trace in values if trace["name"] == "BLoB"]
    assert line["x"] == [HOME, NEAR, FAR]
    _, drawn = [grid for grid in of(page, Grid) if grid.folded]
    assert drawn.header == ["Method", HOME, NEAR, FAR]
    assert [text.split(" ±")[0] for text in drawn.rows[1][1:]] == [f"{y:.2f}" for y in line["y"]]
    assert line["y"][0] == pytest.approx(
        sum(r["nll"] for r in rows if (r["method"], r["shifted"]) == ("BLoB", FAR)) / 2
    )


def test_adapters_of_two_recipes_are_never_seeds_of_one_row(tmp_path: Path) -> None:
    made(tmp_path, "MLE", "BLoB")
    made(tmp_path, "MLE", "BLoB", run={"lr": 0.5}, numbers=3)
    board = build([tmp_path])
    tables = ood.tables(board.runs)
    assert len(tables) == 4 and sum("recipe" in name for name in tables) == 4
    for pairs in tables.values():
        rows, _ = ood.compared(pairs, board.label, board.record)
        assert len({run.recipe_hash for pair in pairs for run in pair}) == 1
        assert all(len(seeds) == 2 for seeds in ood.seeds_of(rows).values())
    name = next(iter(tables))
    assert [tables[other][0][1].task for other in ood.same_home(tables, name)] == [NEAR, FAR]


def test_mle_of_a_recipe_of_its_own_stands_beside_the_methods_under_a_name_of_its_own(tmp_path: Path) -> None:
    made(tmp_path, "MLE", "BLoB")
    made(tmp_path, "MLE", run={"steps": 2}, recipe_hash="few", numbers=3)
    board = build([tmp_path])
    tables = ood.tables(board.runs)
    assert [pairs[0][1].task for pairs in tables.values()] == [NEAR, FAR]  # small shifts first
    for pairs in tables.values():
        rows, _ = ood.compared(pairs, board.label, board.record)
        assert {(name, len(seeds)) for (name, _), seeds in ood.seeds_of(rows).items()} == {
            ("MLE", 2),
            ("BLoB", 2),
            ("MLE (steps=2)", 2),
        }


def test_a_link_chooses_data_draws_and_reference(tmp_path: Path) -> None:
    made(tmp_path, "MLE", "BLoB")
    far = next(name for name in ood.tables(build([tmp_path]).runs) if FAR in name)
    page = page_of(tmp_path, data=far, samples="2", against="nothing", score="mutual_information", metric="acc")
    detection, changes = [grid for grid in of(page, Grid) if not grid.folded]
    assert far in detection.caption and page.notes == [] and "than" not in " ".join(changes.header)
    assert {row[0]: row[1] for row in detection.rows} == {"MLE": "1", "BLoB": "2"}
    assert [trace["name"] for trace in of(page, Figure)[0].figure["data"]] == ["BLoB"]  # MLE has no such score


def test_nothing_hostile_is_markup_and_nothing_shifted_says_what_to_evaluate(tmp_path: Path) -> None:
    empty = page_of(tmp_path)
    assert not of(empty, Grid) and "eval ADAPTER" in of(empty, Text)[1].text
    made(tmp_path, "MLE", EVIL)
    page = page_of(tmp_path, row=EVIL, against=EVIL)
    text = "".join(map(markup.grid, of(page, Grid))) + "".join(str(site.render(block, "x")) for block in page.blocks)
    assert "<script>alert" not in text and "&lt;script" in text and page.notes == []


def test_other_labels_for_the_same_questions_cost_the_comparison_and_not_the_page(tmp_path: Path) -> None:
    made(tmp_path, "MLE", "BLoB")
    for file in tmp_path.glob("*.json"):
        data = json.loads(file.read_text())
        if data["config"]["uqharness"]["adapter_hash"] == "MLE0" and NEAR in data["results"]:
            items = unpack(data["results"][NEAR][f"{RECORD},none"])
            changed = replace(items, gold=1 - np.minimum(items.gold, 1))
            data["results"][NEAR][f"{RECORD},none"] = encode(changed)
            file.write_text(json.dumps(data))
    detection, changes = [grid for grid in of(page_of(tmp_path), Grid) if not grid.folded]
    assert {row[0] for row in detection.rows} == {"MLE", "BLoB"} and "than" not in " ".join(changes.header)
