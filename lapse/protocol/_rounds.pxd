"""Floor 2. The rounds in which replicas come to agree: contributions to homes, what they come to back to all ranks.

No MPI, no threads of its own; the thread that drives the communication passes the time (`tick`). The rules, and why all
replicas end equal to the last bit, are in `docs/replication.md`.

Ranks that share memory have their replicas together, and take part as one: the first of them, their *leader*, begins
rounds and sends and receives everything. Homes are leaders, too. What follows is about leaders.

Rounds are numbered, the same on all ranks. A rank *begins* round n by sending its contributions, and ROUND_END to all;
a home that has heard the end of round n from every rank sends the sums, and SUMS_END to all; the round is *complete* on
a rank when it has heard that from every home. Only then does the rank begin the next one. So a home never has
contributions to two rounds, and a sum contains everything that its receiver has contributed.

    rank:   idle --begin_round--> under way (`unreturned` homes) --last SUMS_END--> idle
    home:   collecting (`ended` ranks) --last ROUND_END--> sends sums and SUMS_END --> collecting the next round

Worker threads begin rounds after a push; the thread that drives the communication begins those that are due by time,
and joins those of others.

A worker of a *member*, a rank that is not its leader, sees in shared memory when a round is due, and sends ROUND_NEWS
to the leader, which looks and begins it. The leader sends the same message to members whose workers wait for rounds.

Lock order: engine, then the latch of rounds, then one key's latch, then that of a list or of an outbox.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse._store cimport store_t
from lapse.base._sync cimport load, peek, peek32
from lapse.protocol._combining cimport combining_t
from lapse.protocol._rank cimport rank_t
from lapse.storage._replicas cimport replica_t


cdef enum:
    MAX_MEMBERS = 254       # a latch says in one byte who holds it


cdef struct common_t:
    # What ranks that share memory know of rounds together; beside their replicas.
    # The user's choice, which each of them may change.
    int64_t max_pending     # key positions that they push between two rounds; 0: no limit
    int64_t max_late        # the same while a round is under way
    int64_t interval        # nanoseconds between two rounds; 0: the time starts none
    uint32_t in_setup       # deltas go unscaled, whatever their size
    # Their rounds.
    uint8_t latch           # one thread at a time begins a round or sends sums
    int64_t pending         # key positions that they pushed since the last round began
    int64_t begun           # the number of the last round
    int64_t unreturned      # homes whose sums of that round are not all here, plus 1 while it begins
    int64_t wanted          # rounds up to this one are wanted by somebody who waits
    int64_t full            # rounds up to this one leave no delta behind, whatever its size and level
    # Rounds of all ranks, as this home has heard.
    int64_t summed          # the number of the last round whose sums it has sent: all ranks have ended it
    int64_t ended           # ranks that have ended the round behind that
    # Between members and leader.
    uint32_t is_told        # a ROUND_NEWS to the leader is under way: it will look
    uint32_t waiting[MAX_MEMBERS]   # workers that wait for rounds, by place among these ranks


cdef struct rounds_t:
    rank_t* state
    common_t* common        # beside the replicas, or `alone`
    common_t alone
    combining_t combining
    int32_t leader          # of the ranks that share memory with this one
    bint is_leader
    int32_t place           # among the ranks that share memory
    uint32_t has_news       # of a member: a ROUND_NEWS was queued, and should be sent soon
    int32_t* peers          # of a leader: the other leaders
    int32_t num_peers
    int32_t* members        # of a leader: all ranks that share memory with it, by place, itself first
    int32_t num_members
    # The user's choice.
    double threshold
    double clip
    bint average
    bint has_weights        # contributions and sums carry a weight
    bint is_short           # values travel as bfloat16
    # Of the leader's clock.
    int64_t next_round      # when the time starts the next one
    int64_t known           # the last round that `tick` has seen
    # The norms of this rank's deltas, for clipping.
    int64_t norms
    double norm_total
    # Counters.
    int64_t rounds          # in which this rank has sent changes
    int64_t keys_sent
    int64_t contributed     # keys of the round that begins
    char* wire              # a value as it travels; used under the latch of rounds
    char* widened           # a value as it came; used by the thread that handles messages
    char* seen              # a value as a contribution found it, and its delta; used as `wire`
    char* delta


cdef inline replica_t* replica_at(const store_t* store, uint32_t number) noexcept nogil:
    return &store.replicas.all[number]


cdef inline bint runs_ahead(rounds_t* self) noexcept nogil:
    """Whether so much was pushed here since the last round that workers have to wait."""
    cdef common_t* common = self.common
    cdef int64_t pending = load(&common.pending)
    cdef int64_t most = peek(&common.max_pending)
    if most == 0:
        return False
    return pending > most + most // 2 or (pending > peek(&common.max_late) and load(&common.unreturned))


cdef inline bint is_behind(common_t* common) noexcept nogil:
    """Whether some rank has ended a round that this one has not begun."""
    return load(&common.ended) and load(&common.begun) == load(&common.summed)


cdef inline bint has_work(rounds_t* self) noexcept nogil:
    """Whether `tick` may find something to do."""
    cdef common_t* common = self.common
    if not self.is_leader or self.state.store.replicas.count == 0:
        return False
    return (peek(&common.interval) and peek32(&self.state.store.replicas.lists.num_changed)) or (
        load(&common.unreturned) == 0 and (is_behind(common) or load(&common.wanted) > load(&common.begun)))


cdef inline bint is_round_near(rounds_t* self) noexcept nogil:
    """Whether a round is under way, or soon will be: messages of other ranks are expected."""
    cdef common_t* common = self.common
    cdef int64_t most = peek(&common.max_pending)
    return self.is_leader and (load(&common.unreturned) or load(&common.ended) or (
        most and load(&common.pending) > most // 2))


cdef inline uint32_t* waiting_here(rounds_t* self) noexcept nogil:
    """How many workers of this rank wait for rounds."""
    return &self.common.waiting[self.place]


cdef int prepare_rounds(rounds_t* self, rank_t* state) noexcept
cdef int note_pushes(rounds_t* self, int64_t count) noexcept nogil
cdef int begin_round_if_due(rounds_t* self) noexcept nogil
cdef int request_sync(rounds_t* self, int64_t* last_round) noexcept nogil
cdef int tick(rounds_t* self, int64_t time) noexcept nogil
cdef int on_round_end(rounds_t* self, bint is_full) noexcept nogil
cdef int on_sums_end(rounds_t* self) noexcept nogil
cdef int on_round_news(rounds_t* self) noexcept nogil
cdef size_t delta_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil
cdef size_t sum_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil
cdef void take_contribution(rounds_t* self, uint32_t number, const char* wire) noexcept nogil
cdef void take_gradient(rounds_t* self, uint32_t number, const char* wire) noexcept nogil
cdef void take_sum(rounds_t* self, uint32_t number, const char* wire) noexcept nogil
cdef void free_rounds(rounds_t* self) noexcept
