"""Rank 1 raises, rank 2 computes for longer than the limit."""

import time

import lapse
from common import rank

with lapse.Server(20, 2) as server:
    if rank == 1:
        raise ZeroDivisionError("the first error")
    if rank == 2:
        time.sleep(50)
    server.run(lambda kv: kv.barrier())
