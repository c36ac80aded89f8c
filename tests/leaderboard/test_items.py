"""Items of a run, their texts, and comparisons of runs, against loops over the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import answers, result
from scipy import stats

from uqharness import toyworld
from uqharness.leaderboard import comparison, curves, items, markup, texts
from uqharness.leaderboard.board import Board, build
from uqharness.results.record import Record, digest, pack, unpack


@pytest.fixture
def board(tmp_path: Path) -> Board:
    for k, method in enumerate(("MLE", "BLoB")):
        for seed in range(2):
            result(tmp_path, method, seed, numbers=10 * k + seed, run={"lr": 0.1}, settings={"kl": k} if k else {})
    return build([tmp_path])


def run_of(board: Board, method: str, seed: int) -> str:
    return board.select(method=method, seed=seed)[0].run_id


def test_a_row_per_question_with_what_a_loop_finds(board: Board) -> None:
    record, base = (board.record(run_of(board, m, 1)) for m in ("BLoB", "MLE"))
    listed = items.items(record, "BLoB", 3, base)
    for row in listed.frame.to_dict("records"):
        d, gold = row["at"], record.gold[row["at"]]
        draws = [np.exp(record.logp[s, d].astype(float)) for s in (1, 2, 3)]
        draws = [p / p.sum() for p in draws]
        probs = np.mean(draws, axis=0)
        entropy = -(probs * np.log(probs)).sum()
        inner = np.mean([-(p * np.log(p)).sum() for p in draws])
        assert (row["id"], row["gold"], row["predicted"]) == (record.ids[d], gold, probs.argmax())
        expected = [probs.max(), probs[gold], -np.log(probs[gold]), entropy, entropy - inner]
        names = ("confidence", "p_gold", "nll", "entropy", "mutual_information")
        assert [row[name] for name in names] == pytest.approx(expected, abs=1e-6)
        plain = np.mean([np.exp(base.logp[s, d].astype(float)) for s in range(1, base.draws + 1)], axis=0)
        assert (row["base_right"], row["base_wrong"]) == (plain.argmax() == gold, plain.argmax() != gold)


def test_filters_and_orders(board: Board) -> None:
    listed = items.items(board.record(run_of(board, "BLoB", 0)), "BLoB", None, board.record(run_of(board, "MLE", 0)))
    sizes = {name: len(items.select(listed, name)) for name in items.FILTERS}
    assert sizes["all"] == 40 and 0 < sizes["fixed"] < 40 and 0 < sizes["broken"] < 40 and sizes["information"] == 4
    fixed, broken = items.select(listed, "fixed"), items.select(listed, "broken")
    assert fixed["right"].all() and fixed["base_wrong"].all() and broken["base_right"].all()
    assert not broken["right"].any() and sizes["wrong"] == int((~listed.frame["right"]).sum())
    sure = items.select(listed, "wrong", "confidence")["confidence"].tolist()
    assert sure == sorted(sure, reverse=True)
    assert all(c >= items.SURE for c in items.select(listed, "sure-wrong")["confidence"])
    alone = items.items(board.record(run_of(board, "BLoB", 0)), "BLoB", 1)
    assert len(items.select(alone, "fixed")) == len(items.select(alone, "information")) == 0


def test_the_baseline_is_mle_of_the_same_seed_recipe_and_protocol(board: Board, tmp_path: Path) -> None:
    assert items.baseline(board.runs, board.run(run_of(board, "BLoB", 1))) is board.run(run_of(board, "MLE", 1))
    other = result(tmp_path, "ENS", 5, numbers=3)
    apart = result(tmp_path, "SWAG", 0, numbers=4, run={"lr": 0.2})
    again = build([tmp_path])
    by_file = {Path(run.file).name: run for run in again.runs}
    assert items.baseline(again.runs, by_file[other.name]).run_id in {run_of(again, "MLE", s) for s in (0, 1)}
    assert items.baseline(again.runs, by_file[apart.name]) is None


def test_mle_with_other_choices_is_not_compared_with(board: Board) -> None:
    record, base = (board.record(run_of(board, m, 0)) for m in ("BLoB", "MLE"))
    fewer = replace(base, logp=base.logp[:, :, :1], choices=np.ones_like(base.choices), gold=np.zeros_like(base.gold))
    assert items.items(record, "BLoB", None, fewer).base is None and items.items(record, "BLoB", None, base).base


# ---------------------------------------------------------------- cards


def card_of(logp: list[list[list[float] | None]], text: texts.Text | None = None) -> str:
    made = [{**item, "logp": rows} for item, rows in zip(answers(0, 2, len(logp)), logp, strict=True)]
    listed = items.items(unpack(pack(made, task="arc_easy_uq", protocol={})), "BLoB")
    return markup.card(listed, listed.frame.to_dict("records")[-1], text)


def test_a_draw_that_was_not_taken_is_not_shown() -> None:
    row = [-1.0, -1.5, -2.0]
    shown = card_of([[row, row, row, row], [row, row, row, None]])
    assert "nan" not in shown and shown.count("<i style") == 6 and "draw 2" in shown and "draw 3" not in shown


def test_of_a_long_prompt_the_question_at_its_end_is_shown() -> None:
    row = [-1.0, -1.5, -2.0]
    shown = card_of([[row, row, row]], texts.Text("example " * 2000 + "<b>the question</b>", ("a", "b", "c")))
    assert "… " in shown and "&lt;b&gt;the question&lt;/b&gt;" in shown and len(shown) < 10_000


# ---------------------------------------------------------------- texts


def toyworld_record(rows: list[dict], wrong: int | None = None) -> Record:
    made = answers(0, 2, len(rows))
    for d, (item, row) in enumerate(zip(made, rows, strict=True)):
        item |= {"gold": 0, "logp": [[-1.0] * len(row["choices"])] * 3}
        item |= {"doc_hash": "0" * 16 if d == wrong else digest(row)}
    return unpack(pack(made, task="toyworld_near_uq", protocol={}))


def test_toy_world_questions_are_found_by_id_and_only_where_the_hash_agrees() -> None:
    rows = toyworld.questions("near", "test")[:5]
    shown, whence = texts.texts(toyworld_record(rows, wrong=3), [], [0, 3, 4])
    assert shown[0] is not None and shown[0].prompt == rows[0]["prompt"] and shown[1] is None
    assert shown[0].choices[1] == f"B. {rows[0]['texts'][1]}" and "embedded world" in whence


def test_samples_beside_the_results_are_read_and_broken_lines_left_out(tmp_path: Path) -> None:
    docs = [{"id": i, "question": f"q{i}"} for i in range(3)]
    made = answers(0, 2, 3)
    for item, doc in zip(made, docs, strict=True):
        item["doc_hash"] = digest(doc)
    record = unpack(pack(made, task="arc_easy_uq", protocol={}))
    arguments = {f"gen_args_{k}": {"arg_0": "Which?", "arg_1": f" {c}"} for k, c in enumerate("ABC")}
    lines = [json.dumps({"doc": {**docs[i], "uq_id": i}, "arguments": arguments}) for i in (0, 2)]
    (tmp_path / "samples_arc_easy_uq_2026.jsonl").write_text(
        "\n".join([lines[0], "{broken", "[]", '{"doc": 1}', lines[1]])
    )
    shown, whence = texts.texts(record, [str(tmp_path / "results_2026.json")], [0, 1, 2])
    assert [None if t is None else t.choices for t in shown] == [("A", "B", "C"), None, ("A", "B", "C")]
    assert "samples_arc_easy_uq_2026.jsonl" in whence
    nothing, advice = texts.texts(record, [str(tmp_path / "results_2027.json")], [0])
    assert nothing == [None] and "--log_samples" in advice


def test_a_task_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "in"
    inner.mkdir()
    (tmp_path / "samples_x_2026.jsonl").write_text("")
    assert texts.samples_file(str(inner / "results_2026.json"), "/../../samples_x") is None
    assert texts.samples_file(str(tmp_path / "results_2026.json"), "x") is not None


def test_a_task_of_any_name_and_half_characters_are_no_error(tmp_path: Path) -> None:
    assert texts.samples_file(str(tmp_path / "results_2026.json"), "x" * 290) is None
    arguments = {"gen_args_0": {"arg_0": "Which \ud800?", "arg_1": "\udc00"}}
    path = tmp_path / "samples_x_2026.jsonl"
    path.write_text(json.dumps({"doc": {"id": 1, "texts": ["\ud800"]}, "arguments": arguments}))
    (sample,) = texts.read_samples(str(path), 0).values()
    assert sample == texts.Text("Which ??", ("?",))


# ---------------------------------------------------------------- comparison


def test_only_differing_settings_are_named(board: Board) -> None:
    one, other = (board.run(run_of(board, m, 0)) for m in ("MLE", "BLoB"))
    differing = dict(comparison.differing([one, other]))
    assert differing["method"] == ["MLE", "BLoB"] and differing["setting.kl"] == ["–", "1"]
    assert not [key for key in differing if key.startswith(("recipe.", "protocol."))]
    seeds = dict(comparison.differing([one, board.run(run_of(board, "MLE", 1))]))
    assert seeds == {"training seed": ["0", "1"]}


def test_tests_of_two_runs_are_those_of_scipy(board: Board) -> None:
    records = [board.record(run_of(board, m, 0)) for m in ("MLE", "BLoB")]
    given = [curves.answers(record, "") for record in records]
    tested = pd.DataFrame(comparison.tests(["MLE", "BLoB"], given)).set_index("metric")
    losses = []
    for record in records:
        p = np.exp(record.logp[1:].astype(float)).mean(axis=0)
        losses.append(-np.log(p[np.arange(record.items), record.gold]))
    expected = stats.ttest_rel(*losses)
    assert tested.loc["nll", "difference"] == pytest.approx(np.mean(losses[0]) - np.mean(losses[1]), abs=1e-6)
    assert tested.loc["nll", "p"] == pytest.approx(expected.pvalue, rel=0.3)
    _, [[pair, *counts]] = comparison.both_right(["MLE", "BLoB"], given)
    alone = int(counts[1]), int(counts[2])
    assert pair == "MLE | BLoB" and sum(map(int, counts)) == 40
    assert tested.loc["acc", "p"] == pytest.approx(stats.binomtest(alone[0], sum(alone)).pvalue)
    _, rows = comparison.shown_tests(tested.reset_index().to_dict("records"))
    assert {row[0] for row in rows} == {"ACC", "NLL", "Brier", "ECE (debiased)"}


def test_other_questions_or_another_protocol_are_not_tested(board: Board, tmp_path: Path) -> None:
    ids = [run_of(board, "MLE", 0), run_of(board, "BLoB", 0)]
    runs, records = [board.run(i) for i in ids], [board.record(i) for i in ids]
    assert comparison.not_comparable(runs, records) == ""
    result(tmp_path, "ENS", 0, numbers=9, protocol={"fewshot": {"number": 5}})
    again = build([tmp_path])
    other = run_of(again, "ENS", 0)
    why = comparison.not_comparable([*runs, again.run(other)], [*records, again.record(other)])
    assert 'evaluated differently (fewshot: not set and {"number": 5}), so' in why


def test_names_tell_runs_of_one_row_apart(board: Board) -> None:
    ids = [run_of(board, "BLoB", 0), run_of(board, "BLoB", 1), run_of(board, "MLE", 0)]
    names = comparison.names([board.run(i) for i in ids], [board.run(i).method for i in ids])
    assert names == ["BLoB, seed 0", "BLoB, seed 1", "MLE, seed 0"]
