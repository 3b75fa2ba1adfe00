"""SIGINT and SIGTERM as a request: the training stops at the next block instead of immediately.

The launcher of MPICH forwards both to all ranks and waits for them. That of Open MPI kills the ranks a moment
later: with it, send the signal to the ranks themselves, or rely on the last checkpoint.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

#: A second signal after this many seconds stops the process immediately; an earlier one is taken for the same request
#: (Ctrl-C in a terminal reaches a rank twice: from the terminal and from the launcher).
PATIENCE = 2.0


class Signals:
    """Records the first SIGINT or SIGTERM; a later one has its usual effect. For the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._record)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
