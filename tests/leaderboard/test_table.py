"""Tables: numbers against an independent computation, what is kept apart, and every format read back."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import result

from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.leaderboard import picks, table, table_formats
from uqharness.leaderboard.table_sources import tuned_baselines
from uqharness.results.reading import RECORD, Run, read_results
from uqharness.results.runs import read_runs, summarise


def one(path: Path, **options: Any) -> table.Table:
    tables = table.build(tuned_baselines(read_runs([path])), **options)
    assert len(tables) == 1
    return tables[0]


def by_hand(run: Run, draws: int) -> dict[str, float]:
    """acc, nll and ece (15 equal-width bins) with loops over items and bins."""
    rows = run.record.logp[1 : draws + 1] if draws else run.record.logp[:1]
    right, confidences, losses = [], [], []
    for d, gold in enumerate(run.record.gold):
        probs = np.mean([np.exp(r[d].astype(float)) / np.exp(r[d].astype(float)).sum() for r in rows], axis=0)
        right.append(int(probs.argmax()) == gold)
        confidences.append(probs.max())
        losses.append(-np.log(probs[gold]))
    gap = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidences) if b / 15 < c <= (b + 1) / 15]
        if inside:
            gap += abs(sum(right[i] - confidences[i] for i in inside)) / len(right)
    return {"acc": float(np.mean(right)), "nll": float(np.mean(losses)), "ece": gap}


@pytest.mark.parametrize("draws", [0, 2, 4])
def test_cells_are_mean_and_deviation_over_seeds_of_numbers_made_by_hand(tmp_path: Path, draws: int) -> None:
    for seed in range(3):
        result(tmp_path, seed=seed, numbers=seed)
    runs, made = read_results(tmp_path), one(tmp_path, samples=[draws])
    assert made.rows == [("BLoB", draws)]
    for name in ("acc", "nll", "ece"):
        expected = [by_hand(run, draws)[name] for run in runs]
        cell = made.cells[name, 0, 0]
        assert cell.mean == pytest.approx(np.mean(expected), abs=1e-6)
        assert cell.std == pytest.approx(np.std(expected, ddof=1), abs=1e-6)
    assert 0 < made.cells["ece", 0, 0].floor < 0.5 and made.cells["nll", 0, 0].floor is None


def test_best_and_second_by_the_direction_of_the_metric(tmp_path: Path) -> None:
    for k, method in enumerate(("MLE", "ENS", "BLoB")):
        result(tmp_path, method, numbers=k)
    shown_table = one(tmp_path, metrics=["acc", "nll", "ece", "ece_debiased", "mce"])
    assert all(shown_table.cells["mce", i, 0].rank is None for i in range(3))
    for name, sign in (("acc", 1), ("nll", -1), ("ece", -1)):
        cells = [shown_table.cells[name, i, 0] for i in range(3)]
        values = [
            c.mean if name != "ece" else shown_table.cells["ece_debiased", i, 0].mean for i, c in enumerate(cells)
        ]
        shown = [round(sign * value * (1 if name == "nll" else 100), 2) for value in values]
        best = sorted(set(shown), reverse=True)
        assert [c.rank for c in cells] == [{best[0]: 1, best[1]: 2}.get(value) for value in shown]


def test_another_protocol_gets_a_table_of_its_own_that_says_why(tmp_path: Path) -> None:
    result(tmp_path, "MLE", numbers=1)
    result(tmp_path, "BLoB", numbers=2, protocol={"fewshot": {"number": 5}})
    first, second = table.build(read_runs([tmp_path]))
    assert first.rows == [("MLE", 4)] and second.rows == [("BLoB", 4)]
    said = 'not comparable with table 1: other protocol on arc_easy_uq: fewshot {"number": 5} (table 1: not set)'
    assert second.notes[0] == said
    assert all(c.rank is None for c in [*first.cells.values(), *second.cells.values()])


def test_another_recipe_gets_a_table_of_its_own_unless_asked_for(tmp_path: Path) -> None:
    result(tmp_path, "BLoB", numbers=1)
    result(tmp_path, "BLoB", numbers=2, run={"lr": 0.2})
    first, second = table.build(read_runs([tmp_path]))
    assert second.notes[0] == "not comparable with table 1: other recipe: lr 0.2 (table 1: 0.1)"
    assert len(first.rows) == 1
    both = one(tmp_path, across_recipes=True)
    assert both.rows == [("BLoB (lr=0.1)", 4), ("BLoB (lr=0.2)", 4)]
    assert all(cell.rank is None for cell in both.cells.values())


def test_mle_tuned_for_itself_is_a_row_for_reference_and_no_seed_of_the_methods_mle(tmp_path: Path) -> None:
    for seed in range(2):
        result(tmp_path, "MLE", seed, draws=1, finite=1)
        result(tmp_path, "BLoB", seed)
        result(tmp_path, "MLE", seed, draws=1, finite=1, run={"steps": 2}, recipe_hash="few", numbers=seed)
    made = one(tmp_path, metrics=["nll"])
    rows = {name: made.cells["nll", i, 0] for i, (name, _) in enumerate(made.rows)}
    assert list(rows) == ["MLE", "BLoB", "MLE (steps=2)"]
    assert [len(cell.values) for cell in rows.values()] == [2, 2, 2]
    assert [cell.reference for cell in rows.values()] == [False, False, True] and rows["MLE (steps=2)"].rank is None
    assert "MLE (steps=2) was trained by a recipe of its own: for reference, not ranked" in made.notes
    (group,) = picks.groups(tuned_baselines(read_runs([tmp_path])))
    assert list(group.runs["arc_easy_uq"]) == list(rows)
    result(tmp_path, "BLoB", run={"steps": 2}, recipe_hash="few")  # then it is the MLE of that recipe's methods
    runs = tuned_baselines(read_runs([tmp_path]))
    assert [sorted(name for name, _ in t.rows) for t in table.build(runs)] == [["BLoB", "MLE"]] * 2
    # A filter of the board that leaves the other BLoB out makes no tuned baseline of it.
    filtered = [run for run in runs if (run.method, run.recipe["steps"]) != ("BLoB", "2")]
    assert [sorted(name for name, _ in t.rows) for t in table.build(filtered)] == [["BLoB", "MLE"], ["MLE"]]


def test_what_keeps_tables_apart_across_recipes_is_the_protocol_alone(tmp_path: Path) -> None:
    result(tmp_path, "MLE", numbers=1)
    result(tmp_path, "BLoB", numbers=2, run={"lr": 0.2}, protocol={"normalise": "bytes"})
    _, second = table.build(read_runs([tmp_path]), across_recipes=True)
    assert (
        second.notes[0]
        == "not comparable with table 1: other protocol on arc_easy_uq: normalise bytes (table 1: not set)"
    )


def test_a_base_evaluated_in_another_way_is_apart_for_that_and_not_for_its_training(tmp_path: Path) -> None:
    result(tmp_path, "MLE", numbers=1)
    result(tmp_path, numbers=3, plain=True, draws=1, protocol={"normalise": "bytes"})
    _, second = table.build(read_runs([tmp_path]))
    assert (
        second.notes[0]
        == "not comparable with table 1: other protocol on arc_easy_uq: normalise bytes (table 1: not set)"
    )


def test_a_model_of_another_task_is_apart_for_the_task(tmp_path: Path) -> None:
    result(tmp_path, "MLE", numbers=1)
    result(tmp_path, numbers=3, plain=True, draws=1, task="boolq_uq")
    _, second = table.build(read_runs([tmp_path]))
    assert second.notes[0] == "not comparable with table 1: other tasks: boolq_uq (table 1: arc_easy_uq)"


def test_the_embedded_world_is_last_so_that_notes_of_other_tables_mean_the_table_shown_first(tmp_path: Path) -> None:
    """The board shows measured real models first; it numbers tables in the order of `build`."""
    result(tmp_path, "MLE", task="toyworld_uq", trained_on="toyworld_uq", run={"lr": 0.3})
    result(tmp_path, "MLE")
    result(tmp_path, "MLE", run={"lr": 0.2})
    runs = read_runs([tmp_path])
    assert runs[0].task == "toyworld_uq"
    tables = table.build(runs)
    assert [t.columns[0].task for t in tables] == ["arc_easy_uq", "arc_easy_uq", "toyworld_uq"]
    assert [t.notes[0] for t in tables[1:]] == [
        f"not comparable with table 1: other recipe: lr {here} (table 1: 0.1)" for here in (0.2, 0.3)
    ]
    groups = picks.groups(runs)
    assert [list(group.runs) for group in groups] == [["arc_easy_uq"], ["arc_easy_uq"], ["toyworld_uq"]]


def test_a_batch_made_of_smaller_ones_is_the_same_recipe(tmp_path: Path) -> None:
    """The recipe hash counts their product; tables compared the two settings."""
    result(tmp_path, "MLE", run={"batch_size": 8, "grad_accumulation": 1})
    result(tmp_path, "BLoB", numbers=2, run={"batch_size": 4, "grad_accumulation": 2})
    result(tmp_path, "ENS", numbers=3, run={"batch_size": 4, "grad_accumulation": 4}, recipe_hash="v2-b")
    first, second = table.build(read_runs([tmp_path]))
    assert [row[0] for row in first.rows] == ["MLE", "BLoB"] and first.cells["acc", 0, 0].rank is not None
    said = "other recipe: batch_size 4 (table 1: 8), grad_accumulation 4 (table 1: 1)"
    assert second.notes[0] == f"not comparable with table 1: {said}"


def test_csv_says_on_stderr_why_there_are_several_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result(tmp_path, "MLE")
    result(tmp_path, "MLE", run={"lr": 0.2})
    assert main(["table", str(tmp_path), "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert said.err == "uqharness: table 2: not comparable with table 1: other recipe: lr 0.2 (table 1: 0.1)\n"
    assert said.out.startswith("table,metric,")


def test_a_limit_is_said_below_the_table(tmp_path: Path) -> None:
    result(tmp_path, "MLE", protocol={"rows": [0, 50]})
    said = "arc_easy_uq: 40 of 50 questions (--limit), compared only with results on the same ones"
    assert said in one(tmp_path).notes


def test_a_model_of_unknown_training_is_shown_and_not_ranked(tmp_path: Path) -> None:
    for k, method in enumerate(("MLE", "BLoB")):
        result(tmp_path, method, numbers=k)
    result(tmp_path, numbers=3, plain=True, draws=1)
    made = one(tmp_path)
    row = made.rows.index(("tiny (zero-shot)", 1))
    assert made.cells["acc", row, 0].rank is None
    assert {made.cells["nll", i, 0].rank for i in range(3) if i != row} == {1, 2}
    assert "tiny (zero-shot) is the base, not trained here: for reference, not ranked" in made.notes


PLANNED = {"trained_on": "arc_easy_small_cloze_uq", "task": "arc_easy_small_cloze_uq"}


def test_a_plan_fixed_before_any_run_keeps_unfinished_and_inactive_rows_from_a_rank(tmp_path: Path) -> None:
    def made(method: str, seeds: int, ends: float) -> None:
        for seed in range(seeds):
            path = result(tmp_path, method, seed, **PLANNED)
            data = json.loads(path.read_text())
            courses = [{"kl": {"summed": 1.0, "std": [0.1, ends]}}, {"kl": None}]
            data["config"]["uqharness"]["record"]["training"] = courses
            path.write_text(json.dumps(data))

    made("MLE", 3, 0.1)
    made("BLoB", 3, 0.21)
    made("BBB", 2, 0.21)
    shown = one(tmp_path, metrics=["nll"])
    standing = {name: shown.cells["nll", i, 0].reference for i, (name, _) in enumerate(shown.rows)}
    assert standing == {"MLE": True, "BLoB": False, "BBB": True}
    notes = [note.split(";")[0] for note in shown.notes if "fixed before any run" in note]
    assert notes == ["MLE: KL inactive, its std ended below twice its start", "BBB: 2 of 3 training seeds"]


@pytest.mark.parametrize("training", [None, 1, [1], [{"kl": 1}], [{"kl": {"std": 1}}], [{"kl": {"std": ["a", {}]}}]])
def test_a_record_of_training_of_another_form_says_nothing_about_the_kl(tmp_path: Path, training: Any) -> None:
    path = result(tmp_path)
    data = json.loads(path.read_text())
    data["config"]["uqharness"]["record"]["training"] = training
    path.write_text(json.dumps(data))
    assert [run.kl_inactive for run in read_runs([path])] == [False]


@pytest.mark.parametrize(
    "leak",
    [
        {"items": 40, "leaked": 1, "natural": 2, "natural_ids": [1, 2]},
        {"items": 40, "leaked": 0, "natural": 21, "natural_ids": []},  # no two splits share half of their items
        [{"split": "validation", "purpose": "fit", "shared": 40, "items": 40}],
        [{"split": "a", "purpose": "fit", "shared": 20, "items": 40}, {"split": "b", "purpose": "tune", "shared": 20}],
    ],
)
def test_leaked_cells_are_marked_and_never_best(tmp_path: Path, leak: Any) -> None:
    leaks = {"arc_easy_uq": leak}
    result(tmp_path, "MLE", numbers=1, leaks=leaks)
    result(tmp_path, "BLoB", numbers=2)
    result(tmp_path, "ENS", numbers=3)
    made = one(tmp_path)
    assert made.cells["acc", 0, 0].leaked and made.cells["acc", 0, 0].rank is None
    assert "†" in table_formats.markdown([made]).splitlines()[4]


def test_questions_of_the_published_training_data_are_counted_and_metrics_shown_without_them(tmp_path: Path) -> None:
    leaks = {"arc_easy_uq": {"items": 40, "leaked": 0, "natural": 3, "natural_ids": [0, 3, 77]}}  # 77 was not asked
    shared = result(tmp_path, "MLE", numbers=1, leaks=leaks)
    result(tmp_path, "BLoB", numbers=2)
    made = one(tmp_path)
    cell = made.cells["acc", 0, 0]
    assert not cell.leaked and {made.cells["nll", i, 0].rank for i in range(2)} == {1, 2}
    notes = [note for note in made.notes if "published training data" in note]
    record = read_results(shared)[0].record
    clean = [k for k in range(40) if k not in (0, 3)]
    probs = np.exp(record.logp[1:, clean].astype(np.float64))
    right = (probs / probs.sum(-1, keepdims=True)).mean(0).argmax(-1) == record.gold[clean]
    assert len(notes) == 1 and "2 of 40 questions" in notes[0] and f"ACC {100 * right.mean():.2f}" in notes[0]


@pytest.mark.parametrize("leak", [5, {"leaked": "no"}, {"leaked": 0, "natural": 0, "items": 1, "natural_ids": ["a"]}])
def test_a_record_of_leaks_that_is_none_is_refused(tmp_path: Path, leak: Any) -> None:
    result(tmp_path, "MLE", leaks={"arc_easy_uq": leak})
    with pytest.raises(InputError, match="config: uqharness: leaks: arc_easy_uq"):
        one(tmp_path)


def test_draws_that_a_result_does_not_hold_are_a_note_and_points_are_one_row(tmp_path: Path) -> None:
    result(tmp_path, "MLE", draws=1, finite=1)
    result(tmp_path, "ENS", draws=3, finite=3)
    result(tmp_path, "BLoB", draws=4)
    made = one(tmp_path, samples=[0, 3, 10])
    assert made.rows == [("MLE", 1), ("ENS", 0), ("ENS", 3), ("BLoB", 0), ("BLoB", 3)]
    assert any("BLoB" in note and "samples=10" in note for note in made.notes)


def test_the_result_with_most_draws_then_the_latest_counts_and_the_table_says_so(tmp_path: Path) -> None:
    result(tmp_path, numbers=1, date=1.0)
    newest = result(tmp_path, numbers=2, date=2.0)
    result(tmp_path, numbers=3, date=3.0, draws=2)
    made = one(tmp_path)
    expected = by_hand(read_results(newest)[0], 4)
    assert made.cells["nll", 0, 0].mean == pytest.approx(expected["nll"], abs=1e-6)
    assert any("3 results" in note and newest.name in note for note in made.notes)


def test_what_samples_auto_took_is_shown_instead_of_n(tmp_path: Path) -> None:
    runs = []
    for seed, taken in ((0, 2), (1, 3)):  # of 4 draws, for all but the first item
        (run,) = read_results(result(tmp_path, seed=seed, numbers=seed))
        logp = run.record.logp.copy()
        logp[taken + 1 :, 1:] = np.nan
        runs.append(dataclasses.replace(run, record=dataclasses.replace(run.record, logp=logp)))
    (made,) = table.build([summarise(run) for run in runs], ("nll", "mutual_information"))
    items = runs[0].record.items
    wanted = 2.5 + 1.5 / items
    assert made.auto == {0: pytest.approx(wanted)}
    assert f"| NLL ↓ | BLoB | auto ({wanted:.1f}) | 2 |" in table_formats.markdown([made])
    assert any("samples=auto" in note and "4 at most" in note for note in made.notes)
    losses = []
    for run, taken in zip(runs, (2, 3), strict=True):
        draws = [(4 if d == 0 else taken, d) for d in range(items)]
        rows = [np.exp(run.record.logp[1 : n + 1, d].astype(float)) for n, d in draws]
        probs = [(row / np.nansum(row, 1, keepdims=True)).mean(0) for row in rows]
        losses.append(-np.mean([np.log(p[gold]) for p, gold in zip(probs, run.record.gold, strict=True)]))
    assert made.cells["nll", 0, 0].mean == pytest.approx(np.mean(losses), abs=1e-6)
    assert made.cells["mutual_information", 0, 0].mean > 0
    full = read_runs([tmp_path])  # whole results count before ones of samples=auto, whatever their date
    (made,) = table.build([*full, *(summarise(dataclasses.replace(run, date=9e9)) for run in runs)])
    assert made.auto == {} and made.rows == [("BLoB", 4)]


def test_columns_say_what_was_trained_on_and_differing_settings_split_rows(tmp_path: Path) -> None:
    result(tmp_path, task="openbookqa_uq", settings={"kl": 1})
    result(tmp_path, task="arc_easy_uq", trained_on="openbookqa_uq", settings={"kl": 1})
    result(tmp_path, task="openbookqa_uq", settings={"kl": 2}, numbers=5)
    made = one(tmp_path)
    assert [c.name for c in made.columns] == [
        "openbookqa_uq",
        "arc_easy_uq (trained on openbookqa_uq, small shift)",
    ]
    assert [row[0] for row in made.rows] == ["BLoB (kl=1)", "BLoB (kl=2)"]
    assert ("acc", 1, 1) not in made.cells


@pytest.mark.parametrize(
    "key, old, new", [("weight_decay", 0.0, 0.5), ("group_by_length", False, True), ("adam_eps", 1e-8, 1e-6)]
)
def test_what_a_recipe_differs_in_is_named(tmp_path: Path, key: str, old: Any, new: Any) -> None:
    """Also where the stored hash does not see it (adapters of before), and an old record does not have the key."""
    result(tmp_path, "MLE", seed=0)  # of before the setting was there
    result(tmp_path, "MLE", seed=1, run={key: old})
    result(tmp_path, "MLE", seed=0, run={key: new}, numbers=5)
    first, second = table.build(read_runs([tmp_path]))
    assert len(first.cells["acc", 0, 0].values) == 2 and len(second.cells["acc", 0, 0].values) == 1
    said = f"not comparable with table 1: other recipe: {key} {json.dumps(new)} (table 1: {json.dumps(old)})"
    assert second.notes[0] == said
    (joined,) = table.build(read_runs([tmp_path]), across_recipes=True)
    assert [row[0] for row in joined.rows] == [f"MLE ({key}={old})", f"MLE ({key}={new})"]


def test_other_items_and_other_versions_of_the_recipe_hash_are_told_apart(tmp_path: Path) -> None:
    result(tmp_path, "MLE", recipe_hash="v2-a")
    result(tmp_path, "MAP", recipe_hash="v2-b")
    result(tmp_path, "BLoB", recipe_hash="c")
    _, items, version = table.build(read_runs([tmp_path]))
    assert "other training items for arc_easy_uq: recipe hash v2-b (table 1: v2-a)" in items.notes[0]
    assert "recipe hashes of two versions for arc_easy_uq: recipe hash c (table 1: v2-a)" in version.notes[0]


@pytest.fixture
def tables(tmp_path: Path) -> list[table.Table]:
    for k, method in enumerate(("MLE", "BLoB")):
        for seed in range(2):
            result(tmp_path, method, seed, numbers=10 * k + seed)
    result(tmp_path, "BLoB", task="boolq_uq", numbers=7)
    return table.build(read_runs([tmp_path]), ["acc", "ece", "nll"])


def shown(made: table.Table, name: str, i: int, j: int) -> str:
    cell, scale = made.cells[name, i, j], 1 if name == "nll" else 100
    return f"{cell.mean * scale:.2f}" + ("" if cell.std is None else f" ± {cell.std * scale:.2f}")


def grid(made: table.Table) -> list[list[str]]:
    """The cells as plain text, by another route than the formats take."""
    return [
        [shown(made, m, i, j) if (m, i, j) in made.cells else "–" for j in range(len(made.columns))]
        for m in made.metrics
        for i in range(len(made.rows))
    ]


def test_markdown_reads_back(tables: list[table.Table]) -> None:
    lines = [line for line in table_formats.markdown(tables).splitlines() if line.startswith("|")]
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    bare = [[re.sub(r"\*\*|</?u>| \(floor .*\)", "", cell) for cell in row[4:]] for row in cells[2:]]
    assert cells[0] == ["Metric", "Method", "N", "Seeds", "arc_easy_uq", "boolq_uq"]
    assert bare == grid(tables[0])
    assert sum("**" in cell for row in cells for cell in row) == 3
    assert sum("(floor" in cell for row in cells for cell in row) == 3


def test_latex_reads_back(tables: list[table.Table]) -> None:
    text = table_formats.latex(tables)
    rows = [line[:-3].split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    bare = [
        [
            re.sub(r"\\(?:textbf|underline)\{([^}]*)\}| \(floor .*\)", r"\1", cell)
            .replace(r"$\pm$", "±")
            .replace("--", "–")
            .strip()
            for cell in row[4:]
        ]
        for row in rows[1:]
    ]
    assert rows[0][4] == r"arc\_easy\_uq" and bare == grid(tables[0])
    assert text.count(r"\begin{tabular}{llllcc}") == text.count(r"\end{tabular}") == 1


def test_csv_and_json_hold_every_digit(tables: list[table.Table]) -> None:
    made = tables[0]
    lines = list(csv.DictReader(io.StringIO(table_formats.as_csv(tables))))
    plain = json.loads(table_formats.as_json(tables))["tables"][0]
    assert len(lines) == len(plain["cells"]) == len(made.cells)
    for line, entry, ((name, i, j), cell) in zip(lines, plain["cells"], made.cells.items(), strict=True):
        assert (line["metric"], line["method"], line["task"]) == (
            name,
            made.rows[i][0],
            made.columns[j].task,
        )
        assert float(line["mean"]) == entry["mean"] == cell.mean
        assert entry["values"] == cell.values and int(line["seeds"]) == len(cell.values)
        assert line["rank"] == str(cell.rank or "") and entry["rank"] == cell.rank


def test_undefined_metrics_are_a_dash_and_null(tmp_path: Path) -> None:
    path = result(tmp_path, "MLE", finite=1, draws=1)
    run = read_results(path)[0]
    given = dataclasses.replace(run, record=dataclasses.replace(run.record, combine="given"))
    built = table.build([summarise(given)], ["mutual_information"])
    assert "| – |" in table_formats.markdown(built)
    assert json.loads(table_formats.as_json(built))["tables"][0]["cells"][0]["mean"] is None


def test_unknown_metric_is_refused(tmp_path: Path) -> None:
    result(tmp_path)
    with pytest.raises(InputError, match="unknown metric 'acx'"):
        table.build(read_runs([tmp_path]), ["acx"])


def test_a_combined_answer_is_one_row_beside_the_mean_whatever_is_asked(tmp_path: Path) -> None:
    file = result(tmp_path, "LAP", draws=1)
    data = json.loads(file.read_text())
    data["results"]["arc_easy_uq"][f"{RECORD},none"]["combine"] = "given"
    file.write_text(json.dumps(data))
    assert one(tmp_path, samples=[0, 5, 10]).rows == [("LAP", 0), ("LAP", 1)]


def test_names_become_neither_formulas_nor_commands_nor_markup(tmp_path: Path) -> None:
    evil = ["=HYPERLINK(1)", "@SUM(1)", "+1", "-1", "\\input{x} \\input{y}", "![x](http://e)", "<script>a</script>"]
    for k, method in enumerate(evil):
        result(tmp_path, method, numbers=k, plain=False)
    tables = table.build(read_runs([tmp_path]))
    methods = {row["method"] for row in csv.DictReader(io.StringIO(table_formats.as_csv(tables)))}
    assert methods == {f"'{name}" if name[0] in "=@+-" else name for name in evil}
    tex, md = table_formats.latex(tables), table_formats.markdown(tables)
    assert "\\input" not in tex and r"\textbackslash{}input\{x\} \textbackslash{}input\{y\}" in tex
    assert "<script" not in md and "![x]" not in md.replace(r"!\[", "")


def test_a_table_names_the_settings_that_differ_in_it_alone(tmp_path: Path) -> None:
    result(tmp_path, "BLoB", settings={"kl": 1})
    result(tmp_path, "BLoB", seed=1, settings={"kl": 2})
    result(tmp_path, "BLoB", task="boolq_uq", settings={"kl": 3}, run={"lr": 0.5})
    first, second = table.build(read_runs([tmp_path]), ["nll"])
    assert [name for name, _ in first.rows] == ["BLoB (kl=1)", "BLoB (kl=2)"] and second.rows == [("BLoB", 4)]
