"""Floor 5. Measures what messages between ranks cost, before a server exists."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from lapse.base import environment
from lapse.options.network import Network
from lapse.server.host import Host
from mpi4py import MPI

PINGS = 50
EXCHANGES = 3
ENOUGH_PINGS, ENOUGH_EXCHANGES = 4, 1  # if more would take longer than
PING_SECONDS, EXCHANGE_SECONDS = 2e-3, 10e-3
EXCHANGED_BYTES = 1 << 20  # by each rank, together
TABLE_ROWS = 1 << 17  # of 64 bytes: more than fits into most caches of one processor
ROWS_READ = 10_000
LINES_OF_RECORD = 3  # a record's entry, its value and where it goes
POLL_SECONDS = 500e-6  # of a rank that waits, before it sleeps and looks so often:
LOOK_SECONDS = 50e-6


def measure_network(comm: MPI.Intracomm | None = None) -> Network:
    """Measure what messages between ranks cost. Collective; for use before a server is created.

    Ranks that share no memory exchange a few messages; if all share memory, ranks of this host do. It takes some
    milliseconds, and some tens of them if ranks or others wait for cores, or if the network takes longer than that
    for two dozen messages and 2 MB.

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
    far = _is_far_from_first(comm)
    own = comm.Dup()
    try:
        costs = np.array([0.0, 0.0, _time_of_record()])
        costs[0] = _ping(own, _first_true(own, far))
        costs[1] = _exchange(own)
        slowest = np.empty_like(costs)
        _wait(own.Iallreduce(costs, slowest, op=MPI.MAX))
    finally:
        own.Free()
    return Network(slowest[0], 1 / slowest[1], slowest[2])


def _wait(request: MPI.Request) -> None:
    """Wait, asleep after a moment. MPI's own waits poll, so that ranks that have something to do would lack cores."""
    polls_until = time.perf_counter() + POLL_SECONDS
    while not request.Test():
        if time.perf_counter() > polls_until:
            time.sleep(LOOK_SECONDS)


def _is_far_from_first(comm: MPI.Intracomm) -> bool:
    """Whether this rank shares no memory with rank 0. Collective."""
    host = Host(comm)
    group_size = environment.sharing_ranks() or host.size
    groups = [local // group_size for local in (host.local_ranks[0], host.local_rank)]
    is_near = environment.shares_memory() and host.local_ranks[0] >= 0 and groups[0] == groups[1]
    host.free()
    return comm.rank != 0 and not is_near


def _first_true(comm: MPI.Intracomm, here: bool) -> int:
    """The first rank where it is so; 1 if it is nowhere. Collective."""
    mine, first = np.array([comm.rank if here else comm.size]), np.empty(1, int)
    _wait(comm.Iallreduce(mine, first, op=MPI.MIN))
    return int(first[0]) if first[0] < comm.size else 1


def _ping(comm: MPI.Intracomm, other: int) -> float:
    """On rank 0: half of the time of a ping-pong with another one, if nothing disturbs it. Others do nothing."""
    if comm.rank == other:
        _answer_pings(comm)
    if comm.rank != 0:
        return 0.0
    message = bytearray(64)
    seconds: list[float] = []
    while not message[0]:
        began = time.perf_counter()
        is_slow = sum(seconds) > PING_SECONDS
        message[0] = len(seconds) + 1 >= (ENOUGH_PINGS if is_slow else PINGS)  # whether it is the last one
        comm.Send(message, other)
        comm.Recv(message, other)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / 2


def _answer_pings(comm: MPI.Intracomm) -> None:
    message = bytearray(64)
    while not message[0]:
        comm.Recv(message, 0)
        comm.Send(message, 0)


def _exchange(comm: MPI.Intracomm) -> float:
    """Seconds for each byte that this rank sends while each rank sends to all."""
    block = max(EXCHANGED_BYTES // comm.size, 1)
    sent, received = np.ones(block * comm.size, np.uint8), np.empty(block * comm.size, np.uint8)
    seconds: list[float] = []
    goes_on, all_go_on = np.ones(1, np.uint8), np.ones(1, np.uint8)
    while all_go_on[0]:
        began = time.perf_counter()
        comm.Alltoall(sent, received)
        seconds.append(time.perf_counter() - began)
        measured = len(seconds) - 1  # the first one finds buffers cold
        goes_on[0] = measured < EXCHANGES and (measured < ENOUGH_EXCHANGES or sum(seconds) < EXCHANGE_SECONDS)
        _wait(comm.Iallreduce(goes_on, all_go_on, op=MPI.MIN))  # so that they begin the next one together, too
    return max(min(seconds[1:]), 1e-9) / (block * (comm.size - 1))


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
