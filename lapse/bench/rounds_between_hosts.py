"""The program in the hosts of group ``rounds``: ``python -m lapse.bench.rounds_between_hosts KEYS LENGTH TURNS``.

Prints the seconds of each turn, on rank 0: of a synchronization after all ranks have pushed to all keys, of one after
nobody has, and of two all-to-alls of the same bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from lapse.bench._timing import Sample, interleaved
from lapse.bench.rounds import FOUND


def main(num_keys: int, length: int, turns: int) -> None:
    """Measure on all ranks of the job, in turns; rank 0 prints."""
    import lapse

    everything = range(num_keys)
    pace = lapse.Replication(syncs_per_second=0)  # on demand only
    with lapse.Server(num_keys, length, replicated_keys=everything, replication=pace) as server:
        found = server.run(lambda worker: _measure(worker, server.comm, num_keys, length, turns))[0]
        if server.rank == 0:
            print(FOUND + json.dumps({name: sample.values for name, sample in found.items()}), flush=True)


def _measure(worker, comm, num_keys: int, length: int, turns: int) -> dict[str, Sample]:
    import numpy as np

    updates = np.ones((num_keys, length), dtype=np.float32)
    sent = np.empty((comm.size, -(-num_keys // comm.size), length), dtype=np.float32)
    received = np.empty_like(sent)

    def timed(work: Callable[[], None]) -> float:
        worker.barrier()
        start = time.perf_counter()
        work()
        taken = time.perf_counter() - start
        worker.barrier()
        return taken

    def synchronize_all() -> float:
        worker.push(range(num_keys), updates).wait()
        return timed(worker.wait_replica_sync)

    def exchange_twice() -> None:
        comm.Alltoall(sent, received)
        comm.Alltoall(received, sent)

    return interleaved(
        {
            "full": synchronize_all,
            "empty": lambda: timed(worker.wait_replica_sync),
            "exchanges": lambda: timed(exchange_twice),
        },
        turns,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
