"""Where the names of a figure's points stand, so that they do not lie on each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTHS = (200, 760)  # px of a figure on a phone, and at least on a screen
HEIGHT = 360
LETTER, LINE, MARKER = 7, 15, 9  # px
# Plotly's name -> where the middle of the label is from its point, in (half widths + marker, lines)
PLACES = {
    "top center": (0.0, 1.0),
    "middle right": (1.0, 0.0),
    "middle left": (-1.0, 0.0),
    "bottom center": (0.0, -1.0),
}


def places(x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> list[str]:
    """One of PLACES per point, "" where none is free; earlier points choose first.

    A place that is free at every width, or else one that is on a wide screen.
    """
    points = {width: np.stack([_shares(x) * width, _shares(y) * HEIGHT], axis=1) for width in WIDTHS}  # px, [P, 2]
    reach = MARKER * 0.7
    marks = {width: np.concatenate([each - reach, each + reach], axis=1) for width, each in points.items()}  # [P, 4]
    taken: dict[int, list[np.ndarray]] = {width: [] for width in WIDTHS}

    def free(i: int, place: str, width: int) -> bool:
        mine = _label(points[width][i], names[i], place)
        on_marks = _overlap(mine, marks[width])
        on_marks[i] = False  # its own
        return not (on_marks.any() or _overlap(mine, np.array(taken[width]).reshape(-1, 4)).any())

    found = []
    for i, name in enumerate(names):
        options = (p for widths in (WIDTHS, WIDTHS[-1:]) for p in PLACES if all(free(i, p, w) for w in widths))
        found.append(next(options, "") if name else "")
        if found[-1]:
            for width in WIDTHS:
                taken[width].append(_label(points[width][i], name, found[-1]))
    return found


def _shares(values: Sequence[float]) -> np.ndarray:
    told = np.asarray(values, dtype=np.float64)
    return np.asarray((told - told.min()) / (np.ptp(told) or 1.0))


def _label(point: np.ndarray, name: str, place: str) -> np.ndarray:
    """Left, bottom, right and top of a name beside its point."""
    half, (right, up) = len(name) * LETTER / 2, PLACES[place]
    x, y = point[0] + right * (half + MARKER), point[1] + up * (LINE / 2 + MARKER)
    return np.array([x - half, y - LINE / 2, x + half, y + LINE / 2])


def _overlap(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the others it lies on."""
    left, bottom, right, top = others.T
    return np.asarray((mine[0] < right) & (mine[1] < top) & (mine[2] > left) & (mine[3] > bottom))
