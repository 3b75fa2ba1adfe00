"""``--plot FOLDER``: one picture per group, drawn by matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lapse.bench._rows import Row


def is_there() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(folder: Path, title: str, rows: Sequence[Row]) -> Path:
    """Draw the ratios of a group's rows into ``folder/GROUP.svg``: bars, quartiles, and a mark at each target."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(9, 1.2 + 0.25 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=title, xscale="log", xlabel="ratio to the reference (1 = equal)")
    places = range(len(rows), 0, -1)
    axes.barh(places, [row.ratio for row in rows], height=0.7, color=[_color(row) for row in rows])
    axes.set_yticks(places, [_label(row) for row in rows], fontsize="small")
    for place, row in zip(places, rows, strict=True):
        if row.quartiles is not None:
            axes.plot(row.quartiles, (place, place), color="black", linewidth=1)
        if row.target is not None and row.target.of == "ratio":
            axes.plot(row.target.limit, place, marker="|", color="black", markersize=12)
    axes.axvline(1, color="gray", linewidth=0.8)
    path = folder / f"{rows[0].group}.svg"
    figure.savefig(path)
    return path


def _color(row: Row) -> str:
    return {None: "lightsteelblue", True: "seagreen", False: "indianred"}[row.reached]


def _label(row: Row) -> str:
    words = [row.name, *(f"{name} {value}" for name, value in row.parameters.items())]
    if row.ranks > 1:
        words.append(f"{row.ranks} ranks")
    if row.workers > 1:
        words.append(f"{row.workers} workers")
    return ", ".join(words)
