"""Floor 2. The state of one rank that both protocols, relocation and replication, work on.

Neither protocol knows the other; what they share is here: the store, the outboxes, the bytes in flight, the worker
slots whose threads wait for answers, and the text of an error.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from lapse.messaging._flow cimport flow_t
from lapse.messaging._messages cimport header_t, make_header, name_of_address, record_t
from lapse.messaging._outbox cimport outbox_t
from lapse._store cimport Store, store_t, value_bytes
from lapse.base._types cimport LOCATE, key_t, operation_t, worker_slot_t

cdef enum:
    ERROR_SIZE = 256
    # What a key in flight costs at most beside its value, when each call has one key: the operation (80), its Python
    # handle (72), and a frame with one record (36), or an arrival with a parked operation.
    KEY_BYTES = 192


cdef struct rank_t:
    store_t* store
    int32_t rank
    int32_t size
    outbox_t* outboxes              # by destination
    uint32_t outboxes_waiting       # how many hold something
    flow_t flow                     # bytes of unanswered operations
    worker_slot_t* worker_slots     # the workers' and, last, the server's own
    int32_t num_worker_slots
    char error[ERROR_SIZE]          # why `handle_frame` returned FAILED


cdef inline int64_t amount_of(const rank_t* state, key_t key) noexcept nogil:
    """The bytes in flight of a key of an operation: its value, and what the key costs beside it."""
    return <int64_t>(KEY_BYTES + value_bytes(state.store, key))


cdef inline header_t header_of(const rank_t* state, const operation_t* operation, int32_t destination) noexcept nogil:
    """Of a request by one of this rank's workers."""
    return make_header(operation.kind, <uint16_t>state.rank, <uint16_t>destination, name_of_address(operation))


cdef inline char* output_of(const rank_t* state, const operation_t* operation, uint32_t position) noexcept nogil:
    """Where an operation wants the answer for one of its positions."""
    if operation.offsets != NULL:
        return operation.out + operation.offsets[position]
    if operation.kind == LOCATE:
        return operation.out + position * sizeof(int32_t)
    return operation.out + position * state.store.slabs[0].row_bytes


cdef int protocol_error(rank_t* state, int32_t source, const char* what, key_t key) noexcept nogil
cdef int prepare_rank(rank_t* state, Store store, int workers, int64_t max_in_flight) except -1
cdef void free_rank(rank_t* state) noexcept
