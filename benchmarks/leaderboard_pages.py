"""The leaderboard in a browser: how long every page takes to open and to follow a filter, and what the server holds.

    python -m benchmarks.leaderboard_pages RESULTS… [--rounds 3]     without results: the published ones

Headless chromium, 1440 px, one visit before the ones that count (the browser then has Streamlit's scripts; `first
visit` is the very first). Opened: from the address to the page's last element on the screen. A filter: from the click
to the frame with the last change that it caused, after a second's rest; each round takes another choice, so that none
was computed before.
Wall time: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.board_server import serving

PAGES = ("", "calibration", "uncertainty", "draws", "cost", "compare", "items", "method", "run", "problems")
# page -> filters: (kind, label, which of the choices in the first round)
FILTERS = {
    "": [("pill", "flat", 0), ("pill", "papers", 0), ("pill", "OOD", 0), ("pill", "Paper", 0), ("many", "Method", 2)],
    "calibration": [("one", "Data set", 1), ("one", "Bins", 0)],
    "uncertainty": [("one", "Training seed", 1)],
    "draws": [("one", "Data set", 1)],
    "cost": [("one", "Data set", 1)],
    "compare": [("many", "Runs", 0)],
    "items": [("one", "Questions", 1), ("one", "Order", 1)],
    "method": [("one", "Method", 1)],
    "run": [("one", "Data set", 1)],
    "problems": [],
}
# What a page shows last, where it is not a table.
LAST = {**dict.fromkeys(("calibration", "uncertainty", "draws", "cost", "compare"), ".main-svg"), "problems": "h3"}
PATIENCE = 60_000
# When something last changed on the page, and the frame that showed it (a quick run leaves no other trace).
WATCH = """() => {
  window.uqClick = window.uqChange = 0;
  document.addEventListener('click', () => { window.uqClick = performance.now(); window.uqChange = 0; }, true);
  const seen = () => requestAnimationFrame(() => setTimeout(() => { window.uqChange = performance.now(); }));
  for (const part of document.querySelectorAll('[data-testid=stMain], [data-testid=stSidebar]'))
    new MutationObserver(seen).observe(part, {subtree: true, childList: true, characterData: true});
}"""
RESTED = """() => {
  const resting = document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning';
  return resting && uqChange > uqClick && performance.now() - uqChange > 2000 ? uqChange - uqClick : 0;
}"""
SHOWN = """(last) => {
  const app = document.querySelector('[data-testid=stApp]');
  const still = app && app.dataset.testScriptState === 'notRunning' && !document.querySelector('[data-stale=true]');
  return still && document.querySelector(last) ? performance.now() : 0;
}"""


def opened(page: Page, url: str) -> float:
    """Seconds from the address to the last element."""
    page.goto(url)
    last = LAST.get(url.rsplit("/", 1)[-1], ".uq-markup table")
    return float(page.wait_for_function(SHOWN, arg=last, timeout=PATIENCE).json_value()) / 1000


def changed(page: Page, kind: str, label: str, further: int) -> float:
    """Seconds from the click on a filter to the last change of the page, before two seconds without one.

    `further`: which of the choices that are not taken, counted on from the first again.
    """
    page.evaluate(WATCH)
    if kind == "pill":
        either = [page.get_by_role(role, name=label, exact=True) for role in ("radio", "button")]
        either[0].or_(either[1]).click()
    else:
        box = page.locator(f"[data-testid={'stSelectbox' if kind == 'one' else 'stMultiSelect'}]")
        box.filter(has=page.get_by_text(label, exact=True)).locator("input").click()
        choices = page.locator("[role=option]:not([aria-selected=true])")
        choices.first.wait_for()
        choices.nth(further % choices.count()).click()
    return float(page.wait_for_function(RESTED, timeout=PATIENCE, polling=100).json_value()) / 1000


def visit(browser: Browser, address: str, rounds: int) -> None:
    """One line per page: first visit; opened and filters, medians over the rounds."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    for name in PAGES:
        first, again, filters = opened(page, f"{address}/{name}"), list[float](), dict[str, list[float]]()
        for k in range(rounds):
            again.append(opened(page, f"{address}/{name}"))
            page.wait_for_timeout(1000)
            for kind, label, further in FILTERS[name]:
                filters.setdefault(label, []).append(changed(page, kind, label, further + k))
        medians = ", ".join(f"{label} {statistics.median(times):.2f}" for label, times in filters.items())
        print(f"| {name or 'table'} | {first:.2f} | {statistics.median(again):.2f} | {medians or '–'} |", flush=True)


def held(process: int) -> tuple[float, float]:
    """MiB that a process holds now, and the most it ever held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes["VmRSS"], sizes["VmHWM"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with serving(args.results) as (address, process):
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        print("| page | first visit, s | opened, s | filter, s |\n|---|---|---|---|")
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            visit(browser, f"http://{address}", args.rounds)
        now, most = held(process)
        print(f"server: {now:.0f} MiB, at most {most:.0f}")


if __name__ == "__main__":
    main()
