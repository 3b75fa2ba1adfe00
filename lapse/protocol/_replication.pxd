"""Floor 2. How replicas on different ranks come to agree: what a rank does in a round and on each message.

No MPI, no threads of its own; the time is told by whoever drives (`tick`). The rules, and why all
replicas end equal to the last bit, are in `docs/replication.md`.

Who enters: worker threads `replace`, `mark`, and rounds after a push; whoever drives the
communication calls `handle_replication` and `tick`. Lock order: engine, then the latch of rounds,
then one key's latch, then that of a list or of an outbox.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.messaging._flow cimport flow_t
from lapse.messaging._messages cimport frame_t
from lapse.messaging._outbox cimport outbox_t
from lapse._store cimport entry_t, store_t
from lapse.base._sync cimport load
from lapse.base._types cimport key_t, operation_t, worker_slot_t


cdef struct pending_acks_t:
    # What a home has sent to all ranks, for one asker, and which of them have applied it.
    pending_acks_t* next
    pending_acks_t* previous
    int64_t remaining       # acknowledgements that are missing, plus 1 while it is being sent
    uint64_t operation      # the asker's
    uint64_t amount         # bytes that its operation is credited_to with
    uint32_t count          # key positions
    uint16_t origin
    uint16_t credited_to


cdef struct replication_t:
    store_t* store
    outbox_t* outboxes
    flow_t* flow
    char* error             # room for 256 characters
    int32_t rank
    int32_t size
    # The user's choice.
    int64_t max_pending     # key positions pushed here between two rounds; 0: no limit
    int64_t interval        # nanoseconds between two rounds; 0: the time starts none
    double threshold
    double clip
    bint average
    uint32_t in_setup       # deltas go unscaled, whatever their size
    # Rounds of this rank.
    uint8_t latch           # one thread at a time sends deltas and sums
    uint8_t list_latch      # of the pending_acks_list
    int64_t pending         # key positions pushed here since the last round began
    int64_t awaited         # contributions that have not come back in a sum, plus 1 while a round begins
    int64_t full_rounds     # rounds begun that leave no delta behind
    bint is_full_wanted     # the next round is to leave none behind: somebody waits for a synchronisation
    int64_t next_round      # when the time starts the next one
    # Rounds of all ranks, as heard of here.
    int64_t* ends           # by rank: how many it has ended
    int64_t most_ends       # the largest of them
    int64_t complete        # the smallest, when sums were sent last
    int32_t heard           # how many ranks have ended more than that
    int64_t waiting_since   # when it was first seen that contributions wait here, or others for this rank; 0: they do not
    uint32_t waiting        # workers that wait because this rank runs ahead
    worker_slot_t* worker_slots           # of this rank's workers
    int32_t num_worker_slots
    pending_acks_t* pending_acks_list
    # The norms of this rank's deltas, for clipping.
    int64_t norms
    double norm_total
    # Counters.
    int64_t rounds
    int64_t keys_sent


cdef inline bint runs_ahead(replication_t* r) noexcept nogil:
    """Whether this rank has pushed so much since its last round that its workers have to wait."""
    return r.max_pending and load(&r.pending) > 2 * r.max_pending


cdef inline bint is_behind(const replication_t* r) noexcept nogil:
    """Whether some rank has ended more rounds than this one: homes wait for this one's contributions."""
    return r.most_ends > r.ends[r.rank]


cdef inline bint has_work(const replication_t* r) noexcept nogil:
    """Whether `tick` may find something to do."""
    return r.store.replicas.changed.count or r.store.replicas.collected.count or is_behind(r)


cdef int protocol_error(replication_t* r, int32_t source, const char* what, key_t key) noexcept nogil
cdef int prepare_replication(replication_t* r) noexcept
cdef int note_pushes(replication_t* r, int64_t count) noexcept nogil
cdef int begin_round_if_due(replication_t* r) noexcept nogil
cdef int mark(replication_t* r, operation_t* operation, int64_t full_rounds_before, bint* covered) noexcept nogil
cdef pending_acks_t* open_pending_acks(replication_t* r, uint16_t origin, uint16_t credited_to, uint64_t operation) noexcept nogil
cdef int replace(replication_t* r, pending_acks_t* pending_acks, entry_t* entry, const char* value, int64_t amount) noexcept nogil
cdef int close_pending_acks(replication_t* r, pending_acks_t* pending_acks) noexcept nogil
cdef int tick(replication_t* r, int64_t time) noexcept nogil
cdef int handle_replication(replication_t* r, int32_t source, frame_t* frame) noexcept nogil
cdef void free_replication(replication_t* r) noexcept
