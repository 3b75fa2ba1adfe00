"""Floor 4. The Python handle of one asynchronous call."""

from lapse.worker._waiter cimport Waiter
from lapse.base._types cimport operation_t


cdef class Pending:
    # What the worker keeps of a call that may not be done. The result is not among it: that is up to who holds the
    # handle.
    cdef operation_t* c     # NULL once it is done
    cdef object kept        # arrays whose memory the operation reads or writes

    cdef bint is_done(self) noexcept


cdef class Operation:
    cdef Waiter waiter
    cdef Pending pending    # None once it is known to be done
    cdef object result
    cdef bint fills_out     # it writes to an array of the caller, who has not waited for it

    cdef int finish(self, timeout) except -1


cdef Operation new_handle(Waiter waiter, operation_t* c, result, kept, bint fills_out=*)
cdef int release_finished(Waiter waiter) except -1
cdef int release_all_finished(Waiter waiter) except -1
