"""Floor 2. The protocols of keys: what a rank does on each local request and on each message."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.messaging._messages cimport frame_t, is_of_replication, record_t
from lapse.protocol._rank cimport free_rank, prepare_rank
from lapse.protocol._relocation cimport change_keys, free_relocation, handle_relocation, prepare_relocation
from lapse.protocol._replication cimport free_replication, handle_replication, prepare_replication, set_replicas
from lapse._store cimport store_t, value_bytes
from lapse.base._sync cimport store32
from lapse.base._types cimport OK, SET


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
    return store.entries[(<const record_t*>record).key].state == REPLICATED


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
        return <dict>self.c.relocation.counters

    def manage_replicas(self, *, double interval=0.0, int64_t max_pending=0, double threshold=0.0, bint average=False,
                        double clip=0.0):
        """Choose how replicas are synchronized; see `lapse.Replication`. `interval` is in seconds, 0 means never."""
        cdef replication_t* replication = &self.c.replication
        replication.interval = <int64_t>min(max(interval * 1e9, 1.0), 2.0**62) if interval else 0
        replication.max_pending = max_pending
        replication.threshold = threshold
        replication.average = average
        replication.clip = clip

    @property
    def replica_counters(self):
        """Rounds in which this rank sent changes of replicas, and how many values it sent about them."""
        return self.c.replication.rounds, self.c.replication.keys_sent

    def enter_setup(self, bint inside):
        """Whether deltas go unscaled and whatever their size."""
        store32(&self.c.replication.in_setup, inside)

    @property
    def at_rest(self):
        """Whether nothing is arriving, nothing is to be sent and no byte is in flight."""
        cdef rank_t* state = &self.c.rank
        return (state.outboxes_waiting == 0 and state.flow.over_limit == 0
                and all(state.flow.in_flight[i] == 0 for i in range(state.size))
                and self.c.relocation.arrivals.open == 0
                and self.c.replication.awaited == 0 and self.c.replication.unacknowledged.first == NULL)
