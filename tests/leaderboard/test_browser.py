"""The leaderboard in a real browser: what a reader sees, clicks, links to and takes away.

Needs playwright and a chromium of the system (Debian's); no browser is downloaded. One server for all tests.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from made_results import PROTOCOL, answers, result

from benchmarks.board_server import BROWSER, chromium, serving
from uqharness import cli, toyworld
from uqharness.leaderboard import markup, site
from uqharness.leaderboard.board import Board, build
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import Grid
from uqharness.leaderboard.table_formats import number
from uqharness.results.reading import RECORD
from uqharness.results.record import digest, pack

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install uqharness[test]"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium"),
]
HOSTILE = "<img src=x onerror=alert(1)><b>BOLD</b>=1+1"
READ = """table => [[...table.tHead.rows[0].cells].map(c => c.innerText),
    [...table.tBodies].map(body => [...body.rows].map(row => [...row.cells].map(c => c.innerText)))]"""
PATIENCE = 60_000  # ms; a loaded machine is slow


def toyworld_result(folder: Path, method: str, seed: int, numbers: int) -> None:
    """A result whose questions are the embedded world's, so that their texts are known."""
    path = result(folder, method, seed, "toyworld_uq", numbers=numbers)
    rows = toyworld.questions("toyworld", "test")[:40]
    made = answers(numbers, 4)
    for item, row in zip(made, rows, strict=True):
        width = len(row["choices"])
        logp = [(draw * 2)[:width] for draw in item["logp"]]
        item |= {"logp": [[x - 3.0 for x in draw] for draw in logp], "gold": row["gold"], "doc_hash": digest(row)}
    data = json.loads(path.read_text())
    data["results"]["toyworld_uq"][f"{RECORD},none"] = pack(made, task="toyworld_uq", protocol=PROTOCOL)
    path.write_text(json.dumps(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("results")
    for k, method in enumerate(("MLE", "BLoB", "LAP")):
        for seed in range(2):
            toyworld_result(made, method, seed, 10 * k + seed)
            result(made, method, seed, "arc_easy_uq", trained_on="toyworld_uq", numbers=30 * k + seed)
    result(made, HOSTILE, 0, "toyworld_near_uq", numbers=77, settings={HOSTILE: HOSTILE})
    return made


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Apart from the others: the command for tables refuses what the leaderboard lists."""
    made = tmp_path_factory.mktemp("broken")
    (made / "results_<script>alert(1)<.json").write_text("{")
    return made


@pytest.fixture(scope="module")
def board(folder: Path) -> Board:
    return build([folder])


@pytest.fixture(scope="module")
def address(folder: Path, broken: Path) -> Iterator[str]:
    with serving([folder, broken], UQHARNESS_LEADERBOARD_CACHE="") as (address, _):
        yield f"http://{address}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        own = chromium(started)
        yield own
        own.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page that fails the test where a script of a result runs or another host is asked."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page, wrong = context.new_page(), list[str]()
    page.set_default_timeout(PATIENCE)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: foreign(request.url) and wrong.append(request.url))
    yield page
    context.close()
    assert wrong == []


def foreign(url: str) -> bool:
    parts = urlparse(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "localhost"


def opened(tab: Any, url: str) -> Any:
    tab.goto(url)
    return settled(tab)


def settled(tab: Any) -> Any:
    """Until the script has run, ranks included, and nothing moves any more."""
    tab.wait_for_selector("h1")
    last = ""
    for _ in range(60):
        tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
        text = main_text(tab)
        if text == last and text:
            return tab
        last = text
        tab.wait_for_timeout(500)
    return tab


def main_text(tab: Any) -> str:
    return str(tab.locator('[data-testid="stMain"]').inner_text())


def table_text(tab: Any) -> list[str]:
    return list(tab.locator("table.uq").all_inner_texts())


def cells(tab: Any) -> dict[tuple[str, str], str]:
    """(method, data set) -> first number of the cell, of the first table on the landing page."""
    head, (rows,) = tab.locator("table.uq.spread").first.evaluate(READ)
    tasks = [text.split("\n")[0].strip() for text in head]
    cells = {}
    for row in rows:
        for task, text in list(zip(tasks, row, strict=True))[2:]:
            if number_in := re.search(r"-?\d+\.\d+", text):
                cells[row[0].strip(), task] = number_in[0]
    return cells


def tables_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    assert cli.main(["table", str(folder), "--metric", "nll,brier,acc,ece", "--format", "json", *more]) == 0
    tables: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tables"]
    return tables


def test_the_landing_table_is_that_of_the_command(
    tab: Any, address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for metric in ("nll", "ece"):
        opened(tab, f"{address}?metric={metric}")
        printed, expected = tables_of_the_command(folder, capsys)[0], {}
        for cell in printed["cells"]:
            if cell["metric"] == metric:
                key = (printed["rows"][cell["row"]]["method"], printed["columns"][cell["column"]]["task"])
                expected[key] = number(cell["mean"], metric)
        assert cells(tab) == expected and len(expected) > 5


def test_a_choice_is_in_the_address_and_the_address_gives_the_view_again(tab: Any, address: str) -> None:
    opened(tab, address)
    before = table_text(tab)
    tab.get_by_role("radio", name="ACC").or_(tab.get_by_role("button", name="ACC")).first.click()
    tab.wait_for_function("location.search.includes('metric=acc')")
    settled(tab)
    filtered = table_text(tab)
    assert filtered != before and parse_qs(urlparse(tab.url).query)["metric"] == ["acc"]
    tab.reload()
    assert table_text(settled(tab)) == filtered
    opened(tab, f"{address}?metric=acc&method=MLE&method=gone")
    assert "gone" in main_text(tab) and "BLoB" not in tab.locator("table.uq.spread").first.inner_text()


def test_a_click_on_a_head_sorts_a_word_searches_and_a_button_copies(tab: Any, address: str) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(tab, f"{address}?metric=acc")
    box = tab.locator(".uq-table", has=tab.locator("table.spread")).first
    values = "(rows, k) => rows.filter(r => !r.hidden).map(r => r.cells[k].innerText)"
    for expected in ("descending", "ascending"):  # of accuracy the highest is best
        box.locator("thead th").nth(2).locator("button").press("Enter")
        assert box.locator("thead th").nth(2).get_attribute("aria-sort") == expected
        numbers = [float(text.split()[0]) for text in box.locator("tbody tr").evaluate_all(values, 2) if text[0] != "–"]
        assert numbers == sorted(numbers, reverse=expected == "descending") and len(numbers) > 2
    box.locator(".uq-copy").click()
    box.get_by_role("button", name="Copied").wait_for()
    assert r"\begin{tabular}" in tab.evaluate("navigator.clipboard.readText()")
    tab.locator("button.uq-link").click()
    tab.locator("button.uq-link", has_text="Copied").wait_for()
    assert "?metric=acc&snapshot=" in tab.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("width", [1440, 390])
def test_a_long_name_is_shown_to_its_end(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    rows = [["SmolLM2-135M-Instruct, dequantised Q4_1 (zero-shot)", *["1.234"] * 30]]
    style = (Path(site.__file__).parent / "board.css").read_text()
    tab.set_content(f"<style>{style}</style>{markup.grid(Grid(['Method', *['x'] * 30], rows, 'made'))}")
    seen, whole = (tab.locator(selector).bounding_box() for selector in (".uq tbody th", ".uq .name"))
    assert whole["x"] + whole["width"] <= seen["x"] + seen["width"] and whole["width"] < 300
    assert tab.evaluate("(n => n.scrollWidth <= n.clientWidth)(document.querySelector('.uq .name'))")


def exported(tab: Any) -> list[dict[str, str]]:
    """The page's export as CSV."""
    tab.get_by_role("button", name="Export").first.click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="CSV").click()
    first, _, _ = Path(download.value.path()).read_text().partition("\n\n")  # tables of another kind follow
    return list(csv.DictReader(io.StringIO(first)))


@pytest.mark.parametrize(
    "view",
    [
        "",
        "papers",
        "calibration?bins=10",
        "uncertainty?figure=risk",
        "uncertainty?figure=parts",
        "compare",
        "run",
        "submit",
    ],
)
def test_every_page_gives_its_tables_away(tab: Any, address: str, view: str) -> None:
    opened(tab, address + view)
    _, blocks = (
        tab.locator("table.uq:not(.ranked):not(.spread)").first.evaluate(READ)
        if view not in ("", "papers")
        else ([], [])
    )
    lines = exported(tab)
    texts = [[text.removeprefix("'") for text in line.values()] for line in lines]
    seen = [[text.strip() for text in row] for row in blocks[0]] if blocks else []
    missing = [row for row in seen if not any(set(row) - {""} <= set(line) for line in texts)]
    assert lines and not missing, (missing, texts)
    assert all("snapshot=" in line["link"] for line in lines if line["link"])


def test_items_are_taken_away_with_their_texts_whatever_the_page(tab: Any, address: str, board: Board) -> None:
    run = board.select(method="BLoB", task="toyworld_uq")[0]
    opened(tab, f"{address}items?run={run.run_id}&size=5&show=wrong")
    count = int(re.search(r"(\d+) of 40 questions", main_text(tab))[1])
    lines = exported(tab)
    assert len(lines) == count > 5 and {line["Right"] for line in lines} == {"no"}
    prompts = [question["prompt"] for question in toyworld.questions("toyworld", "test")]
    assert all(line["Prompt"] == prompts[int(line["Question"])] for line in lines)


def test_a_figure_follows_choices_and_theme_and_can_be_saved(tab: Any, address: str) -> None:
    tab.emulate_media(color_scheme="light")
    opened(tab, f"{address}calibration?row=BLoB")
    box = tab.locator(".js-plotly-plot")
    assert box.evaluate("b => b.data.length") == 5
    tab.get_by_text("95 % bands").click()
    tab.wait_for_function("document.querySelector('.js-plotly-plot')?.data?.length === 4")
    assert parse_qs(urlparse(tab.url).query)["bands"] == ["0"]
    settled(tab)
    box.hover()
    with tab.expect_download() as download:
        box.locator("[data-title^=Download]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"<svg")


def test_draws_are_taken_away_as_points(tab: Any, address: str) -> None:
    opened(tab, f"{address}draws?metric=nll&row=BLoB")
    lines = exported(tab)
    assert [line["N"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[4]["5 % of choices"] == lines[4]["First N draws"] == lines[4]["95 % of choices"]


def test_a_number_leads_to_its_questions_and_every_draw(tab: Any, address: str, board: Board) -> None:
    opened(tab, address)
    tab.locator("table.uq.spread tbody tr", has_text="BLoB").first.locator("td a").first.click()
    tab.wait_for_url("**/items?run=*")
    settled(tab)
    run = board.run(parse_qs(urlparse(tab.url).query)["run"][0])
    record, text = board.record(run.run_id), main_text(tab)
    rows = toyworld.questions("toyworld", "test")
    assert run.method == "BLoB" and rows[0]["prompt"].splitlines()[1] in text
    card = tab.locator("article.uq-item").first
    card.locator("summary").click()
    p = [2.718281828459045 ** float(x) for x in record.logp[1, 0, : record.choices[0]]]
    expected = [f"{100 * x / sum(p):.1f} %" for x in p]
    shown = card.locator("details tbody tr").first.locator("td").all_inner_texts()
    assert [text.strip() for text in shown] == expected


def test_a_hostile_file_is_shown_as_text(tab: Any, address: str, board: Board) -> None:
    run_id = board.select(method=HOSTILE)[0].run_id
    views = (
        "",
        f"run?run={run_id}",
        f"items?run={run_id}",
        f"compare?run={run_id}",
        "method",
        "submit",
        "cost",
    )
    for view in views:
        opened(tab, f"{address}{view}")
        assert tab.locator("img[src='x']").count() == 0, view
    opened(tab, f"{address}run?run={run_id}")
    assert HOSTILE in main_text(tab)
    opened(tab, f"{address}submit")
    assert "results_<script>alert(1)<.json" in main_text(tab)


def test_by_keyboard_from_the_start_to_the_questions(tab: Any, address: str) -> None:
    opened(tab, address)
    focused = "(e => e ? [e.tagName, e.className, e.getAttribute('href') || ''] : [])(document.activeElement)"
    box = False
    for _ in range(80):
        tab.keyboard.press("Tab")
        tag, classes, href = tab.evaluate(focused) or ("", "", "")
        box |= "uq-box" in classes
        if tag == "A" and href.startswith("items?run="):
            break
    else:
        pytest.fail("80 times Tab did not reach a number of the table")
    assert box, "the table's box takes no focus, so it cannot be scrolled by keyboard"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/items?run=*")
    assert settled(tab).locator("h1").inner_text() == "Items"


@pytest.mark.parametrize("page", ["" if name == "table" else name for name in PAGES])
def test_no_page_scrolls_sideways_on_a_phone(tab: Any, address: str, page: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    opened(tab, f"{address}{page}")
    widths = tab.evaluate(
        "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        ".map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(scroll <= client for scroll, client in widths), widths
    assert tab.locator("h1").is_visible()


def test_on_a_phone_a_table_shows_one_data_set_at_a_time(tab: Any, address: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    opened(tab, address)
    box = tab.locator(".uq-table", has=tab.locator("table.spread")).first
    visible = "cells => cells.filter(c => c.offsetWidth).map(c => c.dataset.j)"
    assert box.locator("thead th[data-j]").evaluate_all(visible) == ["0"]
    box.locator(".uq-choose").select_option("1")
    assert box.locator("thead th[data-j]").evaluate_all(visible) == ["1"]


def test_the_static_site_sorts_searches_and_draws_from_a_file(tab: Any, board: Board, tmp_path: Path) -> None:
    site.export(board, tmp_path)
    tab.goto((tmp_path / "methods.html").as_uri())
    head = tab.locator("thead th").nth(3)
    values = "(rows, k) => rows.filter(r => !r.hidden).map(r => r.cells[k].innerText)"
    for expected in ("ascending", "descending"):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == expected
        numbers = [float(text) for text in tab.locator("tbody tr").evaluate_all(values, 3)]
        assert numbers == sorted(numbers, reverse=expected == "descending") and len(set(numbers)) > 1
    tab.goto((tmp_path / "method-blob.html").as_uri())
    tab.get_by_label("Search").fill("blob arc_easy")
    rows = tab.locator(".uq-table", has=tab.get_by_label("Search")).locator("tbody tr").evaluate_all(values, 1)
    assert set(rows) == {"arc_easy_uq"}
    tab.goto((tmp_path / "calibration.html").as_uri())
    tab.wait_for_selector(".figure .main-svg")
    tab.set_viewport_size({"width": 390, "height": 844})
    for name in (
        "index",
        "papers",
        "calibration",
        "methods",
        "submit",
        *(f"run-{run.run_id}" for run in board.runs[:2]),
    ):
        tab.goto((tmp_path / f"{name}.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= 390"), name
        assert tab.locator("img").count() == 0 and os.path.exists(tmp_path / f"{name}.html")


def test_a_column_is_sorted_by_numbers_or_by_text_as_it_holds(tab: Any, tmp_path: Path) -> None:
    columns = {
        "number": (["9.50floor 3.2", "10.25 ± 1.0", "–", "-1.00", "1,200"], [3, 0, 1, 4, 2]),
        "id": (["9c1e", "12ab", "1e5f", "7", "b2"], [2, 3, 0, 1, 4]),
        "date": (["2026-03-01", "2025-12-31", "2026-01-02", "2026-01-01", "2024-05-05"], [4, 1, 3, 2, 0]),
    }
    rows = [[str(k), *(texts[k] for texts, _ in columns.values())] for k in range(5)]
    script = (Path(site.__file__).parent / "board.js").read_text()
    table = markup.grid(Grid(["row", *columns], rows, "made", "words"))
    (tmp_path / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{table}<script>{script}</script>")
    tab.goto((tmp_path / "index.html").as_uri())
    for name, (_, order) in columns.items():
        tab.get_by_role("button", name=name).click()
        assert tab.locator("tbody tr th").all_inner_texts() == [str(k) for k in order], name
