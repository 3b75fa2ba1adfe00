"""Group ``replication``: how long it takes until updates of replicas have reached all ranks.

Every rank pushes to the same replicated keys; then all ask for a synchronization and wait for it (`wait_replica_sync`).
The reference is what a program without a parameter server would do: an MPI_Allreduce over as many values. (It needs to
know which keys changed, and all ranks have to take part at the same moment.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row
from lapse.bench._timing import interleaved

ALLREDUCE = "MPI_Allreduce of as many values, by mpi4py"
LENGTH = 100
NUM_KEYS = 10_000


def run(context: Context) -> Iterator[Row]:
    """Rounds of all ranks at once, by the number of changed keys."""
    import lapse

    everything = range(NUM_KEYS)
    pace = lapse.Replication(syncs_per_second=0)  # on demand only
    with (  # ranks that share memory would need no rounds
        lapse.Server(NUM_KEYS, LENGTH, replicated_keys=everything, replication=pace, shared_memory=False) as server,
        server.worker() as kv,
    ):
        for changed in (10,) if context.quick else (1, 10, 100, 1000, 10_000):
            yield _measure(context, server, kv, changed)
        kv.barrier()


def _measure(context: Context, server, kv, changed: int) -> Row:
    import numpy as np

    from mpi4py import MPI

    keys = np.random.default_rng(changed).permutation(NUM_KEYS)[:changed]
    updates = np.ones((changed, LENGTH), dtype=np.float32)
    received = np.empty_like(updates)

    def synchronize() -> float:
        kv.push(keys, updates).wait()
        kv.barrier()
        start = time.perf_counter()
        kv.wait_replica_sync()
        taken = time.perf_counter() - start
        kv.barrier()
        return taken * 1e6

    def allreduce() -> float:
        kv.barrier()
        start = time.perf_counter()
        server.comm.Allreduce(updates, received, op=MPI.SUM)
        taken = time.perf_counter() - start
        kv.barrier()
        return taken * 1e6

    found = interleaved({"ours": synchronize, "allreduce": allreduce}, context.rounds(25))
    return context.row(
        "round",
        {"changed keys": changed, "length": LENGTH},
        found["ours"],
        found["allreduce"],
        unit="us",
        reference_name=ALLREDUCE,
    )


GROUPS = (
    Group("replication", "time until replicas agree, by the number of changed keys", run, (Job(2), Job(4, NORMAL))),
)
