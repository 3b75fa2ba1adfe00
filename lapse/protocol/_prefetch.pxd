"""Floor 2. What the records of a frame name, fetched ahead of the record at hand. All inline."""

from libc.stdint cimport uint32_t

from lapse.messaging._messages cimport record_t
from lapse.protocol._rank cimport rank_t
from lapse._store cimport entry_t, is_here, is_replicated, slab_for
from lapse.storage._slabs cimport NO_SLOT, row_at, slab_t
from lapse.base._sync cimport peek32
from lapse.base._values cimport prefetch, prefetch_bytes
from lapse.storage._replicas cimport prefetch_replica, prefetch_vectors, replica_t

cdef enum:
    # Records ahead of the one at hand whose value, and twice as many whose entry, are prefetched:
    VALUES_AHEAD = 8
    ENTRIES_AHEAD = 16
    REPLICAS_AHEAD = 12         # what is known about a replica, its vectors' address among it


cdef inline const entry_t* entry_named(rank_t* state, const char* record) noexcept nogil:
    return &state.store.entries[(<const record_t*>record).key]


cdef inline void prefetch_value(rank_t* state, const char* record) noexcept nogil:
    # Reads the entry without its latch: an old one costs a useless prefetch, nothing more.
    cdef const entry_t* entry = entry_named(state, record)
    cdef slab_t* slab = slab_for(state.store, (<const record_t*>record).key)
    cdef uint32_t slot = peek32(&entry.slot)
    if is_here(entry) and slot != NO_SLOT:
        prefetch_bytes(row_at(slab, slot), slab.held_bytes)


cdef inline void look_ahead(rank_t* state, const char* record, size_t stride, uint32_t left) noexcept nogil:
    if left > ENTRIES_AHEAD:
        prefetch(entry_named(state, record + ENTRIES_AHEAD * stride))
    if left > VALUES_AHEAD:
        prefetch_value(state, record + VALUES_AHEAD * stride)


cdef inline void look_at_first(rank_t* state, const char* record, size_t stride, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(min(count, <uint32_t>ENTRIES_AHEAD)):
        prefetch(entry_named(state, record + i * stride))
    for i in range(min(count, <uint32_t>VALUES_AHEAD)):
        prefetch_value(state, record + i * stride)


cdef inline void look_ahead_at_replicas(rank_t* state, const char* record, size_t stride, uint32_t left) noexcept nogil:
    """The same for records about replicas."""
    cdef const entry_t* entry
    cdef const replica_t* replica
    if left > ENTRIES_AHEAD:
        prefetch(entry_named(state, record + ENTRIES_AHEAD * stride))
    if left > REPLICAS_AHEAD:
        entry = entry_named(state, record + REPLICAS_AHEAD * stride)
        if is_replicated(entry):
            prefetch_replica(&state.store.replicas.all[entry.slot])
    if left > VALUES_AHEAD:
        entry = entry_named(state, record + VALUES_AHEAD * stride)
        if is_replicated(entry):
            replica = &state.store.replicas.all[entry.slot]
            prefetch_vectors(replica)
            if replica.sum != NULL:
                prefetch(replica.sum)
                if replica.growth != NULL:
                    prefetch(replica.growth)
