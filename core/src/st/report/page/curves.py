"""Curves as inline SVG: thinned, smoothed, on a linear or a logarithmic scale."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = Sequence[tuple[float, float]] | NDArray[np.float64]

LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 26
BINS = 360
HALVINGS = 256.0
"""Over how many halvings of a weight a moving average is computed at once: 2 to their power is a number yet."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line. colour: a class of the style sheet, c1 to c6 or q1 to q4. faint: raw values behind a smoothed line."""

    name: str
    points: Points
    colour: str = "c1"
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels, with the values that get a label. Values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def smooth(points: Points, steps: float) -> NDArray[np.float64]:
    """A moving average that forgets half of a value over so many steps, (N, 2); its start is not pulled to 0.

    points: ordered by their steps, with finite values.
    """
    x, y = _array(points).T
    average = np.empty_like(y)
    halvings = (x - x[0]) / max(steps, 1e-9) if len(x) else x
    weight = total = at = 0.0
    start = 0
    while start < len(y):
        # Every value weighs twice as much after as many steps; so a sum of all weighed values is a sum that runs.
        end = max(start + 1, int(np.searchsorted(halvings, halvings[start] + HALVINGS)))
        kept = 0.5 ** (halvings[start] - at)
        powers = 2.0 ** (halvings[start:end] - halvings[start])
        weights = weight * kept + np.cumsum(powers)
        totals = total * kept + np.cumsum(powers * y[start:end])
        average[start:end] = totals / weights
        weight, total, at = weights[-1] / powers[-1], totals[-1] / powers[-1], halvings[end - 1]
        start = end
    return np.stack([x, average], axis=1)


def thin(points: Points, bins: int = BINS) -> list[tuple[float, float]]:
    """At most two points for each of ``bins`` equal parts of x, the lowest and the highest: no spike is lost.

    points: ordered by x.
    """
    found = _array(points)
    if len(found) > 2 * bins and found[0, 0] < found[-1, 0]:
        x, y = found.T
        parts = np.minimum(bins - 1, ((x - x[0]) / (x[-1] - x[0]) * bins).astype(np.int64))
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(x)]
        found = found[[place for part in pairwise(edges) for place in _extremes(y, *part)]]
    return [(x, y) for x, y in found.tolist()]


def _extremes(values: NDArray[np.float64], start: int, end: int) -> list[int]:
    part = values[start:end]
    return sorted({start + int(part.argmin()), start + int(part.argmax())})


def thinned(series: Sequence[Series]) -> list[Series]:
    """As they are drawn: without values that are not finite, and without lines that have no point."""
    drawn = [replace(one, points=thin(_finite(one.points))) for one in series]
    return [one for one in drawn if len(one.points)]


def chart(series: Sequence[Series], *, width: int, height: int, log: bool = False, marks: Sequence[float] = ()) -> str:
    """An SVG of lines over steps, or a sentence where there is nothing to draw. marks: steps that a run resumed from.

    log: with a second drawing on a logarithmic scale, which the page's switch shows in place of the first.
    """
    drawn = thinned(series)
    if not drawn:
        return '<p class="quiet">Nothing was measured yet.</p>'
    positive = all(y > 0 for s in drawn for _, y in s.points)
    kinds = (False, True) if log and positive else (False,)
    return "".join(_drawing(drawn, width, height, marks, logarithmic) for logarithmic in kinds)


def _drawing(series: Sequence[Series], width: int, height: int, marks: Sequence[float], logarithmic: bool) -> str:
    x = _x_scale(series, width)
    y = _y_scale(series, height, logarithmic)
    parts = [_grid(x, y, width, height)]
    parts += [
        f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{height - BOTTOM}">'
        f"<title>resumed at step {mark:g}</title></line>"
        for mark in marks
    ]
    for one in series:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in one.points)
        kind = f"line {one.colour}{' faint' if one.faint else ''}"
        if len(one.points) <= 40 and not one.faint:
            dots = "".join(
                f'<circle class="dot {one.colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"/>' for a, b in one.points
            )
        else:
            dots = ""
        parts.append(f'<polyline class="{kind}" points="{path}"/>{dots}')
    data = {
        "x": [x.low, x.high, x.start, x.end],
        "y": [y.low, y.high, y.start, y.end, logarithmic],
        "series": [
            {"name": s.name, "colour": s.colour, "points": [[px, float(f"{py:.5g}")] for px, py in s.points]}
            for s in series
            if not s.faint
        ],
    }
    kind = "log" if logarithmic else "linear"
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" '
        f'data-chart="{escape(json.dumps(data, separators=(",", ":")))}">{"".join(parts)}</svg>'
    )


def _grid(x: Scale, y: Scale, width: int, height: int) -> str:
    rows = [
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in y.ticks
    ]
    columns = [
        f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in x.ticks
    ]
    base = f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{height - BOTTOM}" y2="{height - BOTTOM}"/>'
    return "".join(rows) + base + "".join(columns)


def _x_scale(series: Sequence[Series], width: int) -> Scale:
    values = [x for s in series for x, _ in s.points]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1
    ticks = tuple(tick for tick in _round_ticks(low, high, 7) if float(tick).is_integer())
    return Scale(low, high, LEFT, width - RIGHT, ticks)


def _y_scale(series: Sequence[Series], height: int, logarithmic: bool) -> Scale:
    """Around the lines; of the raw values behind them without the highest 2 %, so that one spike hides nothing."""
    values: list[float] = []
    for s in series:
        ys = sorted(y for _, y in s.points)
        values += ys[: max(1, math.ceil(len(ys) * 0.98))] if s.faint else ys
    low, high = min(values), max(values)
    if logarithmic:
        low, high = low * 0.9, high * 1.1
        return Scale(low, high, height - BOTTOM, TOP, _log_ticks(low, high), True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low = 0.0 if 0 <= low < high * 0.35 else low - room
    high += room
    return Scale(low, high, height - BOTTOM, TOP, _round_ticks(low, high, 5))


def _round_ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(place * step, 12) for place in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = tuple(tick for p in powers for f in factors if low <= (tick := f * 10.0**p) <= high)
    return ticks if len(ticks) >= 2 else _round_ticks(low, high, 4)


def _finite(points: Points) -> NDArray[np.float64]:
    found = _array(points)
    return found[np.isfinite(found[:, 1])]


def _array(points: Points) -> NDArray[np.float64]:
    return np.asarray(points, np.float64).reshape(-1, 2)


def number(value: float) -> str:
    """A number short enough for an axis or a table: 0.0312, 12.5, 1.2e-05."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
