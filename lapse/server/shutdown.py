"""Floor 5. How a server stops on one rank, whoever stops it: `Server.close`, or the exit of the interpreter.

All open servers are registered here. When the interpreter exits with an open server, the other ranks are told; if
they exit as well, the servers are closed with a warning, else the job is aborted. It is also aborted when a rank did
not answer a failure, because MPI_Finalize would wait for that rank for ever.
"""

import atexit
import os
import sys
import time

from lapse import _mpi_loader
from lapse._comm import Comm
from lapse.base import _connections, environment
from lapse.base.uncaught import ABORT_DELAY
from lapse.communication import _guard
from lapse.communication._failure import GRACE_SECONDS
from lapse.server.rank_calls import RankCalls
from mpi4py import MPI

_open: dict["Shutdown", None] = {}  # an ordered set: in the order of creation
_silent_ranks: set[int] = set()  # of MPI.COMM_WORLD: they did not answer a failure
_failures: list[str] = []  # which they did not answer


def start_guard() -> None:
    """Start the guard of this process, unless it has one, and let it watch the hosts with which MPI is connected."""
    try:
        stall, silence = environment.stall_seconds(), environment.silence_seconds()
    except ValueError:  # the arguments' checks report it
        stall = silence = 0.0
    if _guard.start(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, stall):
        far = _mpi_loader.connected_at_start() - set(_connections.own_addresses())
        _guard.watch_hosts(dict.fromkeys(far, "a host"), silence)


class Shutdown:
    """The end of one server on this rank.

    Parameters
    ----------
    comm : lapse._comm.Comm
    communicator : mpi4py.MPI.Intracomm or None
        The server's private duplicate, freed at the end; None when there is one rank only.
    comm_given : mpi4py.MPI.Intracomm
        The user's communicator.
    calls : RankCalls
        Released once nothing writes to the workers' buffers any more.

    Attributes
    ----------
    is_done : bool
        Whether the server is closed.
    """

    def __init__(
        self,
        comm: Comm,
        communicator: MPI.Intracomm | None,
        comm_given: MPI.Intracomm,
        calls: RankCalls,
    ) -> None:
        self._comm = comm
        self._communicator = communicator
        self._comm_given = comm_given
        self._failure = comm.failure
        self._calls = calls
        self._process = os.getpid()
        self.is_done = False
        _open[self] = None

    @property
    def is_in_child(self) -> bool:
        """Whether this process was forked from the one that created the server: it must not touch MPI."""
        return os.getpid() != self._process

    def stop(self) -> None:
        """Send the last messages, stop the communication thread and release what the server holds."""
        self.is_done = True
        _open.pop(self, None)
        self._comm.say_bye()
        has_ended = self._comm.join(GRACE_SECONDS + 5)
        if self._failure.has_failed:
            self._note_silent_ranks()
        self._calls.release()
        if has_ended and self._communicator is not None and not (self._failure.has_failed and self._comm.silent_peers):
            self._communicator.Free()  # all ranks have sent their last message

    def _note_silent_ranks(self) -> None:
        world = MPI.COMM_WORLD.group
        _silent_ranks.update(self._comm_given.group.Translate_ranks(self._comm.silent_peers, world))
        if self._comm.silent_peers:
            _failures.append(str(self._failure.error()))

    def announce_exit(self) -> None:
        """Tell the other ranks that this interpreter exits, by an uncaught exception or without `close`."""
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None:
            self._failure.report(error)
        elif not self._failure.has_failed:
            self._failure.say_leaving()

    def exit_together(self) -> None:
        """Wait until all ranks have announced their exits; abort the job if they do not in time."""
        self._wait_for_exits()
        if not self._failure.has_failed and self._comm_given.rank == 0:
            _print_last("a server was still open when the program exited: call close(), or use it in a with block")
        self._comm.say_bye()

    def _wait_for_exits(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while not self._failure.all_are_leaving and not self._failure.has_failed:
            if time.monotonic() > deadline:
                rank = self._comm_given.rank
                _print_last(f"rank {rank} exited with an open server while other ranks continue: aborting the job")
                self._comm.abort()
            time.sleep(0.002)


@atexit.register
def _stop_open_servers() -> None:
    """Take each step for all servers before the next one: other ranks may have created them in another order."""
    servers = list(_open)
    for step in (Shutdown.announce_exit, Shutdown.exit_together, Shutdown.stop):
        for server in servers:
            step(server)
    if _silent_ranks:
        _abort_job()


def _abort_job() -> None:
    ranks = ", ".join(map(str, sorted(_silent_ranks)))
    _print_last(f"no answer from rank {ranks} for {GRACE_SECONDS} s after a failure ({_failures[0]}): aborting the job")
    sys.stdout.flush()
    time.sleep(ABORT_DELAY)
    _guard.end_soon()
    MPI.COMM_WORLD.Abort(1)


def _print_last(text: str) -> None:
    print(f"lapse: {text}", file=sys.stderr, flush=True)


os.register_at_fork(after_in_child=_open.clear)
