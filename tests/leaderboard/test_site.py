"""The static site: the numbers of `table.build`, nothing from elsewhere, and hostile names as letters."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_results import result

from uqharness import cli
from uqharness.errors import InputError
from uqharness.leaderboard import (
    about,
    publish,
    run_view,
    site,
    table,
    table_formats,
)
from uqharness.leaderboard.board import Board, build
from uqharness.loose_json import flatten
from uqharness.results.runs import REMARKS

HOSTILE = '<img src=x onerror=alert(1)></script><script>alert(2)</script>" onmouseover="alert(3)'


class Page(HTMLParser):
    """Tags with their attributes, the addresses they name, and the cells of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    @property
    def addresses(self) -> list[str]:
        return [attrs[key] for _, attrs in self.tags for key in ("href", "src") if key in attrs]


def figures(text: str) -> dict[str, dict[str, Any]]:
    """What a page draws, by the name of its place."""
    figures_of = re.findall(r'<div class="figure" id="(.*?)" .*?<script type="application/json">(.*?)</script>', text)
    return {name: json.loads(part) for name, part in figures_of}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Board, Path]:
    results = tmp_path_factory.mktemp("results")
    for seed in range(2):
        for k, method in enumerate(("MLE", "BLoB")):
            result(results, method, seed, numbers=10 * k + seed)
            result(results, method, seed, task="boolq_uq", trained_on="arc_easy_uq", numbers=20 * k + seed)
    result(results, HOSTILE, 0, numbers=99, settings={HOSTILE: HOSTILE})
    (results / "results_broken.json").write_text("{")
    board, out = build([results]), results / "site"
    site.export(board, out)
    return board, out


def test_the_landing_page_has_the_numbers_of_the_table(exported: tuple[Board, Path]) -> None:
    board, out = exported
    [made] = table.build(board.runs, ("nll", "brier", "acc", "ece"))
    shown = set(re.findall(r'<a href="run-[0-9a-f]{16}.html">([0-9.]+)</a>', (out / "index.html").read_text()))
    for (metric, _, _), cell in made.cells.items():
        assert table_formats.number(cell.mean, metric) in shown
    links = Page((out / "index.html").read_text()).addresses
    assert "method-blob.html" in links and links.count("papers.html") == 2  # the navigation, and below the tables
    assert (out / "table.md").read_text() == table_formats.markdown([made])
    assert (out / "table.csv").read_text() == table_formats.as_csv([made])


def test_every_address_is_relative_and_there(exported: tuple[Board, Path]) -> None:
    _, out = exported
    for file in out.glob("*.html"):
        for address in Page(file.read_text()).addresses:
            name = address.partition("#")[0]
            assert name == "" or name == "data:," or (out / name).is_file(), (file.name, address)
    assert {p.name for p in out.glob("*.html")} >= {f"{name}.html" for name, _ in site.NAVIGATION}


def test_names_from_files_are_letters_everywhere(exported: tuple[Board, Path]) -> None:
    _, out = exported
    for file in out.glob("*.html"):
        page = Page(file.read_text())
        own = [attrs for tag, attrs in page.tags if tag == "script"]
        ours = ("plotly.min.js", "figure.js", "board.js")
        assert all(a.get("src") in ours or a.get("type") == "application/json" for a in own)
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")], file.name
    assert "&lt;img src=x" in (out / "index.html").read_text()
    assert "results_broken.json" in (out / "submit.html").read_text()


def test_figures_are_data_that_reads_back(exported: tuple[Board, Path]) -> None:
    _, out = exported
    text = (out / "calibration.html").read_text()
    drawn = figures(text)
    assert len(drawn) == 4 and all(figure["data"] and "layout" in figure for figure in drawn.values())
    assert "plotly.min.js" in text and "plotly.min.js" not in (out / "papers.html").read_text()


def test_every_data_set_and_figure_has_its_section(tmp_path: Path) -> None:
    home, *away = near = ["openbookqa_uq", "arc_easy_uq", "mmlu_college_physics_uq"]
    for k, (method, seed, task) in enumerate(itertools.product(("MLE", "BLoB", "MAP"), (0, 1), near)):
        result(tmp_path, method, seed, task=task, trained_on=home, numbers=k)
    text = dict(site.pages(build([tmp_path])))["uncertainty.html"]
    headings = re.findall(r'<h2 class="heading">(.*?)</h2>', text)
    for name in ("Risk and coverage", "Epistemic and aleatoric"):
        assert [f"{name} · {data}" in headings for data in near] == [True] * 3
    shift = dict(site.pages(build([tmp_path])))["shift.html"]
    drawn = [f for f in figures(shift).values() if "AUROC" in str(f["layout"]["yaxis"].get("title"))]
    assert {tuple(trace["x"]) for f in drawn for trace in f["data"]} == {tuple(away)}
    assert [f"{home} → {task}" in shift for task in away] == [True] * 2


def test_a_figure_without_data_is_its_sentence(tmp_path: Path) -> None:
    result(tmp_path, "MLE", draws=1, finite=1)
    made = dict(site.pages(build([tmp_path])))
    assert "None of these has several draws." in made["draws.html"] and not figures(made["draws.html"])
    assert "parts" not in made["uncertainty.html"] and not figures(made["cost.html"])


def test_no_folder_of_this_machine_is_in_the_site(exported: tuple[Board, Path]) -> None:
    _, out = exported
    assert not [f.name for f in out.glob("*.html") if str(out.parent) in f.read_text()]


def test_what_is_said_of_files_names_no_folder_and_methods_share_no_page(tmp_path: Path) -> None:
    result(tmp_path, "BLoB")
    result(tmp_path, "BLoB", numbers=5, date=2.0)  # counts instead of the first
    result(tmp_path, "BLoB", numbers=6, date=2.0)  # claims to be the second
    for k, method in enumerate(("BLOB", "blob", "New", "new", "New!")):
        result(tmp_path, method, numbers=10 + k)
    board = build([tmp_path])
    said = [*table.build(board.runs)[0].notes, *(each.reason for each in board.problems)]
    assert sum(str(tmp_path) in text for text in said) == 2
    made = list(site.pages(board))
    assert not [name for name, content in made if str(tmp_path) in content]
    names = [name.lower() for name, _ in made]
    assert len(set(names)) == len(names) and "method-blob.html" in names
    assert sum(name.startswith("method-") for name in names) == 6


def test_published_results_have_their_values_against_n(tmp_path: Path) -> None:
    result(tmp_path, "BLoB")
    publish.create([tmp_path], tmp_path / "published.parquet", 0)
    made = dict(site.pages(build([tmp_path / "published.parquet"])))
    (shown,) = figures(made["draws.html"]).values()
    assert len(shown["data"]) == 3  # a line of each metric with the mean, and no band


def test_an_id_of_a_published_file_cannot_lead_out_of_the_folder(
    exported: tuple[Board, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "pages", lambda board: [("index.html", ""), ("run-/../../x.html", "")])
    with pytest.raises(InputError, match="no name for a page"):
        site.export(exported[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_our_own_old_pages_go(exported: tuple[Board, Path], tmp_path: Path) -> None:
    board, _ = exported
    out = tmp_path / "site"
    site.export(board, out)
    ours, theirs = out / "run-0123456789abcdef.html", out / "method-of-mine.html"
    ours.write_text((out / "index.html").read_text())
    theirs.write_text("<title>mine</title>")
    site.export(board, out)
    assert theirs.is_file() and not ours.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<title>mine</title>")
    with pytest.raises(InputError, match="not empty"):
        site.export(board, tmp_path / "other")


def test_a_site_is_replaced_and_nothing_else_is(exported: tuple[Board, Path], tmp_path: Path) -> None:
    board, _ = exported
    names = {path.name for path in site.export(board, tmp_path / "new")}
    assert {path.name for path in site.export(board, tmp_path / "new")} == names
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty"):
        site.export(board, tmp_path / "mine")


def test_the_command_writes_it(
    exported: tuple[Board, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = exported[1].parent
    assert cli.main(["export-site", str(results), str(tmp_path / "out")]) == 0
    assert "index.html" in capsys.readouterr().out and (tmp_path / "out" / "index.html").is_file()
    assert cli.main(["export-site", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2


# ---------------------------------------------------------------- what a page says of a run


def test_a_method_has_its_equation_from_the_documentation() -> None:
    pages = about.pages()
    assert pages["blob"].title == "Bayesian LoRA by backpropagation" and "KL" in pages["blob"].equation
    assert set(pages) >= {"mle", "map", "mcd", "ens", "laplace", "blob", "melora"}
    assert not any("<!--" in page.text or "](#" in page.text for page in pages.values())


def test_commands_are_quoted_so_that_pasting_them_runs_nothing_else(
    exported: tuple[Board, Path], tmp_path: Path
) -> None:
    board, _ = exported
    hostile = board.select(method=HOSTILE)[0]
    evil = "x'; touch pwned; '$(touch pwned)`touch pwned`"
    record = about.record_of(hostile)
    record["method"]["name"], record["run"]["lr"], record["run"]["a b"] = evil, "END\ntouch pwned", evil
    record["source"] = {"method": {"name": evil}, "run": {"seed": evil}}
    script = "\n".join(about.reproduce(replace(hostile, adapter_record=flatten(record, 10**4), task=evil, seed=None)))
    shim = tmp_path / "uqharness"
    shim.write_text("#!/bin/sh\n")
    shim.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"PATH={shlex.quote(str(tmp_path))}:$PATH\n{script}"], cwd=tmp_path, check=False
    )
    assert done.returncode == 0 and not (tmp_path / "pwned").exists()
    assert evil in shlex.split(script.splitlines()[-2], comments=False)


def test_commands_say_how_many_draws_and_what_stood_around_the_question(tmp_path: Path) -> None:
    fewshot = {"number": 5, "seed": 7, "multiturn": True}
    prompts = {"fewshot": fewshot, "chat_template": "0f", "system_instruction": "1e"}
    path = result(tmp_path, "BLoB", protocol=prompts)
    path.write_text(json.dumps({**json.loads(path.read_text()), "system_instruction": "Be brief."}))
    result(tmp_path, "MLE", draws=1, finite=1)
    board = build([tmp_path])
    blob, mle = (board.select(method=m)[0] for m in ("BLoB", "MLE"))
    command = shlex.split(about.reproduce(blob)[-2])
    flags = dict(zip(command[3::2], command[4::2], strict=False))
    assert flags["--model_args"] == "samples=4" and flags["--num_fewshot"] == "5" and flags["--seed"] == "0,1234,1234,7"
    assert command[command.index("--apply_chat_template") + 1 :][:4] == [
        "--fewshot_as_multiturn",
        "True",
        "--system_instruction",
        "Be brief.",
    ]
    published = replace(blob, file="gone.parquet", remarks={"trimmed": "trimmed"})
    gone = shlex.split(about.reproduce(published)[-2])
    assert gone[gone.index("--limit") + 1] == "40" and "--limit" not in command
    assert "samples=4" in gone and "INSTRUCTION" in gone
    assert "samples" not in about.reproduce(mle)[-2] and "--num_fewshot" not in about.reproduce(mle)[-2]


REMOTE = {"trust_remote_code": "True", "pretrained": "stranger/model", "base_url": "http://stranger.example/"}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_commands_never_repeat_what_loads_or_runs_a_strangers_code(plain: bool, as_text: bool, tmp_path: Path) -> None:
    settings = {"trust_remote_code": True, "pretrained": "stranger/model"}
    run = {"base": "stranger/model", "trust_remote_code": True, "lr": 0.5}
    path = result(tmp_path, plain=plain, settings=settings, run=run)
    data = json.loads(path.read_text())
    given = {
        **REMOTE,
        "samples": 4,
        "sampling": "antithetic",
        "dtype": "float32" if as_text else "float32,trust_remote_code=True",
    }
    data["config"]["model_args"] = ",".join(f"{k}={v}" for k, v in given.items()) if as_text else given
    path.write_text(json.dumps(data))
    board = build([tmp_path])
    shown = board.runs[0]
    commands = "\n".join(about.reproduce(shown))
    assert "trust_remote_code" not in commands and "stranger" not in commands and "samples=4" in commands
    assert "sampling=antithetic" in commands
    assert ("--model_args pretrained=MODEL,samples=4" in commands) == plain
    assert plain or ('base: "BASE"' in commands and "lr: 0.5" in commands)
    text = about.withheld_text(shown)
    assert "trust_remote_code = True" in text and "base_url = http://stranger.example/" in text
    assert ("pretrained = stranger/model" if plain else "base = stranger/model") in text
    page = dict(site.pages(board))[f"run-{shown.run_id}.html"]
    assert "check it before you use it" in page


def test_a_run_lists_its_metrics_with_intervals_and_its_warnings(exported: tuple[Board, Path]) -> None:
    board, _ = exported
    run = board.select(method="BLoB")[0]
    header, rows = run_view.numbers(run, board.record(run.run_id))
    assert header == ["Metric", "N = 4", "95 % interval", "N = 0", "N = 1", "N = 2", "N = 3"]
    nll = next(row for row in rows if row[0].startswith("NLL"))
    low, high = (float(part) for part in nll[2].split(" … "))
    assert low < float(nll[1]) < high
    assert "evaluated" not in dict(run_view.facts(replace(run, date=1e300), ""))  # a file can say any number
    assert dict(run_view.facts(run, ""))["evaluated"] == "1970-01-01"
    leaked = replace(run, remarks={"leaked": REMARKS["leaked"]})
    assert run_view.warnings(leaked, board.problems)[0].endswith("not ranked")


def test_what_papers_report_of_a_method_is_as_printed(exported: tuple[Board, Path]) -> None:
    header, rows, notes = run_view.in_papers(exported[0].reported, "BLoB")
    line = next(r for r in rows if r[0] == "BLoB, table 1" and r[3] == "ACC")
    assert line[header.index("WG-S")] == "69.07 ± 0.34" and any("15 bins" in note for note in notes)
