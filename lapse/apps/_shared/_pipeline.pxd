"""Batches that are prepared ahead of their turn, and the time that computing takes."""

from libc.stdint cimport int64_t

from lapse cimport Worker, operation_t


cdef class Pipeline:
    cdef Worker kv              # None if there is no server
    cdef int num_slots          # each has room for a batch
    cdef int oldest             # the slot whose turn is next
    cdef int num_prepared       # slots from the oldest on that are prepared; the next one is being filled
    cdef operation_t* operations[2]     # those that use the kernel's memory until they are waited for

    cdef double slow_down       # how many times its CPU time computing takes
    cdef bint is_timed
    cdef int64_t computed       # CPU time of all computing, in nanoseconds
    cdef int64_t owed           # what stretched computing has still to sleep
    cdef int64_t began, began_cpu       # of the computing under way: by the clock, and by the thread's CPU time

    cdef int set_pace(self, double slow_down, bint is_timed) except -1
    cdef void begin_computing(self) noexcept nogil
    cdef void pause_computing(self) noexcept nogil
    cdef void end_computing(self) noexcept nogil
    cdef void sleep_owed(self, int64_t at_least) noexcept nogil

    cdef int set_lookahead(self, int lookahead) except -1
    cdef int filling(self) noexcept nogil
    cdef int advance(self) except -1 nogil
    cdef int take_turn(self, bint prepares, bint trains) except -1 nogil
    cdef int wait(self, int operation) except -1 nogil
    cdef int settle(self) except -1
    cdef int give_back(self) except -1 nogil

    # What a kernel does with the batch in a slot.
    cdef int prepare(self, int slot) except -1 nogil
    cdef int request(self, int slot) except -1 nogil
    cdef int train_batch(self, int slot) except -1 nogil
    cdef int close_last(self) except -1 nogil
