"""Times functions in turn (A B A B …) on one thread, and says by what factor they differ.

CPU time of the process, so that a shared machine's other work counts less. A ratio is the median over the rounds;
low and high are the smallest and the largest of them. Memory: bytes of tensors beyond those there at the start.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Times = dict[str, list[float]]


class Seconds(float):
    """What a function returns that has timed itself (only its steps, say, without its set-up)."""


@dataclass(frozen=True)
class Row:
    """One measured figure. `peer`: what others need for the same, in words; `holds`: value <= goal."""

    row: str
    peer: str
    goal: float
    value: float
    low: float
    high: float
    holds: bool


def interleave(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each function in each round, after one that does not count."""
    import torch  # here: the leaderboard's benchmark measures the memory of a process without it

    torch.set_num_threads(1)
    times: Times = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            own = function()
            if index:
                times[name].append(own if isinstance(own, Seconds) else time.process_time() - start)
    return times


def figure(row: str, peer: str, goal: float, values: list[float]) -> Row:
    """The median of what was measured, with its range."""
    value = statistics.median(values)
    return Row(row, peer, goal, value, min(values), max(values), value <= goal)


def ratio(times: Times, of: str, to: str) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(times[of], times[to], strict=True)]


def spread(values: list[float]) -> str:
    """ "1.23 (1.20–1.31)" for a peer's column."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most that tensors on the CPU hold at once while `function` runs, beyond what was there."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def show(rows: list[Row]) -> str:
    """The table of ratios, as Markdown."""
    lines = ["| row | peer | goal | value | range | holds |", "|---|---|---|---|---|---|"]
    for r in rows:
        verdict = "yes" if r.holds else "no" if math.isfinite(r.value) else "not measured"
        lines.append(f"| {r.row} | {r.peer} | ≤ {r.goal:g} | {r.value:.3g} | {r.low:.3g}–{r.high:.3g} | {verdict} |")
    return "\n".join(lines)
