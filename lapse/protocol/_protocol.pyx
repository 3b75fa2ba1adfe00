"""Floor 2. The protocols of keys: what a rank does on each local request and on each message."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse.messaging._messages cimport frame_t, is_of_replication, record_t
from lapse.protocol._rank cimport free_rank, prepare_rank
from lapse.protocol._relocation cimport (change_keys, free_relocation, handle_relocation, prepare_relocation,
                                         relocation_counters_t)
from lapse.protocol._replication cimport free_replication, handle_replication, prepare_replication, set_replicas
from lapse.protocol._combining cimport ADAGRAD_RULE, ADAPTIVE_RULE, SUM_RULE, prepare_combining
from lapse.protocol._rounds cimport common_t, rounds_t
from lapse.storage._replicas cimport add_home_vectors, set_levels
from lapse._store cimport is_replicated, store_t, value_bytes
from lapse.base._counting cimport copy_counters
from lapse.base._sync cimport load, peek, store as atomic_store, store32
from lapse.base._types cimport OK, SET


RULES = {"sum": SUM_RULE, "adaptive": ADAPTIVE_RULE, "adagrad": ADAGRAD_RULE}


cdef int handle_frame(protocol_t* protocol, int32_t source, frame_t* frame) noexcept nogil:
    """Do what one message of the key protocols asks for.

    FAILED (the reason is in `rank.error`) and NO_MEMORY end the server.
    """
    if is_of_replication(frame.kind):
        return handle_replication(&protocol.replication, source, frame)
    if frame.kind == SET and protocol.rank.store.replicas.count:
        return on_set(protocol, source, frame)
    return handle_relocation(&protocol.relocation, source, frame)


cdef int on_set(protocol_t* protocol, int32_t source, frame_t* frame) noexcept nogil:
    """A set may name replicated keys and others: those of one sort that follow each other are handled together."""
    cdef char* at = <char*>(frame + 1)
    cdef char* end
    cdef uint32_t left = frame.count, count
    cdef bint are_replicated
    cdef int status = OK
    while left and status == OK:
        end = at
        are_replicated = names_replica(protocol.rank.store, at)
        count = 0
        while count < left and names_replica(protocol.rank.store, end) == are_replicated:
            end += sizeof(record_t) + value_bytes(protocol.rank.store, (<record_t*>end).key)
            count += 1
        if are_replicated:
            status = set_replicas(&protocol.replication, source, frame, at, count)
        else:
            status = change_keys(&protocol.relocation, source, frame, at, count)
        at = end
        left -= count
    return status


cdef inline bint names_replica(const store_t* store, const char* record) noexcept nogil:
    return is_replicated(&store.entries[(<const record_t*>record).key])


@cython.no_gc_clear  # the store must outlive what refers to its entries
cdef class Protocol:
    """The protocols of one rank, over its store, its outboxes and its worker slots.

    Parameters
    ----------
    store : Store
    workers : int
        Worker threads of this rank. One more worker slot is the server's own.
    max_in_flight : int
        Bytes of this rank's own unanswered operations per destination, above which new ones wait.

    Raises
    ------
    MemoryError
        If there is no memory for the queues.
    """

    def __cinit__(self, Store store, int workers=0, int64_t max_in_flight=64 << 20):
        self.store = store
        prepare_rank(&self.c.rank, store, workers, max_in_flight)
        if prepare_relocation(&self.c.relocation, &self.c.rank) != OK:
            raise MemoryError(f"no memory for the relocation of {store.c.num_keys} keys")
        if prepare_replication(&self.c.replication, &self.c.rank) != OK:
            raise MemoryError(f"no memory for the replication over {store.c.size} ranks")

    def __dealloc__(self):
        free_relocation(&self.c.relocation)
        free_replication(&self.c.replication)
        free_rank(&self.c.rank)

    @property
    def relocations(self):
        """The counters of relocation, by name."""
        cdef relocation_counters_t copy
        copy_counters(<int64_t*>&copy, <const int64_t*>&self.c.relocation.counters, sizeof(relocation_counters_t))
        counters = <dict>copy
        counters["given_away"] += load(&self.c.relocation.given_away_by_workers)
        return counters

    def manage_replicas(self, *, double interval=0.0, int64_t max_pending=0, double threshold=0.0, bint average=False,
                        double clip=0.0, str combine="sum", double constant=0.0, str wire="exact", levels=None):
        """Choose how replicas are synchronized, before anything is pushed; see `lapse.Replication`.

        Parameters
        ----------
        interval
            In seconds; 0: time begins no rounds.
        constant
            Of the adaptive rule.
        levels : uint8 array, optional
            Of each replicated key, in ascending order of the keys: it takes part in every 2**level-th round.

        Raises
        ------
        MemoryError
            If there is no memory for what the rule or the wire needs.
        """
        cdef rounds_t* rounds = &self.c.replication.rounds
        cdef const uint8_t[::1] level_view
        self.pace_rounds(interval, max_pending, max_pending + max_pending // 2)
        rounds.threshold = threshold
        rounds.average = average
        rounds.clip = clip
        if self.store.c.replicas.count == 0 or not rounds.is_leader:
            return
        rounds.is_short = wire == "bfloat16"
        rounds.has_weights = combine == "adaptive"
        if levels is not None:
            level_view = levels
            set_levels(&self.store.c.replicas, &level_view[0])
        if (prepare_combining(&rounds.combining, &self.store.c, RULES[combine], constant) != OK
                or add_home_vectors(&self.store.c.replicas, rounds.is_short, combine == "adagrad") != OK):
            raise MemoryError(f"no memory to combine changes of {self.store.c.replicas.count} replicated keys")

    def pace_rounds(self, double interval, int64_t max_pending, int64_t max_late):
        """Choose when this rank and those that share its memory begin rounds, at any time; the others join them.

        See `manage_replicas`.
        """
        cdef common_t* common = self.c.replication.rounds.common
        atomic_store(&common.interval, <int64_t>min(max(interval * 1e9, 1.0), 2.0**62) if interval else 0)
        atomic_store(&common.max_late, max_late)
        atomic_store(&common.max_pending, max_pending)

    @property
    def replica_counters(self):
        """Rounds in which this rank sent changes of replicas, and how many values it sent about them; of a leader."""
        return peek(&self.c.replication.rounds.rounds), peek(&self.c.replication.rounds.keys_sent)

    def enter_setup(self, bint inside):
        """Whether deltas go unscaled and whatever their size."""
        store32(&self.c.replication.rounds.common.in_setup, inside)

    @property
    def at_rest(self):
        """Whether nothing is arriving, nothing is to be sent and no byte is in flight."""
        cdef rank_t* state = &self.c.rank
        return (state.outboxes_waiting == 0 and state.flow.over_limit == 0
                and all(state.flow.in_flight[i] == 0 for i in range(state.size))
                and self.c.relocation.arrivals.open == 0 and self.c.replication.rounds.common.unreturned == 0
                and self.c.replication.unacknowledged.open == 0)
