"""Rank 0 stops rank 1 and raises."""

import os
import signal

import lapse
from common import rank, world

with lapse.Server(3, 2) as server, server.worker() as kv:
    pid = world.bcast(os.getpid(), root=1)
    kv.barrier()
    if rank == 0:
        os.kill(pid, signal.SIGSTOP)
        raise RuntimeError("boom")
    while True:
        kv.barrier()
