"""The leaderboard in a browser: how long every page takes to open and to follow a filter, and what the server holds.

    python -m benchmarks.leaderboard_pages RESULTS… [--rounds 3]     without results: the published ones

Headless chromium, 1440 px. First: the very first visit, in which ranks and figures are computed; opened: from the
address to the end of the script and the last element; filter: from a click on a choice that was not made before to the
end of the script that it caused. Wall time: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.board_load import busy, resident
from benchmarks.board_server import chromium, serving
from uqharness.leaderboard.catalogue import PAGES

# page -> the filter that is used: a choice of a select box by its label, or one of the segments
FILTERS = {"table": "Metric of the tables", "papers": "Metric", "calibration": "Data set", "uncertainty": "Data set"}
FILTERS |= {"draws": "Data set", "cost": "Data set", "compare": "Data set", "items": "Questions", "method": "Method"}
FILTERS |= {"run": "Data set", "shift": "Score"}
PATIENCE = 600_000
RESTS = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def rested(page: Page) -> None:
    page.wait_for_selector(f"{RESTS} h1", timeout=PATIENCE)
    page.wait_for_function("!document.querySelector('[data-stale=true]')", timeout=PATIENCE)


def opened(page: Page, url: str) -> float:
    """Return the seconds until the page is there."""
    start = time.monotonic()
    page.goto(url, timeout=PATIENCE)
    rested(page)
    return time.monotonic() - start


def changed(page: Page, label: str, further: int) -> float:
    """Return the seconds that a choice takes; `further`: which of those that are not made."""
    widgets = page.locator("[data-testid=stButtonGroup], [data-testid=stSelectbox]")
    widget = widgets.filter(has=page.get_by_text(label, exact=True)).first
    widget.wait_for()  # drawn a moment after the script ended; a label that is not on the page fails here
    choices = widget.locator("button[role=radio][aria-checked=false]")
    if not choices.count():
        widget.locator("input").click()
        choices = page.locator("[role=option]:not([aria-selected=true])")
        choices.first.wait_for()
    choice = choices.nth(further % choices.count())
    address, start = page.url, time.monotonic()
    choice.click()
    page.wait_for_function("before => location.href !== before", arg=address, timeout=PATIENCE)
    rested(page)
    return time.monotonic() - start


def visit(browser: Browser, address: str, rounds: int) -> None:
    """Print one line per page: first visit; opened and filter, medians over the rounds."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    for name in PAGES:
        url, label = f"{address}/{'' if name == 'table' else name}", FILTERS.get(name)
        first, again, filters = opened(page, url), list[float](), list[float]()
        for k in range(rounds):
            again.append(opened(page, url))
            filters += [changed(page, label, k)] if label else []
        filtered = f"{label} {statistics.median(filters):.2f}" if filters else "–"
        print(f"| {name} | {first:.2f} | {statistics.median(again):.2f} | {filtered} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with serving(args.results) as (address, process):
        print("| page | first visit, s | opened, s | filter, s |\n|---|---|---|---|")
        with sync_playwright() as started:
            visit(chromium(started), f"http://{address}", args.rounds)
        print(f"server: {resident(process):.0f} MiB, {busy(process):.0f} s of processor time")


if __name__ == "__main__":
    main()
