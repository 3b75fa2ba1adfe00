"""Children that multiprocessing has made: they use what needs no MPI, and may not be ranks."""

import multiprocessing
import os
import sys

import lapse


def annotated(kv: lapse.Worker) -> lapse.Operation:
    """A function whose annotations name classes."""
    return kv.pull(0)


def child(number):
    """What a child may do, and what it is told when it creates a server."""
    mpi = sys.modules.get("mpi4py.MPI")
    assert mpi is None or not mpi.Is_initialized() or method == "fork"
    try:
        lapse.Server(3, 1)
    except RuntimeError as error:
        return number + 1, "child of a rank" in str(error)
    return None


method = sys.argv[1]
if __name__ == "__main__":
    rank = int(os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"])
    if method == "fork":
        with lapse.Server(10, 2) as server:
            rank = server.rank
    with multiprocessing.get_context(method).Pool(2) as pool:
        sys.stdout.write(f"[{rank}] {pool.map(child, range(3))}\n")  # in one write: ranks cannot mix it
        sys.stdout.flush()
    with lapse.Server(10, 2) as server:
        server.run(lambda kv: kv.pull(range(10)).wait())
