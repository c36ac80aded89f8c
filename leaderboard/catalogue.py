"""The pages in the order of the navigation: name in the address, title, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uqharness.leaderboard.page import Page, View
from uqharness.leaderboard.views import figures, runs, tables


@dataclass(frozen=True)
class Entry:
    title: str
    make: Callable[[View], Page]


PAGES = {
    "table": Entry("Leaderboard", tables.landing),
    "papers": Entry("Papers", tables.papers),
    "reproduce": Entry("Reproduce", tables.reproduced),
    "calibration": Entry("Calibration", figures.calibration),
    "uncertainty": Entry("Uncertainty", figures.uncertainty),
    "shift": Entry("Shift", figures.shift),
    "draws": Entry("Draws", figures.draws),
    "cost": Entry("Cost", figures.cost),
    "compare": Entry("Compare", runs.compare),
    "items": Entry("Items", runs.questions),
    "method": Entry("Method", runs.method),
    "run": Entry("Run", runs.run),
    "submit": Entry("Submit", runs.submit),
}
