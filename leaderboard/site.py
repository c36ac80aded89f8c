"""`uqharness export-site`: the leaderboard as a folder of plain files that works from file:// and any web server.

The pages are those of the app, one section for every table, data set, figure and metric that the app lets one choose.
All links are relative, one plotly.js is shared, and nothing is loaded from another host.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from uqharness.atomic import write_atomic
from uqharness.errors import InputError
from uqharness.leaderboard import about, charts, markup, run_view, table_formats
from uqharness.leaderboard.board import Board
from uqharness.leaderboard.catalogue import PAGES
from uqharness.leaderboard.page import Block, Cards, Columns, Figure, Grid, Methods, Page, Text, View
from uqharness.leaderboard.publish import ABSOLUTE
from uqharness.leaderboard.results import Results
from uqharness.leaderboard.theme import KNOWN
from uqharness.leaderboard.views import runs

MOST_PAGES = 2000  # runs that get a page of their own
MOST_SECTIONS = 60  # of a page
QUESTIONS = 20  # of a run: those that were most confident and wrong
OWN_PAGES = re.compile(r"(run|method)-[a-z0-9-]+\.html")
MARK = " · uqharness leaderboard"  # by it a page is known as ours
HERE = Path(__file__).parent
SHARED = ("board.js", "figure.js", "board.css", "site.css")
EXPORTS = {"csv": "csv", "md": "md", "latex": "tex", "json": "json"}
# Pages of the app with a file of their own, and what of them is shown in every form; items are on the page of a run.
SECTIONS = {
    "table": ("metric",),
    "papers": ("paper",),
    "reproduce": ("paper", "metric"),
    "calibration": ("table", "data", "figure"),
    "uncertainty": ("table", "figure", "data"),
    "shift": ("data",),
    "draws": ("table", "data"),
    "cost": ("table", "data"),
    "submit": (),
}
NAVIGATION = [("index" if name == "table" else name, PAGES[name].title) for name in SECTIONS]
NAVIGATION.insert(-1, ("methods", "Methods"))


def export(board: Board, out: Path) -> list[Path]:
    """Write the site into `out`; returns the files. Pages of an older site that this one has no more are removed."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not holds(out / "index.html", MARK))):
        raise InputError(f"{out} is not empty and holds no site of ours: give a new folder")
    made = dict(pages(board))
    if odd := [name for name in made if os.path.basename(name) != name]:
        raise InputError(f"{odd[0]!r} is no name for a page: a published file with an id that is none?")
    for name, content in made.items():
        write_atomic(out / name, content)
    for old in out.iterdir():
        if OWN_PAGES.fullmatch(old.name) and old.name not in made and holds(old, MARK):
            old.unlink()
    return [out / name for name in made]


def holds(file: Path, mark: str) -> bool:
    """Whether a file is ours: others have an index.html as well."""
    return file.is_file() and mark in file.read_text(encoding="utf-8", errors="replace")


def pages(board: Board) -> Iterator[tuple[str, str]]:
    """(file name, content) of everything."""
    results = Results(board)
    yield "plotly.min.js", get_plotlyjs()
    yield from ((name, (HERE / name).read_text(encoding="utf-8")) for name in SHARED)
    tables = results.tables([run.run_id for run in results.runs], ("nll", "brier", "acc", "ece"), [None])
    tables = [replace(table, notes=[public(line) for line in table.notes]) for table in tables]
    yield from ((f"table.{end}", table_formats.FORMATS[kind](tables)) for kind, end in EXPORTS.items())
    address = _address(len(board.runs) <= MOST_PAGES)
    for name, varied in SECTIONS.items():
        forms = list(sections(results, name, varied, address))
        file = "index" if name == "table" else name
        yield (
            f"{file}.html",
            document(file, forms[0], forms, board, take=[*EXPORTS.values()] if name == "table" else []),
        )
    yield from _of_methods(results, address)
    for run in board.runs if len(board.runs) <= MOST_PAGES else ():
        yield f"run-{run.run_id}.html", _of_run(results, run.run_id)


def sections(results: Results, name: str, varied: Sequence[str], address: Any) -> Iterator[Page]:
    """The page as it opens, and in every form that the named controls give it, one after the other."""

    def make(params: Mapping[str, Any]) -> Page:
        return PAGES[name].make(View(results, {key: [str(value)] for key, value in params.items()}, address))

    def forms(known: dict[str, Any], left: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not left:
            yield known
            return
        control = next((c for c in make(known).controls if c.name == left[0]), None)
        for option in control.options if control else [None]:
            yield from forms({**known, left[0]: option} if control else known, left[1:])

    for params in itertools.islice(forms({}, varied), MOST_SECTIONS):
        page = make(params)
        named = [c.text(c.value) for c in page.controls if c.name in varied and len(c.options) > 1]
        heading = [Text(" · ".join(named), "heading")] if named else []
        yield replace(page, blocks=[*heading, *page.blocks])


def document(here: str, page: Page, forms: Sequence[Page], board: Board, **more: Any) -> str:
    parts, seen = list[Markup](), set[str]()
    for number, each in enumerate(forms):
        for k, block in enumerate(each.blocks):
            part = render(block, f"{here}-{number}-{k}")
            content = str(part).replace(f"{here}-{number}-", "")
            repeated = isinstance(block, Figure) or (isinstance(block, Text) and block.kind != "heading")
            if not (repeated and content in seen):  # the same in every section
                parts.append(part)
            seen.add(content)
    made = {
        "here": here,
        "title": page.title,
        "about": page.about,
        "parts": parts,
        "mark": MARK,
        "navigation": NAVIGATION,
        "footer": f"uqharness leaderboard, {len(board.runs):,} runs, results {board.snapshot}",
        "drawn": any('class="figure"' in part for part in parts),
        "take": [],
        **more,
    }
    return markup.environment().get_template("page.html.j2").render(made)


def render(block: Block, name: str) -> Markup:
    """A block as HTML; every text of a result is escaped, and names no folder of this machine."""
    if isinstance(block, Text):
        if block.address:
            return Markup(markup.link(block))
        text = escape(public(block.text))
        if block.kind in ("code", "json"):
            return Markup('<pre class="code" tabindex="0">{}</pre>').format(text)
        tag = "h2" if block.kind == "heading" else "p"
        return Markup('<{0} class="{1}">{2}</{0}>').format(Markup(tag), Markup(block.kind), text)
    if isinstance(block, Figure):
        if block.empty:
            return Markup("<p>{}</p>").format(block.empty)
        chart = block.figure
        text = Markup(charts.as_json(chart).replace("<", "\\u003c"))  # a name cannot end the script
        shape = (
            '<div class="figure" id="{}" role="img" aria-label="{}" style="height:{}px">'
            '<script type="application/json">{}</script></div>'
        )
        return Markup(shape).format(name, block.alt, chart["layout"]["height"], text)
    if isinstance(block, Methods):
        lines = [public(line) for line in block.table.notes]
        return Markup(markup.methods(replace(block, table=replace(block.table, notes=lines))))
    if isinstance(block, Cards):
        return Markup(block.html)
    if isinstance(block, Columns):
        sides = [
            Markup("").join(render(b, f"{name}-{s}-{k}") for k, b in enumerate(side))
            for s, side in enumerate((block.left, block.right))
        ]
        return Markup('<div class="two"><div>{}</div><div>{}</div></div>').format(*sides)
    rows = [[public(cell) if isinstance(cell, str) else cell for cell in row] for row in block.rows]
    table = Markup(markup.grid(replace(block, rows=rows)))
    return Markup("<details><summary>{}</summary>{}</details>").format(block.caption, table) if block.folded else table


def public(text: str) -> str:
    """Without the folders of the machine that made it: the site is for others."""
    return ABSOLUTE.sub("", text)


def _address(own_pages: bool) -> Any:
    def address(page: str, params: Mapping[str, Any]) -> str:
        if page == "method" and "method" in params:
            return file_of("method", params["method"])
        if page in SECTIONS and not params:
            return "index.html" if page == "table" else f"{page}.html"
        return f"run-{params['run']}.html" if own_pages and "run" in params else ""

    return address


def _of_methods(results: Results, address: Any) -> Iterator[tuple[str, str]]:
    board, rows = results.board, list[list[Any]]()
    for name in run_view.methods(board.runs):
        runs = board.select(method=name)
        known = about.pages().get(about.method_name(runs[0]))
        what = known.title[:1].upper() + known.title[1:] if known else "–"
        rows.append([(name, file_of("method", name)), what, about.paper(runs[0]) or "–", str(len(runs))])
        page = PAGES["method"].make(View(results, {"method": [name]}, address))
        shown = [b for b in page.blocks if not (isinstance(b, Text) and b.kind == "markdown")]
        page = replace(page, title=name, about="", blocks=shown)
        yield file_of("method", name), document("methods", page, [page], board)
    grid = Grid(["Method", "What", "Paper", "Runs"], rows, "Methods with results", "words")
    page = Page("Methods", "What was measured, by method.", [grid])
    yield "methods.html", document("methods", page, [page], board)


def _of_run(results: Results, run_id: str) -> str:
    """The page of a run, and the questions that it got wrong most confidently. It links to no other view of it."""
    page = PAGES["run"].make(View(results, {"run": [run_id]}, lambda *_: ""))
    params = {"run": [run_id], "show": ["wrong"], "sort": ["confidence"], "size": [str(QUESTIONS)]}
    wrong, run = runs.questions(View(results, params)), results.run(run_id)
    seed = "no seed" if run.seed is None else f"training seed {run.seed}"
    blocks = [*page.blocks, Text("Most confident and wrong", "heading"), *wrong.blocks]
    about, title = f"{seed}, N = {run.draws}, run {run_id}", f"{results.board.label(run)} on {run.task}"
    return document("run", replace(page, title=title, about=about), [replace(page, blocks=blocks)], results.board)


def file_of(kind: str, name: str) -> str:
    """A file name for a method: readable where that is safe; two methods never share one, whatever the file system."""
    if name in KNOWN:
        return f"{kind}-{name.lower()}.html"
    readable = f"{name.lower()}-" if re.fullmatch(r"[A-Za-z0-9-]{1,40}", name) else ""
    return f"{kind}-{readable}{hashlib.sha256(name.encode()).hexdigest()[:12]}.html"
