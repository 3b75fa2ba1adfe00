"""Floor 2. What all ranks have to acknowledge before the rank that asked is answered: sets of replicas, and fences."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.protocol._rank cimport rank_t


cdef struct pending_acks_t:
    # What a home has sent to all ranks for one asker, and how many have yet to acknowledge it.
    pending_acks_t* next
    pending_acks_t* previous
    int64_t remaining       # acknowledgements that are missing, plus 1 while it is being sent
    uint64_t operation      # the asker's
    uint64_t amount         # bytes that its operation holds credits for
    uint32_t count          # key positions
    uint16_t origin
    uint16_t credited_to


cdef struct pending_acks_list_t:
    pending_acks_t* first
    uint8_t latch


cdef pending_acks_t* open_pending_acks(pending_acks_list_t* known, uint16_t origin, uint16_t credited_to,
                                       uint64_t operation) noexcept nogil
cdef int acknowledge(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks,
                     int64_t count) noexcept nogil
cdef int close_pending_acks(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks) noexcept nogil
cdef void free_pending_acks(pending_acks_list_t* known) noexcept
