"""Tables of texts as CSV, Markdown, LaTeX and JSON, and the numbers behind the figures in them."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from made_results import record

from uqharness.leaderboard import charts, curve_rows, curves, export, ood
from uqharness.leaderboard.draw_curves import draw_curves
from uqharness.leaderboard.page import Grid
from uqharness.leaderboard.table_formats import number
from uqharness.metrics.calibration import reliability_bins
from uqharness.metrics.points import mutual_information
from uqharness.metrics.registry import METRICS

ROWS = [[("BLoB", "run?run=1"), "-0.5", "a | b"], ["=1+1", "–", "50 % <b>\nof & $x_1$ \\input{/etc/passwd}"]]
GRIDS = [Grid(["Method", "Gap", "Words"], ROWS, "One, [a](b)"), Grid(["Method", "N"], [["MLE", "1"]], "Other", "words")]


def test_csv_has_every_text_under_its_header_and_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(export.text("CSV", "all", GRIDS, "http://x/?a=1"))))
    assert [row["table"] for row in rows] == ["One, [a](b)"] * 2 + ["Other"]
    assert [(row["Method"], row["Gap"], row["N"]) for row in rows] == [
        ("BLoB", "-0.5", ""),
        ("'=1+1", "–", ""),
        ("MLE", "", "1"),
    ]
    assert rows[1]["Words"] == ROWS[1][2] and {row["link"] for row in rows} == {"http://x/?a=1"}


def test_csv_of_names_that_are_formulas_or_those_of_other_columns_and_of_texts_as_they_come() -> None:
    long = "x" * (csv.field_size_limit() + 1)
    rows = [["NLL", "1", "2", "3", "a\rb"], ["=cmd|x", "-4\r", "5", "6", "\n=1"], ["ACC", "7", "8", "9", long]]
    text = export.text("CSV", "all", [Grid(["", "=1+1", "table", "", "Words"], rows, "One")], "?a=1")
    header, *cells = csv.reader(io.StringIO(text.replace(long, "long")))
    assert header == ["table", "", "'=1+1", "table", "", "Words", "link"]
    assert cells == [
        ["One", "NLL", "1", "2", "3", "a\nb", "?a=1"],
        ["One", "'=cmd|x", "-4", "5", "6", "'\n=1", "?a=1"],
        ["One", "ACC", "7", "8", "9", "long", "?a=1"],
    ]


def test_json_has_caption_link_and_all_texts() -> None:
    parsed = json.loads(export.text("JSON", "all", GRIDS, "http://x/"))
    assert (parsed["caption"], parsed["link"]) == ("all", "http://x/")
    assert parsed["grids"][0]["rows"] == [["BLoB", "-0.5", "a | b"], ROWS[1]]


def test_markdown_and_latex_have_a_line_per_row_and_texts_stay_letters() -> None:
    md, tex = (export.text(kind, "all", GRIDS, "http://x/") for kind in ("Markdown", "LaTeX"))
    assert md.startswith("all\n\n<http://x/>\n") and r"| BLoB | -0.5 | a \| b |" in md and "<b>" not in md
    assert len([line for line in md.splitlines() if line.startswith("|")]) == 2 + 2 + 2 + 1
    assert tex.startswith("% all\n% http://x/\n") and tex.count(r"\toprule") == 2
    assert r"BLoB & -0.5 & a \textbar{} b \\" in tex and r"\begin{tabular}{lrr}" in tex
    assert r"\begin{tabular}{ll}" in tex
    assert r"\$x\_1\$ \textbackslash{}input\{/etc/passwd\}" in tex and tex.count(r" \\") == 5


def test_a_name_at_the_start_of_a_row_says_nothing_about_the_end_of_the_row_before() -> None:
    tex = export.text("LaTeX", "all", [Grid(["Method"], [["MLE"], ["[1cm] x"], ["*"]], "One")], "http://x/")
    assert "MLE \\\\\n{[}1cm] x \\\\\n{*} \\\\\n" in tex


def test_a_backslash_in_a_name_does_not_undo_what_keeps_it_from_being_a_link_or_a_cell() -> None:
    name = r"a\[x](http://e) \| b"
    md = export.text("Markdown", name, [Grid(["Method"], [[name]], name)], "http://x/")
    escaped = r"a\\\[x](http://e) \\"
    assert md.count(escaped) == md.count("](") == 3 and f"| {escaped}\\| b |" in md


@pytest.mark.parametrize("equal_mass", [False, True])
def test_bins_as_rows_are_those_that_hold_questions(equal_mass: bool) -> None:
    parsed = curves.answers(record(items=200), "BLoB")
    header, rows = curve_rows.bin_rows([parsed], 10, equal_mass)
    bins = reliability_bins(parsed.probs, parsed.gold, 10, equal_mass)
    assert [int(row[header.index("Questions")]) for row in rows] == [n for n in bins["count"] if n]
    assert sum(int(row[3]) for row in rows) == 200
    for row, right in zip(rows, [a for a, n in zip(bins["accuracy"], bins["count"], strict=True) if n], strict=True):
        assert float(row[5]) == pytest.approx(right, abs=1e-4)
        assert float(row[6]) == pytest.approx(float(row[4]) - float(row[5]), abs=2e-4)


def test_right_and_wrong_as_rows_are_the_bars_and_means_over_questions() -> None:
    parsed = curves.answers(record(items=200), "BLoB")
    sure, right = np.nanmax(parsed.probs, axis=1), np.nanargmax(parsed.probs, axis=1) == parsed.gold
    header, rows = curve_rows.share_rows([parsed])
    for row in rows:
        inside = (sure >= float(row[1])) & (sure < float(row[2]))
        assert [row[3], row[4]] == [f"{100 * (inside & part).mean():.2f}" for part in (right, ~right)]
    assert sum(float(row[3]) + float(row[4]) for row in rows) == pytest.approx(100)
    _, (row,) = curve_rows.sure_rows([parsed])
    assert [float(text) / 100 for text in row[1:]] == pytest.approx(
        [right.mean(), sure[right].mean(), sure[~right].mean()], abs=1e-4
    )
    always = curves.Answers("MLE", np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert curve_rows.sure_rows([always])[1] == [["MLE", "100.00", "100.00", "–"]]
    assert curve_rows.share_rows([always])[1] == [["MLE", "0.95", "1.00", "100.00", "0.00"]]


def test_parts_as_rows_are_means_over_questions() -> None:
    many, single = curves.answers(record(), "BLoB"), curves.answers(record(draws=1), "MLE")
    header, rows = curve_rows.part_rows([many, single])
    assert [row[0] for row in rows] == ["BLoB"] and many.draws is not None
    gain = mutual_information(many.draws, normalised=True)
    right = np.nanargmax(many.probs, axis=1) == many.gold
    by_column = dict(zip(header, rows[0], strict=True))
    for which, part in (("all", gain), ("right", gain[right]), ("wrong", gain[~right])):
        assert float(by_column[f"Mutual information, {which}"]) == pytest.approx(part.mean(), abs=1e-4)


def test_a_shift_as_rows_has_what_the_figure_draws() -> None:
    rates = {"BLoB": {"near": (0.5, 0.01), "far": (0.25, None)}, "MLE": {"near": (0.4, None)}}
    header, rows = ood.spread_table(rates, METRICS["acc"].scale, METRICS["acc"].decimals)
    assert header == ["Method", "near", "far"]
    assert rows == [
        ["BLoB", f"{number(0.5, 'acc')} ± {number(0.01, 'acc')}", number(0.25, "acc")],
        ["MLE", number(0.4, "acc"), "–"],
    ]


def test_draws_as_rows_are_the_points_of_the_figure() -> None:
    curve = draw_curves(record(), "BLoB")["nll"]
    _, rows = curve_rows.draw_rows([curve])
    band, line = (trace["y"] for trace in charts.against_draws([[curve]])["data"])
    *line, _, mean = line
    assert [row[2] for row in rows] == ["0", "1", "2", "3", "4"] and rows[0][3] == number(mean, "nll")
    assert [row[3] for row in rows[1:]] == [number(float(y) / METRICS["nll"].scale, "nll") for y in line]
    assert [row[5] for row in rows[1:]] == [number(float(y), "nll") for y in band[:4]]
