"""Rank 0 stops rank 1 and raises."""

import os

import lapse
from common import rank, stop, world

with lapse.Server(3, 2) as server, server.worker() as kv:
    pid = world.bcast(os.getpid(), root=1)
    kv.barrier()
    if rank == 0:
        stop(pid)
        raise RuntimeError("boom")
    while True:
        kv.barrier()
