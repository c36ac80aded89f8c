#!/usr/bin/env python
"""Take the pictures of docs/leaderboard.md again.

    python tools/screenshots.py                       # all, of the published results, into docs/img; about two minutes
    python tools/screenshots.py results --out shots --only table phone

Needs playwright (the test extra) and a chromium of the system.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` is no part of the installed package

from benchmarks.board_server import chromium, serving  # noqa: E402

RESTED = '[data-testid="stApp"][data-test-script-state="notRunning"] h1'
TEXT = "document.querySelector('[data-testid=stMain]').innerText"
PHONE = (390, 1930)
GAP = 15  # pixels between phones


@dataclass(frozen=True)
class Shot:
    """One picture: the page, its size, and the text that is scrolled to the top."""

    page: str
    size: tuple[int, int]
    scheme: str = "light"
    top: str = ""


SHOTS = {
    "table": [Shot("", (1440, 2700))],
    "table-dark": [Shot("", (1440, 2700), "dark")],
    "papers": [Shot("papers", (1440, 1330))],
    "calibration": [Shot("calibration", (1440, 1300))],
    "uncertainty": [Shot("uncertainty", (1440, 1000))],
    "draws": [Shot("draws", (1440, 1330))],
    "shift": [Shot("shift", (1440, 2500))],
    "items": [Shot("items?task=toyworld_uq&method=BLoB", (1440, 1250))],
    "phone": [Shot("", PHONE), Shot("", PHONE, top="synthetic world"), Shot("", PHONE, "dark")],
}


def taken(browser: Browser, address: str, shot: Shot) -> Image.Image:
    width, height = shot.size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=shot.scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{address}/{shot.page}")
    before = None
    while True:  # ranks come in a second run of the script, figures after it
        page.wait_for_selector(RESTED)
        page.wait_for_timeout(1500)
        if (text := page.evaluate(TEXT)) == before:
            break
        before = text
    if shot.top:
        page.get_by_role("heading", name=shot.top).first.evaluate("e => e.scrollIntoView()")
        page.wait_for_timeout(800)
    picture = Image.open(io.BytesIO(page.screenshot()))
    context.close()
    return picture.convert("RGB")


def beside(pictures: list[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    joined, left = Image.new("RGB", (width, pictures[0].height), "#8a87a0"), 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + GAP
    return joined


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    parser.add_argument("--only", nargs="+", choices=SHOTS, default=list(SHOTS))
    args = parser.parse_args(argv)
    with serving(args.results, UQHARNESS_LEADERBOARD_CACHE="") as (address, _), sync_playwright() as started:
        browser = chromium(started)
        for name in args.only:
            picture = beside([taken(browser, f"http://{address}", shot) for shot in SHOTS[name]])
            file = args.out / f"leaderboard-{name}.png"
            picture.save(file, optimize=True)
            print(f"{file}: {picture.width} x {picture.height}, {file.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
