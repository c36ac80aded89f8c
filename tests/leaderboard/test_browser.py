"""The leaderboard in a real browser: what a reader sees, clicks, links to and takes away.

Needs playwright and a chromium of the system (Debian's); no browser is downloaded. One server for all tests.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from made_results import PROTOCOL, answers, result

from uqharness import cli, toyworld
from uqharness.commands.leaderboard import command, environment
from uqharness.leaderboard import site, site_html, table_html
from uqharness.leaderboard.aggregate import Board, build
from uqharness.leaderboard.table_formats import number
from uqharness.results.reading import RECORD
from uqharness.results.record import digest, pack

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install uqharness[test]"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium"),
]
HOSTILE = "<img src=x onerror=alert(1)><b>BOLD</b>=1+1"
PAGES = ("", "calibration", "uncertainty", "draws", "cost", "compare", "items", "method", "run", "problems")
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
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = {**environment([folder, broken]), "UQHARNESS_LEADERBOARD_CACHE": ""}
    server = subprocess.Popen(command(port, "localhost"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://localhost:{port}/"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A page that fails the test where a script of a result runs or another host is asked."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
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


def cells(tab: Any) -> dict[tuple[str, str, str], str]:
    """(metric, method, data set) -> first number of the cell, of the first table on the landing page."""
    head, blocks = tab.locator("table.uq").first.evaluate(READ)  # at once: ranks may still come in
    tasks = [text.split("\n")[0].strip() for text in head]
    found = {}
    for block in blocks:
        metric = re.sub(r"[^A-Za-z ]", "", block[0][0]).strip()
        for row in block[1:]:
            for task, text in list(zip(tasks, row, strict=True))[3:]:
                if number_in := re.search(r"-?\d+\.\d+", text):
                    found[metric, row[0].strip(), task] = number_in[0]
    return {key: value for key, value in found.items() if key[2] != "Top tier"}


def tables_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    assert cli.main(["table", str(folder), "--metric", "nll,brier,acc,ece", "--format", "json", *more]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tables"]
    return found


def test_the_landing_table_is_that_of_the_command(
    tab: Any, address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tab, address)
    seen, expected = cells(tab), {}
    told = tables_of_the_command(folder, capsys)[0]
    labels = {"nll": "NLL", "brier": "Brier", "acc": "ACC", "ece": "ECE"}
    for cell in told["cells"]:
        key = (labels[cell["metric"]], told["rows"][cell["row"]]["method"], told["columns"][cell["column"]]["task"])
        expected[key] = number(cell["mean"], cell["metric"])
    assert seen == expected and len(expected) > 20


def test_a_filter_is_in_the_address_and_the_address_gives_the_view_again(tab: Any, address: str) -> None:
    opened(tab, address)
    before = table_text(tab)
    tab.get_by_role("radio", name="flat").or_(tab.get_by_role("button", name="flat")).first.click()
    tab.wait_for_function("location.search.includes('layout=flat')")
    settled(tab)
    filtered = table_text(tab)
    assert filtered != before and parse_qs(urlparse(tab.url).query)["layout"] == ["flat"]
    tab.reload()
    assert table_text(settled(tab)) == filtered
    opened(tab, f"{address}?layout=flat&metric=acc&metric=gone")
    assert "gone" in main_text(tab) and "Brier" not in tab.locator("table.uq").first.inner_text()


@pytest.mark.parametrize("width", [1440, 390])
def test_a_long_name_is_shown_to_its_end(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    name = table_html._named("SmolLM2-135M-Instruct, dequantised Q4_1 (zero-shot)")
    cells = "<td>1.234</td>" * 30
    row = f'<tr><th scope="row">{name}</th>{cells}</tr>'
    tab.set_content(f'{table_html.CSS}<div class="uq-box"><table class="uq"><tbody>{row}</tbody></table></div>')
    seen, whole = (tab.locator(found).bounding_box() for found in (".uq th", ".uq .name"))
    assert whole["x"] + whole["width"] <= seen["x"] + seen["width"] and whole["width"] < 300
    assert tab.evaluate("(n => n.scrollWidth <= n.clientWidth)(document.querySelector('.uq .name'))")


def exported(tab: Any) -> list[dict[str, str]]:
    """The page's export as CSV."""
    tab.get_by_role("button", name="Export").first.click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="CSV").click()
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))


def test_the_export_is_the_view(tab: Any, address: str) -> None:
    opened(tab, f"{address}?metric=nll&metric=acc")
    seen, lines = cells(tab), exported(tab)
    first = [line for line in lines if line["table"] == "1"]
    names = {"nll": "NLL", "acc": "ACC"}
    told = {
        (names[x["metric"]], x["method"].lstrip("'"), x["task"]): number(float(x["mean"]), x["metric"]) for x in first
    }
    assert told == seen and {x["metric"] for x in lines} == set(names)
    assert f"{address.rstrip('/')}?metric=nll&metric=acc&snapshot=" in first[0]["link"]


@pytest.mark.parametrize(
    "view",
    [
        "?layout=flat&cost=1",
        "calibration?bins=10",
        "calibration?figure=confidence",
        "uncertainty?figure=risk",
        "uncertainty?figure=parts",
        "cost",
        "compare",
        "run",
        "problems",
    ],
)
def test_every_page_gives_its_tables_away(tab: Any, address: str, view: str) -> None:
    opened(tab, address + view)
    _, blocks = tab.locator("table.uq").first.evaluate(READ)
    seen = [[text.strip() for text in row] for row in blocks[0]]
    lines = exported(tab)
    told = [[text.removeprefix("'") for text in line.values()] for line in lines]
    missing = [row for row in seen if not any(set(row) - {""} <= set(line) for line in told)]
    assert seen and not missing, (missing, told)
    assert "Forward passes" in lines[0] or "cost" not in view
    assert all(urlparse(line["link"]).path.strip("/") == view.partition("?")[0] for line in lines)


def test_items_are_taken_away_with_their_texts_whatever_the_page(tab: Any, address: str, board: Board) -> None:
    run = board.runs[(board.runs["method"] == "BLoB") & (board.runs["task"] == "toyworld_uq")].iloc[0]
    opened(tab, f"{address}items?run={run['run_id']}&size=5&show=wrong")
    count = int(re.search(r"(\d+) of 40 questions", main_text(tab))[1])
    lines = exported(tab)
    assert len(lines) == count > 5 and {line["Right"] for line in lines} == {"no"}
    prompts = [question["prompt"] for question in toyworld.questions("toyworld", "test")]
    assert all(line["Prompt"] == prompts[int(line["Question"])] for line in lines)


def test_a_figure_follows_filters_window_and_theme_and_can_be_saved(tab: Any, address: str) -> None:
    tab.emulate_media(color_scheme="light")
    opened(tab, f"{address}calibration?row=BLoB")
    tab.wait_for_selector(".uq-figure .main-svg")
    box = tab.locator(".uq-figure")
    assert "BLoB" in box.get_attribute("aria-label") and box.evaluate("b => b.data.length") == 5
    box.evaluate("b => { b.drawn = 0; b.on('plotly_afterplot', () => { b.drawn += 1; }); }")
    tab.get_by_text("95 % bands").click()
    tab.wait_for_function("document.querySelector('.uq-figure').data.length === 4")
    tab.wait_for_timeout(300)
    assert box.evaluate("b => b.drawn") == 1  # the same element, drawn once
    tab.set_viewport_size({"width": 1100, "height": 900})
    fits = "(() => { const b = document.querySelector('.uq-figure');"
    tab.wait_for_function(f"{fits} return b.querySelector('.main-svg').clientWidth === b.clientWidth; }})()")
    tab.emulate_media(color_scheme="dark")
    told = "c(b.querySelector('.ytick text')).fill === c(document.querySelector('h1')).color"
    tab.wait_for_function(f"{fits} const c = getComputedStyle; return {told}; }})()")
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<svg")):
        tab.get_by_text(kind.upper(), exact=True).click()
        settled(tab)
        box.hover()
        with tab.expect_download() as download:
            box.locator("[data-title^=Download]").click()
        assert download.value.suggested_filename == f"uqharness-reliability.{kind}"
        assert Path(download.value.path()).read_bytes().startswith(begins)


def test_draws_are_taken_away_as_points(tab: Any, address: str) -> None:
    opened(tab, f"{address}draws?metric=nll&row=BLoB")
    lines = exported(tab)
    assert [line["N"] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[4]["5 % of choices"] == lines[4]["First N draws"] == lines[4]["95 % of choices"]


def test_a_number_leads_to_its_questions_and_every_draw(tab: Any, address: str, board: Board) -> None:
    opened(tab, address)
    tab.locator("table.uq tbody tr", has_text="BLoB").first.locator("a").first.click()
    tab.wait_for_url("**/items?run=*")
    settled(tab)
    run = board.run(parse_qs(urlparse(tab.url).query)["run"][0])
    record, text = board.record(run["run_id"]), main_text(tab)
    rows = toyworld.questions("toyworld", "test")
    assert run["method"] == "BLoB" and rows[0]["prompt"].splitlines()[1] in text
    card = tab.locator("article.uq-item").first
    card.locator("summary").click()
    p = [2.718281828459045 ** float(x) for x in record.logp[1, 0, : record.choices[0]]]
    expected = [f"{100 * x / sum(p):.1f} %" for x in p]
    shown = card.locator("details tbody tr").first.locator("td").all_inner_texts()
    assert [text.strip() for text in shown] == expected


def test_a_hostile_file_is_shown_as_text(tab: Any, address: str, board: Board) -> None:
    run_id = str(board.runs[board.runs["method"] == HOSTILE]["run_id"].iloc[0])
    views = (
        "?task=x",
        f"run?run={run_id}",
        f"items?run={run_id}",
        f"compare?run={run_id}",
        "method",
        "problems",
        "cost",
    )
    for view in views:
        opened(tab, f"{address}{view}")
        assert tab.locator("img[src='x']").count() == 0, view
    opened(tab, f"{address}run?run={run_id}")
    assert HOSTILE in main_text(tab)
    opened(tab, f"{address}problems")
    assert "results_<script>alert(1)<.json" in main_text(tab)


def test_by_keyboard_from_the_start_to_the_questions(tab: Any, address: str) -> None:
    opened(tab, address)
    told = "(e => e ? [e.tagName, e.className, e.getAttribute('href') || ''] : [])(document.activeElement)"
    box = False
    for _ in range(80):
        tab.keyboard.press("Tab")
        tag, classes, href = tab.evaluate(told) or ("", "", "")
        box |= "uq-box" in classes
        if tag == "A" and href.startswith("items?run="):
            break
    else:
        pytest.fail("80 times Tab did not reach a number of the table")
    assert box, "the table's box takes no focus, so it cannot be scrolled by keyboard"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/items?run=*")
    assert settled(tab).locator("h1").inner_text() == "Items"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_scrolls_sideways_on_a_phone(tab: Any, address: str, page: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    opened(tab, f"{address}{page}")
    widths = tab.evaluate(
        "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        ".map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(scroll <= client for scroll, client in widths), widths
    assert tab.locator("h1").is_visible()


def test_the_static_site_sorts_searches_and_draws_from_a_file(tab: Any, board: Board, tmp_path: Path) -> None:
    site.export(board, tmp_path)
    tab.goto((tmp_path / "index.html").as_uri())
    flat = tab.locator("#flat table.uq")
    column = flat.locator("thead th").all_inner_texts().index("NLL")
    values = "(rows, k) => rows.filter(r => !r.hidden).map(r => r.cells[k].innerText)"
    for expected in ("ascending", "descending"):
        flat.locator("thead th").nth(column).locator("button").press("Enter")
        assert flat.locator("thead th").nth(column).get_attribute("aria-sort") == expected
        found = [float(text.split()[0]) for text in flat.locator("tbody tr").evaluate_all(values, column)]
        assert found == sorted(found, reverse=expected == "descending") and len(set(found)) > 3
    tab.get_by_label("Search").fill("blob arc_easy")
    assert flat.locator("tbody tr").evaluate_all(values, 0) == ["BLoB"]
    tab.goto((tmp_path / "calibration.html").as_uri())
    tab.wait_for_selector(".figure .main-svg")
    tab.set_viewport_size({"width": 390, "height": 844})
    for name in ("index", "calibration", "methods", "problems", *(f"run-{i}" for i in board.runs["run_id"][:2])):
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
    (tmp_path / "site.js").write_text((Path(site.__file__).parent / "site.js").read_text())
    table = table_html.grid(["row", *columns], rows, "made", "words")
    (tmp_path / "index.html").write_text(site_html.page("index", "x", "", [table], ""))
    tab.goto((tmp_path / "index.html").as_uri())
    for name, (_, order) in columns.items():
        tab.get_by_role("button", name=name).click()
        assert tab.locator("tbody tr th").all_inner_texts() == [str(k) for k in order], name
