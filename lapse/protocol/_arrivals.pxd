"""Floor 2. What a rank keeps of each key that is on its way here: waiting localizes, parked operations, the successor.

A key that is lent to workers is on its way from them, once somebody waits for it.

All inline, for `_relocation`, which calls these under a key's latch.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lapse.messaging._messages cimport header_t
from lapse.messaging._operations cimport complete
from lapse.storage._slabs cimport NO_SLOT
from lapse.base._sync cimport drop_latch, take_latch
from lapse.base._types cimport GRADIENT, NO_MEMORY, OK, PULL, operation_t, terms_t

cdef enum:
    ARRIVALS_PER_CHUNK = 1024
    NO_ARRIVAL = 0xFFFFFFFF


cdef struct parked_t:
    # An operation on a key that is on its way here, its value behind it. A receive buffer is never kept.
    parked_t* next
    header_t request
    uint32_t position


cdef struct waiter_t:
    # A localize that waits for an arrival.
    waiter_t* next
    operation_t* operation


cdef struct arrival_t:
    # What a rank keeps of a key that is arriving.
    parked_t* first
    parked_t* last
    waiter_t* waiters
    int32_t successor   # the rank that gets the key next; -1: none asked yet. There is never a second one
    uint32_t slot       # of the value, once it has landed; the number of the next unused record while unused
    uint16_t credited_to
    uint8_t lent_to     # how many workers have the value, which is here, in `slot`; 0: it comes from another rank
    uint8_t wasted      # earlier relocations of the key to this rank, in a row
    uint8_t is_used     # an operation of this rank was parked


cdef struct arrivals_t:
    arrival_t** chunks      # so that records keep their addresses
    uint32_t num_chunks
    uint32_t next_free      # the number of the first unused record
    int64_t open            # keys that are arriving
    uint8_t latch           # of these lists; taken inside a key's latch


cdef inline arrival_t* arrival_at(const arrivals_t* arrivals, uint32_t number) noexcept nogil:
    return &arrivals.chunks[number // ARRIVALS_PER_CHUNK][number % ARRIVALS_PER_CHUNK]


cdef inline bint add_arrivals(arrivals_t* arrivals) noexcept nogil:
    # under the arrivals' latch
    cdef uint32_t i, first = arrivals.num_chunks * ARRIVALS_PER_CHUNK
    cdef arrival_t* chunk = <arrival_t*>malloc(ARRIVALS_PER_CHUNK * sizeof(arrival_t))
    if chunk == NULL:
        return False
    arrivals.chunks[arrivals.num_chunks] = chunk
    arrivals.num_chunks += 1
    for i in range(<uint32_t>ARRIVALS_PER_CHUNK):
        chunk[i].slot = first + i + 1 if i + 1 < ARRIVALS_PER_CHUNK else <uint32_t>NO_ARRIVAL
    arrivals.next_free = first
    return True


cdef inline uint32_t open_arrival(arrivals_t* arrivals) noexcept nogil:
    cdef uint32_t number
    cdef arrival_t* arrival
    take_latch(&arrivals.latch)
    if arrivals.next_free == NO_ARRIVAL and not add_arrivals(arrivals):
        drop_latch(&arrivals.latch)
        return <uint32_t>NO_ARRIVAL
    number = arrivals.next_free
    arrival = arrival_at(arrivals, number)
    arrivals.next_free = arrival.slot
    arrivals.open += 1
    drop_latch(&arrivals.latch)
    arrival.first = arrival.last = NULL
    arrival.waiters = NULL
    arrival.successor = -1
    arrival.slot = NO_SLOT
    arrival.lent_to = arrival.wasted = 0
    arrival.is_used = False
    return number


cdef inline void close_arrival(arrivals_t* arrivals, uint32_t number) noexcept nogil:
    take_latch(&arrivals.latch)
    arrival_at(arrivals, number).slot = arrivals.next_free
    arrivals.next_free = number
    arrivals.open -= 1
    drop_latch(&arrivals.latch)


cdef inline bint add_waiter(arrival_t* arrival, operation_t* operation) noexcept nogil:
    cdef waiter_t* waiter = <waiter_t*>malloc(sizeof(waiter_t))
    if waiter == NULL:
        return False
    waiter.operation = operation
    waiter.next = arrival.waiters
    arrival.waiters = waiter
    return True


cdef inline bint park(arrival_t* arrival, header_t request, uint32_t position, const char* given,
                      size_t size) noexcept nogil:
    # under the key's latch
    return park_in_two(arrival, request, position, NULL, 0, given, size)


cdef inline bint park_own(arrival_t* arrival, header_t request, const operation_t* operation, uint32_t position,
                          const char* given, size_t size) noexcept nogil:
    """A request by one of this rank's workers, as `send_own` would send it."""
    if operation.kind == GRADIENT:
        return park_in_two(arrival, request, position, <const char*>&operation.terms, sizeof(terms_t), given, size)
    return park_in_two(arrival, request, position, NULL, 0, given, size)


cdef inline bint park_in_two(arrival_t* arrival, header_t request, uint32_t position, const char* head,
                             size_t head_size, const char* given, size_t size) noexcept nogil:
    cdef parked_t* parked = <parked_t*>malloc(sizeof(parked_t) + head_size + (size if given != NULL else 0))
    if parked == NULL:
        return False
    parked.next = NULL
    parked.request = request
    parked.position = position
    if head_size:
        memcpy(parked + 1, head, head_size)
    if given != NULL:
        memcpy(<char*>(parked + 1) + head_size, given, size)
    if arrival.last == NULL:
        arrival.first = parked
    else:
        arrival.last.next = parked
    arrival.last = parked
    return True


cdef inline void wake(waiter_t* waiter) noexcept nogil:
    cdef waiter_t* next_waiter
    while waiter != NULL:
        next_waiter = waiter.next
        complete(waiter.operation, 1)
        free(waiter)
        waiter = next_waiter


cdef inline void forget_arrival(arrival_t* arrival) noexcept:
    # of a server that failed: what waits is never answered
    cdef parked_t* parked
    cdef waiter_t* waiter
    while arrival.first != NULL:
        parked = arrival.first
        arrival.first = parked.next
        free(parked)
    while arrival.waiters != NULL:
        waiter = arrival.waiters
        arrival.waiters = waiter.next
        free(waiter)


cdef inline int prepare_arrivals(arrivals_t* arrivals, int64_t num_keys) noexcept:
    # A key arrives at most once at a time: room for the addresses of all chunks there can be.
    arrivals.next_free = NO_ARRIVAL
    arrivals.chunks = <arrival_t**>calloc(num_keys // ARRIVALS_PER_CHUNK + 1, sizeof(arrival_t*))
    return NO_MEMORY if arrivals.chunks == NULL else OK


cdef inline void free_arrivals(arrivals_t* arrivals) noexcept:
    cdef uint32_t i
    for i in range(arrivals.num_chunks):
        free(arrivals.chunks[i])
    free(arrivals.chunks)
