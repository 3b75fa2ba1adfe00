"""Rank 1 is in a barrier of MPI's own while the others close the server; they come to it for a while, in a thread."""

import threading
import time

import lapse
from common import rank, world


def come_later():
    """Let rank 1 go on, when the others have waited for longer than what is reported."""
    time.sleep(4)
    world.Barrier()


with lapse.Server(10, 2) as server:
    server.run(lambda kv: kv.pull(range(10)).wait())
    if rank == 1:
        world.Barrier()
    else:
        late = threading.Thread(target=come_later)
        late.start()
if rank != 1:
    late.join()
