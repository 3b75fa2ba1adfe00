"""The idle share of the machine, in the epochs of a training."""

from __future__ import annotations

import bisect
import json
import threading
import time
from pathlib import Path

EVERY_SECONDS = 0.1


class IdleShare:
    """Watches the machine while a job writes a file of ``--metrics``, from ``with`` to its end.

    Parameters
    ----------
    metrics
        The file: an epoch ends when its line appears.
    """

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._times: list[float] = []
        self._idle: list[tuple[int, int]] = []  # ticks: idle, and all
        self._lines: list[float] = []  # when each line appeared
        self._end = threading.Event()

    def __enter__(self) -> IdleShare:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(EVERY_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        self._times.append(time.monotonic())
        self._idle.append(ticks())
        lines = self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0
        self._lines += [self._times[-1]] * (lines - len(self._lines))

    def in_epochs(self) -> float:
        """The share of the machine's time that was idle in the epochs, without evaluations; known after the end."""
        idle = total = 0
        for text, end in zip(self._metrics.read_text(encoding="utf-8").splitlines(), self._lines, strict=False):
            line = json.loads(text)
            end -= line["time"]["evaluation"]
            first, last = (self._at(when) for when in (end - line["seconds"], end))
            idle += last[0] - first[0]
            total += last[1] - first[1]
        return idle / total if total else 0.0

    def _at(self, when: float) -> tuple[int, int]:
        return self._idle[min(bisect.bisect_left(self._times, when), len(self._idle) - 1)]


def ticks() -> tuple[int, int]:
    """How long the processors of this machine have been idle, and how long there have been any."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return words[3] + words[4], sum(words)
