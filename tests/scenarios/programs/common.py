"""What the programs share: the ranks, lines that ranks cannot mix, and calls in which a rank may wait."""

import sys

import lapse  # before mpi4py.MPI: it chooses the MPI library
from mpi4py import MPI

world = MPI.COMM_WORLD
rank, size = world.rank, world.size


def tell(*words):
    """Print a line with the rank before it, in one write."""
    sys.stdout.write(f"[{rank}] " + " ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def in_worker(server, call):
    with server.worker() as kv:
        call(kv)


def pulls(kv):
    while True:
        kv.pull(range(20)).wait()


#: Calls in which ranks may wait when another rank leaves.
WAITING = {
    "run with barrier": lambda server: server.run(lambda kv: kv.barrier()),
    "run with pulls": lambda server: server.run(pulls),
    "worker with barrier": lambda server: in_worker(server, lambda kv: kv.barrier()),
    "worker with pulls": lambda server: in_worker(server, pulls),
    "close": lambda server: server.close(),
    "stats": lambda server: server.stats(all_ranks=True),
    "initialize": lambda server: server.initialize([1], lapse.Constant(1)),
}
