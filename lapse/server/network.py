"""Floor 5. Measures what messages between ranks cost, before a server exists."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from lapse.base import environment
from lapse.options.network import Network
from lapse.server.host import Host
from mpi4py import MPI

PINGS = 50
EXCHANGES = 3
EXCHANGED_BYTES = 1 << 20  # by each rank, together
TABLE_ROWS = 1 << 17  # of 64 bytes: more than fits into most caches of one processor
ROWS_READ = 10_000
LINES_OF_RECORD = 3  # a record's entry, its value and where it goes


def measure_network(comm: MPI.Intracomm | None = None) -> Network:
    """Measure what messages between ranks cost. Collective; takes some milliseconds, before a server is created.

    Ranks that share no memory exchange a few messages; if all share memory, ranks of this host do.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        By default MPI.COMM_WORLD.

    Returns
    -------
    lapse.Network
        The same on all ranks: that of the slowest one. With one rank, the defaults.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if comm.size == 1:
        return Network()
    far = _far_ranks(comm)
    own = comm.Dup()
    try:
        latency = own.bcast(_ping(own, far[0] if far else 1))
        speed = own.allreduce(_exchange(own), op=MPI.MIN)
        record_seconds = own.allreduce(_time_of_record(), op=MPI.MAX)
    finally:
        own.Free()
    return Network(latency, speed, record_seconds)


def _far_ranks(comm: MPI.Intracomm) -> list[int]:
    """The ranks that share no memory with rank 0. Collective."""
    host = Host(comm)
    group_size = environment.sharing_ranks() or host.size
    if not environment.shares_memory():
        group_size = 1
    near = [local >= 0 and local // group_size == host.local_rank // group_size for local in host.local_ranks]
    host.free()
    return comm.bcast([rank for rank in range(comm.size) if not near[rank]])


def _ping(comm: MPI.Intracomm, other: int) -> float:
    """Half of the time of a ping-pong between rank 0 and another one, if little disturbs it. Others do nothing."""
    message = bytearray(64)
    seconds = []
    for _ in range(PINGS if comm.rank in (0, other) else 0):
        began = time.perf_counter()
        if comm.rank == 0:
            comm.Send(message, other)
            comm.Recv(message, other)
        else:
            comm.Recv(message, 0)
            comm.Send(message, 0)
        seconds.append(time.perf_counter() - began)
    return statistics.quantiles(seconds, n=4)[0] / 2 if seconds else 0.0


def _exchange(comm: MPI.Intracomm) -> float:
    """Bytes per second that this rank sends while each rank sends to all."""
    block = max(EXCHANGED_BYTES // comm.size, 1)
    sent, received = np.ones(block * comm.size, np.uint8), np.empty(block * comm.size, np.uint8)

    def step() -> None:
        comm.Barrier()
        comm.Alltoall(sent, received)

    return block * (comm.size - 1) / _best_time(step, EXCHANGES)


def _time_of_record() -> float:
    rng = np.random.default_rng(0)
    table = np.ones((TABLE_ROWS, 16), np.float32)
    rows = rng.integers(TABLE_ROWS, size=ROWS_READ)
    out = np.empty((ROWS_READ, 16), np.float32)
    return LINES_OF_RECORD * _best_time(lambda: np.take(table, rows, axis=0, out=out, mode="clip"), 3) / ROWS_READ


def _best_time(step: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times + 1):  # the first one finds caches and buffers cold
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return max(min(seconds[1:]), 1e-9)
