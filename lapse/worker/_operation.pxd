"""Floor 4. The Python handle of one asynchronous call."""

from lapse.worker._waiter cimport Waiter
from lapse.base._types cimport operation_t


cdef class Operation:
    cdef Waiter waiter
    cdef operation_t* c     # NULL once it is done
    cdef object result
    cdef object kept        # arrays whose memory the operation reads or writes

    cdef bint is_done(self) noexcept


cdef Operation new_handle(Waiter waiter, operation_t* c, result, kept)
cdef int release_finished(Waiter waiter) except -1
