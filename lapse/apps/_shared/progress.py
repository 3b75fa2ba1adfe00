"""The progress of an epoch on the terminal."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable

import lapse

log = logging.getLogger(__name__)


class Progress:
    """How far an epoch has come: a bar on a terminal, otherwise a log line now and then.

    (Under ``mpirun``, standard error is a pipe, on which a bar would become one line after the other.)

    Parameters
    ----------
    title
        What is in progress.
    total
        Number of items of the whole epoch.
    unit
        What is counted, in the plural.
    enabled
        Whether to show anything.
    """

    LINE_INTERVAL = 10.0  # seconds between two lines

    def __init__(self, title: str, total: float, unit: str, enabled: bool) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._start = self._last_line = time.monotonic()
        self._lines = enabled and not sys.stderr.isatty()
        self._bar = None
        if enabled and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=f" {unit}", unit_scale=True, leave=False)

    @classmethod
    def of_epoch(cls, kv: lapse.Worker, args: argparse.Namespace, epoch: int, total: float, unit: str) -> Progress:
        """The progress of an epoch, shown by the first worker only: shares are about equal, so it represents all."""
        return cls(f"epoch {epoch + 1}/{args.epochs}", total, unit, kv.id == 0 and not args.no_progress)

    def show(self, done: float, figures: Callable[[], dict[str, str]]) -> None:
        """Show how many items are done; `figures` is called only if its result will be shown."""
        if self._lines:
            self._show_line(done, figures)
        elif self._bar is not None:
            self._bar.set_postfix(figures(), refresh=False)
            self._bar.update(min(done, self._total) - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def _show_line(self, done: float, figures: Callable[[], dict[str, str]]) -> None:
        now = time.monotonic()
        if now - self._last_line < self.LINE_INTERVAL:
            return
        self._last_line = now
        rate = done / max(now - self._start, 1e-9)
        shown = "".join(f", {name} {value}" for name, value in figures().items())
        log.info(
            "%s: %3.0f%%, %s %s/s%s", self._title, 100 * done / max(self._total, 1), f"{rate:,.0f}", self._unit, shown
        )
