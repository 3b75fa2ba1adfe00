"""Floor 5. Waiting for all ranks of a communicator before its collective calls, asleep: who waits for long says so."""

import sys
import time

from lapse.base import environment
from mpi4py import MPI

BRIEF = 0.01  # seconds in which ranks mostly arrive together; only then the wait sleeps between two looks
PAUSE = 0.001


def wait_for_all(comm: MPI.Intracomm, what: str | None = None) -> None:
    """Return when all ranks of `comm` are here. Collective.

    MPI's own waits poll: a rank that still computes would lack the core. A rank that does not come keeps the others
    waiting, since it may still come; after `environment.stall_seconds()` seconds each of those says once that it waits.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    what : str, optional
        The call that all ranks must make; None where some may rightly take long: then nothing is said.
    """
    if comm.size == 1:
        return
    try:
        limit = environment.stall_seconds() if what else 0.0
    except ValueError:  # an error of this rank alone, which is compared with the arguments once all are here
        limit = 0.0
    began = time.monotonic()
    request = comm.Ibarrier()
    while not request.Test():
        waited = time.monotonic() - began
        if limit and waited > limit:
            limit = 0.0
            print(
                f"lapse: rank {comm.rank} has been waiting for {waited:.0f} s in {what} for other ranks: all "
                f"{comm.size} ranks of the communicator must make this call. Those that print no such line have not "
                "come; it continues to wait",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0 if waited < BRIEF else PAUSE)
