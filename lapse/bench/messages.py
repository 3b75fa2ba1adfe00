"""Groups ``remote``, ``relocation`` and ``idle``: calls that need messages, against bare MPI in the same run.

Shared memory between the ranks is off. Calls are made by a loop in C, and so is the reference, a ping-pong by
`MPI_Send` and `MPI_Recv` of the bytes that such a call sends and gets back, between the same ranks.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator

from lapse.bench._groups import FULL, NORMAL, QUICK, Context, Group, Job
from lapse.bench._rows import Row, Target, at_least, at_most
from lapse.bench._timing import Sample, interleaved

LENGTH = 100
HEADER, RECORD = 24, 8  # bytes of the header of a message, and of a key in it
MAX_CALLS = 200_000  # per measurement
PING_PONG = "a bare MPI ping-pong of the same bytes between the same ranks, in C"
#: Which ranks make calls, and what the others do.
ONE, ALL, COMPUTING = "one, others wait", "all", "one, others compute"


class Stage:
    """A server without shared memory, and the measurements on it: each is called by all ranks together.

    Parameters
    ----------
    context : Context
    server : lapse.Server
    kv : lapse.Worker
    seconds : float
        Duration of one measurement.
    """

    def __init__(self, context: Context, server, kv, seconds: float):
        import numpy as np

        from mpi4py import MPI

        self.rank, self.size = context.rank, context.ranks
        self.server, self.kv, self.seconds = server, kv, seconds
        self.comm = MPI.COMM_WORLD
        self.times = np.zeros(MAX_CALLS, np.int64)
        self.rng = np.random.default_rng(context.rank)

    def rows_of(self, keys, count: int):
        """Random rows of `count` distinct keys out of `keys`: shape (rows, count)."""
        import numpy as np

        rows = 1000 if count == 1 else 200
        return np.stack([self.rng.choice(keys, count, replace=False) for _ in range(rows)])

    def takes_part(self, who: str) -> bool:
        """Whether this rank makes calls."""
        return self.rank == 0 or who == ALL

    def call(self, kind: int, keys, outstanding: int, who: str) -> float:
        """Microseconds per call: the median if each call is waited for, else the total time by the number of calls."""
        import numpy as np

        from lapse.bench import _requests

        values = np.zeros((max(outstanding, 1), keys.shape[1] * LENGTH), np.float32)
        figure = 1.0
        self.kv.barrier()
        if self.takes_part(who):
            calls, seconds = _requests.call(self.kv, kind, keys, values, outstanding, self.seconds, self.times)
            figure = np.median(self.times[:calls]) / 1e3 if outstanding == 1 else seconds / calls * 1e6
        elif who == COMPUTING:
            _requests.compute_for(self.seconds * 1.1)
        self.kv.barrier()
        return float(figure)

    def ping_pong(self, request: int, reply: int, who: str) -> float:
        """Microseconds per round between ranks 0 and 1, or all ranks in pairs; ranks without a partner sleep."""
        import numpy as np

        from lapse.bench import _pingpong

        partner = self.rank ^ 1
        figure = 1.0
        rest(self.comm)
        if partner < self.size and (who == ALL or self.rank < 2):
            asks = self.rank % 2 == 0
            rounds = _pingpong.ping_pong(self.comm, partner, asks, request, reply, self.seconds, self.times)
            figure = float(np.median(self.times[:rounds])) / 1e3 if asks else 1.0
        rest(self.comm)
        return figure

    def throughput(self, kind: int, keys, who: str) -> float:
        """Microseconds, in total, by the number of calls, each waited for: the reference of 16 outstanding calls."""
        import numpy as np

        from lapse.bench import _requests

        values = np.zeros((1, keys.shape[1] * LENGTH), np.float32)
        figure = 1.0
        self.kv.barrier()
        if self.takes_part(who):
            calls, seconds = _requests.call(self.kv, kind, keys, values, 1, self.seconds, self.times)
            figure = seconds / calls * 1e6
        elif who == COMPUTING:
            _requests.compute_for(self.seconds * 1.1)
        self.kv.barrier()
        return figure


def rest(comm) -> None:
    """Wait for all ranks without using the cores, so that idle ranks do not disturb the measurement."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.0005)


def bytes_of(kind: str, count: int) -> tuple[int, int]:
    """Bytes of a request and of its reply."""
    keys = HEADER + count * RECORD
    return (keys + count * LENGTH * 4, HEADER + 8) if kind == "push" else (keys, keys + count * LENGTH * 4)


def server_of(context: Context):
    """A server of 16 MB whose keys are at their homes."""
    import lapse

    return lapse.Server(2_000 if context.quick else 40_000, LENGTH, shared_memory=False)


# Remote calls --------------------------------------------------------------------------------------------------------


def remote(context: Context) -> Iterator[Row]:
    """Pulls and pushes of other ranks' keys."""
    import lapse

    with server_of(context) as server, server.worker() as kv:
        server.initialize(range(server.num_keys), lapse.Constant(1.0))
        for who in (ONE, ALL, COMPUTING):
            # a call takes up to milliseconds if the rank shares its core with a computing one
            seconds = 0.005 if context.quick else 0.25 if who == COMPUTING and context.ranks > 2 else 0.03
            stage = Stage(context, server, kv, seconds)
            for count in (1, 100):
                yield from _remote(context, stage, who, count)


def _remote(context: Context, stage: Stage, who: str, count: int, target: Target | None = None) -> Iterator[Row]:
    import numpy as np

    from lapse.bench import _requests

    elsewhere = np.flatnonzero(stage.server.owner(np.arange(stage.server.num_keys)) != stage.rank)
    keys = stage.rows_of(elsewhere, count)
    for kind in ("pull", "push"):
        code = getattr(_requests, kind.upper())
        shares = {
            "ping-pong": functools.partial(stage.ping_pong, *bytes_of(kind, count), who),
            "one": functools.partial(stage.call, code, keys, 1, who),
            "one by number": functools.partial(stage.throughput, code, keys, who),
            "several": functools.partial(stage.call, code, keys, 16, who),
            "asynchronous": functools.partial(stage.call, code, keys, 0, who),
        }
        found = interleaved(shares, context.rounds(5 if who == COMPUTING else 7))
        bound = target if target is not None and kind == "pull" else _target(kind, context.ranks, who, count)
        yield from _remote_rows(context, found, kind, {"who": who, "keys": count}, bound)


def _remote_rows(
    context: Context, found: dict[str, Sample], kind: str, parameters: dict, target: Target | None
) -> Iterator[Row]:
    row = functools.partial(context.row, kind, unit="us", reference_name=PING_PONG)
    yield row({**parameters, "outstanding": "1"}, found["one"], found["ping-pong"], target=target)
    for name, outstanding in (("several", "16"), ("asynchronous", "any")):
        yield row({**parameters, "outstanding": outstanding}, found[name], found["ping-pong"])
    if kind == "pull" and parameters["who"] == ONE:
        throughput = Sample(tuple(1e6 / us for us in found["several"].values))
        one = Sample(tuple(1e6 / us for us in found["one by number"].values))
        target = at_least(3.0) if (context.ranks, parameters["keys"]) == (2, 1) else None
        yield context.row(
            "pulls per second",
            {**parameters, "outstanding": "16"},
            throughput,
            one,
            unit="1/s",
            reference_name="the same with one outstanding",
            target=target,
        )


def _target(kind: str, ranks: int, who: str, keys: int):
    if kind != "pull":
        return None
    if who == ONE and ranks == 2:
        return at_most(3.0 if keys == 1 else 2.0)
    if who == COMPUTING and keys == 1 and ranks > 2:
        return at_most(1000 if ranks <= 4 else 3000, of="value")
    return None


def between_hosts(context: Context) -> Iterator[Row]:
    """The same between two hosts, for a job that the user starts."""
    import lapse

    with server_of(context) as server, server.worker() as kv:
        server.initialize(range(server.num_keys), lapse.Constant(1.0))
        stage = Stage(context, server, kv, 0.1)
        for who in (ONE, COMPUTING):
            yield from _remote(context, stage, who, 1, at_most(2.0 if who == ONE else 5.0))


# Relocation ----------------------------------------------------------------------------------------------------------


def relocation(context: Context) -> Iterator[Row]:
    """Each rank has a set of keys; the ranks that take part localize the set of the next rank."""
    import lapse

    with server_of(context) as server, server.worker() as kv:
        server.initialize(range(server.num_keys), lapse.Constant(1.0))
        stage = Stage(context, server, kv, 60.0)  # a measurement has as many calls as there are rows
        for who in (ONE, ALL):
            for count in (1, 100):
                yield from _relocation(context, stage, who, count)


def _relocation(context: Context, stage: Stage, who: str, count: int) -> Iterator[Row]:
    import numpy as np

    from lapse.bench import _requests

    kv, rank, size = stage.kv, stage.rank, stage.size
    order = np.random.default_rng(7).permutation(stage.server.num_keys)
    rows = min(200, len(order) // (size * count))
    sets = order[: size * rows * count].reshape(size, rows, count)

    def share(kind: int) -> float:
        """Move every set back to its rank, then measure with the set of the next rank."""
        kv.localize(sets[rank]).wait()
        kv.barrier()
        stage.times = np.zeros(rows, np.int64)
        return stage.call(kind, sets[(rank + 1) % size], 1, who)

    found = interleaved(
        {
            "pull": functools.partial(share, _requests.PULL),
            "localize": functools.partial(share, _requests.LOCALIZE),
            "localize and pull": functools.partial(share, _requests.LOCALIZE_AND_PULL),
        },
        context.rounds(),
    )
    for name in ("localize", "localize and pull"):
        target = at_most(4.0) if (size, who, count) == (2, ONE, 100) else None
        yield context.row(
            name,
            {"who": who, "keys": count},
            found[name],
            found["pull"],
            unit="us",
            reference_name="a remote pull of the same keys",
            target=target,
        )


# An idle communication thread ----------------------------------------------------------------------------------------


def idle(context: Context) -> Iterator[Row]:
    """A fixed computation on all ranks, with and without an open server; the slowest rank counts."""
    import lapse
    from lapse.bench import _requests
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    steps = 1_000_000
    took, _ = _requests.compute(steps)
    steps = comm.bcast(int(steps * (0.01 if context.quick else 0.25) / took))

    def without() -> float:
        comm.Barrier()
        return comm.allreduce(_requests.compute(steps)[0], MPI.MAX)

    def open_server() -> float:
        with lapse.Server(10_000, LENGTH, shared_memory=False):
            return without()

    found = interleaved({"open": open_server, "none": without}, context.rounds(15))
    yield context.row(
        "computation",
        {"seconds": round(statistics.median(found["none"].values), 2)},
        found["open"] * 1e3,
        found["none"] * 1e3,
        unit="ms",
        reference_name="the same without a server",
        target=at_most(1.03),
    )


GROUPS = (
    Group(
        "remote",
        "pulls and pushes by messages, against bare MPI",
        remote,
        (Job(2, QUICK), Job(4, NORMAL), Job(8, NORMAL)),
    ),
    Group(
        "relocation",
        "keys that move by messages, against a remote pull",
        relocation,
        (Job(2, QUICK), Job(4, NORMAL), Job(8, FULL)),
    ),
    Group("idle", "cost of an idle communication thread for a computing worker", idle, (Job(2, QUICK), Job(4, NORMAL))),
)
