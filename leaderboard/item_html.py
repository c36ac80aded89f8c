"""One question as a card: what was asked, what is right, and the probability of every choice under every draw.

For the app and the static site. Every text comes from a results file or a data set and is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from uqharness.leaderboard.items import Items
from uqharness.leaderboard.texts import Text
from uqharness.metrics.registry import Floats

LONGEST = 6000  # letters of a prompt that are shown
MOST_DRAWS = 100
CSS = """<style>
.uq-item { border: 1px solid rgba(128,132,149,.35); border-radius: 6px; padding: .7rem .9rem; margin: 0 0 .8rem;
  display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.15fr); gap: .3rem 1.4rem; font-size: .92rem; }
.uq-item > p { grid-column: 1 / -1; margin: 0 0 .3rem; display: flex; flex-wrap: wrap; gap: .25rem .9rem; align-items: baseline; }
.uq-item .state { font-weight: 600; } .uq-item .state.wrong { color: light-dark(#b3261e, #ff8a80); }
.uq-item .state.right { color: light-dark(#176b3a, #6fd59a); }
.uq-item pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; max-height: 22rem; overflow-y: auto; }
.uq-item table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.uq-item th, .uq-item td { text-align: left; font-weight: 400; padding: .16rem .5rem .16rem 0; vertical-align: middle; }
.uq-item thead th { font-size: .8rem; color: color-mix(in srgb, currentColor 80%, transparent); } .uq-item thead th:nth-child(n+3) { text-align: right; } .uq-item td.num { text-align: right; white-space: nowrap; }
.uq-item th[scope=row] { min-width: 5.2rem; max-width: 11rem; overflow-wrap: anywhere; line-height: 1.25; }
.uq-item .gold { font-weight: 700; }
.uq-bar { position: relative; height: 1.05rem; min-width: 7rem; background: rgba(128,132,149,.16); border-radius: 3px; overflow: hidden; }
.uq-bar span { position: absolute; inset: 0 auto 0 0; background: #1f7ae08c; }
.uq-bar.gold span { background: #2a8f57b3; }
.uq-bar i { position: absolute; top: 0; bottom: 0; width: 1.5px; background: light-dark(#1c233080, #e8ebf080); }
.uq-item details { grid-column: 1 / -1; } .uq-item summary { cursor: pointer; font-size: .85rem; color: color-mix(in srgb, currentColor 90%, transparent); }
.uq-item .scroll { overflow-x: auto; } .uq-item td.num, .uq-item thead th { white-space: nowrap; }
@media (max-width: 720px) { .uq-item { grid-template-columns: minmax(0, 1fr); } .uq-bar { min-width: 4rem; } }
</style>"""  # noqa: E501


def card(found: Items, row: Mapping[str, Any], text: Text | None) -> str:
    """One row of `items.select`."""
    d, count = int(row["at"]), int(row["choices"])
    labels = text.choices if text and len(text.choices) == count else [f"choice {c + 1}" for c in range(count)]
    asked = escape(_last(text.prompt)) if text else f"document {escape(found.record.doc_hashes[d])}: text not at hand"
    columns = [("average", found.shown.probs[d])]
    columns += [("mean, N = 0", found.mean.probs[d])] if found.mean else []
    columns += [("MLE", found.base.probs[d])] if found.base else []
    draws = None if found.shown.draws is None else found.shown.draws[:, d]  # [S, C]
    if draws is not None:
        draws = draws[~np.isnan(draws[:, 0])]  # with samples=auto a question has no more than it needs
    return (
        f'<article class="uq-item"><p>{_heading(found, row)}</p><pre>{asked}</pre>'
        f"{_choices(labels, int(row['gold']), columns, draws)}{_draws(labels, draws)}</article>"
    )


def _last(prompt: str) -> str:
    """The question is at the end, after its examples."""
    return prompt if len(prompt) <= LONGEST else f"… {prompt[-LONGEST:]}"


def _heading(found: Items, row: Mapping[str, Any]) -> str:
    state, word = ("right", "Right") if row["right"] else ("wrong", "Wrong")
    parts = [
        f"<b>Question {int(row['id'])}</b>",
        f'<span class="state {state}">{word}, {row["confidence"]:.0%} sure</span>',
        f"<span>NLL {row['nll']:.2f}</span>",
    ]
    if row["mutual_information"] == row["mutual_information"]:
        parts.append(f"<span>mutual information {row['mutual_information']:.3f}</span>")
    if found.base:
        change = {(True, False): "fixed: MLE has it wrong", (False, True): "broken: MLE has it right"}
        parts.append(f"<span>{change.get((bool(row['right']), bool(row['base_right'])), 'as MLE')}</span>")
    return "".join(parts)


def _choices(labels: Any, gold: int, columns: list[tuple[str, Floats]], draws: Floats | None) -> str:
    """A row per choice: the bar is the average, its ticks are the draws."""
    told = "probability" if draws is None else "probability; a tick per draw"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in columns)
    rows = []
    for c, label in enumerate(labels):
        mark = ' class="gold"' if c == gold else ""
        name = f"{escape(label)} ✓" + '<span style="position:absolute;clip-path:inset(50%)"> right answer</span>'
        ticks = "" if draws is None else "".join(f'<i style="left:{_at(p)}"></i>' for p in draws[:MOST_DRAWS, c])
        bar = f'<div class="uq-bar{" gold" if c == gold else ""}"><span style="width:{_at(columns[0][1][c])}"></span>'
        numbers = "".join(f'<td class="num">{100 * values[c]:.1f} %</td>' for _, values in columns)
        said = name if c == gold else escape(label)
        rows.append(f'<tr{mark}><th scope="row">{said}</th><td>{bar}{ticks}</div></td>{numbers}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">choice</th><th scope="col">{told}</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _draws(labels: Any, draws: Floats | None) -> str:
    """The number behind every tick."""
    if draws is None:
        return ""
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row">draw {s}</th>{"".join(f"<td>{100 * p:.1f} %</td>" for p in values[: len(labels)])}</tr>'
        for s, values in enumerate(draws[:MOST_DRAWS], start=1)
    )
    return (
        f"<details><summary>Every draw in numbers</summary>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _at(p: float) -> str:
    return f"{100 * float(np.clip(p, 0, 1)):.2f}%"
