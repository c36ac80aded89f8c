"""Figures from answers and curves, for the app and the static site: pure, what plotly.js draws.

A name is in no hover template, where Plotly would read `%{x}` in it: the box of a trace names it, or its `customdata`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from uqharness.leaderboard.chart_frame import Axes, Figure, Trace, between, empty, framed, nth, plain, stacked
from uqharness.leaderboard.curves import Answers, band, decomposition, sure_shares
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.label_places import places
from uqharness.leaderboard.table_formats import titled
from uqharness.leaderboard.theme import NEUTRAL, Style, soft, style
from uqharness.metrics.registry import BINS, METRICS, Floats, aurc, confidence, correct, reliability_bins, risk_curve

MOST_LABELS = 30  # points of a figure with their name beside them
ZERO = {"zeroline": True, "zerolinecolor": NEUTRAL, "zerolinewidth": 1}  # lines of their own take ten times as long


def reliability(shown: Sequence[Answers], bins: int = BINS, equal_mass: bool = False, bands: bool = True) -> Figure:
    """Accuracy against confidence with 95 % bands, the gap, and how many questions each bin holds."""
    line = {"color": NEUTRAL, "dash": "dash", "width": 1.5}
    traces: list[Trace] = [
        {
            "type": "scatter",
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "line": line,
            "showlegend": False,
            "hoverinfo": "skip",
        },
    ]
    for k, found in enumerate(shown):
        traces += _reliability_of(found, bins, equal_mass, bands, (k, len(shown)))
    axes: Axes = {
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.02]},
        "yaxis2": {"title": {"text": "gap"}, **ZERO},
        "yaxis3": {"title": {"text": "questions"}},
        "xaxis": {"range": [0, 1]},
        "xaxis2": {"range": [0, 1]},
        "xaxis3": {"range": [0, 1], "title": {"text": "confidence"}},
    }
    return framed(stacked(3, 0.045, (0.6, 0.18, 0.22)), 640, traces, axes)


def _reliability_of(
    found: Answers, bins: int, equal_mass: bool, bands: bool, place: tuple[int, int]
) -> Iterator[Trace]:
    """One method's band, line, gap and counts; `place`: which of how many share a bin."""
    look, name = style(found.row), plain(found.row)
    told = reliability_bins(found.probs, found.gold, bins, equal_mass)
    some = [b for b, n in enumerate(told["count"]) if n]
    x, y, lo, hi, count = (
        np.array([told[key][b] for b in some]) for key in ("confidence", "accuracy", "lo", "hi", "count")
    )
    if bands:
        low, high = (ends[some] for ends in band(told))
        yield _band(x, low, high, look, name)
    yield {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": name,
        "legendgroup": name,
        "mode": "lines+markers",
        "customdata": count,
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"symbol": look.symbol, "size": 9},
        "hovertemplate": "confidence %{x:.3f}, accuracy %{y:.3f}, %{customdata} questions",
    }
    shared = {
        "type": "bar",
        "x": lo + (hi - lo) * (place[0] + 0.5) / place[1],
        "width": (hi - lo) / place[1] * 0.9,
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "marker": {"color": look.colour, "line": {"width": 0}},
    }
    yield {**shared, "y": x - y, "xaxis": "x2", "yaxis": "y2", "hovertemplate": "confidence − accuracy %{y:.3f}"}
    yield {**shared, "y": count, "xaxis": "x3", "yaxis": "y3", "hovertemplate": "%{y} questions"}


def _band(x: Sequence[float] | Floats, low: Floats, high: Floats, look: Style, name: str) -> Trace:
    return {
        "type": "scatter",
        "x": [*x, *x[::-1]],
        "y": [*high, *low[::-1]],
        "fill": "toself",
        "hoverinfo": "skip",
        "fillcolor": soft(look.colour, 0.15),
        "mode": "lines",
        "line": {"width": 0},
        "legendgroup": name,
        "showlegend": False,
    }


def right_and_wrong(shown: Sequence[Answers]) -> Figure:
    """How sure it was where it was right (up) and where it was wrong (down), as shares of all questions."""
    rows, traces = len(shown), list[Trace]()
    axes: Axes = {}
    for row, found in enumerate(shown, start=1):
        at = nth(row)
        look = style(found.row)
        edges, right, wrong = sure_shares(found)
        for share, sign, pattern in ((100 * right, 1, ""), (100 * wrong, -1, "/")):
            traces.append(
                {
                    "type": "bar",
                    "x": (edges[1:] + edges[:-1]) / 2,
                    "y": sign * share,
                    "width": 0.9 * edges[1],
                    "xaxis": f"x{at}",
                    "yaxis": f"y{at}",
                    "name": "right" if sign > 0 else "wrong",
                    "showlegend": row == 1,
                    "legendgroup": str(sign),
                    "customdata": share,
                    "marker": {
                        "color": look.colour if sign > 0 else soft(look.colour, 0.45),
                        "pattern": {"shape": pattern, "fgcolor": look.colour},
                    },
                    "hovertemplate": "confidence %{x:.3f}: %{customdata:.1f} % of the questions",
                }
            )
        axes[f"yaxis{at}"] = {"title": {"text": "wrong | right, %"}, **ZERO}
        axes[f"xaxis{at}"] = {"range": [0, 1], "title": {"text": "confidence" if row == rows else ""}}
    frame = stacked(rows, between(rows, 0.07), titles=tuple(plain(found.row) for found in shown))
    return framed(frame, 150 + 150 * rows, traces, axes, titles=True, barmode="overlay")


def risk_coverage(shown: Sequence[Answers]) -> Figure:
    """Errors among the most confident share of the questions; AURC is the mean of the line."""
    if not shown:
        return empty("None of the chosen methods has such a run.")
    traces: list[Trace] = []
    for found in shown:
        look, right = style(found.row), correct(found.probs, found.gold)
        risk = 100 * risk_curve(confidence(found.probs), right)
        coverage = 100 * np.arange(1, len(risk) + 1) / len(risk)
        first = min(9, len(risk) - 1)  # fewer than ten questions say nothing
        kept = np.unique(np.linspace(first, len(risk) - 1, min(len(risk), 250)).astype(int))
        traces.append(
            {
                "type": "scatter",
                "x": coverage[kept],
                "y": risk[kept],
                "mode": "lines",
                "name": f"{plain(found.row)} · AURC {100 * aurc(found.probs, found.gold):.2f}",
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "hovertemplate": "%{y:.1f} % wrong among the surest %{x:.0f} %",
            }
        )
    axes: Axes = {
        "xaxis": {"title": {"text": "coverage, % of the questions answered"}, "range": [0, 100]},
        "yaxis": {"title": {"text": "risk, % wrong"}, "rangemode": "tozero"},
    }
    return framed(stacked(), 460, traces, axes)


def decomposed(shown: Sequence[Answers]) -> Figure:
    """Epistemic (mutual information) against aleatoric (expected entropy), both per log C; one panel per method."""
    told = [(found, parts) for found in shown if (parts := decomposition(found)) is not None]
    if not told:
        return empty("None of these has several draws that were kept, so nothing can be told apart.")
    columns, rows = min(len(told), 2), -(-len(told) // 2)
    traces: list[Trace] = []
    for k, (found, parts) in enumerate(told, start=1):
        at = nth(k)
        colour = style(found.row).colour
        for name, which, symbol in (("right", parts["right"], "circle"), ("wrong", ~parts["right"], "x-thin-open")):
            traces.append(
                {
                    "type": "scatter",
                    "x": parts["aleatoric"][which],
                    "y": parts["epistemic"][which],
                    "mode": "markers",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": k == 1,
                    "xaxis": f"x{at}",
                    "yaxis": f"y{at}",
                    "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.55, "line": {"width": 1.2}},
                    "hovertemplate": "expected entropy %{x:.3f}, mutual information %{y:.4f}",
                }
            )
    last, first = range((rows - 1) * columns + 1, rows * columns + 1), range(1, rows * columns + 1, columns)
    axes = {f"xaxis{nth(k)}": {"title": {"text": "expected entropy"}} for k in last}
    axes |= {f"yaxis{nth(k)}": {"title": {"text": "mutual information"}} for k in first}
    frame = stacked(rows, between(rows, 0.14), titles=tuple(plain(found.row) for found, _ in told), columns=columns)
    return framed(frame, 140 + 300 * rows, traces, axes, titles=True)


def detections(found: Mapping[str, Mapping[str, float]], score: str) -> Figure:
    """AUROC of telling each shifted data set from the one trained on: {row: {data set: AUROC in [0, 1]}}."""
    traces: list[Trace] = []
    for row, values in found.items():
        look = style(row)
        traces.append(
            {
                "type": "scatter",
                "x": [100 * value for value in values.values()],
                "y": list(map(plain, values)),
                "mode": "markers",
                "name": plain(row),
                "hovertemplate": "AUROC %{x:.1f}",
                "marker": {"color": look.colour, "symbol": look.symbol, "size": 12},
            }
        )
    chance = {
        "type": "line",
        "x0": 50,
        "x1": 50,
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        "line": {"color": NEUTRAL, "dash": "dash", "width": 1.5},
    }
    axes: Axes = {
        "xaxis": {"title": {"text": f"AUROC of {score}, %; 50 is chance"}},
        # a category: else names that look like numbers or dates are
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
    }
    most = max((len(values) for values in found.values()), default=0)
    return framed(stacked(), 190 + 70 * most, traces, axes, shapes=[chance])


def shifted(values: Mapping[str, Mapping[str, tuple[float, float | None]]], metric: str) -> Figure:
    """A metric from the data set trained on to farther ones: {row: {data set: (mean, std)}}."""
    traces, known = list[Trace](), METRICS[metric]
    for row, points in values.items():
        look = style(row)
        spread = [0.0 if std is None else std * known.scale for _, std in points.values()]
        traces.append(
            {
                "type": "scatter",
                "x": list(map(plain, points)),
                "y": [mean * known.scale for mean, _ in points.values()],
                "name": plain(row),
                "mode": "lines+markers",
                "connectgaps": True,
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "marker": {"symbol": look.symbol, "size": 9},
                "error_y": {"array": spread, "visible": any(spread), "width": 3},
            }
        )
    axes: Axes = {"xaxis": {"type": "category", "automargin": True}, "yaxis": {"title": {"text": titled(metric)}}}
    return framed(stacked(), 440, traces, axes)


def against_draws(panels: Sequence[Sequence[DrawCurve]]) -> Figure:
    """A panel per metric against N; the 5 to 95 % spread is over random choices of N of the draws, N = 0 the mean."""
    if not any(panels):
        return empty("None of these has several draws.")
    traces: list[Trace] = []
    axes: Axes = {}
    for row, curves in enumerate(panels, start=1):
        at = nth(row)
        for curve in curves:
            traces += ({**each, "xaxis": f"x{at}", "yaxis": f"y{at}"} for each in _draws_of(curve, row == 1))
        axes[f"yaxis{at}"] = {"title": {"text": titled(curves[0].metric)}}
    most = max(curve.counts[-1] for curve in panels[0])
    ticks = {"dtick": 1} if most <= 30 else {}
    axes |= {f"xaxis{nth(row)}": dict(ticks) for row in range(1, len(panels) + 1)}
    axes[f"xaxis{at}"]["title"] = {"text": "N, draws averaged (0: the mean, hollow)"}
    return framed(stacked(len(panels), between(len(panels), 0.05)), 220 + 240 * len(panels), traces, axes)


def _draws_of(curve: DrawCurve, named: bool) -> Iterator[Trace]:
    """One method's band, and its line; the mean is its last point, after a gap: another trace takes longer to draw."""
    look, name, scale = style(curve.row), plain(curve.row), METRICS[curve.metric].scale
    if not np.isnan(curve.low).all():  # published without single draws: no spread
        yield _band(curve.counts, curve.low * scale, curve.high * scale, look, name)
    x: list[int] = [*curve.counts]
    y: list[float | None] = [float(value) * scale for value in curve.value]
    marker: Trace = {"symbol": look.symbol, "size": 8}
    if curve.mean is not None:
        n = len(x)
        x, y = [*x, 0, 0], [*y, None, curve.mean * scale]
        marker = {"symbol": [look.symbol] * (n + 1) + [f"{look.symbol}-open"], "size": [8] * (n + 1) + [11]}
        marker |= {"line": {"width": [0] * (n + 1) + [2]}, "opacity": 1}
    yield {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": name,
        "legendgroup": name,
        "showlegend": named,
        "mode": "lines+markers",
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": marker,
    }


def pareto(points: Sequence[Mapping[str, float | str]], x: str, y: str, front: Sequence[bool]) -> Figure:
    """Two numbers of every row; `front`: what nothing beats in all of accuracy, ECE and cost, has a ring and is bold.

    A point: {"row": name, and numbers in the units shown}. `x` and `y` are axis titles and keys at once.
    """
    known = [(p, best) for p, best in zip(points, front, strict=True) if p[x] == p[x] and p[y] == p[y]]
    known.sort(key=lambda each: not each[1])  # the front's names find a place first
    if not known:
        return empty("No run has recorded this cost.")
    looks = [style(str(point["row"])) for point, _ in known]
    names = [plain(str(point["row"])) for point, _ in known]
    rings = [best for _, best in known]
    across, up = ([float(point[axis]) for point, _ in known] for axis in (x, y))
    where = places(across, up, [name if k < MOST_LABELS else "" for k, name in enumerate(names)])
    labels = [
        (f"<b>{name}</b>" if best else name) if place else ""
        for name, best, place in zip(names, rings, where, strict=True)
    ]
    dots = {  # one trace: hundreds of them take seconds
        "type": "scatter",
        "x": across,
        "y": up,
        "mode": "markers+text",
        "text": labels,
        "customdata": names,
        "textposition": [place or "top center" for place in where],
        "cliponaxis": False,
        "hovertemplate": f"%{{customdata}}<br>{x} %{{x:.4g}}, {y} %{{y:.2f}}<extra></extra>",
        "marker": {
            "color": [look.colour for look in looks],
            "symbol": [look.symbol for look in looks],
            "size": [15 if best else 10 for best in rings],
            "opacity": 1,
            "line": {"color": NEUTRAL, "width": [2.5 if best else 0 for best in rings]},
        },
    }
    axes = {"xaxis": {"title": {"text": plain(x)}}, "yaxis": {"title": {"text": plain(y)}}}
    return framed(stacked(), 470, [dots], axes, legend=False)
