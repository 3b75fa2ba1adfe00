"""Floor 3. Mail: bytes from rank to rank, in order, for collective calls of Python. Not of the key protocol.

Who enters: the thread that holds the engine delivers; any thread posts, takes and looks.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._protocol cimport Protocol
from lapse.protocol._rank cimport rank_t


cdef struct letter_t:
    # The bytes of one mail follow it.
    letter_t* next
    int64_t size


cdef struct mailbox_t:
    letter_t* first
    letter_t* last


cdef class Mail:
    cdef rank_t* state
    cdef Protocol protocol          # owns the state
    cdef mailbox_t* boxes           # by source
    cdef int32_t size               # kept here too: the state may be gone before this is
    cdef uint8_t latch
    cdef int64_t posted

    cdef int deliver(self, int32_t source, frame_t* frame) noexcept nogil
    cdef bint has_mail(self, int32_t source) noexcept nogil
