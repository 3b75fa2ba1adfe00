"""Floor 2. Replicated keys: what a rank does on each request and message about them.

No MPI, no threads of its own. Worker threads call `ask_replica`, the thread that drives the communication calls
`handle_replication`; the rounds in which replicas come to agree are in `_rounds`. The rules, and why all replicas end
equal to the last bit, are in `docs/replication.md`.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._pending_acks cimport pending_acks_list_t
from lapse.protocol._rank cimport rank_t
from lapse.protocol._rounds cimport rounds_t
from lapse.base._types cimport key_t, operation_t


cdef struct replication_t:
    rounds_t rounds
    pending_acks_list_t unacknowledged


cdef int prepare_replication(replication_t* self, rank_t* state) noexcept
cdef int ask_replica(replication_t* self, operation_t* operation, key_t key, uint32_t position,
                     const char* given, int64_t* done) noexcept nogil
cdef int set_replicas(replication_t* self, int32_t source, frame_t* frame, char* at, uint32_t count) noexcept nogil
cdef int handle_replication(replication_t* self, int32_t source, frame_t* frame) noexcept nogil
cdef void free_replication(replication_t* self) noexcept
