"""Floor 1. The end of an operation: the thread that brings the last answer wakes its worker."""

from libc.stdint cimport int64_t

from lapse.base._sync cimport fetch_add, load32, ring, ring_doorbell
from lapse.base._types cimport operation_t, worker_slot_t


cdef inline void ring_worker_slot(worker_slot_t* worker_slot) noexcept nogil:
    ring(&worker_slot.bell)
    if load32(&worker_slot.on_doorbell):
        ring_doorbell(worker_slot.doorbell)


cdef inline void complete(operation_t* operation, int64_t positions) noexcept nogil:
    # The decrement to zero is the last access: the worker may use the memory again at once.
    cdef worker_slot_t* worker_slot
    if positions == 0:  # then there may be no operation
        return
    worker_slot = operation.worker_slot
    if fetch_add(&operation.pending, -positions) == positions:
        fetch_add(&worker_slot.unfinished, -1)
        ring_worker_slot(worker_slot)
