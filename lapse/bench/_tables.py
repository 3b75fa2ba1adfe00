"""Rows as aligned text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_lowercase

from lapse.bench._rows import Row


def of_group(rows: Sequence[Row]) -> str:
    """The table of one group: a column for each parameter of any of its rows; below it the references, by letter."""
    names = list(dict.fromkeys(name for row in rows for name in row.parameters))
    others = list(dict.fromkeys(name for row in rows for name in row.figures))
    letters = dict(zip(dict.fromkeys(row.reference_name for row in rows), ascii_lowercase, strict=False))
    header = [
        "figure",
        *names,
        "ranks",
        "workers",
        "value",
        "reference",
        "",
        "unit",
        "ratio",
        "quartiles",
        "target",
        *others,
        "",
    ]
    lines = [
        [
            row.name,
            *(_cell(row.parameters.get(name, "")) for name in names),
            *_figures(row, letters),
            *(_cell(row.figures.get(name)) for name in others),
            " ".join(filter(None, [_verdict(row), row.note])),
        ]
        for row in rows
    ]
    references = [f"  {letter}  {name}" for name, letter in letters.items()]
    return "\n".join([_aligned([header, *lines], left={*range(len(names) + 1), len(header) - 1}), *references])


def of_targets(rows: Iterable[Row]) -> str:
    """Every figure with a target, and whether the target is met; empty if there is none."""
    lines = [
        [row.label(), str(row.target), f"{_number(_bounded(row))}", _verdict(row)]
        for row in rows
        if row.target is not None
    ]
    return _aligned([["figure", "target", "reached", ""], *lines], left={0, 3}) if lines else ""


def _bounded(row: Row) -> float:
    return row.ratio if row.target.of == "ratio" else row.value


def _figures(row: Row, letters: dict[str, str]) -> list[str]:
    spread = "" if row.quartiles is None else f"{_number(row.quartiles[0])} - {_number(row.quartiles[1])}"
    target = "" if row.target is None else str(row.target)
    return [
        str(row.ranks),
        str(row.workers),
        _number(row.value),
        _number(row.reference),
        letters[row.reference_name],
        row.unit,
        _number(row.ratio),
        spread,
        target,
    ]


def _verdict(row: Row) -> str:
    return "" if row.reached is None else "ok" if row.reached else "MISSED"


def _cell(value) -> str:
    return _number(value) if isinstance(value, float) else "" if value is None else str(value)


def _number(value: float) -> str:
    """Three significant digits, without an exponent if that is short."""
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 0.001 else f"{value:.2e}"


def _aligned(lines: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if number in left else text.rjust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
