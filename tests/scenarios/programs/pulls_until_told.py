"""Pull keys of all ranks until a file exists, then check sums: for tests that disturb the job meanwhile.

The arguments: a folder, where each rank says that it is under way by a file named after its number, which has its
process id; and what the ranks do meanwhile.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

import lapse
from common import rank, size, tell, world

folder, doing = Path(sys.argv[1]), sys.argv[2]
KEYS = range(30 * size)

with lapse.Server(len(KEYS), 4, shared_memory=False) as server, server.worker() as kv:
    kv.push(KEYS, np.ones((len(KEYS), 4), "f4")).wait()
    kv.barrier()
    new = folder / f"{rank}.new"
    new.write_text(str(os.getpid()))
    new.rename(folder / str(rank))
    if doing == "waits in mpi" and rank == size - 1:
        world.recv(source=0)
    pushes = 1
    if doing == "waits in a barrier" and rank != 0:
        kv.barrier()
    while not (folder / "go on").exists():
        if doing == "waits in a barrier":
            time.sleep(0.01)
            continue
        kv.push(KEYS, np.ones((len(KEYS), 4), "f4")).wait()
        assert (kv.pull(KEYS).wait() > pushes).all()
        pushes += 1
    if doing == "waits in a barrier" and rank == 0:
        kv.barrier()
    total = kv.allreduce(pushes)
    assert (kv.pull(KEYS).wait() == total).all()
    tell("exact")
