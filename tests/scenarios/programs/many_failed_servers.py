"""More servers that fail than MPI has communicators: in their constructor, and in a run."""

import lapse
from common import rank, tell
from lapse.server import assembly

make = assembly.Comm


def refuse(*args):
    """A part that cannot be made on rank 1."""
    if rank == 1:
        raise OSError("refused")
    return make(*args)


assembly.Comm = refuse
for _ in range(2500):
    try:
        lapse.Server(10, 2)
    except (OSError, RuntimeError) as error:
        last = error
tell(type(last).__name__, last)
assembly.Comm = make
lapse.Server(10, 2).close()
