"""Floor 2. The rounds in which replicas come to agree: contributions to homes, what they come to back to all ranks.

No MPI, no threads of its own; the thread that drives the communication passes the time (`tick`). The rules, and why all
replicas end equal to the last bit, are in `docs/replication.md`.

Rounds are numbered, the same on all ranks. A rank *begins* round n by sending its contributions, and ROUND_END to all;
a home that has heard the end of round n from every rank sends the sums, and SUMS_END to all; the round is *complete* on
a rank when it has heard that from every home. Only then does the rank begin the next one. So a home never has
contributions to two rounds, and a sum contains everything that its receiver has contributed.

    rank:   idle --begin_round--> under way (`unreturned` homes) --last SUMS_END--> idle
    home:   collecting (`ended` ranks) --last ROUND_END--> sends sums and SUMS_END --> collecting the next round

Worker threads begin rounds after a push; the thread that drives the communication begins those that are due by time,
and joins those of others. Lock order: engine, then the latch of rounds, then one key's latch, then that of a list or of
an outbox.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse._store cimport store_t
from lapse.base._sync cimport load
from lapse.protocol._combining cimport combining_t
from lapse.protocol._rank cimport rank_t
from lapse.storage._replicas cimport replica_t


cdef struct rounds_t:
    rank_t* state
    combining_t combining
    # The user's choice.
    int64_t max_pending     # key positions pushed here between two rounds; 0: no limit
    int64_t max_late        # the same while a round is under way
    int64_t interval        # nanoseconds between two rounds; 0: the time starts none
    double threshold
    double clip
    bint average
    bint has_weights        # contributions carry a weight
    bint is_short           # values travel as bfloat16
    uint32_t in_setup       # deltas go unscaled, whatever their size
    # Rounds of this rank.
    uint8_t latch           # one thread at a time begins a round or sends sums
    int64_t pending         # key positions pushed here since the last round began
    int64_t begun           # the number of the last round
    int64_t unreturned      # homes whose sums of that round are not all here, plus 1 while it begins
    int64_t wanted          # rounds up to this one are wanted by somebody who waits
    int64_t full            # rounds up to this one leave no delta behind, whatever its size and level
    int64_t next_round      # when the time starts the next one
    int64_t known           # the last round that `tick` has seen
    uint32_t waiting        # workers that wait for rounds
    # Rounds of all ranks, as this home has heard.
    int64_t summed          # the number of the last round whose sums it has sent: all ranks have ended it
    int64_t ended           # ranks that have ended the round behind that
    # The norms of this rank's deltas, for clipping.
    int64_t norms
    double norm_total
    # Counters.
    int64_t rounds          # in which this rank has sent changes
    int64_t keys_sent
    int64_t contributed     # keys of the round that begins
    char* wire              # a value as it travels; used under the latch of rounds
    char* widened           # a value as it came; used by the thread that handles messages


cdef inline replica_t* replica_at(const store_t* store, uint32_t number) noexcept nogil:
    return &store.replicas.all[number]


cdef inline bint runs_ahead(rounds_t* self) noexcept nogil:
    """Whether this rank has pushed so much since its last round that its workers have to wait."""
    cdef int64_t pending = load(&self.pending)
    if self.max_pending == 0:
        return False
    return pending > self.max_pending + self.max_pending // 2 or (pending > self.max_late and load(&self.unreturned))


cdef inline bint is_behind(rounds_t* self) noexcept nogil:
    """Whether some rank has ended a round that this one has not begun."""
    return load(&self.ended) and load(&self.begun) == load(&self.summed)


cdef inline bint has_work(rounds_t* self) noexcept nogil:
    """Whether `tick` may find something to do."""
    return (self.interval and self.state.store.replicas.num_changed) or (
        load(&self.unreturned) == 0 and (is_behind(self) or load(&self.wanted) > load(&self.begun)))


cdef inline bint is_round_near(rounds_t* self) noexcept nogil:
    """Whether a round is under way, or soon will be: messages of other ranks are expected."""
    return load(&self.unreturned) or load(&self.ended) or (
        self.max_pending and load(&self.pending) > self.max_pending // 2)


cdef int prepare_rounds(rounds_t* self, rank_t* state) noexcept
cdef int note_pushes(rounds_t* self, int64_t count) noexcept nogil
cdef int begin_round_if_due(rounds_t* self) noexcept nogil
cdef int request_sync(rounds_t* self, int64_t* last_round) noexcept nogil
cdef int tick(rounds_t* self, int64_t time) noexcept nogil
cdef int on_round_end(rounds_t* self, bint is_full) noexcept nogil
cdef int on_sums_end(rounds_t* self) noexcept nogil
cdef size_t delta_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil
cdef size_t sum_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil
cdef void take_contribution(rounds_t* self, uint32_t number, const char* wire) noexcept nogil
cdef void take_sum(rounds_t* self, replica_t* replica, const char* wire) noexcept nogil
cdef void free_rounds(rounds_t* self) noexcept
