"""A reproduction as Markdown, CSV, HTML and LaTeX: the paper's numbers and ours have separate columns."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from math import isnan, nan
from typing import Any

from uqharness.leaderboard.reproduce import Cell, Claim, Number, Report
from uqharness.leaderboard.table import places
from uqharness.leaderboard.table_formats import (
    MARKS,
    TEX_MARKS,
    cautious,
    csv_of,
    md_grid,
    md_letters,
    tex_comments,
    tex_grid,
    tex_letters,
    tex_row,
    titled,
)
from uqharness.metrics.registry import METRICS

# Costs: title, factor, decimals.
UNITS = {
    "train_seconds": ("Training, s", 1.0, 0), "peak_memory": ("Memory, MB", 2.0**-20, 0),
    "trainable": ("Trained parameters, million", 1e-6, 2),
}  # fmt: skip
SIGNS = {"agrees": "=", "differs": "≠", "cannot be told": "?", "no verdict": "", "not measured": ""}
HTML_MARKS = {1: ("<b>", "</b>"), 2: ("<u>", "</u>")}
Ranks = dict[int, int]  # position of a cell -> 1 best, 2 second


def title(metric: str) -> str:
    return UNITS[metric][0] if metric in UNITS else titled(metric)


def digits(value: float | None, metric: str) -> str:
    if value is None or isnan(value):
        return "–"
    _, factor, decimals = UNITS.get(metric) or ("", METRICS[metric].scale, METRICS[metric].decimals)
    return f"{value * factor:.{decimals}f}"


def shown(number: Number | None, metric: str, mark: tuple[str, str] = ("", "")) -> str:
    if number is None:
        return "–"
    spread = "" if number.std is None else f" ± {digits(number.std, metric)}"
    return f"{mark[0]}{digits(number.mean, metric)}{mark[1]}{spread}"


def ranks(cells: Sequence[Cell], side: str) -> Ranks:
    """Best and second printed number of each data set and metric, the "paper"'s or "ours": `table.places`."""
    columns: dict[tuple[str, ...], dict[int, float]] = {}
    for i, cell in enumerate(cells):
        number: Number | None = getattr(cell, side)
        if cell.metric in METRICS and number is not None and not isnan(number.mean) and not cell.suspect:
            columns.setdefault((cell.metric, cell.dataset, cell.trained_on, cell.base), {})[i] = number.mean
    return {i: place for (metric, *_), column in columns.items() for i, place in places(column, metric).items()}


def change(cell: Cell) -> str:
    """The difference with its interval."""
    low, high = cell.interval
    if isnan(cell.difference):
        return "–"
    sign = "+" if cell.difference >= 0 else "−"
    text = f"{sign}{digits(abs(cell.difference), cell.metric)}"
    ends = f" [{digits(low, cell.metric)}, {digits(high, cell.metric)}]".replace("-", "−")
    return text if isnan(low) else text + ends


def where(cell: Cell) -> str:
    return cell.dataset if cell.trained_on in (cell.dataset, "") else f"{cell.dataset} (trained on {cell.trained_on})"


def several_bases(report: Report) -> bool:
    return len({cell.base for cell in report.cells}) > 1


CELL_HEADS = ("Method", "N", "Data set", "Paper", "Ours", "Seeds", "Ours − paper, 95 % interval", "Verdict")
CLAIM_HEADS = ("The paper says", "Tested", "Data set", "Difference, 95 % interval", "Steps at which it held", "Verdict")


def cell_rows(report: Report, metric: str, marks: dict[int, tuple[str, str]]) -> list[list[str]]:
    printed, measured = ranks(report.cells, "paper"), ranks(report.cells, "ours")
    several, shared = several_bases(report), shared_reasons(report)
    rows = []
    for i, cell in enumerate(report.cells):
        if cell.metric == metric:
            flag = " ‡" if cell.suspect else ""
            rows.append([
                f"{cell.method}, {cell.base}" if several else cell.method,
                "–" if cell.draws is None else str(cell.draws),
                where(cell), shown(cell.paper, metric, marks[printed[i]] if i in printed else ("", "")) + flag,
                shown(cell.ours, metric, marks[measured[i]] if i in measured else ("", "")),
                str(cell.ours.seeds) if cell.ours else "–", change(cell), said(cell.verdict, cell.why, shared),
            ])  # fmt: skip
    return rows


def claim_row(claim: Claim, shared: Sequence[str]) -> list[str]:
    metric = claim.metric
    low, high = claim.interval
    gap = "–" if isnan(claim.difference) else digits(claim.difference, metric)
    ends = "" if isnan(low) else f" [{digits(low, metric)}, {digits(high, metric)}]"
    tested = f"{title(metric)}: {claim.left} {claim.relation} {claim.right}"
    held = f"{claim.held} of {claim.points}"
    text = said(claim.verdict, claim.why, shared)
    return [claim.words, tested, claim.dataset, (gap + ends).replace("-", "−"), held, text]


def metrics_of(report: Report) -> list[str]:
    return list(dict.fromkeys(cell.metric for cell in report.cells))


def summary(report: Report) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts().items()) or "nothing to compare"
    everywhere = "; ".join(shared_reasons(report))
    return f"{counts}; everywhere: {everywhere}" if everywhere else counts


def shared_reasons(report: Report) -> list[str]:
    """Return the reasons without a verdict that all cells share."""
    each = [cell.why.split("; ") for cell in report.cells if cell.ours]
    each += [claim.why.split("; ") for claim in report.claims if claim.points]
    return [reason for reason in each[0] if reason and all(reason in other for other in each)] if each else []


def said(verdict: str, why: str, shared: Sequence[str]) -> str:
    own = "; ".join(reason for reason in why.split("; ") if reason and reason not in shared)
    return f"{verdict}: {own}" if own else verdict


def sections(
    report: Report, marks: dict[int, tuple[str, str]], letters: Callable[[str], str]
) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return (title, header, rows) of each metric and of the tested sentences, every text as letters of a format."""
    shared, parts = shared_reasons(report), list[tuple[str, Sequence[str], list[list[str]]]]()
    for metric in metrics_of(report):
        cells = cell_rows(report, metric, marks)
        rows = [[*map(letters, row[:3]), *row[3:5], *map(letters, row[5:])] for row in cells]  # two have marks
        parts.append((title(metric), CELL_HEADS, rows))
    if report.claims:
        parts.append(
            ("What the paper says", CLAIM_HEADS, [[*map(letters, claim_row(c, shared))] for c in report.claims])
        )
    return parts


def markdown(report: Report) -> str:
    parts = [f"## {md_letters(report.title)}\n\n{summary(report)}"]
    parts += [f"### {name}\n\n{md_grid(header, rows)}" for name, header, rows in sections(report, MARKS, md_letters)]
    parts.append("\n".join(f"- {md_letters(note)}" for note in report.notes))
    return "\n\n".join(filter(None, parts)) + "\n"


def as_html(report: Report) -> str:
    """One page without scripts."""
    parts = [f"<h1>{html.escape(report.title)}</h1>", f"<p>{html.escape(summary(report))}</p>"]
    for name, header, rows in sections(report, HTML_MARKS, html.escape):
        head = "".join(f"<th>{html.escape(each)}</th>" for each in header)
        body = "\n".join("<tr>" + "".join(f"<td>{each}</td>" for each in row) + "</tr>" for row in rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        parts += [f"<h2>{html.escape(name)}</h2>", table]
    parts.append("<ul>\n" + "\n".join(f"<li>{html.escape(note)}</li>" for note in report.notes) + "\n</ul>")
    style = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{padding:.2em .6em;text-align:left}"
    head = f'<meta charset="utf-8"><title>{html.escape(report.title)}</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def as_csv(report: Report) -> str:
    """A line per cell and per tested sentence, in the metrics' own units and with every digit."""

    def line(kind: str, one: Cell | Claim, **more: Any) -> dict[str, Any]:
        about = {"kind": kind, "method": "", "samples": "", "dataset": one.dataset, "trained_on": "", "base": ""}
        measured = dict.fromkeys(("paper_mean", "paper_std", "ours_mean", "ours_std", "ours_seeds"), "")
        ends = {"difference": one.difference, "low": one.interval[0], "high": one.interval[1]}
        said = {"verdict": one.verdict, "why": cautious(one.why), "suspect": "", "claim": ""}
        values = {**about, "metric": one.metric, **measured, **ends, **said, **more}
        return {
            key: "" if value is None or value != value else repr(value) if isinstance(value, float) else value
            for key, value in values.items()
        }

    rows = []
    for c in report.cells:
        paper, ours = c.paper or Number(nan, None, 0), c.ours or Number(nan, None, 0)
        numbers = {"paper_mean": paper.mean, "paper_std": paper.std, "ours_mean": ours.mean, "ours_std": ours.std}
        about = {"method": c.method, "samples": c.draws, "trained_on": c.trained_on, "base": c.base}
        rows.append(line("cell", c, **about, **numbers, ours_seeds=ours.seeds or "", suspect=c.suspect))
    for claim in report.claims:
        words = f"{claim.left} {claim.relation} {claim.right}: {claim.words}"
        rows.append(line("claim", claim, claim=words))
    return csv_of(rows)


def latex(report: Report) -> str:
    """A table per metric: two columns for each data set, the paper's and ours with the sign of its verdict."""
    comments = [
        f"{report.title}; needs booktabs",
        "± over seeds; best bold, second underlined, in each column by itself",
        summary(report),
        "= agrees, ≠ differs, ? cannot be told; none: no verdict or not measured",
        *report.notes,
    ]
    parts = [tex_comments(comments)]
    printed, measured = ranks(report.cells, "paper"), ranks(report.cells, "ours")
    at = {
        (c.metric, c.base, c.method, c.draws, where(c)): i for i, c in enumerate(report.cells)
    }  # position of every cell
    for metric in metrics_of(report):
        here = [cell for cell in report.cells if cell.metric == metric]
        sets = list(dict.fromkeys(map(where, here)))
        heads = " & ".join(rf"\multicolumn{{2}}{{c}}{{{tex_letters(each)}}}" for each in sets)
        rules = "".join(rf"\cmidrule(lr){{{3 + 2 * k}-{4 + 2 * k}}}" for k in range(len(sets)))
        rows = [rf"{tex_letters(title(metric))} & & {heads} \\", rules]
        rows += [tex_row(["Method", "N", *["Paper", "Ours"] * len(sets)]), r"\midrule"]
        for base, method, draws in dict.fromkeys((c.base, c.method, c.draws) for c in here):
            name = f"{method}, {base}" if several_bases(report) else method
            row = [tex_letters(name), "--" if draws is None else str(draws)]
            for each in sets:
                row += _tex_pair(report.cells, at.get((metric, base, method, draws, each)), metric, printed, measured)
            rows.append(tex_row(row))
        parts.append(tex_grid("ll" + "cc" * len(sets), rows))
    if report.claims:
        shared = shared_reasons(report)
        header, *rows = [
            tex_row([*map(tex_letters, row)]) for row in (CLAIM_HEADS, *(claim_row(c, shared) for c in report.claims))
        ]
        parts.append(tex_grid(r"p{.3\linewidth}llllp{.2\linewidth}", [header, r"\midrule", *rows]))
    return "\n\n".join(parts) + "\n"


def _tex_pair(cells: Sequence[Cell], i: int | None, metric: str, printed: Ranks, measured: Ranks) -> list[str]:
    if i is None:
        return ["--", "--"]
    cell = cells[i]
    none = ("", "")
    paper = _tex(shown(cell.paper, metric, TEX_MARKS[printed[i]] if i in printed else none))
    ours = _tex(shown(cell.ours, metric, TEX_MARKS[measured[i]] if i in measured else none))
    sign = {"=": "$^{=}$", "≠": r"$^{\neq}$", "?": "$^{?}$"}.get(SIGNS[cell.verdict], "")
    return [paper + r"$^\ddagger$" * cell.suspect, ours + sign]


def _tex(text: str) -> str:
    return text.replace("±", r"$\pm$").replace("–", "--").replace("−", "$-$")


FORMATS = {"md": markdown, "csv": as_csv, "html": as_html, "latex": latex}
