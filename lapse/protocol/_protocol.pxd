"""Floor 2. The relocation protocol: what a rank does on each local request and on each message.

No MPI, no threads of its own, no clock: `_comm` drives it over MPI, the simulated network of the
tests drives many ranks in one process. States, messages and the argument why it is right are in
`docs/protocol.md`.

Who enters: worker threads `ask` and `localize`, one key a step; whoever drives the communication
calls `handle_frame`, one thread of a rank at a time (the engine lock of `_comm`). Lock order:
engine, then one key's latch, then an outbox's latch or the latch of a slab or of the arrivals.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.messaging._flow cimport flow_t
from lapse.messaging._messages cimport frame_t
from lapse.messaging._outbox cimport outbox_t
from lapse._store cimport Store, store_t
from lapse.protocol._replication cimport replication_t
from lapse.base._types cimport key_t, operation_t


cdef struct parked_t:
    # An operation on a key that is on its way here, its value behind it. A receive buffer is never kept.
    parked_t* next
    uint64_t operation
    uint32_t position
    uint16_t origin
    uint16_t credited_to
    uint8_t kind


cdef struct waiter_t:
    # A localize that waits for an arrival.
    waiter_t* next
    operation_t* operation


cdef struct arrival_t:
    # What a rank keeps of a key that is arriving.
    parked_t* first
    parked_t* last
    waiter_t* waiters
    int32_t successor   # who gets the key next, -1: nobody asked yet. There is never a second one
    uint32_t slot       # of the value, once it has landed; the number of the next unused record while unused
    uint16_t credited_to


cdef struct relocations_t:
    int64_t arrived
    int64_t given_away
    int64_t passed_on   # went on at once: a tenure that only served what was parked


cdef struct rank_t:
    store_t* store
    int32_t rank
    int32_t size
    outbox_t* outboxes          # by destination
    uint32_t outboxes_waiting   # how many hold something
    flow_t flow                 # bytes of unanswered operations
    arrival_t** arrivals        # in chunks, so that records keep their addresses
    uint32_t arrival_chunks
    uint32_t free_arrival
    int64_t open_arrivals
    uint8_t arrivals_latch
    relocations_t relocations
    replication_t replication
    char error[256]             # what `handle_frame` found wrong, where it did


cdef int ask(rank_t* rank, operation_t* operation, key_t key, uint32_t position,
             const char* given, int64_t* done, int64_t* parked) noexcept nogil
cdef int localize(rank_t* rank, operation_t* operation, key_t key, int64_t* done) noexcept nogil
cdef int ask_location(rank_t* rank, operation_t* operation, key_t key, uint32_t position, int64_t* done) noexcept nogil
cdef int handle_frame(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil


cdef class Protocol:
    cdef rank_t c
    cdef Store store
