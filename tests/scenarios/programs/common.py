"""What the programs share: the ranks, lines that ranks cannot mix, and calls in which a rank may wait."""

import os
import signal
import sys
import time
from pathlib import Path

import lapse  # before mpi4py.MPI: it chooses the MPI library
from mpi4py import MPI

world = MPI.COMM_WORLD
rank, size = world.rank, world.size


def tell(*words):
    """Print a line with the rank before it, in one write."""
    sys.stdout.write(f"[{rank}] " + " ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def stop(process):
    """Stop a process, and return when each of its threads stands still: on a busy machine some go on for a moment."""
    os.kill(process, signal.SIGSTOP)
    while not all(_is_stopped(thread) for thread in Path(f"/proc/{process}/task").iterdir()):
        time.sleep(0.001)


def _is_stopped(thread):
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


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
