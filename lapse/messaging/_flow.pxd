"""Floor 1. Bytes of a rank's own unanswered operations, by destination; above a limit no new ones begin."""

from libc.stdint cimport int32_t, int64_t

from lapse.base._sync cimport fetch_add


cdef struct flow_t:
    int64_t* in_flight      # by destination
    int64_t limit
    int64_t over_limit      # destinations above it


cdef inline void acquire_credits(flow_t* flow, int32_t destination, int64_t amount) noexcept nogil:
    cdef int64_t before = fetch_add(&flow.in_flight[destination], amount)
    if before <= flow.limit < before + amount:
        fetch_add(&flow.over_limit, 1)


cdef inline void release_credits(flow_t* flow, int32_t destination, int64_t amount) noexcept nogil:
    cdef int64_t before = fetch_add(&flow.in_flight[destination], -amount)
    if before - amount <= flow.limit < before:
        fetch_add(&flow.over_limit, -1)
