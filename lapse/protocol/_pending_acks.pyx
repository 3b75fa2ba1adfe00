"""Floor 2. What all ranks have to acknowledge before the rank that asked is answered."""

from libc.stdlib cimport free, malloc, realloc

from lapse.messaging._flow cimport release_credits
from lapse.messaging._messages cimport address_in
from lapse.messaging._operations cimport complete
from lapse.messaging._senders cimport send_ack
from lapse.base._sync cimport drop_latch, fetch_add, load, take_latch
from lapse.base._types cimport OK, operation_t

cdef uint64_t ONE_USE = <uint64_t>1 << 32   # of a name; what is below is the number


cdef pending_acks_t* open_pending_acks(pending_acks_list_t* known, header_t request) noexcept nogil:
    """One that is being sent; NULL if there is no memory."""
    cdef pending_acks_t* pending_acks
    take_latch(&known.latch)
    pending_acks = take_unused(known) if known.first_free else add_one(known)
    if pending_acks != NULL:
        known.open += 1
    drop_latch(&known.latch)
    if pending_acks == NULL:
        return NULL
    pending_acks.remaining = 1
    pending_acks.request = request
    pending_acks.credits = 0
    pending_acks.positions = 0
    return pending_acks


cdef inline pending_acks_t* take_unused(pending_acks_list_t* known) noexcept nogil:
    cdef pending_acks_t* pending_acks = known.all[known.first_free - 1]
    known.first_free = pending_acks.next_free
    return pending_acks


cdef pending_acks_t* add_one(pending_acks_list_t* known) noexcept nogil:
    cdef uint32_t capacity = 2 * known.capacity if known.capacity else 16
    cdef pending_acks_t** all
    cdef pending_acks_t* pending_acks
    if known.count == known.capacity:
        all = <pending_acks_t**>realloc(known.all, capacity * sizeof(pending_acks_t*))
        if all == NULL:
            return NULL
        known.all = all
        known.capacity = capacity
    pending_acks = <pending_acks_t*>malloc(sizeof(pending_acks_t))
    if pending_acks != NULL:
        pending_acks.name = ONE_USE + known.count
        pending_acks.remaining = 0
        known.all[known.count] = pending_acks
        known.count += 1
    return pending_acks


cdef pending_acks_t* find_pending_acks(pending_acks_list_t* known, uint64_t name) noexcept nogil:
    """The one that a message names; NULL if that is not in use."""
    cdef uint32_t number = <uint32_t>name
    cdef pending_acks_t* found = NULL
    take_latch(&known.latch)
    if number < known.count and known.all[number].name == name and load(&known.all[number].remaining) > 0:
        found = known.all[number]
    drop_latch(&known.latch)
    return found


cdef void forget(pending_acks_list_t* known, pending_acks_t* pending_acks) noexcept nogil:
    cdef uint32_t number = <uint32_t>pending_acks.name
    take_latch(&known.latch)
    pending_acks.name += ONE_USE
    pending_acks.next_free = known.first_free
    known.first_free = number + 1
    known.open -= 1
    drop_latch(&known.latch)


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
    cdef uint32_t i
    for i in range(known.count):
        free(known.all[i])
    free(known.all)
