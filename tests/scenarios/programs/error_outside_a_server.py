"""Rank 1 has an exception that nobody catches: before MPI is initialized, before a server, between two, after one."""

import os
import sys

import lapse

place = sys.argv[1]
rank = int(os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"])


def fail(here):
    """Fail if this is the place."""
    if here == place and rank == 1:
        raise FileNotFoundError("the data of rank 1")


fail("before MPI")
from mpi4py import MPI  # noqa: E402

fail("before a server")
lapse.Server(10, 2).close()
fail("between servers")
lapse.Server(10, 2).close()
fail("after a server")
if place == "after a server":
    MPI.COMM_WORLD.Barrier()
