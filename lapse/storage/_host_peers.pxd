"""Floor 1. The ranks of one host: the page by which they wake each other, and who of them is still alive.

A latch in memory that they share outlives its holder. Who waits long for one looks here: where the
holder is dead the job ends, since what it was writing is lost; where it is stopped (SIGSTOP, a
debugger) that is said once, and the wait goes on.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.storage._segment cimport Segment
from lapse.base._sync cimport doorbell_t, watch_t

ctypedef void (*end_job_t)(void* context, const char* text) noexcept nogil


cdef struct host_peers_t:
    watch_t watch           # the first member: who is given the watch finds the rest
    doorbell_t* doorbells   # by place
    uint32_t* failed        # set by each rank of this host that learns of a failure
    int32_t count
    int32_t place           # of this rank
    uint32_t stopped_told
    end_job_t end_job
    void* context


cdef class HostPeers:
    cdef host_peers_t c
    cdef Segment page
    cdef object places

    cdef doorbell_t* doorbell_of(self, int32_t rank) noexcept
    cdef void tell_failure(self) noexcept nogil
