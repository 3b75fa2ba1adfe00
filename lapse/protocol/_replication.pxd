"""Floor 2. How replicas on different ranks come to agree: what a rank does in a round and on each message.

No MPI, no threads of its own; the thread that drives the communication passes the time (`tick`). The rules, and why all
replicas end equal to the last bit, are in `docs/replication.md`.

Worker threads call `ask_replica`, `mark`, and begin rounds after a push; the thread that drives the
communication calls `handle_replication` and `tick`. Lock order: engine, then the latch of rounds,
then one key's latch, then that of a list or of an outbox.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._pending_acks cimport pending_acks_list_t
from lapse.protocol._rank cimport rank_t
from lapse.base._sync cimport load
from lapse.base._types cimport key_t, operation_t


cdef struct replication_t:
    rank_t* state
    # The user's choice.
    int64_t max_pending     # key positions pushed here between two rounds; 0: no limit
    int64_t interval        # nanoseconds between two rounds; 0: the time starts none
    double threshold
    double clip
    bint average
    uint32_t in_setup       # deltas go unscaled, whatever their size
    # Rounds of this rank.
    uint8_t latch           # one thread at a time sends deltas and sums
    int64_t pending         # key positions pushed here since the last round began
    int64_t awaited         # contributions that have not come back in a sum, plus 1 while a round begins
    int64_t full_rounds     # rounds begun that leave no delta behind
    bint is_full_wanted     # the next round is to leave none behind: somebody waits for a synchronization
    int64_t next_round      # when the time starts the next one
    # Rounds of all ranks, as heard of here.
    int64_t* ends           # by rank: how many it has ended
    int64_t most_ends       # the largest of them
    int64_t complete        # the smallest, when sums were sent last
    int32_t heard           # how many ranks have ended more than that
    int64_t waiting_since   # since when contributions wait here, or other ranks for this one; 0: neither
    uint32_t waiting        # workers that wait because this rank runs ahead
    pending_acks_list_t unacknowledged
    # The norms of this rank's deltas, for clipping.
    int64_t norms
    double norm_total
    # Counters.
    int64_t rounds
    int64_t keys_sent


cdef inline bint runs_ahead(replication_t* self) noexcept nogil:
    """Whether this rank has pushed so much since its last round that its workers have to wait."""
    return self.max_pending and load(&self.pending) > 2 * self.max_pending


cdef inline bint is_behind(const replication_t* self) noexcept nogil:
    """Whether some rank has ended more rounds than this one: homes wait for this one's contributions."""
    return self.most_ends > self.ends[self.state.rank]


cdef inline bint has_work(const replication_t* self) noexcept nogil:
    """Whether `tick` may find something to do."""
    return self.state.store.replicas.changed.count or self.state.store.replicas.collected.count or is_behind(self)


cdef int prepare_replication(replication_t* self, rank_t* state) noexcept
cdef int note_pushes(replication_t* self, int64_t count) noexcept nogil
cdef int begin_round_if_due(replication_t* self) noexcept nogil
cdef int mark(replication_t* self, operation_t* operation, int64_t full_rounds_before, bint* covered) noexcept nogil
cdef int ask_replica(replication_t* self, operation_t* operation, key_t key, uint32_t position,
                     const char* given, int64_t* done) noexcept nogil
cdef int set_replicas(replication_t* self, int32_t source, frame_t* frame, char* at, uint32_t count) noexcept nogil
cdef int tick(replication_t* self, int64_t time) noexcept nogil
cdef int handle_replication(replication_t* self, int32_t source, frame_t* frame) noexcept nogil
cdef void free_replication(replication_t* self) noexcept
