"""Floor 1. The ranks of one host: the page by which they wake each other, and which of them are alive.

A latch in memory that they share outlives its holder. A thread that waits long for one looks here: if the holder is
dead, the job is aborted, because what it was writing is lost; if it is stopped (SIGSTOP, a debugger), that is printed
once, and the wait continues. Floor 3 says how a job is aborted.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.storage._segment cimport Segment
from lapse.base._sync cimport doorbell_t, watch_t

ctypedef void (*end_job_t)(void* context, const char* text) noexcept nogil


cdef struct host_peers_t:
    watch_t watch           # the first member: a function that is given the watch finds the rest
    doorbell_t* doorbells   # by local rank
    uint32_t* failed        # set by each rank of this host that learns of a failure
    int32_t count
    int32_t local_rank      # of this rank
    uint32_t stop_reported
    end_job_t end_job
    void* context           # of `end_job`


cdef char process_state(int32_t process) noexcept nogil
cdef bint is_dead(int32_t process) noexcept nogil


cdef class HostPeers:
    cdef host_peers_t c
    cdef Segment page
    cdef object local_ranks

    cdef doorbell_t* doorbell_of(self, int32_t rank) noexcept
    cdef void tell_failure(self) noexcept nogil
