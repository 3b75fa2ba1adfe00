"""Floor 4. A page of memory that the ranks of one host share, for waking each other.

It holds no values. It has no name in any file system, so that nothing is left behind after a
crash: one rank per host makes it, the others open it through /proc while that one waits.
"""

import mmap
import os
import sys

from mpi4py import MPI

BYTES_PER_RANK = 64


def open_page(comm):
    """Make and map the page of this host. Collective over `comm`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm

    Returns
    -------
    page : mmap.mmap or None
        None where the ranks of this host cannot share memory; said once on stderr.
    places : list of int
        For each rank of `comm` its place in the page, -1 where it is on another host.
    local_size : int
        How many ranks this host has.
    """
    host = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    try:
        page = _share(host)
        places = MPI.Group.Translate_ranks(comm.group, range(comm.size), host.group)
        places = [-1 if place == MPI.UNDEFINED else place for place in places]
        return page, places, host.size
    finally:
        host.Free()


def _share(host):
    size = BYTES_PER_RANK * host.size
    descriptor = _create(size) if host.rank == 0 else None
    address = host.bcast((os.getpid(), descriptor), root=0)
    page = _map(*address, size) if address[1] is not None else None
    works = host.allreduce(page is not None, op=MPI.LAND)
    if host.rank == 0:
        if descriptor is not None:
            os.close(descriptor)
        if not works and host.size > 1:
            print(
                "lapse: the ranks of this host cannot share memory; waking each other takes longer",
                file=sys.stderr,
            )
    return page if works else None


def _create(size):
    try:
        descriptor = os.memfd_create("lapse-doorbells", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        return descriptor
    except (AttributeError, OSError):
        return None


def _map(process, descriptor, size):
    try:
        with open(f"/proc/{process}/fd/{descriptor}", "r+b", buffering=0) as file:
            return mmap.mmap(file.fileno(), size)
    except (OSError, ValueError):
        return None
