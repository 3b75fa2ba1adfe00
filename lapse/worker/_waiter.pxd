"""Floor 4. A thread's place on a rank: its worker slot, how it waits there, and the errors that it raises.

All waiting of worker threads is in this module. A waiting thread drives the communication, in slices between which the
main thread looks for signals; it holds no lock.
"""

from libc.stdint cimport int32_t, int64_t

from lapse._comm cimport Comm, ready_t
from lapse.protocol._protocol cimport protocol_t
from lapse.base._sync cimport load
from lapse.base._types cimport counters_t, operation_t, worker_slot_t


cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef inline bint has_room(void* protocol) noexcept nogil:
    return load(&(<protocol_t*>protocol).rank.flow.over_limit) <= 0


cdef class Waiter:
    cdef Comm comm
    cdef protocol_t* protocol
    cdef worker_slot_t* worker_slot
    cdef object __weakref__
    cdef object handles             # deque of `Pending`: operations that may not be done
    cdef object dropped_at          # file and line where a pull into an array of the caller was dropped unfinished
    cdef object interrupt           # what a signal handler raised while a call held no GIL
    cdef int64_t num_borrowed       # values that this thread has borrowed and not returned; it may not wait then
    cdef unsigned long thread       # the one that may make calls; 0 after the worker's end, and in a forked child
    cdef str thread_name
    cdef bint any_thread
    cdef bint retired
    cdef readonly int id
    cdef readonly int rank

    cdef int check_thread(self) except -1
    cdef int refuse_thread(self) except -1
    cdef int check_usable(self) except -1

    # Until `ready(what)`: OK, or TIMED_OUT at the deadline (in nanoseconds of `now`); raises if the server ended.
    cdef int block(self, ready_t ready, void* what, int64_t deadline) except -1 nogil
    cdef int64_t* clock_of(self, ready_t ready, void* what) noexcept nogil
    cdef int block_on_operation(self, operation_t* operation, int64_t deadline) except -1 nogil
    cdef int block_on_own_operations(self) except -1 nogil
    cdef int block_on_round(self, int64_t number) except -1 nogil
    cdef bytes receive(self, int32_t source)
    # While a call is being issued; these return a status, since the call must be brought to an end.
    cdef int wait_for_room(self) noexcept nogil
    cdef int wait_for_round(self) noexcept nogil
    cdef int wait_or_interrupt(self, ready_t ready, void* what) noexcept nogil

    cdef bint is_interrupted(self) noexcept with gil
    cdef void note_wait(self, ready_t ready, void* what, int64_t time) noexcept nogil
    cdef int64_t unfinished_of(self, ready_t ready, void* what) noexcept nogil
    cdef void note_end_of_wait(self) noexcept nogil
    cdef void note_progress(self, ready_t ready, void* what) noexcept nogil
    cdef int check(self, int status) except -1 nogil
    cdef int raise_status(self, int status) except -1


cdef inline bint may_call(Waiter waiter) noexcept nogil:
    """Whether this is the waiter's thread, in its process, before its end: one comparison says all three."""
    return PyThread_get_thread_ident() == waiter.thread


cdef inline int check_caller(Waiter waiter) except -1 nogil:
    """As `Waiter.check_thread`, for calls without the GIL."""
    if not may_call(waiter):
        with gil:
            waiter.refuse_thread()
    return 0


cdef bint was_forked() noexcept nogil
cdef int begin_waiter(Waiter waiter) except -1
