"""Floor 8. The reference for messages: bare MPI between two ranks, with the bytes of a request and of its reply.

In C without the GIL, with blocking calls on both sides, on a separate communicator. Both ranks call each function.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from mpi4py cimport MPI
from mpi4py.libmpi cimport MPI_BYTE, MPI_STATUS_IGNORE, MPI_SUCCESS, MPI_Comm, MPI_Recv, MPI_Send

from lapse.base._sync cimport now

cdef enum:
    CONTINUE = 1
    END = 2
    TAG = 1


cdef int64_t ask_for(MPI_Comm comm, int peer, char* buffer, int request, int reply, int64_t nanoseconds,
                     int64_t[::1] times) noexcept nogil:
    cdef int64_t began = now(), before = began, after = began, count = 0
    cdef bint is_last = False
    while not is_last:
        # The first byte tells the other side whether another round follows.
        is_last = count + 1 == times.shape[0] or before - began > nanoseconds
        buffer[0] = END if is_last else CONTINUE
        if MPI_Send(buffer, request, MPI_BYTE, peer, TAG, comm) != MPI_SUCCESS:
            return -1
        if MPI_Recv(buffer, reply, MPI_BYTE, peer, TAG, comm, MPI_STATUS_IGNORE) != MPI_SUCCESS:
            return -1
        after = now()
        times[count] = after - before
        before = after
        count += 1
    return count


cdef int64_t answer_to(MPI_Comm comm, int peer, char* buffer, int request, int reply) noexcept nogil:
    cdef int64_t count = 0
    buffer[0] = CONTINUE
    while buffer[0] != END:
        if MPI_Recv(buffer, request, MPI_BYTE, peer, TAG, comm, MPI_STATUS_IGNORE) != MPI_SUCCESS:
            return -1
        if MPI_Send(buffer, reply, MPI_BYTE, peer, TAG, comm) != MPI_SUCCESS:
            return -1
        count += 1
    return count


def ping_pong(MPI.Comm comm, int peer, bint asks, int request, int reply, double seconds, int64_t[::1] times):
    """Send `request` bytes and receive `reply` bytes, for so many seconds.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    peer : int
        The other rank, which calls this too, with the other value of `asks`.
    asks : bool
    request, reply : int
        Bytes, at least 1.
    seconds : float
    times : numpy.ndarray of int64
        Receives the time of each round, in nanoseconds, on the rank that asks. Its length limits the number of rounds.

    Returns
    -------
    int
        The number of rounds.
    """
    cdef char* buffer = <char*>calloc(1, max(request, reply))
    cdef int64_t count, nanoseconds = <int64_t>(seconds * 1e9)
    if buffer == NULL:
        raise MemoryError("no memory for the messages of a ping-pong")
    with nogil:
        if asks:
            count = ask_for(comm.ob_mpi, peer, buffer, request, reply, nanoseconds, times)
        else:
            count = answer_to(comm.ob_mpi, peer, buffer, request, reply)
    free(buffer)
    if count < 0:
        raise RuntimeError("MPI reported an error in a ping-pong")
    return count
