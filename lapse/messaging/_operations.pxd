"""Floor 1. The end of an operation: whoever brings the last answer wakes its worker."""

from libc.stdint cimport int64_t

from lapse.base._sync cimport fetch_add, load32, ring, ring_doorbell
from lapse.base._types cimport operation_t, seat_t


cdef inline void ring_seat(seat_t* seat) noexcept nogil:
    ring(&seat.bell)
    if load32(&seat.on_doorbell):
        ring_doorbell(seat.doorbell)


cdef inline void complete(operation_t* operation, int64_t positions) noexcept nogil:
    # The decrement to zero is the last access: the worker may use the memory again at once.
    cdef seat_t* seat = operation.seat
    if positions and fetch_add(&operation.pending, -positions) == positions:
        fetch_add(&seat.unfinished, -1)
        ring_seat(seat)
