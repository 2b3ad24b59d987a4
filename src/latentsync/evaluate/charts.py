"""Charts of the report, as SVG: how the values of a metric are spread, and how sync runs over time. Colours are in report.css."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from latentsync.evaluate.summary import Summary
from latentsync.page import escape, number

COLOURS = 6  # systems with a colour of their own
_WIDTH = 300.0
_ROW = 26.0  # of one system
_DOTS = 200  # most shown of one system
_LINES = 40  # most thin lines of one system
_POINTS = 400  # most of one line; of a longer one means of neighbours are drawn


class Spread(NamedTuple):
    """One system's values of a metric."""

    colour: int
    system: str
    values: Sequence[tuple[str, float]]  # (video, value)
    summary: Summary


class Line(NamedTuple):
    """One value a second; NaN where unknown."""

    colour: int
    name: str
    values: Sequence[float]
    bold: bool = True


def spread(title: str, spreads: Sequence[Spread]) -> str:
    """A dot for each video, a row for each system; the tick is the median, the bar the 95 % interval of the mean."""
    low = min(s.summary.least for s in spreads)
    high = max(s.summary.most for s in spreads)
    room = (high - low) or abs(high) or 1.0
    named = len(spreads) > 1
    row = _ROW + (10 if named else 0)
    height = row * len(spreads) + 18

    def x(value: float) -> float:
        return 6 + (_WIDTH - 12) * ((value - low) / room if high > low else 0.5)

    parts = []
    for i, (colour, system, values, summary) in enumerate(spreads):
        top = i * row + (10 if named else 0)
        middle = top + _ROW / 2
        if named:
            parts.append(f"<text x='0' y='{top:.1f}'>{escape(system if len(system) < 44 else system[:42] + '…')}</text>")
        told = f"mean {number(summary.mean)}, 95 % interval {number(summary.low)} to {number(summary.high)}"
        bar = f"x='{x(summary.low):.1f}' width='{max(x(summary.high) - x(summary.low), 1.5):.1f}'"
        parts.append(f"<rect class='ci c{colour}' {bar} y='{middle - 9:.1f}' height='18'><title>{told}</title></rect>")
        shown = sorted(values, key=lambda v: v[1])
        if len(shown) > _DOTS:
            shown = [shown[round(k)] for k in np.linspace(0, len(shown) - 1, _DOTS)]
        parts += [
            f"<circle class='c{colour}' cx='{x(value):.1f}' cy='{middle + 7 * (((k * 5) % 7) / 3 - 1):.1f}' r='2.6'>"
            f"<title>{escape(video)}: {number(value)}</title></circle>"
            for k, (video, value) in enumerate(shown)
        ]
        at = x(summary.median)
        parts.append(
            f"<line class='median c{colour}' x1='{at:.1f}' x2='{at:.1f}' y1='{middle - 11:.1f}' y2='{middle + 11:.1f}'>"
            f"<title>median {number(summary.median)}</title></line>"
        )
    ends = f"<text x='0' y='{height - 3:.1f}'>{number(low)}</text>"
    if high > low:
        ends += f"<text x='{_WIDTH}' y='{height - 3:.1f}' text-anchor='end'>{number(high)}</text>"
    return (
        f"<svg class='spread' viewBox='0 0 {_WIDTH:.0f} {height:.0f}' role='img' aria-label='{escape(title)}, spread over videos'>"
        f"{''.join(parts)}{ends}</svg>"
    )


def over_time(title: str, lines: Sequence[Line], span: tuple[float, float] | None = None, tall: float = 110.0) -> str:
    """Lines over seconds; `span` is a stretch to mark."""
    known = [v for line in lines for v in line.values if math.isfinite(v)]
    seconds = max((len(line.values) for line in lines), default=0)
    if not known:
        return "<p class='none'>no curve</p>"
    low, high = min(0.0, *known), max(*known, 0.0)
    room = (high - low) or 1.0
    left, width, low_edge = 34.0, 420.0, 16.0
    across, up = width - left - 14, tall - low_edge - 6

    def x(second: float) -> float:
        return left + across * (second / max(seconds, 1))

    def y(value: float) -> float:
        return 4 + up * (1 - (value - low) / room)

    parts = []
    if span is not None:
        parts.append(
            f"<rect class='span' x='{x(span[0]):.1f}' width='{max(x(min(span[1], seconds)) - x(span[0]), 1):.1f}' y='2' height='{up + 4:.1f}'>"
            "<title>what is shown</title></rect>"
        )
    for value in _ticks(low, high):
        parts.append(f"<line class='rule' x1='{left}' x2='{width - 14}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>")
        parts.append(f"<text x='{left - 5}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:g}</text>")
    parts += [
        f"<text x='{x(second):.1f}' y='{tall - 2}' text-anchor='middle'>{_clock(second)}</text>"
        for second in _ticks(0, seconds, 6)
        if second % 1 == 0
    ]
    parts += [_curve(line, x, y) for line in sorted(lines, key=lambda one: one.bold)]
    size = f"viewBox='0 0 {width:.0f} {tall:.0f}'"
    return f"<svg class='time' {size} role='img' aria-label='{escape(title)}, over time'>{''.join(parts)}</svg>"


def _curve(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Unbroken stretches; a second between unknown ones is a dot."""
    form = f"class='{'bold' if line.bold else 'thin'} c{line.colour}'"
    runs: list[list[str]] = [[]]
    step = -(-len(line.values) // _POINTS) or 1
    for k in range(0, len(line.values), step):
        known = [value for value in line.values[k : k + step] if math.isfinite(value)]
        if known:
            runs[-1].append(f"{x(k + min(step, len(line.values) - k) / 2):.1f},{y(sum(known) / len(known)):.1f}")
        elif runs[-1]:
            runs.append([])
    drawn = "".join(
        f"<polyline {form} points='{' '.join(run)}'/>"
        if len(run) > 1
        else f"<circle {form} cx='{run[0].split(',')[0]}' cy='{run[0].split(',')[1]}' r='2.5'/>"
        for run in runs
        if run
    )
    return f"<g><title>{escape(line.name)}</title>{drawn}</g>"


def thin(lines: Sequence[Line], most: int = _LINES) -> list[Line]:
    """At most so many of them, evenly picked."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(k)] for k in np.linspace(0, len(lines) - 1, most)]


def mean_line(colour: int, name: str, curves: Sequence[Sequence[float]]) -> Line:
    """The mean of what is known in each second."""
    longest = max((len(c) for c in curves), default=0)
    sums, counts = np.zeros(longest), np.zeros(longest)
    for curve in curves:
        values = np.asarray(curve, np.float64)
        good = np.isfinite(values)
        sums[: len(values)] += np.where(good, values, 0)
        counts[: len(values)] += good
    return Line(colour, name, tuple(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist()))


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _clock(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
