"""Wait for other ranks while no server is open: for tests that cut hosts off meanwhile.

The arguments: a folder, where each rank says that it is under way by a file named after its number, which has its
process id, and where "go on" tells all of them to come to the wait; and where they wait: on the arrival at the first
server, in the creation of one, or in a call of MPI.
"""

import os
import sys
import time
from pathlib import Path

import lapse
from common import rank, world

folder, place = Path(sys.argv[1]), sys.argv[2]


def make_server():
    lapse.Server(10, 1).close()


if place != "arrival":
    make_server()
new = folder / f"{rank}.new"
new.write_text(str(os.getpid()))
new.rename(folder / str(rank))
while not (folder / "go on").exists():
    if place == "creation":
        make_server()
    else:
        time.sleep(0.01)
if place == "mpi":
    world.Barrier()
else:
    make_server()
