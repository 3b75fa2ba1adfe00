"""Floor 2. What all ranks have to acknowledge before the rank that asked is answered: sets of replicas, and fences."""

from libc.stdint cimport int64_t, uint8_t

from lapse.messaging._messages cimport header_t
from lapse.protocol._rank cimport rank_t


cdef struct pending_acks_t:
    # What a home has sent to all ranks for one asker, and how many have yet to acknowledge it.
    pending_acks_t* next
    pending_acks_t* previous
    int64_t remaining       # acknowledgements that are missing, plus 1 while it is being sent
    header_t request        # the asker's
    int64_t credits         # bytes that its operation holds
    int64_t positions       # of its keys


cdef struct pending_acks_list_t:
    pending_acks_t* first
    uint8_t latch


cdef pending_acks_t* open_pending_acks(pending_acks_list_t* known, header_t request) noexcept nogil
cdef int acknowledge(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks,
                     int64_t count) noexcept nogil
cdef int close_pending_acks(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks) noexcept nogil
cdef void free_pending_acks(pending_acks_list_t* known) noexcept
