"""Tables as Markdown and LaTeX (rounded, best bold, second underlined) and as CSV and JSON (every digit).

CSV and JSON keep the metrics' own units, fractions where Markdown and LaTeX show per cent.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from uqharness.leaderboard.table import Cell, Column, Table
from uqharness.metrics.registry import METRICS

MARKS = {1: ("**", "**"), 2: ("<u>", "</u>")}
TEX_MARKS = {1: (r"\textbf{", "}"), 2: (r"\underline{", "}")}
EXPLAINED = "mean ± standard deviation over training seeds; best bold, second underlined"


def arrow(metric: str) -> str:
    return {True: " ↑", False: " ↓", None: ""}[METRICS[metric].higher_is_better]


def titled(metric: str) -> str:
    """Of an axis or a choice: name, unit, and which way is better."""
    known = METRICS[metric]
    return known.label + (", %" if known.scale == 100 else "") + arrow(metric)


def number(value: float | None, metric: str) -> str:
    known = METRICS[metric]
    return "–" if value is None or math.isnan(value) else f"{value * known.scale:.{known.decimals}f}"


def shown_draws(draws: int, auto: float | None = None) -> str:
    """N, with samples=auto the mean; papers do not always say it (-1)."""
    return "–" if draws < 0 else str(draws) if auto is None else f"auto ({auto:.1f})"


def content(cell: Cell | None, metric: str, marks: dict[int, tuple[str, str]], plus_minus: str) -> str:
    """53.10 ± 1.20, marked; ECE with its floor behind it."""
    if cell is None:
        return "–"
    before, after = marks.get(cell.rank or 0, ("", ""))
    spread = "" if cell.std is None else f" {plus_minus} {number(cell.std, metric)}"
    floor = "" if cell.floor is None else f" (floor {number(cell.floor, metric)})"
    return f"{before}{number(cell.mean, metric)}{after}{'†' * cell.leaked}{'‡' * cell.suspect}{spread}{floor}"


def seeds(table: Table, metric: str, row: int) -> str:
    cells = (table.cells.get((metric, row, j)) for j in range(len(table.columns)))
    counts = [len(c.values) for c in cells if c]
    return shown_range(counts) if any(counts) else "–"


def shown_range(counts: Collection[int]) -> str:
    """3, or 1–3 where they differ."""
    return "–".join(map(str, dict.fromkeys((min(counts), max(counts)))))


def lines(table: Table, marks: dict[int, tuple[str, str]], plus_minus: str) -> list[list[str]]:
    return [
        [METRICS[m].label + arrow(m), method, shown_draws(draws, table.auto.get(i)), seeds(table, m, i)]
        + [content(table.cells.get((m, i, j)), m, marks, plus_minus) for j in range(len(table.columns))]
        for m in table.metrics
        for i, (method, draws) in enumerate(table.rows)
    ]


def header(table: Table) -> list[str]:
    return ["Metric", "Method", "N", "Seeds", *(column.name for column in table.columns)]


def about(table: Table) -> list[str]:
    """Lines below a table: what it shows, then its notes."""
    items = ", ".join(f"{column.name} {column.items}" for column in table.columns if column.items)
    if not items:  # printed in a paper
        return [
            EXPLAINED,
            *["papers print no floor for ECE: marks follow the printed number"] * ("ece" in table.metrics),
            *table.notes,
        ]
    floor = [
        "ECE's floor is what a calibrated predictor with these confidences would show; marks follow the printed number"
    ] * ("ece" in table.metrics)
    return [EXPLAINED, f"items: {items}", *floor, *table.notes]


def markdown(tables: Sequence[Table]) -> str:
    parts = []
    for k, table in enumerate(tables, start=1):
        rows = [[*map(md_letters, row[:4]), *row[4:]] for row in lines(table, MARKS, "±")]
        below = "\n".join(f"- {md_letters(line)}" for line in about(table))
        parts.append(f"### Table {k}\n\n{md_grid(header(table), rows)}\n\n{below}\n")
    return "\n".join(parts)


def md_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of these cells, which are Markdown already."""
    every = [[*map(md_letters, header)], ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in every)


def md_letters(text: str) -> str:
    """Letters on one line: a name in a results file must not become a tag, a link or an image."""
    for plain, escaped in (("\\", r"\\"), ("|", r"\|"), ("<", "&lt;"), ("[", r"\[")):
        text = text.replace(plain, escaped)
    return " ".join(text.split())


def latex(tables: Sequence[Table]) -> str:
    """A block of rows for each metric; what a column was trained on stands below its task."""
    parts = []
    for k, table in enumerate(tables, start=1):
        rows = [tex_row([*map(tex_letters, header(table)[:4]), *(_tex_head(c.name) for c in table.columns)])]
        for i, row in enumerate(lines(table, TEX_MARKS, "±")):
            first = i % len(table.rows) == 0
            rows += [r"\midrule"] * first
            rows.append(
                tex_row([tex_letters(row[0]) if first else "", *map(tex_letters, row[1:4]), *map(_tex_cell, row[4:])])
            )
        grid = tex_grid("l" * 4 + "c" * len(table.columns), rows)
        parts.append(f"{tex_comments([f'Table {k}; needs booktabs', *about(table)])}\n{grid}\n")
    return "\n".join(parts)


def tex_comments(lines: Sequence[str]) -> str:
    return "\n".join(f"% {' '.join(line.split())}" for line in lines)


def tex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def tex_grid(shape: str, rows: Sequence[str]) -> str:
    parts = [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts)


def _tex_head(name: str) -> str:
    parts = [*map(tex_letters, name.replace(" (", "\n(").replace(", ", ",\n").split("\n"))]
    return parts[0] if len(parts) == 1 else r"\shortstack{" + r"\\".join(parts) + "}"


GREEK = "alpha beta gamma delta Delta varepsilon epsilon lambda mu pi rho sigma tau".split()
TEX = {
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": "$-$",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "→": r"$\rightarrow$",
    **{letter: rf"$\{name}$" for letter, name in zip("αβγδΔεϵλμπρστ", GREEK, strict=True)},
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "‡": r"$^\ddagger$",
    "†": r"$^\dagger$",
    "[": "{[}",
    "*": "{*}",  # at the start of a row they would belong to the \\ before it
}


def tex_letters(text: str) -> str:
    """Letters, not commands: a name in a results file must not become one."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))


def _tex_cell(text: str) -> str:
    return text.replace("±", r"$\pm$").replace("–", "--").replace("†", r"$^\dagger$").replace("‡", r"$^\ddagger$")


def cautious(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front (CSV injection, OWASP).

    Its lines end as those of the file: Python before 3.13 writes a lone carriage return so that no reader takes it.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\n") else text


def as_csv(tables: Sequence[Table], link: str = "") -> str:
    """One line per cell; with a link to all of it as the last column."""
    rows = []
    for k, table in enumerate(tables, start=1):
        for (metric, i, j), cell in table.cells.items():
            method, draws = table.rows[i]
            about = _about_column(table.columns[j])
            hashes = {name: cautious(about.pop(name)) for name in ("protocol_hash", "recipe_hash")}
            numbers = {"mean": cell.mean, "std": cell.std, "floor": cell.floor}
            rows.append(
                {
                    "table": k,
                    "metric": metric,
                    "method": cautious(method),
                    "samples": _known(draws),
                    **{name: cautious(value) for name, value in about.items()},
                    "seeds": len(cell.values),
                    **{name: "" if v is None or math.isnan(v) else repr(v) for name, v in numbers.items()},
                    **{name: getattr(cell, name) for name in ("rank", "leaked", "suspect")},
                    **hashes,
                    **({"link": link} if link else {}),
                }
            )
    return csv_of(rows)


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _known(draws: int) -> int | None:
    """Papers do not always say it (-1)."""
    return None if draws < 0 else draws


def _about_column(column: Column) -> dict[str, Any]:
    """Papers do not say how many questions (0)."""
    return {**asdict(column), "items": column.items or None}


def as_json(tables: Sequence[Table]) -> str:
    """Return all values per seed and notes as JSON; null where a metric is not defined."""
    return json.dumps({"tables": [_plain(table) for table in tables]}, indent=2, allow_nan=False) + "\n"


def _plain(table: Table) -> dict[str, Any]:
    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return {
        "columns": [{**_about_column(column), "name": column.name} for column in table.columns],
        "rows": [
            {"method": method, "samples": _known(draws), "mean_taken": table.auto.get(i, _known(draws))}
            for i, (method, draws) in enumerate(table.rows)
        ],
        "cells": [
            {"metric": m, "row": i, "column": j, **finite(asdict(cell))} for (m, i, j), cell in table.cells.items()
        ],
        "notes": table.notes,
    }


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "csv": as_csv,
    "latex": latex,
    "json": as_json,
}
