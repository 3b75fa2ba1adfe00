"""Rank 1 raises while the others wait in a barrier of MPI."""

import lapse
from common import rank, world

with lapse.Server(20, 2) as server:
    if rank == 1:
        raise ZeroDivisionError("the first error")
    world.Barrier()
