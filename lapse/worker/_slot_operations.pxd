"""Floor 4. The operations of a worker slot, from their start until their memory serves the next one.

A started operation is pending by a guard of 1, so that it cannot finish while more is being added to it; `settle` takes
the guard away. Then it belongs to the caller, who gives it back, or is detached: nobody waits for it. Entered by the
slot's own thread only.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lapse.messaging._operations cimport complete
from lapse.base._sync cimport fetch_add, load
from lapse.base._types cimport operation_t, worker_slot_t


cdef inline bint is_finished(void* operation) noexcept nogil:
    return load(&(<operation_t*>operation).pending) == 0


cdef inline operation_t* new_operation(worker_slot_t* worker_slot, int kind, int64_t count, char* out) noexcept nogil:
    """One that is pending by its guard; NULL if there is no memory."""
    cdef operation_t* operation = worker_slot.spare
    if operation != NULL:
        worker_slot.spare = operation.next
    else:
        operation = <operation_t*>malloc(sizeof(operation_t))
        if operation == NULL:
            return NULL
    memset(operation, 0, sizeof(operation_t))
    operation.pending = 1
    operation.kind = <unsigned char>kind
    operation.count = count
    operation.out = out
    operation.worker_slot = worker_slot
    fetch_add(&worker_slot.unfinished, 1)
    return operation


cdef inline void give_back(operation_t* operation) noexcept nogil:
    """Keep the memory of a finished operation for the next one."""
    free(operation.offsets)
    operation.offsets = NULL
    operation.next = operation.worker_slot.spare
    operation.worker_slot.spare = operation


cdef inline void detach(operation_t* operation) noexcept nogil:
    """Keep an operation that nobody waits for until it is finished."""
    cdef worker_slot_t* worker_slot = operation.worker_slot
    operation.next = NULL
    if worker_slot.detached == NULL:
        worker_slot.detached = operation
    else:
        worker_slot.last_detached.next = operation
    worker_slot.last_detached = operation


cdef inline void let_go(operation_t* operation, operation_t** handle) noexcept nogil:
    """Hand a started operation to the caller, or detach it if there is no place for a handle."""
    if is_finished(operation):
        give_back(operation)
    elif handle != NULL:
        handle[0] = operation
    else:
        detach(operation)


cdef inline void settle(operation_t* operation, operation_t** handle) noexcept nogil:
    """Take the guard away: everything that the operation waits for is known."""
    complete(operation, 1)
    let_go(operation, handle)


cdef inline void reuse_detached(worker_slot_t* worker_slot) noexcept nogil:
    """Give back detached operations that are finished.

    Those at the front, and two behind the first that is not finished, which goes to the end: each call adds at most
    one, so that an operation that takes long keeps no others.
    """
    cdef operation_t* operation
    cdef int left = 2
    while worker_slot.detached != NULL and left:
        operation = worker_slot.detached
        worker_slot.detached = operation.next
        if is_finished(operation):
            give_back(operation)
        else:
            detach(operation)
            left -= 1
