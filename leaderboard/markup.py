"""Tables and questions as HTML: for keyboard, phone and screen reader, in the app and in the static site.

Templates escape every text; nothing that comes from a results file is trusted markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from uqharness.leaderboard import export, page, table_formats
from uqharness.leaderboard.items import Items
from uqharness.leaderboard.page import Grid, Methods
from uqharness.leaderboard.table import Cell, Column, titled_task
from uqharness.leaderboard.table_formats import arrow, number, seeds, shown_draws
from uqharness.leaderboard.texts import Text
from uqharness.leaderboard.theme import style
from uqharness.metrics.registry import METRICS

SHIFTS = {"id": "in distribution", "small": "small shift", "large": "large shift"}
WIDE = "wide interval: cannot be told apart"
LONGEST, MOST_DRAWS = 6000, 100  # letters of a prompt, and draws of a question, that are shown


@lru_cache(maxsize=1)
def environment() -> Environment:
    folder = Path(__file__).parent / "templates"
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.globals |= {"colour": lambda row: style(row).colour, "attr": _attributes, "more": Markup(' class="more"')}
    return made


def _macro(name: str) -> Any:
    return getattr(environment().get_template("blocks.html.j2").module, name)


def grid(block: Grid, most: int | None = None) -> str:
    """Any table of texts; with `most`, only so many rows, and the caption says so."""
    cut = most is not None and len(block.rows) > most
    caption = f"{block.caption}: {most} of {len(block.rows)} rows; the export has all" if cut else block.caption
    shown = Grid(block.header, block.rows[:most], block.caption, block.kind, block.sortable)
    return str(_macro("grid")(shown, export.latex([shown]), caption))


def link(block: page.Text) -> str:
    """A line that leads to another page."""
    return f'<p class="uq-more"><a href="{escape(block.address)}">{escape(block.text)}</a></p>'


def methods(block: Methods) -> str:
    """Methods x data sets, a block of rows per metric where there are several."""
    table = block.table
    blocks = []
    for metric in table.metrics:
        rows = [_row(block, metric, i) for i in range(len(table.rows))[: block.most] if _any(block, metric, i)]
        title = METRICS[metric].label + arrow(metric) if len(table.metrics) > 1 else ""
        blocks.append({"title": title, "meaning": METRICS[metric].meaning, "rows": rows})
    ranked = bool(block.ranks or block.pending)
    width = 2 + block.measured + len(block.extra) + len(table.columns) + ranked
    best_down = len(table.metrics) == 1 and bool(METRICS[table.metrics[0]].higher_is_better)
    below = [_below(column) for column in table.columns]
    caption = block.caption
    if not block.measured and len(below) > 1 and below[0] and all(lines == below[0] for lines in below):
        caption, below = f"{caption} All data sets {', '.join(below[0])}.", [[] for _ in below]
    if ranked:  # what stands beside the number in the cells of this column
        below = [[*lines, "± over seeds · rank"] for lines in below]
    heads = [(c.task, lines, _hashes(c), best_down) for c, lines in zip(table.columns, below, strict=True)]
    names = [titled_task(column.name) for column in table.columns]
    made = environment().get_template("blocks.html.j2").make_module({"heads": heads, "names": names, "width": width})
    tex, dagger = table_formats.latex([table]), not block.measured and any(c.suspect for c in table.cells.values())
    return str(made.methods(block, table, tex, blocks, caption, dagger))  # type: ignore[attr-defined]


def _any(block: Methods, metric: str, i: int) -> bool:
    return any((metric, i, j) in block.table.cells for j in range(len(block.table.columns)))


def _attributes(column: int, title: str = "", down: bool = False) -> Markup:
    """Of the cells of a data set: on a phone one data set is shown at a time."""
    tooltip = f' title="{escape(title)}"' if title else ""
    return Markup(f' data-j="{column}"{" class=other" if column else ""}{" data-down=1" if down else ""}{tooltip}')


def _below(column: Column) -> list[str]:
    """Under the name of a data set: shift, what was trained on, and how many questions."""
    other = column.name != column.task and column.trained_on
    parts = [
        "synthetic" * column.synthetic,
        SHIFTS.get(column.shift or "", ""),
        f"trained on {column.trained_on}" if other else "",
    ]
    return [part for part in [*parts, f"{column.items:,} questions" if column.items else ""] if part]


def _hashes(column: Column) -> str:
    return f"protocol {column.protocol_hash}, recipe {column.recipe_hash}" if column.protocol_hash else ""


def _row(block: Methods, metric: str, i: int) -> dict[str, Any]:
    table, ranks = block.table, block.ranks.get(metric, {})
    name, draws = table.rows[i]
    cells = [table.cells.get((metric, i, j)) for j in range(len(table.columns))]
    row_ranks = [ranks.get(j, {}).get(i) for j in range(len(cells))]
    filled, known = sum(c is not None for c in cells), [rank for rank in row_ranks if rank]
    top = f"{sum(rank.top for rank in known)} of {len(cells)}" if len(known) == len(cells) else "not ranked"
    if block.pending or filled < len(cells):
        top = "testing …" if block.pending else f"{filled}/{len(cells)} cells"
    return {
        "name": name,
        "about": block.about.get(i, ("", "")),
        "role": block.roles.get(i, ""),
        "draws": shown_draws(draws, table.auto.get(i)),
        "seeds": seeds(table, metric, i),
        "extra": [texts[i] for _, texts in block.extra],
        "cells": [c and _cell(block, c, metric, i, j) for j, c in enumerate(cells)],
        "top": top,
    }


def _cell(block: Methods, cell: Cell, metric: str, i: int, j: int) -> dict[str, Any]:
    rank, ends = block.ranks.get(metric, {}).get(j, {}).get(i), block.intervals.get((metric, i, j))
    spread = "" if cell.std is None else f"± {number(cell.std, metric)}"
    small: list[str] = []
    if ends:
        text = f"{number(ends[0], metric)} … {number(ends[1], metric)}"
        spread, small = (spread, [text]) if spread else (text, [])
    wide = _wide(block, metric, i, j)
    small += [WIDE] * wide + [f"floor {number(cell.floor, metric)}"] * (cell.floor is not None)
    small += [block.beside[i, j]] if (i, j) in block.beside else []
    standing = f"{rank.low - 1} significantly better{'; in the top tier' * rank.top}" if rank else ""
    return {
        "value": number(cell.mean, metric),
        "sort": None if isnan(cell.mean) else f"{cell.mean:.9g}",
        "link": block.link(cell) if block.link and cell.runs else "",
        "place": cell.rank,
        "flags": "†" * cell.leaked + "‡" * cell.suspect,
        "notes": ",".join(map(str, block.marks.get((metric, i, j), ()))),
        "spread": spread,
        "rank": rank,
        "wide": wide,
        "standing": "ranks are being tested" if block.pending else standing,
        "small": small,
    }


def _wide(block: Methods, metric: str, i: int, j: int) -> bool:
    """Whether a cell is in the top tier although a method outside of it shows a better number."""
    ranks, better = block.ranks.get(metric, {}).get(j, {}), METRICS[metric].higher_is_better
    if i not in ranks or not ranks[i].top:
        return False
    values = {k: block.table.cells[metric, k, j].mean * (-1.0 if better else 1.0) for k in ranks}
    return any(values[k] < values[i] for k, rank in ranks.items() if not rank.top)


def card(questions: Items, row: Mapping[str, Any], text: Text | None) -> str:
    """One row of `items.select`: what was asked, and the probability of every choice under every draw."""
    d, count = int(row["at"]), int(row["choices"])
    labels = text.choices if text and len(text.choices) == count else [f"choice {c + 1}" for c in range(count)]
    columns = {"average": questions.shown.probs[d]}
    columns |= {"mean, N = 0": questions.mean.probs[d]} if questions.mean else {}
    columns |= {"MLE": questions.base.probs[d]} if questions.base else {}
    draws = np.zeros((0, count)) if questions.shown.draws is None else questions.shown.draws[:, d]  # [S, C]
    draws = draws[~np.isnan(draws[:, 0])][:MOST_DRAWS]  # with samples=auto a question has no more than it needs
    question = {
        "id": int(row["id"]),
        "state": "right" if row["right"] else "wrong",
        "sure": f"{row['confidence']:.0%}",
        "facts": _facts(questions, row),
        "prompt": _end(text.prompt) if text else f"document {questions.record.doc_hashes[d]}: text not at hand",
        "columns": list(columns),
        "draws": [[f"{100 * p:.1f} %" for p in values[:count]] for values in draws],
        "choices": [
            {
                "label": label,
                "gold": c == int(row["gold"]),
                "width": _at(questions.shown.probs[d][c]),
                "ticks": [_at(p) for p in draws[:, c]],
                "numbers": [f"{100 * values[c]:.1f} %" for values in columns.values()],
            }
            for c, label in enumerate(labels)
        ],
    }
    return str(_macro("card")(question))


def _facts(questions: Items, row: Mapping[str, Any]) -> list[str]:
    parts = [f"NLL {row['nll']:.2f}"]
    if row["mutual_information"] == row["mutual_information"]:
        parts.append(f"mutual information {row['mutual_information']:.3f}")
    if questions.base:
        change = {(True, False): "fixed: MLE has it wrong", (False, True): "broken: MLE has it right"}
        parts.append(change.get((bool(row["right"]), bool(row["base_right"])), "as MLE"))
    return parts


def _end(prompt: str) -> str:
    """The question is at the end, after its examples."""
    return prompt if len(prompt) <= LONGEST else f"… {prompt[-LONGEST:]}"


def _at(p: float) -> str:
    return f"{100 * float(np.clip(p, 0, 1)):.2f}%"
