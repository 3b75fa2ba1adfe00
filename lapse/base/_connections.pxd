"""Floor 0. The TCP connections of this process with other hosts of its jobs, and which of these hosts do not answer.

Heartbeats end with their server. But what MPI does between two servers, while one is created, or in MPI_Finalize needs
the network as well; and MPI waits for a host that is cut off until TCP gives up, some 15 minutes later, or for ever if
it waits for that host to begin. So the kernel is let to probe all connections with those hosts, whoever has opened
them, and is asked when it has heard of each. Nothing is sent or read here.

`find_silent_host` is entered by one thread only, the guard's.
"""

from libc.stdint cimport int32_t, int64_t

cdef enum:
    ADDRESS_BYTES = 16      # of version 6, in which those of version 4 have a place
    HOST_NAME_BYTES = 64


cdef struct far_host_t:
    # An address of another host; one that has several is there as often.
    unsigned char[ADDRESS_BYTES] address
    char[HOST_NAME_BYTES] name


cdef struct silent_t:
    const char* name
    char[HOST_NAME_BYTES] address
    int64_t silence         # nanoseconds


cdef bint find_silent_host(const far_host_t* hosts, int32_t count, int64_t limit, silent_t* found) noexcept nogil
