"""Tables as plain HTML: for keyboard, phone and screen reader, in the app and in the static site.

A table scrolls sideways inside its own box, which takes the focus. Every text that comes from a results file is
escaped; nothing here is trusted markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from uqharness.leaderboard.ranking import Rank
from uqharness.leaderboard.table import Cell, Column, Table
from uqharness.leaderboard.table_formats import arrow, number, shown_draws, shown_range
from uqharness.leaderboard.theme import style
from uqharness.metrics.registry import METRICS

Link = Callable[[Cell, int], str]  # a cell and its number of draws -> the address of what is behind it
# What a reader of a table needs to know about a metric, in few words.
MEANING = {
    "acc": "accuracy, %",
    "nll": "negative log-likelihood of the right choice, nats",
    "brier": "squared error of the probabilities",
    "ece": "gap between confidence and accuracy, %; marked by its debiased value",
    "ece_debiased": "ECE less what sampling alone gives, %",
    "ece_floor": "what a calibrated model would show, %",
    "auroc": "does confidence tell right from wrong, %",
    "aurc": "mean risk over all coverages, %",
    "entropy": "predictive entropy, nats",
    "mutual_information": "between answer and draw, nats",
}
# Paler texts by colour and not by opacity: hundreds of see-through layers take a browser longer than all the rest.
CSS = """<style>
.uq-box { position: relative; overflow-x: auto; max-width: 100%; border: 1px solid rgba(128,132,149,.35); border-radius: 6px; }
.uq-box:focus-visible { outline: 2px solid #2f7de1; outline-offset: 2px; }
.uq { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
.uq caption { text-align: left; padding: .55rem .7rem; font-size: .88rem; }
.uq caption span { display: inline-block; position: sticky; left: .7rem; max-width: calc(100vw - 4rem); }
.uq th, .uq td { padding: .32rem .7rem; text-align: right; white-space: nowrap; font-weight: 400; line-height: 1.3; }
.uq thead th { vertical-align: bottom; font-weight: 600; border-bottom: 2px solid rgba(128,132,149,.5); }
.uq tbody td, .uq tbody th { border-bottom: 1px solid rgba(128,132,149,.14); }
.uq th:first-child, .uq td:first-child { text-align: left; position: sticky; left: 0; z-index: 1;
  background: light-dark(#ffffff, #0e1117); max-width: 15rem; overflow: hidden; text-overflow: ellipsis; }
.uq tr.block th { background: light-dark(#f4f6f9, #1a1f29); font-weight: 600; border-top: 1px solid rgba(128,132,149,.35); }
.uq tr.block th + th { background: light-dark(#f4f6f9, #1a1f29); }
.uq.words td, .uq.words thead th { text-align: left; } .uq.words td, .uq.words tbody th { white-space: normal; overflow-wrap: anywhere; }
.uq.words td { min-width: 7.5em; } .uq.words tbody th { min-width: 8.5em; }
.uq small { font-size: .8em; color: color-mix(in srgb, currentColor 78%, transparent); font-weight: 400; }
.uq .floor { display: block; } .uq.spread .floor { padding-right: 1.2em; } .uq.spread.ranked .floor { padding-right: 4em; }
.uq .sd, .uq .rank { display: inline-block; font-size: .8em; color: color-mix(in srgb, currentColor 80%, transparent); text-align: left; margin-left: .4em; }
.uq .sd:empty { margin: 0; } .uq.spread .sd { min-width: 4em; } .uq.ranked .rank { min-width: 1.9em; }
.uq.spread .sd:empty { margin-left: .4em; }
.uq a { color: inherit; text-decoration: inherit; }
.uq a:hover, .uq a:focus-visible { color: light-dark(#1a5fb4, #7fb6f7); text-decoration: underline dotted; }
.uq b.best { font-weight: 700; } .uq u { text-decoration-thickness: 1px; text-underline-offset: 3px; }
.uq .dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
.uq .name { display: inline-block; width: max-content; max-width: 13.5rem; white-space: normal; overflow-wrap: anywhere;
  padding-left: 1.15em; text-indent: -1.15em; }
.uq tbody tr:hover td { background: rgba(128,132,149,.09); }
.uq .hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.uq-notes { font-size: .85rem; margin: .45rem 0 1.2rem; opacity: .92; } .uq-notes ul { margin: .2rem 0; padding-left: 1.2rem; }
.uq-notes :is(ul, li) { font-size: inherit; } .uq-notes summary { cursor: pointer; } .uq-notes li { overflow-wrap: anywhere; }
@media (max-width: 640px) { .uq th, .uq td { padding: .3rem .45rem; } .uq th:first-child, .uq td:first-child { max-width: 8.5rem; }
  .uq .name { max-width: 7.5rem; } }
</style>"""  # noqa: E501


def papers_view(
    table: Table,
    caption: str,
    ranks: Mapping[str, Mapping[int, Mapping[int, Rank]]],
    link: Link | None = None,
    measured: bool = True,
    most: int | None = None,
) -> str:
    """Metric blocks x methods (the first `most`), data sets as columns; ranks[metric][column][row]."""
    head = "".join(_heading(column) for column in table.columns)
    extra = '<th scope="col">Seeds</th>' if measured else ""
    ranked = any(ranks.values())
    last = '<th scope="col">Top tier</th>' if ranked else ""
    width = len(table.columns) + 1 + measured + ranked
    kind = "uq" + " spread" * any(cell.std is not None for cell in table.cells.values()) + " ranked" * ranked
    body = []
    for metric in table.metrics:
        columns, first = range(len(table.columns)), range(len(table.rows))[:most]
        present = [i for i in first if any((metric, i, j) in table.cells for j in columns)]
        if present:
            rows = [_row(table, metric, i, ranks.get(metric, {}), link, measured, ranked) for i in present]
            body.append(f"<tbody>{_block(metric, width, measured)}{''.join(rows)}</tbody>")
    return (
        f'<div class="uq-box" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>"
        f'<th scope="col">Method</th><th scope="col">N</th>{extra}{head}{last}'
        f"</tr></thead>{''.join(body)}</table></div>"
    )


def grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str | tuple[str, str]]],
    caption: str,
    kind: str = "methods",
    most: int | None = None,
) -> str:
    """Any table of texts, or of (text, address). Kinds: methods (the first column names them), numbers, words.

    `most`: only so many rows, and the caption says so.
    """
    if most is not None and len(rows) > most:
        caption = f"{caption}: {most} of {len(rows)} rows; the export has all"
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(
        f'<tr><th scope="row">{_named(str(row[0])) if kind == "methods" else _linked(row[0])}</th>'
        f"{''.join(f'<td>{_linked(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[:most]
    )
    return (
        f'<div class="uq-box" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="uq {kind}">'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _linked(cell: str | tuple[str, str]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f'<a href="{escape(cell[1])}" target="_self">{escape(cell[0])}</a>'


def notes(lines: Sequence[str], open_up_to: int = 5) -> str:
    """What a reader must know, below its table; folded where it is long."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    if len(lines) <= open_up_to:
        return f'<div class="uq-notes"><ul>{items}</ul></div>'
    return f'<div class="uq-notes"><details><summary>{len(lines)} notes</summary><ul>{items}</ul></details></div>'


def _heading(column: Column) -> str:
    """The data set, and below it shift, what was trained on, and how many questions."""
    shift = {"id": "in distribution", "small": "small shift", "large": "large shift"}.get(column.shift or "", "")
    other = column.name != column.task and column.trained_on
    parts = [
        shift,
        f"trained on {column.trained_on}" if other else "",
        f"{column.items:,} questions" * (column.items > 0),
    ]
    title = f"protocol {column.protocol_hash}, recipe {column.recipe_hash}" if column.protocol_hash else ""
    below = "".join(f"<br><small>{escape(part)}</small>" for part in parts if part)
    return f'<th scope="col" title="{escape(title)}">{escape(column.task)}{below}</th>'


def _block(metric: str, width: int, measured: bool) -> str:
    meaning = MEANING.get(metric, "")
    if metric == "ece" and not measured:
        meaning = "gap between confidence and accuracy, %; not marked, as papers print no floor"
    label = f"{escape(METRICS[metric].label + arrow(metric))}"
    rest = f'<th colspan="{width}" style="text-align:left"><small>{escape(meaning)}</small></th>'
    return f'<tr class="block"><th scope="rowgroup">{label}</th>{rest}</tr>'


def _row(
    table: Table,
    metric: str,
    i: int,
    ranks: Mapping[int, Mapping[int, Rank]],
    link: Link | None,
    measured: bool,
    ranked: bool,
) -> str:
    name, draws = table.rows[i]
    cells = [table.cells.get((metric, i, j)) for j in range(len(table.columns))]
    seeds = [len(c.values) for c in cells if c]
    told = shown_range(seeds) if seeds else ""
    out = [f'<th scope="row" title="{escape(name)}">{_named(name)}</th>']
    out.append(f"<td>{shown_draws(draws, table.auto.get(i))}</td>")
    out += [f"<td>{told}</td>"] * measured
    out += [_cell(c, metric, ranks.get(j, {}).get(i), link, draws, ranked) for j, c in enumerate(cells)]
    if ranked:
        out.append(f"<td>{_overall(cells, [ranks.get(j, {}).get(i) for j in range(len(cells))])}</td>")
    return f"<tr>{''.join(out)}</tr>"


def _overall(cells: Sequence[Cell | None], ranks: Sequence[Rank | None]) -> str:
    """In how many columns nothing is significantly better; how many cells are there where some are missing."""
    there = sum(cell is not None for cell in cells)
    if there < len(cells):
        return f"<small>{there}/{len(cells)} cells</small>"
    known = [rank for rank in ranks if rank is not None]
    top = f"{sum(rank.top for rank in known)} of {len(cells)}"
    return top if len(known) == len(cells) else "<small>not ranked</small>"


def _cell(cell: Cell | None, metric: str, rank: Rank | None, link: Link | None, draws: int, ranked: bool) -> str:
    if cell is None:
        return '<td><span aria-label="no result">–</span></td>'
    value = number(cell.mean, metric)
    if link and cell.runs:
        value = f'<a href="{escape(link(cell, draws))}" target="_self">{value}</a>'
    if cell.rank == 1:
        value = f'<b class="best">{value}</b><span class="hidden"> best</span>'
    elif cell.rank == 2:
        value = f'<u>{value}</u><span class="hidden"> second</span>'
    mark = "†" * cell.leaked + "‡" * cell.suspect
    spread = mark + ("" if cell.std is None else f" ± {number(cell.std, metric)}")
    place = ""
    if ranked:
        told = f' title="{rank.low - 1} significantly better">#{rank}' if rank else ">"
        place = f'<span class="rank"{told}</span>'
    floor = "" if cell.floor is None else f'<small class="floor">floor {number(cell.floor, metric)}</small>'
    return f'<td>{value}<span class="sd">{spread}</span>{place}{floor}</td>'


def _named(row: str) -> str:
    dot = f'<span class="dot" style="background:{style(row).colour}"></span>'
    return f'<span class="name">{dot}{escape(row)}</span>'
