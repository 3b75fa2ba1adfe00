"""Floor 4. Threads of a rank that share the work of one large call with the thread that makes it.

A caller offers its work in numbered pieces, which it and the helping threads take one after another. It never waits for
a helper that has not begun: whatever nobody has taken it does itself, and only those that are in a piece are waited
for.

A helper counts itself as active before it looks whether work is offered, and a caller waits after it has withdrawn its
offer until none is active. So either the helper sees that the offer is withdrawn, or the caller waits for it.
"""

from libc.stdint cimport int64_t, uint32_t

ctypedef void (*piece_t)(void* work, int64_t number) noexcept nogil


cdef struct offer_t:
    uint32_t rings      # helpers sleep on it
    uint32_t is_ending
    uint32_t is_taken   # by a caller
    uint32_t is_open
    int64_t active
    int64_t next_piece
    # Written while nothing is offered and no helper is active.
    int64_t pieces
    piece_t carry_out
    void* work


cdef class CallThreads:
    cdef offer_t offer
    cdef list threads
    cdef readonly int per_call      # threads of a call, with the one that makes it
    cdef int helpers                # that run now

    # Carry out the pieces 0 .. pieces - 1, in any order and at the same time; alone while another call is shared.
    cdef void share(self, int64_t pieces, piece_t carry_out, void* work) noexcept nogil
