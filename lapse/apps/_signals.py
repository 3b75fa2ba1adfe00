"""SIGINT and SIGTERM as a wish: training ends at the next block instead of anywhere.

The launcher of MPICH passes both on to all ranks and waits for them. That of Open MPI kills the ranks a moment
later: send the signal to the ranks there, or rely on the last checkpoint.
"""

from __future__ import annotations

import signal
import threading
import time

#: Who asks again after this many seconds does not want to wait. (Ctrl-C in a terminal reaches a rank twice at once:
#: from the terminal and from the launcher.)
PATIENCE = 2.0


class Signals:
    """Notes the first SIGINT or SIGTERM; a later one has its usual effect. For the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _frame) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)

    def restore(self) -> None:
        """Let signals have the effect again that they had before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
