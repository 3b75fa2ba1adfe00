"""Rank 1 leaves with status 0 long before rank 0: MPI waits for that."""

import sys
import time

import lapse
from common import rank, tell

lapse.Server(10, 1).close()
if rank == 1:
    sys.exit(0)
time.sleep(12)
tell("at the end")
