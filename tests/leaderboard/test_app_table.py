"""The landing page: its numbers are those of `uqharness table`; the view is in the URL; nothing hostile is markup."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from uqharness.leaderboard import table, table_formats
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import read_runs

EVIL = "<script>alert(1)</script>"


def numbers(page: Any) -> list[str]:
    """Means and deviations of the measured table, in the order of the page."""
    measured = page.html.split("<caption>")[1].split("</table>")[0]
    cells = (
        re.sub(r'<span class="rank".*?</span>|<small.*?</small>', "", c) for c in re.findall("<td>(.*?)</td>", measured)
    )
    plain = (html.unescape(re.sub("<[^>]*>", "", c)).replace(" best", "").replace(" second", "") for c in cells)
    return [text.strip() for text in plain if "." in text and "cells" not in text]


def by_command(results: Path, metrics: list[str]) -> list[str]:
    """The same cells from what `uqharness table` builds."""
    good = [run for file in sorted(results.glob("results_[0-9]*.json")) for run in read_runs([file])]
    (found,) = table.build(good, metrics)
    rows = [row[4:] for row in table_formats.lines(found, {}, "±")]
    return [re.sub(r" \(floor.*", "", cell) for row in rows for cell in row if cell != "–"]


def test_the_landing_table_has_the_numbers_of_the_command(app: Any, results: Path) -> None:
    app.open(ranks="0")
    expected = by_command(results, ["nll", "brier", "acc", "ece"])
    assert len(expected) == 4 * 5 and numbers(app) == expected


def test_a_metric_is_chosen_and_stands_in_the_url_and_the_link_gives_it_again(app: Any, results: Path) -> None:
    app.open()
    app.widget("multiselect", "Metrics").set_value(["acc"])
    app.run()
    assert app.params == {"metric": ["acc"]}
    shown = numbers(app)
    assert [re.sub(" #.*", "", n) for n in shown if not re.fullmatch(r"\d\.\d", n)] == by_command(results, ["acc"])


def test_a_link_opens_its_view(app: Any, results: Path) -> None:
    at = app.open(metric=["brier", "acc"], method=["MLE"], ranks="0", sort="acc")
    assert app.widget("multiselect", "Metrics").value == ["brier", "acc"]
    assert app.widget("selectbox", "Sort by").value == "acc"
    assert len(numbers(app)) == 2 * 2 and not at.info


def test_nonsense_in_a_link_is_said_and_left_out(app: Any) -> None:
    at = app.open(metric=["acc", "f1"], layout="<b>", other="1", snapshot="0000")
    told = " ".join(note.value for note in at.info)
    for part in ("f1", "other", "0000", "numbers may differ"):
        assert part in told
    assert app.widget("multiselect", "Metrics").value == ["acc"] and app.widget("multiselect", "Method").value == []


def test_presets_set_several_choices_at_once(app: Any) -> None:
    app.open()
    app.widget("segmented_control", "Preset").set_value("Cost")
    app.run()
    assert app.params["layout"] == ["flat"] and "Hardware" in app.html
    assert app.widget("segmented_control", "Preset").value == "Cost"


def test_an_incomplete_row_has_its_coverage_and_no_rank(app: Any) -> None:
    app.open()
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", app.html.split("</table>")[0])
    evil = [row for row in rows if "&lt;script" in row]
    assert len(evil) == 4 and all("1/2 cells" in row and "#" not in re.sub("#[0-9a-f]{6}", "", row) for row in evil)
    assert any(re.search(r"#\d<", row) for row in rows)


def test_names_are_shown_as_letters(app: Any) -> None:
    for layout in ("papers", "flat"):
        app.open(layout=layout)
        assert html.escape(EVIL) in app.html and "<script" not in app.html


def test_every_cell_leads_to_its_questions(app: Any, results: Path) -> None:
    app.open()
    links = re.findall(r'href="([^"]*)"', app.html)
    assert len(links) == 20 and all(re.fullmatch("items\\?run=[0-9a-f]{16}", link) for link in links)


def test_without_results_the_papers_tables_are_there(empty_app: Any) -> None:
    at = empty_app.open()
    assert "Reported in papers" in [head.value for head in at.subheader]
    assert "BLoB, table 1, Llama2-7B" in empty_app.html and "69.07" in empty_app.html


def test_metrics_all_have_a_direction_or_none(app: Any) -> None:
    app.open(metric=list(METRICS), ranks="0")
    assert app.html.split("</table>")[0].count('class="block"') == len(METRICS)
