"""Figures: what they draw is what the numbers say; names of results are never markup."""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest

from uqharness.leaderboard import charts, headline, theme
from uqharness.leaderboard.charts import ChartData
from uqharness.leaderboard.curves import Answers
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.metrics.calibration import bin_probs, ece, reliability_bins
from uqharness.metrics.points import confidence, correct, expected_entropy, mutual_information
from uqharness.metrics.selective import aurc

EVIL = "<script>alert(1)</script>"


def checked(figure: ChartData) -> go.Figure:
    """As Plotly's objects, which refuse what plotly.js would ignore."""
    return go.Figure(figure)


def answers(row: str = "BLoB", items: int = 300, seed: int = 0, draws: int = 3) -> Answers:
    rng = np.random.default_rng(seed)
    apart = rng.dirichlet(np.ones(4), (draws, items))
    return Answers(row, apart.mean(0), rng.integers(0, 4, items), apart if draws > 1 else None)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_reliability_draws_accuracies_counts_and_gaps_that_sum_to_the_ece(equal_mass: bool) -> None:
    shown = [answers("MLE"), answers("BLoB", seed=1)]
    fig = checked(charts.reliability(shown, 10, equal_mass))
    lines = [t for t in fig.data if t.type == "scatter" and t.mode == "lines+markers"]
    assert [t.name for t in lines] == ["MLE", "BLoB"]
    for drawn, line in zip(shown, lines, strict=True):
        bins = reliability_bins(drawn.probs, drawn.gold, 10, equal_mass)
        assert list(line.y) == [a for a in bins["accuracy"] if a is not None]
        assert list(line.customdata) == [n for n in bins["count"] if n]
        gap = next(t for t in fig.data if t.type == "bar" and t.yaxis == "y2" and t.name == drawn.row)
        total = np.abs(np.array(gap.y)) @ np.array(line.customdata) / len(drawn.gold)
        assert total == pytest.approx(ece(bin_probs(drawn.probs, drawn.gold, 10, equal_mass)))
    assert sum(t.type == "scatter" and t.fill == "toself" for t in fig.data) == 2
    assert len(checked(charts.reliability(shown, bands=False)).data) == len(checked(charts.reliability(shown)).data) - 2


def test_right_and_wrong_together_are_all_questions() -> None:
    parsed = answers()
    right, wrong = checked(charts.right_and_wrong([parsed])).data
    assert sum(right.y) == pytest.approx(100 * correct(parsed.probs, parsed.gold).mean())
    assert sum(right.y) - sum(wrong.y) == pytest.approx(100)


def test_risk_coverage_ends_at_the_error_rate_and_names_the_aurc() -> None:
    parsed = answers()
    (line,) = checked(charts.risk_coverage([parsed])).data
    right = correct(parsed.probs, parsed.gold)
    assert line.x[-1] == 100 and line.y[-1] == pytest.approx(100 * (1 - right.mean()))
    surest = np.argsort(-confidence(parsed.probs), kind="stable")[: len(right) // 2]
    assert line.y[np.argmin(np.abs(np.array(line.x) - 50))] == pytest.approx(100 * (1 - right[surest].mean()), abs=1)
    assert f"{100 * aurc(parsed.probs, parsed.gold):.2f}" in line.name


def test_epistemic_against_aleatoric_per_question() -> None:
    parsed = answers(items=50)
    right, wrong = checked(charts.decomposed([parsed, answers("MLE", draws=1)])).data
    ok = correct(parsed.probs, parsed.gold)
    assert parsed.draws is not None
    np.testing.assert_allclose(right.x, expected_entropy(parsed.draws, True)[ok])
    np.testing.assert_allclose(wrong.y, mutual_information(parsed.draws, True)[~ok])
    assert "several draws" in checked(charts.decomposed([answers(draws=1)])).layout.annotations[0].text


@pytest.mark.parametrize("methods", [1, 2, 16, 40])
def test_any_number_of_methods_has_a_panel_each(methods: int) -> None:
    shown = [answers(f"m{k}", items=20, seed=k) for k in range(methods)]
    for fig in (charts.right_and_wrong(shown), charts.decomposed(shown)):
        assert len(checked(fig).data) == 2 * methods == 2 * len({trace["yaxis"] for trace in fig["data"]})


def test_lines_carry_the_numbers_in_the_units_of_the_table() -> None:
    drawn = checked(charts.shifted({"BLoB": {"near": (0.5, 0.01), "far": (0.25, None)}}, "ACC, %", 100, 50))
    (line,), (level,) = drawn.data, drawn.layout.shapes
    assert list(line.x) == ["near", "far"] and list(line.y) == [50, 25] and list(line.error_y.array) == [1, 0]
    assert (level.y0, level.y1) == (50, 50)
    curve = DrawCurve("BLoB", "acc", [1, 2], np.array([0.4, 0.5]), np.array([0.3, 0.5]), np.array([0.5, 0.5]), 0.45)
    spread, line = checked(charts.against_draws([[curve]])).data
    assert list(line.x) == [1, 2, 0, 0] and list(line.y) == [40, 50, None, 45]  # the mean, after a gap
    assert line.marker.symbol[0] + "-open" == line.marker.symbol[-1] and sorted(spread.y) == [30, 50, 50, 50]
    points = [{"row": "MLE", "time": 1.0, "ACC": 50.0}, {"row": "BLoB", "time": 2.0, "ACC": 60.0}]
    front, mle, blob = checked(charts.pareto(points, "time", "ACC", [False, True])).data
    assert (front.x, front.y) == ((2.0,), (60.0,)) and mle.mode == "markers" and blob.text == ("<b>BLoB</b>",)
    assert [mle.marker.size, blob.marker.size] == [10, 15]  # a ring and bold: the front


def test_metrics_against_draws_have_a_panel_each_and_one_legend() -> None:
    def curve(row: str, metric: str) -> DrawCurve:
        return DrawCurve(row, metric, [1, 2], *(np.array([0.4, 0.5]) for _ in range(3)), 0.45)

    panels = [[curve(row, metric) for row in ("MLE", "BLoB")] for metric in ("nll", "acc", "brier")]
    fig = checked(charts.against_draws(panels))
    lines = [t for t in fig.data if t.mode == "lines+markers"]
    assert [(t.name, t.yaxis, t.showlegend) for t in lines] == [
        ("MLE", "y", True),
        ("BLoB", "y", True),
        ("MLE", "y2", False),
        ("BLoB", "y2", False),
        ("MLE", "y3", False),
        ("BLoB", "y3", False),
    ]
    assert {t.legendgroup for t in fig.data} == {"MLE", "BLoB"}  # a click in the legend is for all panels
    assert [fig.layout[f"yaxis{k}"].title.text[:3] for k in ("", 2, 3)] == ["NLL", "ACC", "Bri"]
    assert list(lines[0].y)[:2] == [0.4, 0.5] and list(lines[2].y)[:2] == [40, 50]


def test_a_figure_without_anything_says_why() -> None:
    unknown = [{"row": "MLE", "time": float("nan"), "ACC": 50.0}]
    none = checked(charts.risk_coverage([])), checked(charts.against_draws([[], []]))
    for fig in (checked(charts.pareto(unknown, "time", "ACC", [False])), *none):
        assert not fig.data and fig.layout.annotations[0].text
    many = DrawCurve("BLoB", "acc", list(range(1, 101)), *(np.zeros(100) for _ in range(3)), None)
    assert "dtick" not in charts.against_draws([[many]])["layout"]["xaxis"]  # a hundred numbers would lie on each other


def test_the_headline_has_mle_at_zero_hollow_means_and_floors_in_percentage_points() -> None:
    full = {"nll": (-0.2, 0.1), "ece": (-0.1, 0.02)}
    rows = [
        headline.Row(EVIL, 10, full, {"nll": (-0.1, 0.1), "ece": (-0.05, 0.02)}, -0.12),
        headline.Row("MLE", 1, {"nll": (0.0, 0.05), "ece": (0.0, 0.0)}, None, -0.15),
    ]
    fig = checked(charts.headline(headline.Points(rows, 100, [3])))
    assert EVIL not in str(fig.to_dict())
    samples = {t.name: t.marker for t in fig.data if t.x == (None,)}  # of the legend: no method's colour
    assert {marker.color for marker in samples.values()} == {charts.NEUTRAL} and samples[
        "N = 0"
    ].symbol == "circle-open"
    marks = {(t.name.partition(",")[0], t.xaxis): t for t in fig.data if t.mode == "markers" and t.x != (None,)}
    assert marks["all draws", "x"].x == (-0.2, 0.0) and marks["all draws", "x2"].x == (-10.0, 0.0)
    assert marks["N = 0", "x"].x == (-0.1, None) and marks["N = 0", "x"].marker.symbol == "circle-open"
    assert list(marks["all draws", "x2"].error_x.array) == [2.0, None]  # MLE less itself is exactly 0
    assert [note.text for note in fig.layout.annotations] == ["MLE", "MLE"]  # what the zero lines are
    assert marks["ECE floor", "x2"].x == (-12.0, -15.0) and ("ECE floor", "x") not in marks
    assert all(0 < low - place < 0.5 for low, place in zip(marks["ECE floor", "x2"].y, (0, 1), strict=True))
    assert fig.layout.xaxis.zeroline and fig.layout.xaxis2.zeroline and fig.layout.xaxis2.matches is None


def test_no_name_becomes_markup() -> None:
    parsed = answers(EVIL)
    curve = DrawCurve(EVIL, "acc", [1], *(np.zeros(1) for _ in range(3)), None)
    figures = [
        charts.reliability([parsed]),
        charts.right_and_wrong([parsed]),
        charts.risk_coverage([parsed]),
        charts.decomposed([parsed]),
        charts.shifted({EVIL: {EVIL: (0.5, None)}}, "ACC", 100),
        charts.against_draws([[curve]]),
        charts.empty(EVIL),
        charts.pareto([{"row": EVIL, "a": 1, "b": 1}], "a", "b", [True]),
    ]
    for fig in map(checked, figures):
        assert EVIL not in str(fig.to_dict()) and "&lt;script" in str(fig.to_dict())
        assert not [t for t in fig.data if "script" in str(t.hovertemplate)]  # Plotly reads %{x} in it


# ---------------------------------------------------------------- the palette


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ np.array([0.2126, 0.7152, 0.0722]))


# Machado et al. 2009, severity 1: protanopia, deuteranopia, tritanopia, on linear RGB.
SIMULATED = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson 2020, from linear RGB."""
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return lab @ np.cbrt(np.clip(lms @ rgb, 0, 1))


@pytest.mark.parametrize("vision", SIMULATED)
def test_the_papers_methods_can_be_told_apart_with_any_colour_vision(vision: str) -> None:
    seen = {m: oklab(np.clip(SIMULATED[vision] @ linear(c), 0, 1)) for m, c in theme.PAPERS.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.07, (one, other)


def test_every_colour_is_seen_on_both_backgrounds() -> None:
    for colour in (*theme.PAPERS.values(), *theme.OTHERS.values(), *theme.SPARE, theme.NEUTRAL):
        assert (luminance(theme.LIGHT) + 0.05) / (luminance(colour) + 0.05) >= 3, colour
        assert (luminance(colour) + 0.05) / (luminance(theme.DARK) + 0.05) >= 3, colour


def test_a_method_always_looks_the_same_and_no_two_alike() -> None:
    looks = [theme.style(m) for m in (*theme.PAPERS, *theme.OTHERS)]
    assert len({(s.colour, s.symbol) for s in looks}) == len({s.colour for s in looks}) == len(looks)
    assert theme.style("BLoB (eps=0.1)").colour == theme.style("BLoB").colour
    assert theme.style("BLoB (eps=0.1)") != theme.style("BLoB")
    assert theme.style("toy (zero-shot)") == theme.style("zero-shot")
    assert theme.style("my method") == theme.style("my method")
