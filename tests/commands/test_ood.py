"""`uqharness ood` on made results: pairs, numbers, formats, bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from tests.made_results import result
from uqharness.cli import main
from uqharness.leaderboard.board import build
from uqharness.metrics import averaging, points
from uqharness.results import ood

TASKS = ("openbookqa_uq", "arc_challenge_uq", "mmlu_college_physics_uq")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ood")
    for method, seeds, draws in (("MLE", 2, 1), ("BLoB", 2, 4), ("LAP", 1, 1)):
        for seed in range(seeds):
            for task in TASKS:
                finite = 1 if method == "MLE" else None
                result(folder, method, seed, task, draws, trained_on=TASKS[0], finite=finite)
    result(folder, "zero", plain=True, task=TASKS[1])
    return folder


def test_every_adapter_meets_each_shifted_set(results: Path) -> None:
    pairs = ood.pairs(build([results]).runs)
    assert len(pairs) == 5 * 2
    assert all(a.task == TASKS[0] and b.task in TASKS[1:] and a.adapter_hash == b.adapter_hash for a, b in pairs)
    assert {b.task: b.shift for _, b in pairs} == {TASKS[1]: "small", TASKS[2]: "large"}


def test_numbers_are_scikit_learns_on_the_records(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ood", str(results), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    board = build([results])
    row = next(r for r in rows if (r["method"], r["seed"], r["shifted"]) == ("BLoB", 1, TASKS[2]))
    scores, labels = [], []
    for k, task in enumerate((TASKS[0], TASKS[2])):
        (run,) = board.select(method="BLoB", seed=1, task=task)
        p = averaging.softmax_draws(board.record(run.run_id).rows())
        scores += points.mutual_information(p).tolist()
        labels += [k] * p.shape[1]
        assert row["acc_shifted" if k else "acc"] == pytest.approx(run.number("acc", 4))
    assert row["auroc_mutual_information"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert row["nll_change"] == pytest.approx(row["nll_shifted"] - row["nll"])
    assert next(r for r in rows if r["method"] == "MLE")["auroc_mutual_information"] is None  # one draw


def test_formats_and_reference(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ood", str(results), "--against", "MLE"]) == 0
    text = capsys.readouterr().out
    assert text.count("### openbookqa_uq → ") == 2 and "(large shift)" in text and "… against" in text
    assert main(["ood", str(results), "--against", "MLE", "--format", "csv", "--samples", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["samples"] for row in rows if row["method"] == "BLoB"] == ["2"] * 4
    blob, mle = (
        next(r for r in rows if (r["method"], r["seed"], r["shifted"]) == (m, "0", TASKS[1])) for m in ("BLoB", "MLE")
    )
    more = float(blob["nll_change"]) - float(mle["nll_change"])
    assert float(blob["nll_change_against"]) == pytest.approx(more) and mle["nll_change_against"] == ""
    # ECE is compared as its debiased value, so only ends are checked.
    assert float(blob["ece_change_against_low"]) < float(blob["ece_change_against_high"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "latex"], "use one of md, csv, json"),
        (["--metric", "acd"], "unknown metric 'acd'"),
        (["--samples", "-1"], "give integers from 0"),
        (["--against", "BLoP"], "did you mean BLoB?"),
    ],
)
def test_bad_input_is_one_line(results: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ood", str(results), *words]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and len(err.splitlines()) == 1


def test_draws_that_are_not_there_are_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ood", str(results), "--samples", "9"]) == 0  # a point has one draw whatever is asked
    out, err = capsys.readouterr()
    assert "skipped: BLoB on arc_challenge_uq has no N = 9" in err and "| BLoB |" not in out
    assert "| MLE |" in out


def test_results_without_a_pair_say_what_to_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result(tmp_path, "BLoB", task=TASKS[1], trained_on=TASKS[0])
    assert main(["ood", str(tmp_path)]) == 2
    assert "evaluate it on the task that it was trained on" in capsys.readouterr().err
    assert main(["ood", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
