"""Charts as SVG: lines, stacked bars and tables of colored cells. Text that is shown is escaped here.

Colors are classes, ``c0`` .. ``c7``, which the page's style sheet defines, so that it can follow a dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLORS = 8
_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 34


def number(value: float | None) -> str:
    """A number as it is read best."""
    if value is None:
        return "none"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}"


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], across: str = "epoch") -> str:
    """A chart of points joined by lines, of each of `series` by its name; without points, a sentence."""
    points = [point for each in series.values() for point in each if math.isfinite(point[1])]
    if not points:
        return f"<figure><figcaption>{escape(title)}</figcaption><p>No figures.</p></figure>"
    across_points, values = zip(*points, strict=True)
    x_axis = _Axis(min(across_points), max(across_points), 1 if all(x == int(x) for x in across_points) else 0)
    y_axis = _Axis(min(values), max(values))
    parts = [_frame(x_axis, y_axis, across)]
    for place, (name, each) in enumerate(series.items()):
        color, spots = f"c{place % COLORS}", [(_x(x_axis, x), _y(y_axis, y), x, y) for x, y in each if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in spots)
        parts.append(f'<polyline class="line {color}" points="{path}"/>')
        parts += [
            f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{escape(name)}, {escape(across)} '
            f"{number(at)}: {number(value)}</title></circle>"
            for x, y, at, value in spots
        ]
    return _figure(title, _WIDTH, _HEIGHT, parts, series if len(series) > 1 else ())


def bars(title: str, names: Sequence[str], parts_of: Mapping[str, Sequence[float]], unit: str) -> str:
    """A horizontal bar for each of `names`, made of the parts that `parts_of` has for each of them."""
    height, left = 18, 74
    totals = [sum(values) for values in zip(*parts_of.values(), strict=True)] or [0.0]
    scale = (_WIDTH - left - _RIGHT) / max(*totals, 1e-300)
    drawn = []
    for row, name in enumerate(names):
        x, y = float(left), 4 + row * (height + 6)
        drawn.append(f'<text x="{left - 6}" y="{y + 13}" class="end">{escape(name)}</text>')
        for place, (part, values) in enumerate(parts_of.items()):
            width = values[row] * scale
            drawn.append(
                f'<rect class="c{place % COLORS}" x="{x:.1f}" y="{y}" width="{max(width, 0):.1f}" height="{height}">'
                f"<title>{escape(name)}, {escape(part)}: {number(values[row])} {escape(unit)}</title></rect>"
            )
            x += width
    return _figure(title, _WIDTH, 8 + len(names) * (height + 6), drawn, parts_of)


def heat(title: str, names: Sequence[str], table: Sequence[Sequence[float]], unit: str) -> str:
    """A table whose cells are the darker the larger they are; rows and columns have the same names."""
    most = max((value for row in table for value in row), default=0) or 1
    head = "".join(f"<th scope='col'>to {escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope='row'>from {escape(name)}</th>"
        + "".join(
            f'<td style="--share:{100 * value / most:.0f}%"{" class=none" if not value else ""}>{number(value)}</td>'
            for value in row
        )
        + "</tr>"
        for name, row in zip(names, table, strict=True)
    )
    return (
        f'<figure><figcaption>{escape(title)} ({escape(unit)})</figcaption><table class="heat"><tr><td></td>{head}</tr>'
        f"{rows}</table></figure>"
    )


def grid(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[int]]], legend: Sequence[str]) -> str:
    """A table of colors: each row has a name and the number of a color for each column; below 0: none."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        + "".join(
            f'<td class="{f"b{value % COLORS}" if value >= 0 else "every"}">{value if value >= 0 else "all"}</td>'
            for value in values
        )
        + "</tr>"
        for name, values in rows
    )
    shown = " ".join(escape(each) for each in legend)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><p>{shown}</p><table class="grid"><tr><td></td>{head}</tr>'
        f"{body}</table></figure>"
    )


class _Axis:
    """A range of numbers with round marks inside, which are at least `apart`: of whole numbers 1."""

    def __init__(self, low: float, high: float, apart: float = 0) -> None:
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high = low, high
        step = 10 ** math.floor(math.log10((high - low) / 3))
        step = max(step * max(factor for factor in (1, 2, 5) if factor * step <= (high - low) / 2), apart)
        first = math.ceil(low / step)
        self.marks = [mark * step for mark in range(first, math.floor(high / step) + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * axis.share(value)


def _y(axis: _Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * axis.share(value)


def _frame(x_axis: _Axis, y_axis: _Axis, across: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for mark in y_axis.marks:
        y = _y(y_axis, mark)
        parts.append(f'<path class="mark" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{number(mark)}</text>')
    parts += [
        f'<text class="middle" x="{_x(x_axis, mark):.1f}" y="{bottom + 15}">{number(mark)}</text>'
        for mark in x_axis.marks
    ]
    parts.append(f'<text class="middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}">{escape(across)}</text>')
    return "".join(parts)


def _figure(title: str, width: int, height: int, parts: Iterable[str], legend: Iterable[str]) -> str:
    keys = " ".join(f'<span class="k{i % COLORS}">{escape(name)}</span>' for i, name in enumerate(legend))
    label = escape(title, quote=True)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        f'<p class="legend">{keys}</p></figure>'
    )
