"""Figures from answers and curves, for the app and the static site: plain dicts that plotly.js draws. Pure.

Nothing here sets the colour of a text or of the paper: a figure takes the light or dark theme of its page. A name is
in no hover template, where Plotly would read `%{x}` in it: the box of a trace names it, or its `customdata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from uqharness.leaderboard.curves import Answers, band, decomposition, sure_shares
from uqharness.leaderboard.draw_curves import DrawCurve
from uqharness.leaderboard.headline import Points
from uqharness.leaderboard.table_formats import titled
from uqharness.leaderboard.theme import GRID, NEUTRAL, Style, soft, style
from uqharness.metrics.calibration import BINS, reliability_bins
from uqharness.metrics.metric import Floats
from uqharness.metrics.points import confidence, correct
from uqharness.metrics.registry import METRICS
from uqharness.metrics.selective import aurc, risk_curve

Trace = dict[str, Any]
Axes = dict[str, dict[str, Any]]  # plotly.js's names of axes, and what they are
ChartData = dict[str, Any]  # {"data": traces, "layout": …}
CLEAR = "rgba(0, 0, 0, 0)"
MOST_TRACES = 30  # methods with a trace, and so a line of the legend, of their own
ZERO = {"zeroline": True, "zerolinecolor": NEUTRAL, "zerolinewidth": 1.5}


# ---------------------------------------------------------------- the frame


def figure(
    traces: Sequence[Trace],
    axes: Mapping[str, Mapping[str, Any]],
    height: int,
    heights: Sequence[float] = (1.0,),
    columns: int = 1,
    titles: Sequence[str] = (),
    gap: float = 0.05,
    legend: bool = True,
    **more: Any,
) -> ChartData:
    """Panels, row by row, that share their axes; `axes` says what else an axis is, under plotly.js's names."""
    rows, layout = len(heights), dict[str, Any]()
    free, wide = 1 - gap * (rows - 1), (1 - 0.06 * (columns - 1)) / columns
    tops = [1 - (sum(heights[:r]) / sum(heights)) * free - r * gap for r in range(rows)]
    for k in range(rows * columns):
        r, c = divmod(k, columns)
        left, low = c * (wide + 0.06), tops[r] - heights[r] / sum(heights) * free
        shared = {"gridcolor": GRID, "zeroline": False}
        across = {"matches": "x"} if k else {}
        layout[f"xaxis{nth(k + 1)}"] = {**shared, "domain": [left, left + wide], "anchor": f"y{nth(k + 1)}", **across}
        layout[f"yaxis{nth(k + 1)}"] = {**shared, "domain": [max(low, 0), tops[r]], "anchor": f"x{nth(k + 1)}"}
        if r < rows - 1 and columns == 1:
            layout[f"xaxis{nth(k + 1)}"]["showticklabels"] = False
    for name, about in axes.items():
        layout[name] |= about
    paper = {"xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom", "showarrow": False}
    notes = [
        {"text": text, "x": k % columns * (wide + 0.06) + wide / 2, "y": tops[k // columns], **paper}
        for k, text in enumerate(titles)
    ]
    layout |= {
        "margin": {"l": 60, "r": 14, "t": 62 if titles and legend else 40 if legend or titles else 14, "b": 48},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "legend": {"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        "hoverlabel": {"namelength": -1},
        "modebar": {"bgcolor": CLEAR, "color": NEUTRAL, "activecolor": "#1f7ae0"},
        "height": height,
        "showlegend": legend,
        **({"annotations": notes} if notes else {}),
        **more,
    }
    return {"data": list(traces), "layout": layout}


def empty(why: str) -> ChartData:
    """A figure that says why there is nothing in it."""
    note = {"text": plain(why), "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    hidden = {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return figure([], hidden, 160, legend=False, annotations=[note])


def as_json(chart: ChartData) -> str:
    """For a page; NaN is null, as in JSON."""

    def default(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    return json.dumps(_finite(json.loads(json.dumps(chart, default=default))), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def nth(k: int) -> str:
    """Return Plotly's suffix of the k-th axis after "x" or "xaxis": empty for the first."""
    return "" if k == 1 else str(k)


def plain(text: str) -> str:
    """Plotly reads some HTML in its texts: names of results are letters, not markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def line(row: str, x: Any, y: Any, **more: Any) -> Trace:
    """A method's line, in its look."""
    look, name = style(row), plain(row)
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": name,
        "legendgroup": name,
        "mode": "lines+markers",
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"symbol": look.symbol, "size": 9},
        **more,
    }


def _band(x: Any, low: Floats, high: Floats, look: Style, name: str) -> Trace:
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


# ---------------------------------------------------------------- the figures


def headline(points: Points) -> ChartData:
    """Difference from MLE in NLL and ECE: filled all draws, hollow N = 0, joined; 95 % bars; ECE's floor."""
    traces, axes = list[Trace](), Axes()
    names = [plain(row.name) for row in points.rows]
    places = list(range(len(names)))
    colours = [style(row.name).colour for row in points.rows]
    for k, metric in enumerate(("nll", "ece"), start=1):
        scale = METRICS[metric].scale
        shared = {"type": "scatter", "xaxis": f"x{nth(k)}", "yaxis": f"y{nth(k)}", "showlegend": k == 1}
        dots = {**shared, "y": places, "customdata": names, "mode": "markers"}
        dots["hovertemplate"] = "%{customdata}: %{x:.3f}"
        full = [row.full[metric][0] * scale for row in points.rows]
        half = [row.full[metric][1] * scale or None for row in points.rows]
        means = [row.mean and row.mean[metric][0] * scale for row in points.rows]
        ends = [(a, a if m is None else m, None) for a, m in zip(full, means, strict=True)]
        path = {"mode": "lines", "line": {"color": NEUTRAL, "width": 1.5}, "hoverinfo": "skip"}
        hollow = {"symbol": "circle-open", "size": 13, "color": colours, "line": {"width": 2}}
        bars = {"type": "data", "array": half, "color": NEUTRAL, "thickness": 1.5, "width": 4}
        joined = {"x": [x for three in ends for x in three], "y": [y for n in places for y in (n, n, None)]}
        traces.append({**shared, **path, **joined, "showlegend": False})
        filled = {"size": 10, "color": colours}
        for name, values, marker in (("N = 0", means, hollow), ("all draws, or the one answer", full, filled)):
            error = {"error_x": bars} if values is full else {}
            own = {**dots, "name": name, "legendgroup": name}
            traces.append({**own, "x": values, "marker": marker, **error, "showlegend": False})
            if k == 1:  # its sample in the legend has no method's colour
                traces.append({**own, "x": [None], "y": [None], "marker": {**marker, "color": NEUTRAL}})
        if metric == "ece":
            below = {"symbol": "triangle-up-open", "size": 7, "color": NEUTRAL, "line": {"width": 1.5}}
            floors = {"x": [row.floor * scale for row in points.rows], "y": [place + 0.3 for place in places]}
            traces.append({**dots, **floors, "name": "ECE floor", "marker": below, "showlegend": True})
        unit = ", percentage points" if scale == 100 else ""
        axes[f"xaxis{nth(k)}"] = {"title": {"text": f"Δ{METRICS[metric].label}{unit}", "font": {"size": 12}}, **ZERO}
        rows = {"tickmode": "array", "tickvals": places, "ticktext": names, "range": [len(names) - 0.4, -0.6]}
        axes[f"yaxis{nth(k)}"] = {**rows, "automargin": k == 1, "showticklabels": k == 1}
    axes["xaxis2"]["matches"] = None
    over = {"text": "MLE", "x": 0, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    lines = [{**over, "xref": f"x{nth(k)}"} for k in (1, 2)]
    margin = {"l": 60, "r": 14, "t": 62, "b": 48}
    return figure(traces, axes, 150 + 28 * len(names), columns=2, annotations=lines, margin=margin)


def reliability(shown: Sequence[Answers], bins: int = BINS, equal_mass: bool = False, bands: bool = True) -> ChartData:
    """Accuracy against confidence with 95 % bands, the gap, and how many questions each bin holds."""
    ideal = {"color": NEUTRAL, "dash": "dash", "width": 1.5}
    shape = {"mode": "lines", "line": ideal, "showlegend": False, "hoverinfo": "skip"}
    traces: list[Trace] = [{"type": "scatter", "x": [0, 1], "y": [0, 1], **shape}]
    for k, answers in enumerate(shown):
        traces += _reliability_of(answers, bins, equal_mass, bands, (k, len(shown)))
    axes: Axes = {
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.02]},
        "yaxis2": {"title": {"text": "gap"}, **ZERO},
        "yaxis3": {"title": {"text": "questions"}},
        "xaxis": {"range": [0, 1]},
        "xaxis3": {"title": {"text": "confidence"}},
    }
    return figure(traces, axes, 640, (0.6, 0.18, 0.22))


def _reliability_of(
    answers: Answers, bins: int, equal_mass: bool, bands: bool, place: tuple[int, int]
) -> Iterator[Trace]:
    """One method's band, line, gap and counts; `place`: which of how many share a bin."""
    look, name = style(answers.row), plain(answers.row)
    binned = reliability_bins(answers.probs, answers.gold, bins, equal_mass)
    some = [b for b, n in enumerate(binned["count"]) if n]
    keys = ("confidence", "accuracy", "lo", "hi", "count")
    x, y, lo, hi, count = (np.array([binned[key][b] for b in some]) for key in keys)
    if bands:
        low, high = (ends[some] for ends in band(binned))
        yield _band(x, low, high, look, name)
    hover = "confidence %{x:.3f}, accuracy %{y:.3f}, %{customdata} questions"
    yield line(answers.row, x, y, customdata=count, hovertemplate=hover)
    shared = {
        "type": "bar",
        "x": lo + (hi - lo) * (0.1 + 0.8 * (place[0] + 0.5) / place[1]),  # a gap between bins
        "width": 0.8 * (hi - lo) / place[1],
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "marker": {"color": look.colour, "line": {"width": 0}},
    }
    yield {**shared, "y": x - y, "xaxis": "x2", "yaxis": "y2", "hovertemplate": "confidence − accuracy %{y:.3f}"}
    yield {**shared, "y": count, "xaxis": "x3", "yaxis": "y3", "hovertemplate": "%{y} questions"}


def right_and_wrong(shown: Sequence[Answers]) -> ChartData:
    """Draw the confidence of right (up) and wrong (down) answers, as shares of all questions."""
    traces, axes = list[Trace](), Axes()
    for row, answers in enumerate(shown, start=1):
        at, look = nth(row), style(answers.row)
        edges, right, wrong = sure_shares(answers)
        for share, sign, pattern in ((100 * right, 1, ""), (100 * wrong, -1, "/")):
            traces.append(
                {
                    "type": "bar",
                    "x": (edges[1:] + edges[:-1]) / 2,
                    "y": sign * share,
                    "width": 0.8 * edges[1],
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
        axes[f"xaxis{at}"] = {"range": [0, 1], "title": {"text": "confidence" if row == len(shown) else ""}}
    names = [plain(answers.row) for answers in shown]
    gap = min(0.07, 0.3 / len(shown))
    return figure(traces, axes, 150 + 150 * len(shown), [1] * len(shown), titles=names, gap=gap, barmode="overlay")


def risk_coverage(shown: Sequence[Answers]) -> ChartData:
    """Errors among the most confident share of the questions; AURC is the mean of the line."""
    if not shown:
        return empty("None of the chosen methods has such a run.")
    traces = []
    for answers in shown:
        risk = 100 * risk_curve(confidence(answers.probs), correct(answers.probs, answers.gold))
        coverage = 100 * np.arange(1, len(risk) + 1) / len(risk)
        first = min(9, len(risk) - 1)  # fewer than ten questions say nothing
        places = np.unique(np.linspace(first, len(risk) - 1, min(len(risk), 250)).astype(int))
        name = f"{plain(answers.row)} · AURC {100 * aurc(answers.probs, answers.gold):.2f}"
        hover = "%{y:.1f} % wrong among the surest %{x:.0f} %"
        traces.append(line(answers.row, coverage[places], risk[places], mode="lines", name=name, hovertemplate=hover))
    axes: Axes = {
        "xaxis": {"title": {"text": "coverage, % of the questions answered"}, "range": [0, 100]},
        "yaxis": {"title": {"text": "risk, % wrong"}, "rangemode": "tozero"},
    }
    return figure(traces, axes, 460)


def decomposed(shown: Sequence[Answers]) -> ChartData:
    """Epistemic (mutual information) against aleatoric (expected entropy), both per log C; one panel per method."""
    split = [(answers, parts) for answers in shown if (parts := decomposition(answers)) is not None]
    if not split:
        return empty("None of these has several draws that were kept, so nothing can be told apart.")
    columns, rows = min(len(split), 2), -(-len(split) // 2)
    traces: list[Trace] = []
    for k, (answers, parts) in enumerate(split, start=1):
        colour = style(answers.row).colour
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
                    "xaxis": f"x{nth(k)}",
                    "yaxis": f"y{nth(k)}",
                    "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.55, "line": {"width": 1.2}},
                    "hovertemplate": "expected entropy %{x:.3f}, mutual information %{y:.4f}",
                }
            )
    last, first = range((rows - 1) * columns + 1, rows * columns + 1), range(1, rows * columns + 1, columns)
    axes: Axes = {f"yaxis{nth(k)}": {"matches": "y"} for k in range(2, rows * columns + 1)}
    axes |= {f"xaxis{nth(k)}": {"title": {"text": "expected entropy"}} for k in last}
    for k in first:
        axes.setdefault(f"yaxis{nth(k)}", {})["title"] = {"text": "mutual information"}
    names = [plain(answers.row) for answers, _ in split]
    return figure(traces, axes, 140 + 300 * rows, [1] * rows, columns, names, min(0.14, 0.3 / rows))


def shifted(
    values: Mapping[str, Mapping[str, tuple[float, float | None]]], title: str, scale: float, level: float | None = None
) -> ChartData:
    """A number on data sets, nearest first: {row: {data set: (mean, std)}}; `level` is a dashed line."""
    traces = list[Trace]()
    for row, points in values.items():
        spread = [0.0 if std is None else std * scale for _, std in points.values()]
        bars = {"array": spread, "visible": any(spread), "width": 3}
        means = [mean * scale for mean, _ in points.values()]
        traces.append(line(row, list(map(plain, points)), means, connectgaps=True, error_y=bars))
    dashed = {"color": NEUTRAL, "dash": "dash", "width": 1.5}
    level_line = {"type": "line", "x0": 0, "x1": 1, "xref": "x domain", "y0": level, "y1": level, "line": dashed}
    # a category: else names that look like numbers or dates are
    axes: Axes = {"xaxis": {"type": "category", "automargin": True}, "yaxis": {"title": {"text": title}}}
    return figure(traces, axes, 440, shapes=[level_line] * (level is not None))


def against_draws(panels: Sequence[Sequence[DrawCurve]]) -> ChartData:
    """A panel per metric against N; the 5 to 95 % spread is over random choices of N of the draws, N = 0 the mean."""
    if not any(panels):
        return empty("None of these has several draws.")
    traces, axes = list[Trace](), Axes()
    for row, curves in enumerate(panels, start=1):
        at = {"xaxis": f"x{nth(row)}", "yaxis": f"y{nth(row)}"}
        traces += [{**each, **at} for curve in curves for each in _draws_of(curve, row == 1)]
        axes[f"yaxis{nth(row)}"] = {"title": {"text": titled(curves[0].metric)}}
    ticks = {"dtick": 1} if max(curve.counts[-1] for curve in panels[0]) <= 30 else {}
    axes |= {f"xaxis{nth(row)}": dict(ticks) for row in range(1, len(panels) + 1)}
    axes[f"xaxis{nth(len(panels))}"]["title"] = {"text": "N, draws averaged (0: the mean, hollow)"}
    return figure(traces, axes, 220 + 240 * len(panels), [1] * len(panels), gap=min(0.05, 0.3 / len(panels)))


def _draws_of(curve: DrawCurve, named: bool) -> Iterator[Trace]:
    """One method's band, and its line; the mean is its last point, after a gap."""
    look, name, scale = style(curve.row), plain(curve.row), METRICS[curve.metric].scale
    if not np.isnan(curve.low).all():  # published without single draws: no spread
        yield _band(curve.counts, curve.low * scale, curve.high * scale, look, name)
    x, y = [*curve.counts], [float(value) * scale for value in curve.value]
    marker: Trace = {"symbol": look.symbol, "size": 8}
    if curve.mean is not None:
        n = len(x)
        x, y = [*x, 0, 0], [*y, None, curve.mean * scale]  # type: ignore[list-item]
        marker = {
            "symbol": [look.symbol] * (n + 1) + [f"{look.symbol}-open"],
            "size": [8] * (n + 1) + [11],
            "opacity": 1,
        }
        marker["line"] = {"width": [0] * (n + 1) + [2]}
    yield line(curve.row, x, y, showlegend=named, marker=marker)


def pareto(points: Sequence[Mapping[str, Any]], x: str, y: str, front: Sequence[bool]) -> ChartData:
    """Two numbers of every row; `front`: no other row is as good in both and better in one. It is joined and ringed.

    A point: {"row": name, and numbers in the units shown}. `x` and `y` are axis titles and keys at once.
    """
    known = [(p, best) for p, best in zip(points, front, strict=True) if p[x] == p[x] and p[y] == p[y]]
    if not known:
        return empty("No run has recorded this cost.")
    best = sorted((p for p, ahead in known if ahead), key=lambda p: (p[x], p[y]))
    joined = {
        "mode": "lines",
        "line": {"color": NEUTRAL, "dash": "dot", "width": 1.5},
        "name": "front",
        "hoverinfo": "skip",
    }
    traces: list[Trace] = [{"type": "scatter", "x": [p[x] for p in best], "y": [p[y] for p in best], **joined}]
    hover = f"{x} %{{x:.4g}}, {y} %{{y:.3f}}"
    for k, (point, ahead) in enumerate(known):
        look = style(str(point["row"]))
        ring = {
            "color": look.colour,
            "symbol": look.symbol,
            "size": 15 if ahead else 10,
            "line": {"color": NEUTRAL, "width": 2.5 * ahead},
        }
        name = plain(str(point["row"]))
        text = (
            {"mode": "markers+text", "text": [f"<b>{name}</b>"], "textposition": "top center"}
            if ahead
            else {"mode": "markers"}
        )
        more = {"marker": ring, "hovertemplate": hover, "showlegend": k < MOST_TRACES, "cliponaxis": False}
        traces.append(line(str(point["row"]), [point[x]], [point[y]], **text, **more))
    axes: Axes = {"xaxis": {"title": {"text": plain(x)}}, "yaxis": {"title": {"text": plain(y)}}}
    return figure(traces, axes, 500)
