"""An application as a job of several ranks: errors are raised on all ranks, and reported once."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from lapse.base.uncaught import ABORT_DELAY

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

#: When this process started, for ``--max-runtime`` (the imports before this one take 0.1 s).
PROCESS_START = time.monotonic()

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class AppError(Exception):
    """An error that the user can fix; raised on all ranks, reported once and without a traceback."""


def collectively(comm: Intracomm, fn: Callable[..., Result], *args: object) -> Result:
    """Call `fn` on this rank; if it fails on any rank, raise on all of them.

    Otherwise, the ranks on which it succeeded would wait for the others forever.

    Raises
    ------
    AppError
        On every rank, with the error of the first rank that failed.
    """
    result = error = None
    try:
        result = fn(*args)
    except Exception as raised:
        log.debug("failed", exc_info=True)
        names_no_rank = isinstance(raised, AppError) or comm.size == 1
        error = describe(raised) if names_no_rank else f"rank {comm.rank}: {describe(raised)}"
    raise_on_all(comm, error)
    return result  # type: ignore[return-value]  # None only if `fn` returned it: an error was raised above


def raise_on_all(comm: Intracomm, error: str | None) -> None:
    """Raise on all ranks if one of them has an error. Collective: none raises before all have come.

    Raises
    ------
    AppError
        On every rank, with the error of the first rank that has one.
    """
    from lapse.server.arrival import wait_for_all

    wait_for_all(comm)
    for message in comm.allgather(error):
        if message is not None:
            raise AppError(message)


def on_rank_0(comm: Intracomm, fn: Callable[..., Result], *args: object) -> Result:
    """Call `fn` on rank 0 only and return its result on all ranks; errors as in `collectively`."""
    result = collectively(comm, lambda: fn(*args) if comm.rank == 0 else None)
    return comm.bcast(result)


def on_rank_0_only(comm: Intracomm, fn: Callable[..., Result], *args: object) -> Result | None:
    """Call `fn` on rank 0, where its result stays (None elsewhere); errors as in `collectively`."""
    return collectively(comm, lambda: fn(*args) if comm.rank == 0 else None)


def describe(error: BaseException) -> str:
    """An error in a line; the type is left out if the text explains itself."""
    text = str(error)
    explains_itself = isinstance(error, OSError) or type(error).__module__.startswith("lapse.")
    return text if explains_itself and text else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def start() -> Iterator[Intracomm]:
    """Start MPI and run the body of an application; gives the communicator of all ranks.

    All ranks raise an `AppError` together, and a `lapse.RemoteError` means that another rank has failed and
    terminates the job: in both cases each rank exits by itself. The other ranks may not know of any other error, so
    this one prints it and aborts the job.
    """
    from lapse import RemoteError, _mpi_loader
    from mpi4py import MPI  # not before: `--help` must not start MPI

    comm = MPI.COMM_WORLD
    configure_logging(comm.rank)
    try:
        try:
            _mpi_loader.check_launcher(comm.size)
        except RuntimeError as error:
            raise AppError(str(error)) from error
        yield comm
    except AppError as error:
        if comm.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except RemoteError as error:
        print(f"[{comm.rank}] terminated because of an error on another rank: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        print(f"error on rank {comm.rank}:\n{traceback.format_exc()}", end="", file=sys.stderr, flush=True)
        if comm.size == 1:
            sys.exit(1)
        time.sleep(ABORT_DELAY)
        comm.Abort(1)


def configure_logging(rank: int) -> None:
    """Rank 0 logs its progress, the others warnings only."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[{rank}] %(message)s"))
    root = logging.getLogger("lapse")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def out_of_time(max_runtime: float | None) -> bool:
    """Whether this process has run for `max_runtime` seconds."""
    return max_runtime is not None and time.monotonic() - PROCESS_START >= max_runtime
