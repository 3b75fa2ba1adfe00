"""``--plot FILE``: loss, quality and locality over epochs, with matplotlib, which is optional."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lapse.apps._shared.files import replacing
from lapse.apps._shared.job import AppError


def require(path: Path) -> None:
    """Raise now rather than after hours of training: without matplotlib, or for a file that cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AppError("--plot requires matplotlib: pip install 'lapse[plot]'") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if _kind(path) not in kinds:
        raise AppError(f"--plot {path}: the suffix must be one of .{', .'.join(sorted(kinds))}")
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        raise AppError(f"--plot {path}: cannot write to {folder}")


def _kind(path: Path) -> str:
    return path.suffix[1:].lower()


def draw(path: Path, title: str, history: list[dict], quality: tuple[str, ...]) -> None:
    """Plot the history into a file; its suffix determines the format.

    Parameters
    ----------
    history
        The figures of each epoch, with ``epoch``, ``loss`` and ``local``.
    quality
        Names of further figures to plot.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    label = quality[0] if len(quality) == 1 else "quality"
    panels = [("loss", ("loss",)), (label, quality), ("local share of accesses", ("local",))]
    panels = [(label, names) for label, names in panels if any(_points(history, name) for name in names)]
    figure = Figure(figsize=(4 * max(len(panels), 1), 3), layout="constrained")
    figure.suptitle(title)
    for position, (label, names) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), position, xlabel="epoch", ylabel=label.replace("_", " "))
        for name in names:
            points = np.array(_points(history, name), dtype=float).reshape(-1, 2)
            axes.plot(points[:, 0], points[:, 1], marker=".", label=name.replace("_", " "))
        if len(names) > 1:
            axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=_kind(path))


def _points(history: list[dict], name: str) -> list[tuple]:
    return [(figures["epoch"], figures[name]) for figures in history if figures.get(name) is not None]
