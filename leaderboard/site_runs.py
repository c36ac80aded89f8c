"""The static site's page of a method and of a run, with the questions that the run got wrong most confidently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from uqharness.leaderboard import about, item_html, items, run_view, table, table_html, texts
from uqharness.leaderboard import site_html as html
from uqharness.leaderboard.aggregate import Board
from uqharness.leaderboard.publish import ABSOLUTE
from uqharness.leaderboard.table import Table
from uqharness.leaderboard.table_html import Link
from uqharness.results.reading import Record

METRICS = ("nll", "brier", "acc", "ece")
MOST_TABLES = 20
QUESTIONS = 20  # per run: those that were most confident and wrong


def method_page(board: Board, name: str, link: Link | None, footer: str) -> tuple[str, str]:
    runs = board.runs[board.runs["method"] == name]
    first = board.run(str(runs["run_id"].iloc[0]))
    page, paper = about.pages().get(about.method_name(first)), about.paper(first)
    parts = [html.code(page.equation)] if page else []
    parts += [html.paragraph(f"Paper: {paper}")] if paper else []
    for found in public_notes(table.build(board.sources(method=name), METRICS, [0, None])[:MOST_TABLES]):
        parts += [table_html.papers_view(found, name, {}, link), table_html.notes(found.notes)]
    if link:
        header, rows = run_view.listing(board, runs, "run-{}.html")
        parts.append(html.searchable("runs", table_html.grid(header, rows, "Runs")))
    header, reported, notes = run_view.in_papers(board.reported, name)
    if reported:
        parts += [html.heading("Reported in papers"), table_html.grid(header, reported, "As printed", "numbers")]
        parts.append(table_html.notes(notes))
    file = html.file_of("method", name)
    return file, html.page("methods", name, page.title if page else "", parts, footer)


def run_page(board: Board, run_id: str, footer: str) -> tuple[str, str]:
    run, record = board.run(run_id), board.record(run_id)
    header, rows = run_view.numbers(board, run, record)
    facts = [[key, public(value)] for key, value in run_view.facts(run)]
    left = table_html.grid(header, rows, "Computed from the answers; intervals over questions", "numbers")
    right = table_html.grid(["What", "Value"], facts, "What it is", "words")
    parts = [table_html.notes([public(text) for text in run_view.warnings(run, board.problems)])]
    parts += [
        f'<div class="two"><div>{left}</div><div>{right}</div></div>',
        html.heading("Make it again"),
        *(html.code(public(step)) for step in about.reproduce(run)),
        *(html.paragraph(public(text)) for text in filter(None, [about.withheld_text(run)])),
    ]
    parts += [html.heading("Most confident and wrong"), *_questions(board, run, record)]
    if told := about.short_record(run):
        parts += [
            html.heading("Record of the adapter"),
            html.code(public(json.dumps(told, indent=1, ensure_ascii=False))),
        ]
    title = f"{run['row']} on {run['task']}"
    return f"run-{run_id}.html", html.page("run", title, _about(run), parts, footer)


def _questions(board: Board, run: Mapping[str, Any], record: Record) -> list[str]:
    base = items.baseline(board.runs, run["run_id"])
    found = items.items(record, str(run["row"]), None, board.record(base) if base else None)
    rows = items.select(found, "wrong", "confidence").head(QUESTIONS).to_dict("records")
    words, whence = texts.texts(record, [str(run["file"])], [int(row["at"]) for row in rows])
    cards = [item_html.card(found, row, text) for row, text in zip(rows, words, strict=True)]
    return [html.paragraph(f"{len(rows)} of {record.items:,} questions. {whence}"), *cards]


def public(text: str) -> str:
    """Without the folders of the machine that made it: the site is for others."""
    return ABSOLUTE.sub("", text)


def public_notes(tables: Sequence[Table]) -> list[Table]:
    return [replace(found, notes=[public(line) for line in found.notes]) for found in tables]


def _about(run: Mapping[str, Any]) -> str:
    seed = "no seed" if run["seed"] is None else f"training seed {run['seed']}"
    return f"{seed}, N = {run['draws']}, run {run['run_id']}"
