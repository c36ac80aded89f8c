"""The papers' numbers: every row of the files, in our units, with what is known against it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from uqharness.leaderboard import reported
from uqharness.leaderboard.board import build

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
        assert row["value"] * scale == pytest.approx(float(line["mean"] or "nan"), abs=1e-9, nan_ok=True)
        assert (row["std"] is None or row["std"] != row["std"]) == (line["std"] == "")
        assert [row[k] for k in ("paper", "table", "base", "method", "dataset", "status")] == [
            line[k] for k in ("paper", "table", "base_model", "method", "evaluated_on", "status")
        ]
    assert all(row["paper"] and row["table"] and row["base"] for row in rows)
    assert {row["status"] for row in rows if row["value"] != row["value"]} == {"failed"}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ({"paper": "BLoB", "table": "1", "method": "MLE", "dataset": "WG-S", "metric": "acc"}, 0.6899),
        ({"paper": "BLoB", "table": "9", "method": "LoRA", "dataset": "WG-S", "metric": "train_seconds"}, 1544.0),
        (
            {
                "paper": "Me-LoRA",
                "table": "6",
                "base": "Llama2-7B",
                "method": "LoRA",
                "dataset": "WG-S",
                "metric": "peak_memory",
            },
            4.8 * 2**30,
        ),
        ({"paper": "Me-LoRA", "table": "1", "base": "Llama2-7B", "method": "BLoB", "setting": "rank 8"}, 6.29e6),
    ],
)
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
    starred = failed[failed["table"] == "7"]
    assert set(starred["method"]) == {"BBB"} and "RTE" in set(starred["dataset"])
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
    assert not set(board.reported["paper"]) & {run.origin for run in board.runs}


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


def test_the_ablation_has_its_unstarred_variant_and_the_runs_that_ended_in_nan() -> None:
    """BLoB, Table 8: 18 values whose ticks cannot be read, and three variants without a number."""
    rows = reported.load()
    rows = rows[(rows["paper"] == "BLoB") & (rows["table"] == "8")]
    plain = rows[rows["status"] == "suspect"]
    assert len(plain) == 18 and plain["note"].str.contains("ticks").all() and plain["draws"].eq(10).all()
    acc = plain[plain["metric"] == "acc"].set_index("dataset")
    assert acc.loc["WG-S", "value"] == pytest.approx(0.6975) and acc.loc["WG-S", "std"] == pytest.approx(0.006)
    failed = rows[rows["status"] == "failed"]
    assert failed["value"].isna().all() and failed["note"].str.contains("NaN loss").all()
    assert failed.groupby("method").size().to_dict() == {
        "BBB (A and B Bayesian)": 18,
        "BBB (A and B Bayesian, std on B scaled by 1/100)": 18,
        "BLoB (A and B Bayesian)": 18,
    }


def test_only_standard_deviations_cut_off_in_the_scan_are_missing() -> None:
    """All of them are in Table 9 of the Me-LoRA paper."""
    missing = [line for line in printed("results") if not line["std"] and line["status"] != "failed"]
    assert {(line["paper"], line["table"]) for line in missing} == {("Me-LoRA", "9")}


# Table -> {setting: value} as read from the page a second time, apart from the file.
TABLES: dict[tuple[str, str, str, str], str] = {
    ("BLoB", "3", "RoBERTa-base", ""): "optimizer=adamw schedule=linear warmup=0.06 lr=5e-4 batch_size=32 "
    "max_length=512 lora_alpha=8 lora_r=8",
    ("BLoB", "3", "Llama2-7B", ""): "optimizer=adamw schedule=linear warmup=0.06 lr=1e-4 batch_size=4 max_length=300 "
    "lora_alpha=16 lora_r=8",
    ("BLoB", "4", "RoBERTa-base", "blob"): "kl_optimizer=sgd kl_lr=0.002 prior_std=0.2 eps=0.05 gamma=8",
    ("BLoB", "4", "Llama2-7B", "blob"): "kl_optimizer=sgd kl_lr=0.01 prior_std=0.2 eps=0.05 gamma=8",
    ("Me-LoRA", "7", "Llama2-7B", ""): "optimizer=adamw schedule=linear warmup=0.02 lr=1e-4 lora_dropout=0.1 "
    "batch_size=4 max_length=300 lora_alpha=16 lora_r=8",
    ("Me-LoRA", "7", "Llama2-13B", "melora"): "kl_optimizer=sgd kl_lr=1e-4 prior_std=0.2",
    ("Laplace-LoRA", "1", "RoBERTa-large", ""): "lora_r=8 lora_alpha=16 lora_dropout=0.1 weight_decay=0 lr=5e-5 "
    "schedule=linear batch_size=32 max_length=256",
    ("Laplace-LoRA", "2", "Llama2-7B", ""): "lora_r=8 lora_alpha=16 lora_dropout=0.1 weight_decay=0 lr=5e-5 "
    "schedule=linear batch_size=8 max_length=300",
}  # fmt: skip


@pytest.mark.parametrize("where", TABLES)
def test_hyperparameters_as_the_papers_print_them(where: tuple[str, str, str, str]) -> None:
    keys = ("paper", "table", "base_model", "method")
    rows = [row for row in reported.hyperparameters() if tuple(row[k] for k in keys) == where]
    assert " ".join(f"{row['setting']}={row['value']}" for row in rows) == TABLES[where]
    assert all(row["words"].split(": ")[1] for row in rows)


def test_hyperparameters_say_where_they_come_from_and_what_is_not_stated() -> None:
    rows = reported.hyperparameters()
    key = ("paper", "base_model", "method", "dataset", "setting")
    assert len({tuple(row[k] for k in key) for row in rows}) == len(rows)
    for row in rows:
        assert row["paper"] and row["table"] and row["setting"] and row["used"] and row["status"] in ("ok", "suspect")
        assert row["note"] or row["status"] == "ok"
        assert (row["words"] and row["value"]) or row["status"] == "suspect"
    # Table 5 of the BLoB paper: the sizes from BoolQ on stand one column off; the published sizes of the data sets.
    sizes = {row["dataset"]: row for row in rows if row["setting"] == "train_size"}
    true = {"BoolQ": 9427, "RTE": 2490, "MRPC": 3668, "WiC": 5428, "CoLA": 8551}
    assert {name for name, row in sizes.items() if row["status"] == "suspect"} == set(true)
    printed_sizes = {name: int(row["value"]) for name, row in sizes.items()}
    assert {round(n, -1) for n in true.values()} == {printed_sizes[name] for name in true}
    assert all(f"{n:,}" in sizes[name]["note"] for name, n in true.items())


def test_every_cell_that_the_authors_corrected_has_a_note_and_no_other_cell_says_so() -> None:
    """BLoB's Table 1 beside the slides of its talk: all of MCD, LAP on ARC-C, and LAP's NLL on five data sets."""
    rows, cell = reported.load(), ["base", "dataset", "trained_on", "method", "draws", "metric"]
    table, slides = rows[(rows["paper"] == "BLoB") & (rows["table"] == "1")], rows["paper"] == "BLoB-NeurIPS2024-slides"
    both = table.merge(rows[slides], on=cell, suffixes=("", "_slides"))
    other = (both["value"] - both["value_slides"]).abs() > 1e-9
    assert len(both) == len(table) and other.sum() == 25
    assert set(both[other]["method"]) == {"MCD", "LAP"}
    assert (both["note"].str.contains("slides") == other).all()
