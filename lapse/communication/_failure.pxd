"""Floor 3. The failure of a server: the first error on any rank ends it on all ranks.

The first error wins. Its text and the rank where it began are kept and sent to every other rank as the last message of
each channel, and all waiting threads of this rank wake up. From then on every call raises `Failure.error()`.

A rank whose interpreter ends with the server open is a *leaver*. As soon as a rank that works on makes a call, that
becomes a failure, too.

Who enters: any thread, with the engine or without it. The latch is held while the last messages are queued; the latch
of an outbox comes after it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse.base._sync cimport load32
from lapse.protocol._protocol cimport Protocol
from lapse.protocol._rank cimport rank_t
from lapse.storage._host_peers cimport HostPeers


cdef class Failure:
    cdef rank_t* state
    cdef Protocol protocol          # owns the state
    cdef HostPeers host_peers
    cdef object own_error           # an exception of this rank's own: its callers get it back as it is
    cdef char* text                 # NULL if there was no memory for it
    cdef int64_t since
    cdef int32_t origin             # the rank where the error began
    cdef int32_t leaver             # the last rank that left
    cdef uint32_t leavers           # how many ranks' interpreters have ended with the server open
    cdef uint32_t is_set
    cdef uint32_t is_known          # a caller of this rank knows of the failure
    cdef uint8_t latch
    cdef bint is_leaving            # this rank is a leaver

    cdef void fail_with(self, const char* text) noexcept nogil
    cdef void fail(self, int32_t origin, const char* text, int64_t size) noexcept nogil
    cdef void note_leaver(self, int32_t rank) noexcept nogil
    cdef bint is_overdue(self) noexcept nogil
    cdef void keep_text(self, const char* text, int64_t size) noexcept nogil
    cdef void send_to_all(self, const char* text, int64_t size) noexcept nogil
    cdef void wake_waiting_threads(self) noexcept nogil
    cdef void wake_communication_thread(self) noexcept nogil


cdef inline bint has_failed(Failure failure) noexcept nogil:
    return load32(&failure.is_set)


cdef inline bint is_broken(Failure failure) noexcept nogil:
    """Whether calls must raise: after a failure, or when a rank has left while this one works on."""
    return load32(&failure.is_set) or (load32(&failure.leavers) and not failure.is_leaving)
