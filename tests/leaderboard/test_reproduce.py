"""A paper's cells beside ours: numbers from results files on disk, verdicts, tested sentences, four formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made_results import PROTOCOL
from uqharness.cli import main
from uqharness.leaderboard import markup, reported, site
from uqharness.leaderboard.board import build
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import Grid, Page, Text, View
from uqharness.leaderboard.reproduce import Number, Report, compare, departures, measured, report, verdict
from uqharness.leaderboard.reproduce_formats import FORMATS
from uqharness.leaderboard.results import Results
from uqharness.results.reading import RECORD
from uqharness.results.record import pack
from uqharness.results.runs import read_runs
from uqharness.suite import schema

PAPER = {
    "base": "/models/Llama-2-7b-hf", "steps": 5000, "lr": 1e-4, "batch_size": 4, "max_length": 300, "lora_r": 8,
    "lora_alpha": 16.0, "target_modules": ["q_proj", "v_proj", "lm_head"], "schedule": "linear", "warmup": 0.06,
}  # fmt: skip
BLOB = {"prior_std": 0.2, "eps": 0.05, "gamma": 8.0, "kl_lr": 0.01, "train_samples": 1, "asymmetric": True,
        "reweight": True, "parameterization": "square"}  # fmt: skip
TABLE1 = {"paper": "BLoB", "table": 1, "base": "Llama2-7B"}
FIGURE3 = {"paper": "Laplace-LoRA", "figure": 3, "base": "Llama2-7B"}


def result(
    folder: Path, name: str, label: str, seed: int, right: float, confidence: float, draws: int = 1, **changes: Any
) -> Path:
    """A results file in which every draw answers `right` of 2,000 binary questions, each with this confidence."""
    items = 2000
    task, trained = (
        changes.get("task", "winogrande_s_uq"),
        changes.get("trained_on", changes.get("task", "winogrande_s_uq")),
    )
    row = np.log([confidence, 1 - confidence])
    answers = [
        {"id": i, "gold": int(i >= right * items), "combine": "probs", "doc_hash": f"{i:016x}",
         "logp": [row.tolist()] * (draws + 1)}
        for i in range(items)
    ]  # fmt: skip
    run = {**PAPER, "seed": seed, **changes.get("run", {})}
    record = {
        "method": {"name": name, "label": label, "settings": changes.get("settings", {})}, "run": run,
        "data": {"task": trained}, "recipe_hash": "r", "costs": {"steps": PAPER["steps"]},
        "posterior": {"train_seed": seed, "finite": 1 if draws == 1 else None},
    }  # fmt: skip
    config = {"model": "bayeslora", "uqharness": {"adapter_hash": f"{label}{seed}", "record": record}}
    counts = {task: {"original": changes.get("of", items), "effective": items}}
    packed = pack(answers, task=task, protocol=PROTOCOL)
    file = folder / f"results_{len(list(folder.glob('*')))}.json"
    file.write_text(
        json.dumps({"results": {task: {f"{RECORD},none": packed}}, "config": config, "n-samples": counts, "date": 1.0})
    )
    return file


def make(folder: Path, reproduces: dict[str, Any] = TABLE1) -> Report:
    return report("A table", reproduces, read_runs([folder]), [])


def cell(made: Report, method: str, metric: str, dataset: str = "WG-S", draws: int | None = None) -> Any:
    (one,) = [c for c in made.cells if (c.method, c.metric, c.dataset, c.draws) == (method, metric, dataset, draws)]
    return one


def test_three_seeds_of_the_papers_settings_get_a_verdict(tmp_path: Path) -> None:
    for seed, right in enumerate((0.685, 0.69, 0.695)):  # the paper: ACC 68.99 ± 0.58, ECE 29.83 ± 0.58, NLL 3.17
        result(tmp_path, "mle", "MLE", seed, right, 0.99)
    made = make(tmp_path)
    acc, ece, nll = (cell(made, "MLE", metric) for metric in ("acc", "ece", "nll"))
    assert acc.verdict == "agrees" and acc.ours.mean == pytest.approx(0.69) and acc.ours.std == pytest.approx(0.005)
    assert ece.verdict == "agrees" and ece.ours.mean == pytest.approx(0.30)
    assert nll.verdict == "differs" and nll.interval[1] < -0.05  # 1.43 is no 3.17, whatever the paper's ± of 0.37
    assert cell(made, "MLE", "acc", "ARC-C").verdict == "not measured"
    assert len(made.cells) == 162 and any("3 are assumed" in note for note in made.notes)


def test_far_away_differs(tmp_path: Path) -> None:
    for seed in range(3):
        result(tmp_path, "mle", "MLE", seed, 0.5 + seed / 1000, 0.6)
    assert cell(make(tmp_path), "MLE", "acc").verdict == "differs"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": {"base": "toyworld"}}, "another base: toyworld"),
        ({"run": {"steps": 20}}, "steps is 20, the paper's 5000"),
        ({"run": {"target_modules": ["q_proj"]}}, "target_modules is"),
        ({"of": 2376}, "2000 of 2376 questions (limit)"),
    ],
)
def test_no_verdict_where_something_else_was_run(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    for seed in range(3):
        result(tmp_path, "mle", "MLE", seed, 0.69, 0.99, **changes)
    one = cell(make(tmp_path), "MLE", "acc")
    assert one.verdict == "no verdict" and why in one.why
    assert one.difference == pytest.approx(0.69 - 0.6899)


def test_one_seed_gets_no_verdict(tmp_path: Path) -> None:
    result(tmp_path, "mle", "MLE", 0, 0.69, 0.99)
    one = cell(make(tmp_path), "MLE", "acc")
    assert (one.verdict, one.why) == ("no verdict", "one seed") and math.isnan(one.interval[0])


def test_rows_are_told_apart_by_draws_and_settings(tmp_path: Path) -> None:
    for seed in range(2):
        result(tmp_path, "blob", "BLoB", seed, 0.69, 0.8, draws=10, settings=BLOB)
        result(tmp_path, "blob", "BLoB", seed, 0.60, 0.8, draws=10, settings={**BLOB, "reweight": False})
    made = make(tmp_path)
    for draws in (0, 5, 10):
        assert cell(made, "BLoB", "acc", draws=draws).ours == Number(pytest.approx(0.69), pytest.approx(0), 2)
    ablation = {**BLOB, "asymmetric": False, "std_scale_b": 0.01}
    for seed in range(2):
        result(tmp_path, "blob", "BLoB", seed, 0.75, 0.8, draws=10, settings=ablation)
    made = make(tmp_path, {**TABLE1, "table": 8})
    starred = cell(made, "BLoB (A and B Bayesian, std on B scaled by 1/100)", "acc", draws=10)
    assert starred.ours.mean == pytest.approx(0.75) and cell(made, "BLoB", "acc", draws=10).ours.mean == pytest.approx(
        0.69
    )


def test_of_several_bases_and_settings_the_papers_are_compared_and_none_are_mixed(tmp_path: Path) -> None:
    for seed in range(3):
        result(tmp_path, "mle", "MLE", seed, 0.69 + seed / 1000, 0.99)
        result(tmp_path, "mle", "MLE", seed + 1, 0.30, 0.99, run={"base": "other", "steps": 7})
    one = cell(make(tmp_path), "MLE", "acc")
    assert one.ours.mean == pytest.approx(0.691) and one.ours.seeds == 3 and one.verdict == "agrees"


def test_what_the_paper_contradicts_gets_a_note_and_no_verdict(tmp_path: Path) -> None:
    for seed in range(3):
        result(tmp_path, "map", "MAP", seed, 0.8138, 0.9, task="openbookqa_uq", settings={"weight_decay": 1e-5})
    made = make(tmp_path)
    one = cell(made, "MAP", "ece", "OBQA")
    assert one.verdict == "no verdict" and "exchange MAP and ENS" in one.why and one.suspect
    failed = [c for c in make(tmp_path, {**TABLE1, "table": 8}).cells if c.method == "BBB (A and B Bayesian)"]
    assert len(failed) == 18 and all(c.paper is None and c.suspect for c in failed)


def test_a_map_with_another_weight_decay_is_not_the_papers(tmp_path: Path) -> None:
    result(tmp_path, "map", "MAP", 0, 0.7, 0.9, settings={"weight_decay": 3.0})
    (one,) = measured(read_runs([tmp_path]))
    assert departures(one, "BLoB", "Llama2-7B") == ["weight_decay is 3.0, the paper's 1e-5"]
    other = departures(one, "Me-LoRA", "Llama2-13B")
    assert other[0] == "another base: Llama-2-7b-hf" and "warmup is 0.06, the paper's 0.02" in other


def test_intervals_are_welchs() -> None:
    """By hand: variances .01²/3 and .02²/3, 2.94 degrees of freedom, t = 3.2197; ACC is printed to 0.01 points."""
    difference, (low, high) = compare(Number(0.5, 0.01, 3), Number(0.4, 0.02, 3), "acc")
    half = 3.2197 * math.sqrt((0.01**2 + 0.02**2) / 3) + 0.00005
    assert difference == pytest.approx(0.1) and (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    assert compare(Number(0.5, 0.0, 3), Number(0.5, 0.0, 3), "nll")[1] == pytest.approx((-0.005, 0.005))


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((-0.02, 0.02), "agrees"),
        ((0.005, 0.015), "agrees"),
        ((0.021, 0.03), "differs"),
        ((-0.5, -0.03), "differs"),
        ((0.01, 0.03), "cannot be told"),
        ((-0.1, 0.1), "cannot be told"),
        ((math.nan, math.nan), "cannot be told"),
    ],
)
def test_verdicts(interval: tuple[float, float], word: str) -> None:
    assert verdict(interval, 0.02) == word


def laplace(folder: Path, layers: str, confidence: float, seed: int, steps: int) -> None:
    settings = {"layers": layers, "structure": "kron", "predictive": "joint"}
    run = {
        "base": "Llama-2-7b-chat-hf",
        "steps": 10000,
        "stop_at": steps,
        "save_every": 50,  # changes nothing that is learned: no departure from the paper's 1,000
        "lr": 5e-5,
        "warmup": 0.0,
        "lora_dropout": 0.1,
        "batch_size": 8,
    }
    name, label = ("mle", "MLE") if layers == "map" else ("laplace", "LAP")
    result(folder, name, label, seed, 0.7, confidence, run=run, settings={} if layers == "map" else settings)


def test_sentences_about_a_figure_are_tested_over_steps_and_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        for steps in (1000, 2000):
            laplace(tmp_path, "map", 0.95 - seed / 1000, seed, steps)
            laplace(tmp_path, "all", 0.75, seed, steps)
    made = make(tmp_path, FIGURE3)
    by = {(c.metric, c.left, c.relation): c for c in made.claims}
    better = by["ece10", "LA", "below"]
    assert better.verdict == "holds" and (better.held, better.points) == (2, 2) and better.difference < -0.15
    assert by["nll", "LA", "below"].verdict == "holds" and by["acc", "LA", "within"].verdict == "holds"
    assert by["acc", "LLLA", "within"].verdict == "not measured"


def test_a_sentence_that_is_wrong_fails_and_another_base_says_nothing(tmp_path: Path) -> None:
    for seed in range(3):
        laplace(tmp_path, "map", 0.70, seed, 1000)
        laplace(tmp_path, "all", 0.95 - seed / 1000, seed, 1000)
    by = {(c.metric, c.left): c for c in make(tmp_path, FIGURE3).claims}
    assert by["ece10", "LA"].verdict == "fails" and by["ece10", "LA"].held == 0
    other = make(tmp_path, {**FIGURE3, "figure": 3, "base": "RoBERTa-base"}).claims[0]
    assert other.verdict == "no verdict" and "another base" in other.why


def test_every_claim_names_curves_and_metrics_that_exist() -> None:
    rows = reported.claims()
    assert {(row["paper"], row["figure"]) for row in rows} == {("Laplace-LoRA", str(n)) for n in range(1, 8)}
    assert {row["metric"] for row in rows} == {"acc", "nll", "ece10"}
    assert {row["relation"] for row in rows} == {"below", "not below", "within", "mixed"}
    assert {row[side] for row in rows for side in ("left", "right")} == {
        "MAP", "LA", "LLLA", "MC joint", "MC indep", "probit", "bridge"
    }  # fmt: skip


def adapter(label: str, parameters: int, seconds: float, **run: Any) -> dict[str, Any]:
    return {
        "method": {"name": label.lower(), "label": label, "settings": {}}, "data": {"task": "winogrande_s_uq"},
        "run": {"base": "Llama-2-7b-hf", "lora_r": 8, **run},
        "costs": {"trainable_parameters": parameters, "seconds": seconds, "peak_memory_bytes": 2**30},
    }  # fmt: skip


def test_parameters_are_compared_and_seconds_are_not() -> None:
    records = [
        adapter("MLE", 4_194_304, 100.0),
        adapter("BLoB", 6_291_456, 120.0),
        adapter("MLE", 33_554_432, 9.0, lora_r=64),
    ]
    made = report("Parameters", {"paper": "Me-LoRA", "table": 1, "base": ["Llama2-7B", "Llama2-13B"]}, [], records)
    by = {(c.method, c.dataset, c.base): c for c in made.cells}
    assert [by[m, "rank 8", "Llama2-7B"].verdict for m in ("LoRA", "BLoB", "Me-LoRA")] == [
        "agrees",
        "agrees",
        "not measured",
    ]
    assert by["LoRA", "rank 64", "Llama2-7B"].verdict == "agrees"
    assert by["LoRA", "rank 8", "Llama2-13B"].why == "another base: Llama-2-7b-hf"
    time = report("Costs", {"paper": "BLoB", "table": 9, "base": "Llama2-7B"}, [], records[:2])
    (one,) = [c for c in time.cells if (c.method, c.dataset, c.metric) == ("BLoB", "WG-S", "train_seconds")]
    assert one.verdict == "no verdict" and one.why.endswith("of LoRA's: 1.17 in the paper, 1.20 here")


@pytest.fixture
def table1(tmp_path: Path) -> Report:
    for seed, right in enumerate((0.685, 0.69, 0.695)):
        result(tmp_path, "mle", "MLE", seed, right, 0.99)
        result(tmp_path, "mcd", "MCD", seed, 0.6, 0.9, draws=10, settings={"p": 0.1})
    return make(tmp_path)


def test_reported_and_measured_numbers_never_share_a_column(table1: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](table1))))
    assert len(rows) == 162
    one = next(r for r in rows if (r["method"], r["dataset"], r["metric"]) == ("MLE", "WG-S", "acc"))
    assert float(one["paper_mean"]) == pytest.approx(0.6899) and float(one["ours_mean"]) == pytest.approx(0.69)
    assert one["verdict"] == "agrees" and float(one["low"]) < float(one["difference"]) < float(one["high"])
    text = FORMATS["md"](table1)
    line = next(x for x in text.splitlines() if x.startswith("| MLE | – | WG-S | 68.99"))
    assert line.split(" | ")[3:6] == ["68.99 ± 0.58", "**69.00** ± 0.50", "3"]
    best = min(
        (r for r in rows if (r["metric"], r["dataset"]) == ("ece", "WG-S")), key=lambda r: float(r["paper_mean"])
    )
    ece = text.split("### ECE")[1].split("### ")[0].splitlines()  # marks follow the printed numbers, as in every table
    marked = [x.split(" | ")[:4] for x in ece if "| WG-S | **" in x]
    assert [[row[0].strip("| "), row[3]] for row in marked] == [
        [best["method"], f"**{100 * float(best['paper_mean']):.2f}** ± {100 * float(best['paper_std']):.2f}"]
    ]


def test_html_is_escaped_and_whole(table1: Report) -> None:
    page = FORMATS["html"](Report("<script>", table1.cells, [], ["a < b"]))
    assert "<script>" not in page and "a &lt; b" in page and page.count("<tr>") == 162 + 3
    assert "<b>69.00</b> ± 0.50" in page


def check_tex(text: str) -> int:
    """What LaTeX would stumble over: columns, braces, environments, letters. Return how many rows were checked."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.isascii(), {letter for letter in code if not letter.isascii()}
    assert code.count("{") == code.count("}") and code.count("$") % 2 == 0
    assert len(re.findall(r"\\begin\{tabular\}", code)) == len(re.findall(r"\\end\{tabular\}", code)) > 0
    rows = 0
    for block in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", code, re.S):
        shape = block[: block.index("\n")]
        columns = len(re.sub(r"p\{[^}]*\}", "p", shape.replace("\\linewidth", "")).strip("{}"))
        for line in block.splitlines()[1:]:
            if line.endswith(r"\\"):
                spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == columns, line
                rows += 1
    return rows


def test_latex_has_two_columns_for_each_data_set(table1: Report) -> None:
    text = FORMATS["latex"](table1)
    assert check_tex(text) == 3 * (2 + 9)  # for each metric two lines of head, and the paper's nine rows
    assert r"68.99 $\pm$ 0.58 & \textbf{69.00} $\pm$ 0.50$^{=}$" in text
    assert r"\begin{tabular}{llcccccccccccc}" in text


def test_latex_of_sentences(tmp_path: Path) -> None:
    laplace(tmp_path, "map", 0.95, 0, 1000)
    laplace(tmp_path, "all", 0.75, 0, 1000)
    made = make(tmp_path, FIGURE3)
    assert check_tex(FORMATS["latex"](made)) == 1 + len(made.claims)
    assert all(name in FORMATS for name in ("md", "csv", "html", "latex"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["reproduce", "blob-table1", str(folder)]) == 2
    assert "no results_*.json and no adapter" in capsys.readouterr().err
    result(folder, "mle", "MLE", 0, 0.69, 0.99)
    assert main(["reproduce", "blob-table1", str(folder), "--format", "latex", "--out", str(tmp_path / "t.tex")]) == 0
    assert check_tex((tmp_path / "t.tex").read_text(encoding="utf-8")) == 33
    assert main(["reproduce", "blob-table1", str(folder), "--format", "tex"]) == 2
    assert main(["reproduce", "toyworld", str(folder)]) == 2
    assert main(["reproduce", "blob-table1", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_shorter_training_than_the_papers_says_nothing_about_its_figure(tmp_path: Path) -> None:
    """A checkpoint at 1,000 of 10,000 steps is the paper's; a training of 1,000 steps is not."""
    for seed in range(2):
        laplace(tmp_path, "map", 0.95, seed, 1000)
        laplace(tmp_path, "all", 0.75, seed, 1000)
    assert make(tmp_path, FIGURE3).claims[0].verdict == "holds"
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text().replace('"steps": 10000, ', '"steps": 1000, '))
    (why,) = {c.why for c in make(tmp_path, FIGURE3).claims if c.points}
    assert why == "steps is 1000, the paper's 10000"


def test_a_reason_that_holds_everywhere_is_said_once(tmp_path: Path) -> None:
    for seed in range(2):
        result(tmp_path, "mle", "MLE", seed, 0.69, 0.99, run={"base": "tiny"})
        result(tmp_path, "mcd", "MCD", seed, 0.6, 0.9, draws=10, settings={"p": 0.3}, run={"base": "tiny"})
    text = FORMATS["md"](make(tmp_path))
    assert "everywhere: another base: tiny" in text and text.count("another base: tiny") == 1
    assert "no verdict: p is 0.3, the paper's 0.1" in text
    assert "another base: tiny; p is 0.3" in FORMATS["csv"](make(tmp_path))  # a file says all of it on each line


def page_of(folder: Path, **params: str) -> Page:
    results = Results(build([folder]))
    return PAGES["reproduce"].make(View(results, {name: [value] for name, value in params.items()}))


def test_the_page_has_the_cells_of_the_command_and_starts_with_what_is_measured(tmp_path: Path) -> None:
    for seed, right in enumerate((0.685, 0.69, 0.695)):
        result(tmp_path, "mle", "MLE", seed, right, 0.99)
    page = page_of(tmp_path, metric="acc")
    (paper,) = [control for control in page.controls if control.name == "paper"]
    assert paper.value == paper.options[0] == "BLoB, table 1, Llama2-7B"  # the one with verdicts before the others
    assert len(paper.options) > 1 and not any("slides" in name for name in paper.options)
    grid = next(block for block in page.blocks if isinstance(block, Grid))
    (row,) = grid.rows
    text = FORMATS["md"](make(tmp_path))
    line = next(x for x in text.splitlines() if x.startswith("| MLE | – | WG-S | 68.99"))
    assert row == line.replace("**", "").replace("\\", "").strip("| ").split(" | ") and row[-1] == "agrees"
    whole = next(b for b in page_of(tmp_path, metric="acc", measured="0").blocks if isinstance(b, Grid))
    assert len(whole.rows) == 54 and page.notes == []


def test_the_page_tests_sentences_and_says_what_to_run_where_nothing_is_measured(tmp_path: Path) -> None:
    empty = page_of(tmp_path)
    assert [type(block) for block in empty.blocks] == [Text, Text] and "suite run" in empty.blocks[1].text
    for seed in range(2):
        laplace(tmp_path, "map", 0.95 - seed / 1000, seed, 1000)
        laplace(tmp_path, "all", 0.75, seed, 1000)
    figure = "Laplace-LoRA, figure 3, Llama2-7B"
    page = page_of(tmp_path, paper=figure)
    claims = [b for b in page.blocks if isinstance(b, Grid) and "says" in b.caption]
    assert len(claims) == 1 and {row[-1] for row in claims[0].rows} >= {"holds"} and page.notes == []


def test_a_hostile_name_is_text_on_the_page(tmp_path: Path) -> None:
    for seed in range(2):
        result(tmp_path, "mle", "MLE", seed, 0.69, 0.99, run={"base": "<script>alert(1)"})
    page = page_of(tmp_path)
    html = "".join(markup.grid(block) for block in page.blocks if isinstance(block, Grid))
    said = html + "".join(str(site.render(block, "x")) for block in page.blocks)
    assert "<script" not in said and "&lt;script" in said


def test_suites_and_sentences_name_the_same_base() -> None:
    named = {(row["paper"], row["figure"]): row["base_model"] for row in reported.claims()}
    suites = [
        schema.read(str(path)).reproduces
        for path in schema.shipped().values()
        if path.stem.startswith("laplace-figure")
    ]
    assert {(s["paper"], str(s["figure"])): s["base"] for s in suites} == named


def test_settings_of_any_type_are_read(tmp_path: Path) -> None:
    for value in ([1], {"a": 1}, None, "x" * 400, True, 1e99):
        odd = {"steps": value, "stop_at": value, "target_modules": [1, "q_proj", None], "lr": value, "lora_r": value}
        result(tmp_path, "mle", "MLE", 0, 0.69, 0.99, run=odd, settings={"p": value})
    assert [type(block) for block in page_of(tmp_path).blocks][:2] == [Text, Text]
    assert cell(make(tmp_path), "MLE", "acc").verdict == "no verdict"
