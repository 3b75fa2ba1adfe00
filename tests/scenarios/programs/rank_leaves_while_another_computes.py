"""Rank 1 reaches the end without `close` while rank 0 computes for longer than the limit."""

import time

import lapse
from common import rank

server = lapse.Server(20, 2)
if rank == 0:
    time.sleep(50)
