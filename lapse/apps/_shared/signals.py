"""SIGINT, SIGTERM and SIGUSR2 as a request: the training stops at the next block instead of immediately.

Before there is a block to stop at, each ends the process at once, and with it the job: a handler of Python would not
run while the main thread opens a pipe or waits for other ranks in MPI, and there is nothing to save yet.

The launcher of MPICH forwards the first two to all ranks and waits for them. That of Open MPI forwards SIGUSR2; it
kills the ranks a moment after one of the others. SIGUSR1 asks for a report (lapse/communication/_guard.pyx).
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

#: A second signal after this many seconds stops the process immediately; an earlier one is taken for the same request
#: (Ctrl-C in a terminal reaches a rank twice: from the terminal and from the launcher).
PATIENCE = 2.0


class Signals:
    """From `note` to `restore`, records the first request; a later one ends the process. Before, each does. For the
    main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._handle(signal.SIG_DFL)

    def note(self) -> None:
        """From now on, record the first signal."""
        self._handle(self._record)

    def _handle(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in REQUESTS:
                self._before.setdefault(number, signal.signal(number, handler))

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
