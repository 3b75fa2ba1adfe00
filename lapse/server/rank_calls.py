"""Floor 5. Collective calls that each rank makes once, whatever its number of workers.

They go through the server's own worker, the *control*, which takes the last worker slot and may be used by any thread.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from lapse.server.workers import Workers
from lapse.worker._waiter import check_thread, wait_for_rank
from lapse.worker._worker import Worker, find_owners, retire
from lapse.worker.collectives import Collectives, ignore
from mpi4py import MPI

T = TypeVar("T")


class RankCalls:
    """The calls of one rank.

    Parameters
    ----------
    control : Worker
        The server's own.
    collectives : Collectives
    workers : Workers
        Those of this rank.
    comm : mpi4py.MPI.Intracomm
        The ranks.
    """

    def __init__(self, control: Worker, collectives: Collectives, workers: Workers, comm: MPI.Intracomm) -> None:
        self._control = control
        self._collectives = collectives
        self._workers = workers
        self.rank, self.size = comm.rank, comm.size

    def exchange(self, what: str, value: Any = None, combine: Callable[[list], Any] = ignore) -> Any:
        """Give `value` in the call named `what`, and get what `combine` makes of the values by rank."""
        return self._collectives.exchange(self._control, what, value, combine)

    def attempt(self, what: str, fn: Callable[..., T], *args: Any) -> list[T]:
        """Call `fn` on every rank and return the results by rank; what fails on any rank raises on all."""
        return self._collectives.attempt(self._control, what, fn, *args)

    def attempt_on_rank_0(self, what: str, fn: Callable[..., T], *args: Any) -> T:
        """As `attempt`, but only rank 0 calls `fn`; all ranks get its result."""
        results: list[Any] = self.attempt(what, fn if self.rank == 0 else _do_nothing, *args)
        return results[0]

    def come_to_rest(self, what: str) -> None:
        """Wait until nothing is under way on any rank; then owners stay as they are until somebody moves a key."""
        self.attempt(f"the start of {what}", self._workers.check_can_rest, what)
        self._finish_operations()  # a key that is on its way would be here and there, or nowhere
        self.exchange(f"rest before {what}")

    def close(self) -> None:
        """Finish what is under way, together with all ranks."""
        self._finish_operations()
        self.exchange("close")

    def _finish_operations(self) -> None:
        wait_for_rank(self._control)
        self._control.wait_replica_sync()

    def owner(self, keys: ArrayLike) -> np.ndarray:
        """The rank that owns each key, as its home knows it. Not collective."""
        return find_owners(self._control, keys)

    def check_thread(self) -> None:
        """Raise in a process that was forked from the server's."""
        check_thread(self._control)

    def release(self) -> None:
        """Let go of the workers; the values' memory then goes with the last reference to the server."""
        self._workers.release()
        retire(self._control)
        del self._control


def _do_nothing(*args: Any) -> None:
    return None
