"""More servers that fail in their constructor than MPICH has communicators left: most of its 2,048 are taken before."""

import lapse
from common import rank, tell
from lapse.server import assembly
from mpi4py import MPI

make = assembly.Comm


def refuse(*args):
    """A part that cannot be made on rank 1."""
    if rank == 1:
        raise OSError("refused")
    return make(*args)


taken = [MPI.COMM_SELF.Dup() for _ in range(1950)]  # which needs no other rank, and hence no time
assembly.Comm = refuse
for _ in range(100):
    try:
        lapse.Server(10, 2)
    except (OSError, RuntimeError) as error:
        last = error
tell(type(last).__name__, last)
assembly.Comm = make
lapse.Server(10, 2).close()
for communicator in taken:
    communicator.Free()
