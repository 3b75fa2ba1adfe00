"""Floor 2. What all ranks have to acknowledge before the rank that asked is answered: sets of replicas.

Messages name a record by its number and by how often that had been used, not by its address: an acknowledgement that
nothing waits for is recognized, whatever it says.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lapse.messaging._messages cimport header_t
from lapse.protocol._rank cimport rank_t


cdef struct pending_acks_t:
    # What a home has sent to all ranks for one asker, and how many have yet to acknowledge it.
    uint64_t name           # its number, and above that how often it was used; of an unused one as well
    uint32_t next_free      # the number of the next unused one
    int64_t remaining       # acknowledgements that are missing, plus 1 while it is being sent
    header_t request        # the asker's
    int64_t credits         # bytes that its operation holds
    int64_t positions       # of its keys


cdef struct pending_acks_list_t:
    pending_acks_t** all    # by number; they keep their addresses
    uint32_t count, capacity
    uint32_t first_free     # plus 1; 0: none
    int64_t open            # those in use
    uint8_t latch


cdef pending_acks_t* open_pending_acks(pending_acks_list_t* known, header_t request) noexcept nogil
cdef pending_acks_t* find_pending_acks(pending_acks_list_t* known, uint64_t name) noexcept nogil
cdef int acknowledge(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks,
                     int64_t count) noexcept nogil
cdef int close_pending_acks(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks) noexcept nogil
cdef void free_pending_acks(pending_acks_list_t* known) noexcept
