"""Floor 2. What all ranks have to acknowledge before the rank that asked is answered."""

from libc.stdlib cimport free, malloc

from lapse.messaging._flow cimport release_credits
from lapse.messaging._messages cimport address_in
from lapse.messaging._operations cimport complete
from lapse.messaging._senders cimport send_ack
from lapse.base._sync cimport drop_latch, fetch_add, take_latch
from lapse.base._types cimport OK, operation_t


cdef pending_acks_t* open_pending_acks(pending_acks_list_t* known, header_t request) noexcept nogil:
    cdef pending_acks_t* pending_acks = <pending_acks_t*>malloc(sizeof(pending_acks_t))
    if pending_acks == NULL:
        return NULL
    pending_acks.remaining = 1
    pending_acks.request = request
    pending_acks.credits = 0
    pending_acks.positions = 0
    pending_acks.previous = NULL
    take_latch(&known.latch)
    pending_acks.next = known.first
    if known.first != NULL:
        known.first.previous = pending_acks
    known.first = pending_acks
    drop_latch(&known.latch)
    return pending_acks


cdef void forget(pending_acks_list_t* known, pending_acks_t* pending_acks) noexcept nogil:
    take_latch(&known.latch)
    if pending_acks.previous == NULL:
        known.first = pending_acks.next
    else:
        pending_acks.previous.next = pending_acks.next
    if pending_acks.next != NULL:
        pending_acks.next.previous = pending_acks.previous
    drop_latch(&known.latch)
    free(pending_acks)


cdef int acknowledge(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks,
                     int64_t count) noexcept nogil:
    """So many acknowledgements came; after the last one the asker is answered."""
    cdef header_t request
    cdef int status = OK
    if fetch_add(&pending_acks.remaining, -count) != count:
        return OK
    request = pending_acks.request
    if request.origin == state.rank:
        release_credits(&state.flow, state.rank, pending_acks.credits)
        complete(<operation_t*>address_in(request.operation), pending_acks.positions)
    else:
        status = send_ack(&state.outboxes[request.origin], request, pending_acks.positions, pending_acks.credits)
    forget(known, pending_acks)
    return status


cdef int close_pending_acks(pending_acks_list_t* known, rank_t* state, pending_acks_t* pending_acks) noexcept nogil:
    """Everything is sent."""
    return acknowledge(known, state, pending_acks, 1)


cdef void free_pending_acks(pending_acks_list_t* known) noexcept:
    cdef pending_acks_t* pending_acks
    while known.first != NULL:  # of a server that failed: the missing ones never come
        pending_acks = known.first
        known.first = pending_acks.next
        free(pending_acks)
