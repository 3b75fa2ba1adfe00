"""Floor 3. The watchdog of a server on one rank: who is silent, who is dead, who waits without progress.

*Heartbeats.* Ranks of different hosts are *partners* in such a way that each rank has one on every other host, and few
more. A rank sends a heartbeat to a partner to whom it has sent nothing lately; any message counts as a sign of life.
The communication thread sends them, and the guard's thread (`_guard`) only asks for that and compares counts, so that
silence is noticed even if a call of MPI does not return. What the guard did not see because it was stopped itself does
not count as silence.

*Ranks of this host* need none: each looks whether the process of the next one is alive.

*Stalls.* Waiting threads note what they wait for (`wait_t`); the guard reports a wait without progress.

Who enters: `send_heartbeats` the thread that holds the engine; all else the guard's thread.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.base._types cimport key_t, worker_slot_t
from lapse.communication._doorbells cimport Doorbells
from lapse.communication._failure cimport Failure
from lapse.communication._guard cimport guarded_t
from lapse.communication._text cimport text_t
from lapse.communication._transport cimport Transport
from lapse.protocol._protocol cimport Protocol, protocol_t
from lapse.protocol._rank cimport rank_t


cdef struct partner_t:
    int32_t rank
    int64_t received        # packets from it at the last look
    int64_t silence         # nanoseconds since one came
    int64_t sent            # packets to it when heartbeats were last sent


cdef class Watchdog:
    cdef guarded_t guarded
    cdef Protocol protocol_object   # owns the protocol and the state
    cdef protocol_t* protocol
    cdef rank_t* state
    cdef Transport transport        # None for a rank alone
    cdef Doorbells bells
    cdef Failure failure
    cdef partner_t* partners
    cdef int32_t num_partners
    cdef int64_t limit              # nanoseconds of silence; 0: any
    cdef int64_t stall              # nanoseconds without progress after which a wait is reported; 0: never
    cdef int64_t since_heartbeat
    cdef uint32_t heartbeats_due
    cdef uint32_t is_ending         # this rank has said good-bye
    cdef int32_t ward               # the rank of this host that this one looks after; -1: none
    cdef int32_t ward_missed        # looks at which it was dead
    cdef int64_t awake_since        # this process was stopped until then
    cdef int64_t last_reported      # the beginning of the latest wait that was reported
    cdef object names               # keeps the memory of:
    cdef const char* host_names     # NAME_BYTES for each rank

    cdef void send_heartbeats(self) noexcept nogil
    cdef void look(self, int64_t elapsed) noexcept nogil
    cdef void look_at_partners(self, int64_t elapsed) noexcept nogil
    cdef void look_at_ward(self) noexcept nogil
    cdef void report_silence(self) noexcept nogil
    cdef void look_for_stalls(self) noexcept nogil
    cdef bint is_stalled(self, worker_slot_t* worker_slot, int64_t time) noexcept nogil
    cdef const char* host_of(self, int32_t rank) noexcept nogil
    cdef void describe(self, text_t* text) noexcept nogil
    cdef void describe_worker(self, worker_slot_t* worker_slot, text_t* text) noexcept nogil
    cdef void describe_key(self, key_t key, text_t* text) noexcept nogil
    cdef void describe_peer(self, int32_t rank, text_t* text) noexcept nogil
