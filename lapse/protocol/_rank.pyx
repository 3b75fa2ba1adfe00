"""Floor 2. The state of one rank that both protocols, relocation and replication, work on."""

from libc.stdint cimport int32_t, int64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free

from lapse.messaging._outbox cimport free_blocks
from lapse.base._types cimport FAILED


cdef int protocol_error(rank_t* state, int32_t source, const char* what, key_t key) noexcept nogil:
    """Note a message that the protocol excludes; the server fails."""
    snprintf(state.error, ERROR_SIZE, "protocol error at rank %d, message from rank %d: %s (key %lld)",
             state.rank, source, what, <long long>key)
    return FAILED


cdef int prepare_rank(rank_t* state, Store store, int workers, int64_t max_in_flight) except -1:
    """Allocate what a zeroed state needs; `free_rank` also frees one that was prepared in part."""
    cdef int32_t i
    state.store = &store.c
    state.rank = store.c.rank
    state.size = store.c.size
    state.flow.limit = max_in_flight
    state.outboxes = <outbox_t*>calloc(state.size, sizeof(outbox_t))
    state.flow.in_flight = <int64_t*>calloc(state.size, sizeof(int64_t))
    state.worker_slots = <worker_slot_t*>calloc(workers + 1, sizeof(worker_slot_t))
    if state.outboxes == NULL or state.flow.in_flight == NULL or state.worker_slots == NULL:
        raise MemoryError(f"no memory for {workers} workers and the queues to {state.size} ranks")
    state.num_worker_slots = workers + 1
    for i in range(workers):
        state.worker_slots[i].worker = i
    state.worker_slots[workers].worker = -1
    for i in range(state.size):
        state.outboxes[i].waiting = &state.outboxes_waiting
    return 0


cdef void free_rank(rank_t* state) noexcept:
    cdef int32_t i
    for i in range(state.size if state.outboxes != NULL else 0):
        free_blocks(&state.outboxes[i])
    for i in range(state.num_worker_slots):
        free(state.worker_slots[i].missed)
        free_operations(state.worker_slots[i].spare)
        free_operations(state.worker_slots[i].detached)
    free(state.outboxes)
    free(state.flow.in_flight)
    free(state.worker_slots)


cdef void free_operations(operation_t* operation) noexcept:
    cdef operation_t* next_operation
    while operation != NULL:
        next_operation = operation.next
        free(operation.offsets)
        free(operation)
        operation = next_operation
