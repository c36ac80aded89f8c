"""`uqharness export-site`: the leaderboard as a folder of plain files that works from file:// and any web server.

Tables are those of `table.build`, figures those of `charts`: the code that the app shows. All links are relative, one
plotly.js is shared, and nothing is loaded from another host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from plotly.offline import get_plotlyjs

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard import (
    about,
    costs,
    curves,
    picks,
    ranking,
    reported_table,
    run_view,
    site_figures,
    table,
    table_formats,
    table_html,
    table_view,
)
from uqharness.leaderboard import site_html as html
from uqharness.leaderboard.aggregate import Board
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.picks import Group
from uqharness.leaderboard.site_runs import METRICS, MOST_TABLES, method_page, public, public_notes, run_page
from uqharness.leaderboard.table import Cell, Table
from uqharness.leaderboard.theme import OTHERS, PAPERS
from uqharness.metrics.registry import Floats

MOST_PAGES = 2000  # runs that get a page of their own
OWN_PAGES = re.compile(r"(run|method)-[a-z0-9-]+\.html")


@dataclass(frozen=True)
class Site:
    board: Board
    tables: list[Table]
    groups: list[Group]
    answers: Callable[[str, int], Answers]

    def link(self, cell: Cell, draws: int) -> str:
        return f"run-{cell.runs[0]}.html"

    def told(self, run_id: str, draws: int) -> tuple[Floats, np.ndarray]:
        found = self.answers(run_id, draws)
        return found.probs, found.gold

    @property
    def linked(self) -> Callable[[Cell, int], str] | None:
        return self.link if len(self.board.runs) <= MOST_PAGES else None

    @property
    def footer(self) -> str:
        return f"uqharness leaderboard, {table_view.summary(self.board.runs, self.board.problems, self.board.snapshot)}"


def export(board: Board, out: Path) -> list[Path]:
    """Write the site into `out`; returns the files. Pages of an older site that this one has no more are removed."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not holds(out / "site.js", "uqharness"))):
        raise InputError(f"{out} is not empty and holds no site of ours: give a new folder")
    made = dict(pages(board))
    if odd := [name for name in made if os.path.basename(name) != name]:
        raise InputError(f"{odd[0]!r} is no name for a page: a published file with an id that is none?")
    for name, content in made.items():
        write_atomic(out / name, content)
    for old in out.iterdir():
        if OWN_PAGES.fullmatch(old.name) and old.name not in made and holds(old, html.MARK):
            old.unlink()
    return [out / name for name in made]


def holds(file: Path, mark: str) -> bool:
    """Whether a file is ours: others have a site.js as well."""
    return file.is_file() and mark in file.read_text(encoding="utf-8", errors="replace")


def pages(board: Board) -> list[tuple[str, str]]:
    """(file name, content) of everything."""
    sources = board.sources()

    @lru_cache(maxsize=512)
    def answers(run_id: str, draws: int) -> Answers:
        return curves.answers(board.record(run_id), "", draws)

    site = Site(board, public_notes(table.build(sources, METRICS)), picks.groups(sources) if sources else [], answers)
    shared = files("uqharness.leaderboard")
    found = [("plotly.min.js", get_plotlyjs())]
    found += [(name, shared.joinpath(name).read_text(encoding="utf-8")) for name in SHARED]
    found += [(f"table.{end}", table_formats.FORMATS[kind](site.tables)) for kind, end in EXPORTS.items()]
    for name, about_it, make in PAGES:
        found.append((f"{name}.html", html.page(name, html.PAGES[name], about_it, make(site), site.footer)))
    found += [method_page(board, name, site.linked, site.footer) for name in _methods(site)]
    runs = board.runs["run_id"] if len(board.runs) <= MOST_PAGES else []
    return found + [run_page(board, str(run_id), site.footer) for run_id in runs]


SHARED = ("site.js", "figure.js", "site.css")
EXPORTS = {"csv": "csv", "md": "md", "latex": "tex", "json": "json"}


# ---------------------------------------------------------------- pages


def table_page(site: Site) -> list[str]:
    """The landing page of the app: every table with its ranks, and one flat one to sort and search."""
    parts = [html.links([(f"As {end}", f"table.{end}") for end in EXPORTS.values()])]
    for k, found in enumerate(site.tables[:MOST_TABLES], start=1):
        caption = f"Table {k} of {len(site.tables)}" if len(site.tables) > 1 else "Measured with uqharness"
        ranks = {m: ranking.ranks_of(ranking.of_table(found, m, site.told)) for m in found.metrics}
        parts += [table_html.papers_view(found, caption, ranks, site.linked), table_html.notes(found.notes)]
    if not site.tables:
        return [html.paragraph("No measured results were given.")]
    header, rows = table_view.flat(site.tables, costs.of_runs(site.board.runs), True)
    grid = table_html.grid(header, rows, "One row per method, N and data set; a click on a heading sorts")
    return [*parts, html.heading("All of them, to search and sort"), html.searchable("flat", grid)]


def reported_page(site: Site) -> list[str]:
    parts = []
    for name in reported_table.names(site.board.reported):
        found = reported_table.build(site.board.reported, name)
        parts += [table_html.papers_view(found, name, {}, measured=False), table_html.notes(found.notes, 0)]
    return parts


def methods_page(site: Site) -> list[str]:
    rows: list[list[str | tuple[str, str]]] = []
    for name in _methods(site):
        runs = site.board.runs[site.board.runs["method"] == name]
        first = site.board.run(str(runs["run_id"].iloc[0]))
        page = about.pages().get(about.method_name(first))
        title = (name, html.file_of("method", name))
        rows.append([title, page.title if page else "–", about.paper(first) or "–", str(len(runs))])
    return [table_html.grid(["Method", "What", "Paper", "Runs"], rows, "Methods with results", "words")]


def problems_page(site: Site) -> list[str]:
    found = site.board.problems
    if found.empty:
        return [html.paragraph("Every file could be read, and every number agrees with its answers.")]
    keys = ("file", "task", "kind", "reason")
    rows = [[public(str(row[key])) or "–" for key in keys] for row in found.to_dict("records")]
    grid = table_html.grid(["File", "Task", "Kind", "Reason"], rows, f"{len(rows)} remarks", "words")
    return [html.searchable("problems", grid)]


def _methods(site: Site) -> list[str]:
    return run_view.methods(site.board.runs, [*PAPERS, *OTHERS])


def _costs(site: Site) -> list[str]:
    return site_figures.cost(site.groups, costs.of_runs(site.board.runs))


INDEX = (
    "Methods by data sets; every number is computed from the answers. Mean ± standard deviation over training seeds; "
    "best bold, second underlined; #: 1 + how many methods are significantly better."
)
CALIBRATION = (
    "Accuracy against confidence: on the diagonal, confidence means what it says. Gap: confidence less accuracy. "
    "Floor: the ECE that a calibrated model with these confidences would show; compare methods by the debiased value."
)
UNCERTAINTY = (
    "Is it unsure where it is wrong, and where the questions are new? Expected entropy: what stays uncertain within a "
    "draw. Mutual information: what the draws disagree about."
)
DRAWS = (
    "Metrics of the first N draws of one run. Band: 5 to 95 % of 30 random choices of N of its draws; none for results "
    "that were published without single draws. Hollow marker at 0: the posterior's mean."
)
COST = (
    "Training time, memory, parameters and forward passes, as each run recorded them: means over training seeds, to be "
    "compared on the same hardware only. Ringed and bold: nothing else is at least as good in accuracy, debiased ECE "
    "and training time, and better in one."
)
PAGES: tuple[tuple[str, str, Callable[[Site], list[str]]], ...] = (
    ("index", INDEX, table_page),
    ("reported", "As printed: never averaged or ranked with what was measured here.", reported_page),
    ("calibration", CALIBRATION, lambda site: site_figures.calibration(site.groups, site.answers)),
    ("uncertainty", UNCERTAINTY, lambda site: site_figures.uncertainty(site.groups, site.answers)),
    ("draws", DRAWS, lambda site: site_figures.draws(site.groups)),
    ("cost", COST, _costs),
    ("methods", "What was measured, by method.", methods_page),
    ("problems", "Files that could not be used or relied on, with the reason.", problems_page),
)
