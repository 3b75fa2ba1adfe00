"""Rank 1 is stopped while rank 0 waits for pulls from rank 2, then pushes to rank 1; how much memory that takes."""

import os
import signal
import threading
from pathlib import Path

import numpy as np

import lapse
from common import rank, stop, tell, world

LIMIT = 8 << 20
LENGTH = 1 << 18  # values of 1 MB
PUSHES = 100_000


def memory():
    """Resident bytes of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def pull_results(kv, stopped):
    """Keep none of 200 results of 1 MB, with an operation before them that is not finished."""
    stop(stopped)
    first = kv.pull(1)
    before = memory()
    for _ in range(200):
        kv.pull(2).wait()
    tell("pulls", (memory() - before) >> 20)
    os.kill(stopped, signal.SIGCONT)
    first.wait()


def push_many(kv, stopped):
    """Let the limit of bytes in flight stop 100,000 pushes of one key each, until the other rank goes on."""
    stop(stopped)
    before, most = memory(), []

    def go_on():
        most.append(memory())
        os.kill(stopped, signal.SIGCONT)

    timer = threading.Timer(3, go_on)
    timer.start()
    for _ in range(PUSHES):
        kv.push(1, np.ones(1, "f4"))
    timer.join()
    kv.wait_all()
    tell("pushes", (most[0] - before) >> 20, int(kv.pull(1).wait()[0]) == PUSHES)


for length, work in ((LENGTH, pull_results), (1, push_many)):
    with lapse.Server(3, length, shared_memory=False, max_in_flight=LIMIT) as server, server.worker() as kv:
        stopped = world.bcast(os.getpid(), root=1)
        kv.barrier()
        if rank == 0:
            work(kv, stopped)
        kv.barrier()
