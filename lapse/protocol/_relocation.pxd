"""Floor 2. Relocation: what a rank does with a key that may be elsewhere, on each local request and on each message.

Of replicated keys it knows only that their state is for good. States, messages and the argument for correctness are in
`docs/protocol.md`. For its callers and the order of latches see `_protocol.pxd`.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._arrivals cimport arrivals_t
from lapse.protocol._rank cimport rank_t
from lapse.base._types cimport key_t, operation_t


cdef struct relocation_counters_t:
    # Keys.
    int64_t arrived
    int64_t given_away
    int64_t passed_on   # passed on at once: a tenure that only served what was parked


cdef struct relocation_t:
    rank_t* state
    arrivals_t arrivals
    relocation_counters_t counters      # of the thread that drives the communication
    int64_t given_away_by_workers       # lent keys that were handed over when they were returned


cdef int ask_owner(relocation_t* relocation, operation_t* operation, key_t key, uint32_t position,
                   const char* given, int64_t* done, int64_t* parked) noexcept nogil
cdef int take_back(relocation_t* relocation, key_t key) noexcept nogil
cdef int localize_key(relocation_t* relocation, operation_t* operation, key_t key, int64_t* done,
                      int64_t* declined) noexcept nogil
cdef int locate_key(rank_t* state, operation_t* operation, key_t key, uint32_t position, int64_t* done) noexcept nogil
cdef int change_keys(relocation_t* relocation, int32_t source, frame_t* frame, char* at, uint32_t count) noexcept nogil
cdef int handle_relocation(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil
cdef int prepare_relocation(relocation_t* relocation, rank_t* state) noexcept
cdef void free_relocation(relocation_t* relocation) noexcept
