"""Rank 0 creates a server; rank 1 comes later than what is reported."""

import time

import lapse
from common import rank

if rank == 1:
    time.sleep(3)
lapse.Server(10, 2).close()
