"""Compare, Items, Method, Run and Submit in the app without a browser: they run, and show what the pure views give."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from made_results import PROTOCOL, answers, result
from shown_markup import html_of
from streamlit.testing.v1 import AppTest

from uqharness.leaderboard import comparison, items, run_view, shell
from uqharness.leaderboard.aggregate import Board, build
from uqharness.leaderboard.curves import answers as answers_of
from uqharness.results.reading import RECORD
from uqharness.results.record import digest, pack

APP = Path(__file__).parents[2] / "leaderboard" / "app.py"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    for seed in range(2):
        for k, method in enumerate(("MLE", "BLoB")):
            result(tmp_path, method, seed, numbers=10 * k + seed)
            result(tmp_path, method, seed, task="boolq_uq", trained_on="arc_easy_uq", numbers=20 * k + seed)
    result(tmp_path, HOSTILE, 0, numbers=99)
    (tmp_path / "results_broken.json").write_text("{")
    monkeypatch.setenv(shell.RESULTS, json.dumps([str(tmp_path)]))
    return build([tmp_path])


def opened(name: str, **params: str | list[str]) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in params.items():
        app.query_params[key] = value
    app.switch_page(f"app_pages/{name}.py").run()
    assert not app.exception, [each.value for each in app.exception]
    return app


def words(app: AppTest) -> str:
    text = re.sub(r"<style>.*?</style>", "", html_of(app), flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]+>", " ", text))


def run_id(board: Board, method: str, task: str = "arc_easy_uq", seed: int = 0) -> str:
    runs = board.runs
    kept = runs[(runs["method"] == method) & (runs["task"] == task) & (runs["seed"] == seed)]
    return str(kept["run_id"].iloc[0])


def test_items_shows_a_page_of_questions_and_filters_them(board: Board) -> None:
    chosen = run_id(board, "BLoB", seed=1)
    found = items.items(board.record(chosen), "BLoB", None, board.record(run_id(board, "MLE", seed=1)))
    app = opened("items", run=chosen, show="broken", sort="confidence", size="5")
    wanted = items.select(found, "broken", "confidence")["id"].tolist()
    assert re.findall(r"Question (\d+)", words(app)) == [str(i) for i in wanted[:5]]
    assert f"{len(wanted)} of 40 questions" in app.caption[1].value and "--log_samples" in app.caption[1].value
    app.selectbox(key="items.show").set_value("all").run()
    assert not app.exception and len(re.findall(r"Question \d+", words(app))) == 5
    assert app.query_params["size"] in ("5", ["5"]) and "show" not in app.query_params


def test_the_name_of_a_file_is_letters_in_a_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, docs = "x ![y](https:z.invalid)", [{"n": k} for k in range(2)]
    made = [{**item, "doc_hash": digest(doc)} for item, doc in zip(answers(0, 4, 2), docs, strict=True)]
    path = result(tmp_path, task=task)
    data = json.loads(path.read_text())
    data["results"][task][f"{RECORD},none"] = pack(made, task=task, protocol=PROTOCOL)
    path.write_text(json.dumps(data))
    asked = {f"gen_args_{k}": {"arg_0": "Which?", "arg_1": str(k)} for k in range(3)}
    lines = [json.dumps({"doc": doc, "arguments": asked}) for doc in docs]
    path.with_name(path.name.replace("results_", f"samples_{task}_").replace(".json", ".jsonl")).write_text(
        "\n".join(lines)
    )
    monkeypatch.setenv(shell.RESULTS, json.dumps([str(tmp_path)]))
    app = opened("items")
    assert "Which?" in words(app) and r"\!\[y\]\(https\:z" in app.caption[1].value


def test_items_moves_to_the_same_method_and_seed_of_another_data_set(board: Board) -> None:
    app = opened("items", run=run_id(board, "BLoB", seed=1))
    app.selectbox(key="items.task").set_value("boolq_uq").run()
    assert app.selectbox(key="items.run").value == run_id(board, "BLoB", "boolq_uq", 1)
    app.selectbox(key="items.row").set_value("MLE").run()
    assert app.selectbox(key="items.run").value == run_id(board, "MLE", "boolq_uq", 1)


def test_compare_tests_the_runs_of_the_link(board: Board) -> None:
    ids = [run_id(board, "MLE"), run_id(board, "BLoB")]
    app = opened("compare", run=ids)
    expected = comparison.shown_tests(comparison.tests(["MLE", "BLoB"], [answers_of(board.record(i), "") for i in ids]))
    for row in expected.to_dict("records"):
        assert row["Difference"] in words(app) and row["95 % interval"] in words(app)
    app.multiselect(key="compare.run").set_value(ids[:1]).run()
    assert not app.exception and "at least two" in app.info[0].value
    app.selectbox(key="compare.task").set_value("boolq_uq").run()
    assert app.multiselect(key="compare.run").value == [run_id(board, m, "boolq_uq") for m in ("MLE", "BLoB")]


def test_a_method_to_compare_comes_with_the_same_seed_and_goes_with_all_its_runs(board: Board) -> None:
    mine, plain = [run_id(board, "BLoB", seed=seed) for seed in (1, 0)], run_id(board, "MLE", seed=1)
    app = opened("compare", run=mine)
    assert app.multiselect(key="compare.methods").value == ["BLoB"]
    assert len(app.multiselect(key="compare.run").options) == 2  # thousands would be no choice
    app.multiselect(key="compare.methods").set_value(["BLoB", "MLE"]).run()
    assert app.multiselect(key="compare.run").value == [*mine, plain]
    app.multiselect(key="compare.methods").set_value(["MLE"]).run()
    assert app.multiselect(key="compare.run").value == [plain] and not app.exception
    app.multiselect(key="compare.methods").set_value([]).run()
    app.multiselect(key="compare.methods").set_value(["BLoB"]).run()
    assert app.multiselect(key="compare.run").value == [mine[1]]


def test_compare_says_which_runs_of_a_link_it_cannot_take(board: Board) -> None:
    kept = [run_id(board, "MLE"), run_id(board, "BLoB")]
    app = opened("compare", run=[kept[0], run_id(board, "BLoB", "boolq_uq"), kept[1]])
    assert app.multiselect(key="compare.run").value == kept and "Left out of these runs: 1" in app.info[0].value
    assert not opened("compare", run=kept).info


def test_run_shows_numbers_commands_and_the_record(board: Board) -> None:
    chosen = run_id(board, "BLoB")
    app = opened("run", run=chosen)
    _, rows = run_view.numbers(board, board.run(chosen), board.record(chosen))
    assert all(row[2] in words(app) for row in rows)
    assert any("uqharness train blob" in block.value for block in app.code)
    assert json.loads(app.json[0].value)["method"]["name"] == "blob"


def test_method_lists_its_runs_and_what_papers_report(board: Board) -> None:
    app = opened("method", method="BLoB")
    assert run_id(board, "BLoB", seed=1) in words(app) and "69.07 ± 0.34" in words(app)
    assert app.subheader[0].value == "Bayesian LoRA by backpropagation"
    app.selectbox(key="method.method").set_value(HOSTILE).run()
    assert not app.exception and HOSTILE in words(app) and HOSTILE not in html_of(app)


def test_problems_are_listed_with_their_reason(board: Board) -> None:
    app = opened("problems")
    assert "results_broken.json" in words(app) and "not valid JSON" in words(app)
    assert any("validate --submit" in block.value for block in app.code)


@pytest.mark.parametrize("page", ["items", "compare", "run", "method", "problems"])
def test_a_stale_link_is_followed_with_a_note_and_no_results_are_no_error(
    board: Board, page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = opened(page, run="0123456789abcdef", method="gone", page="x", other=HOSTILE)
    assert app.info and "link" in app.info[0].value
    (tmp_path / "none").mkdir()
    monkeypatch.setenv(shell.RESULTS, json.dumps([str(tmp_path / "none")]))
    opened(page)
