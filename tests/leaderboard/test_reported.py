"""The papers' numbers: every row of the files, in our units, with what is known against it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from uqharness.leaderboard import reported
from uqharness.leaderboard.aggregate import build

FOLDER = Path(str(reported.__file__)).parent / "papers"


def printed(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_there_with_its_paper_and_table() -> None:
    rows = reported.load().to_dict("records")
    results, costs, parameters = printed("results"), printed("costs"), printed("parameters")
    assert len(rows) == len(results) + len(costs) + len(parameters)
    for row, line in zip(rows, results, strict=False):
        scale = 1 if line["metric"] == "NLL" else 100
        assert row["value"] * scale == pytest.approx(float(line["mean"]), abs=1e-9)
        assert (row["std"] is None or row["std"] != row["std"]) == (line["std"] == "")
        assert [row[k] for k in ("paper", "table", "base", "method", "dataset", "status")] == [
            line[k] for k in ("paper", "table", "base_model", "method", "evaluated_on", "status")
        ]
    assert all(row["paper"] and row["table"] and row["base"] and row["value"] == row["value"] for row in rows)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ({"paper": "BLoB", "table": "1", "method": "MLE", "dataset": "WG-S", "metric": "acc"}, 0.6899),
        ({"paper": "BLoB", "table": "9", "method": "LoRA", "dataset": "WG-S", "metric": "train_seconds"}, 1544.0),
        ({"paper": "Me-LoRA", "table": "6", "base": "Llama2-7B", "method": "LoRA", "dataset": "WG-S",
          "metric": "peak_memory"}, 4.8 * 2**30),
        ({"paper": "Me-LoRA", "table": "1", "base": "Llama2-7B", "method": "BLoB", "setting": "rank 8"}, 6.29e6),
    ],
)  # fmt: skip
def test_some_numbers_as_the_papers_print_them(where: dict[str, str], value: float) -> None:
    rows = reported.load()
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert rows["value"].tolist() == [pytest.approx(value)]


def test_contradictions_are_footnotes_of_the_rows_that_they_touch() -> None:
    rows = reported.load()
    noted = {(r["paper"], r["method"]): json.loads(r["footnotes"]) for r in rows.to_dict("records")}
    assert any("averages logits" in note for note in noted["BLoB", "ENS"])
    assert any("77.34" in note for note in noted["BLoB", "BLoB"]) and not any(
        "77.34" in n for n in noted["BLoB", "MLE"]
    )
    assert any("not the BLoB of the BLoB paper" in note for note in noted["Me-LoRA", "BLoB"])
    failed = rows[rows["status"] == "failed"]
    assert set(failed["method"]) == {"BBB"} and "RTE" in set(failed["dataset"])
    swapped = rows[rows["note"].str.contains("exchange MAP and ENS")]
    assert set(swapped["status"]) == {"suspect"} and set(swapped["dataset"]) == {"OBQA"}


def test_the_numbers_in_the_footnotes_are_those_of_the_rows() -> None:
    rows = reported.load()
    cell = rows[(rows["method"] == "BLoB") & (rows["dataset"] == "BoolQ") & (rows["base"] == "Llama2-7B")]
    accuracy = {
        (r["paper"], r["draws"]): round(100 * r["value"], 2) for r in cell[cell["metric"] == "acc"].to_dict("records")
    }
    assert accuracy["BLoB", 10] == 86.99 and accuracy["Me-LoRA", 1] == 77.34


def test_a_board_has_them_apart_from_what_was_measured() -> None:
    board = build([])
    assert len(board.reported) == len(reported.load())
    assert not set(board.reported["paper"]) & set(board.runs["origin"])


@pytest.mark.parametrize(
    ("paper", "table", "base", "method", "dataset", "metric", "value", "std"),
    [
        ("BLoB-NeurIPS2024-slides", "main", "Llama2-7B", "LAP", "ARC-C", "acc", 0.6678, 0.0069),
        ("BLoB-NeurIPS2024-slides", "main", "Llama2-7B", "LAP", "ARC-C", "ece", 0.1625, 0.0261),
        ("BLoB-NeurIPS2024-slides", "main", "Llama2-7B", "LAP", "ARC-C", "nll", 1.03, 0.04),
        ("Me-LoRA", "2", "Llama2-13B", "MCD", "BoolQ", "acc", 0.8418, 0.0),
    ],
)
def test_standard_deviations_that_the_sources_print_legibly(
    paper: str, table: str, base: str, method: str, dataset: str, metric: str, value: float, std: float
) -> None:
    rows = reported.load()
    wanted = {"paper": paper, "table": table, "base": base, "method": method, "dataset": dataset, "metric": metric}
    for column, one in wanted.items():
        rows = rows[rows[column] == one]
    assert rows["value"].tolist() == [pytest.approx(value)] and rows["std"].tolist() == [pytest.approx(std)]


def test_only_standard_deviations_cut_off_in_the_scan_are_missing() -> None:
    """All of them are in Table 9 of the Me-LoRA paper."""
    missing = [line for line in printed("results") if not line["std"]]
    assert {(line["paper"], line["table"]) for line in missing} == {("Me-LoRA", "9")}
