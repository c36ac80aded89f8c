"""Where the names of a figure's points stand, so that they do not lie on each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTHS = (200, 760)  # px of a figure on a phone, and at least on a screen
HEIGHT = 360
LETTER, LINE, MARKER = 7, 15, 9  # px
# Plotly's name -> where the middle of the label is from its point, in (half widths + marker, lines)
PLACES = {
    "top center": (0.0, 1.0), "middle right": (1.0, 0.0), "middle left": (-1.0, 0.0), "bottom center": (0.0, -1.0),
}  # fmt: skip
Box = tuple[float, float, float, float]  # left, bottom, right, top


def places(x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> list[str]:
    """One of PLACES per point, "" where none is free; earlier points choose first.

    A place that is free at every width, or else one that is on a wide screen.
    """
    at = [_shares(values) for values in (x, y)]
    found: list[tuple[int, str]] = []

    def free(i: int, place: str, width: int) -> bool:
        mine = _label(at, names, i, place, width)
        return not any(_overlap(mine, other) for other in _taken(at, names, found, i, width))

    for i, name in enumerate(names):
        options = (p for widths in (WIDTHS, WIDTHS[-1:]) for p in PLACES if all(free(i, p, w) for w in widths))
        found.append((i, next(options, "") if name else ""))
    return [place for _, place in found]


def _shares(values: Sequence[float]) -> np.ndarray:
    told = np.asarray(values, dtype=np.float64)
    return (told - told.min()) / (np.ptp(told) or 1.0)


def _label(at: Sequence[np.ndarray], names: Sequence[str], i: int, place: str, width: int) -> Box:
    half, (right, up) = len(names[i]) * LETTER / 2, PLACES[place]
    x, y = at[0][i] * width + right * (half + MARKER), at[1][i] * HEIGHT + up * (LINE / 2 + MARKER)
    return x - half, y - LINE / 2, x + half, y + LINE / 2


def _taken(
    at: Sequence[np.ndarray], names: Sequence[str], found: Sequence[tuple[int, str]], i: int, width: int
) -> list[Box]:
    """The labels so far, and the markers of all other points."""
    labels = [_label(at, names, k, place, width) for k, place in found if place]
    points = [(float(x) * width, float(y) * HEIGHT) for k, (x, y) in enumerate(zip(*at, strict=True)) if k != i]
    size = MARKER * 0.7
    return labels + [(x - size, y - size, x + size, y + size) for x, y in points]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
