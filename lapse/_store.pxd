"""Floor 1. The values stored on this rank, and what this rank knows about every key.

A directory entry of 8 bytes for each key of the key space; the values in one flat slab per value length, addressed by
slot. No pointer and no allocation per key. Operations on one key are inline here; loops over a batch are functions of
`_store.pyx`.

Everything lies in one segment, which ranks of one host may share. A key that another rank of the host *owns* is then
pulled, pushed and set in place, under that rank's latch: this is equivalent to a message that the owner serves at once.
Replicated keys are pulled and pushed so at the leader of these ranks. All other states of a key concern only the rank
itself.

Entered by worker threads and by the thread that drives the communication; nothing here needs the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.storage._replicas cimport replicas_t
from lapse.storage._segment cimport Segment
from lapse.storage._slabs cimport slab_t
from lapse.base._sync cimport drop_latch, peek8, put8, put32, take_latch_as, watch_t
from lapse.base._types cimport GRADIENT, key_t, status_t, terms_t

cdef enum key_state:
    # Odd values: the value can be read here.
    ABSENT = 0      # the value is elsewhere; `route` names the rank to ask, `slot` is for relocation to use
    OWNED = 1       # the value is here; without a slot it was never written and reads as zeros
    ARRIVING = 2    # a localize is under way; `slot` is the number of its arrival record
    # Every rank has a copy, permanently, or ranks that share memory have one together, for which the entry of their
    # leader counts; `slot` is the number of the replica, `route` its home.
    REPLICATED = 3
    UNUSED = 5      # owned since this rank asked for the key, but no worker has used it; and states below LENT_ALONE
    # The value is here, but a worker of this rank changes it in place: nobody else does, and it stays until it is
    # returned. If somebody waits for that, the key is arriving, and its record says that it is lent.
    LENT_ALONE = 23  # to one worker
    LENT = 25       # to a worker that others may join; with each of them the state grows by LENT_STEP
    LENT_TO_MOST = 255


cdef enum:
    LENT_STEP = 2


cdef struct entry_t:
    uint32_t slot
    uint8_t latch   # guards the entry and the value in its slot
    uint8_t state
    uint16_t route  # at the key's home: the last rank in the chain of requesters; elsewhere: the home


cdef struct store_t:
    entry_t* entries
    uint32_t* slab_of   # by key; NULL if all values have one length
    slab_t* slabs
    int64_t num_keys
    int32_t num_slabs
    int32_t itemsize    # 4: float32, 8: float64
    uint64_t mix_mask   # see home_of
    int32_t mix_shift
    int32_t rank
    int32_t size
    replicas_t replicas     # of the leader, which alone exchanges messages about them: see `lapse.protocol`
    int32_t* leaders        # by rank: the first of the ranks that share memory with it
    int32_t num_leaders
    uint8_t leader_holder   # of this rank's leader; 0 without shared memory
    uint8_t holder      # this process's number in latches: its local rank + 1
    watch_t* watch      # called during long waits for a latch; NULL if no other process takes latches
    # By key, the holder number of the rank of this host that owned it last; 0: unknown; of replicated keys always that
    # of the leader. Shared, or NULL without shared memory. Written under the key's latch, read without one, hence only
    # a guess.
    uint8_t* hints
    store_t** views     # by hint: that rank's store as mapped here; 0 and this rank's own number lead to this store
    bint reaches_all    # every key is here or in the memory of a rank of this host, for good: nothing ever moves
    bint takes_gradients    # every slab has an optimizer


cdef struct tally_t:
    # How the keys of a batch were served, apart from those that were missed.
    int64_t shared      # in the memory of another rank of this host
    int64_t replicated  # pushes to replicas


cdef inline int32_t home_of(const store_t* store, key_t key) noexcept nogil:
    # A bijective mix of the key, then modulo ranks: neighbouring keys, and keys with a common stride, are spread
    # evenly over all homes. Multiplication by an odd number and xor with a right shift are bijective on numbers of b
    # bits; repeating the mix until the result is a key keeps it bijective for any number of keys (cycle walking: Black
    # and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    cdef uint64_t x = <uint64_t>key
    while True:
        x = (x * <uint64_t>0x9E3779B97F4A7C15) & store.mix_mask
        x ^= x >> store.mix_shift
        x = (x * <uint64_t>0xBF58476D1CE4E5B9) & store.mix_mask
        x ^= x >> store.mix_shift
        x = (x * <uint64_t>0x94D049BB133111EB) & store.mix_mask
        if x < <uint64_t>store.num_keys:
            return <int32_t>(x % <uint64_t>store.size)


cdef inline bint is_leader(const store_t* store) noexcept nogil:
    return store.leaders[store.rank] == store.rank


cdef inline bint is_here(const entry_t* entry) noexcept nogil:
    # Without the key's latch the answer may be out of date when it is used.
    return peek8(&entry.state) & 1


cdef inline bint is_lent(const entry_t* entry) noexcept nogil:
    return entry.state >= LENT_ALONE


cdef inline int lent_to(const entry_t* entry) noexcept nogil:
    # The number of workers, for a key that is lent.
    return 1 if entry.state == LENT_ALONE else (entry.state - LENT) // LENT_STEP + 1


cdef inline bint is_replicated(const entry_t* entry) noexcept nogil:
    # For good: no latch is needed to look.
    return peek8(&entry.state) == REPLICATED


cdef inline bint is_unused(const entry_t* entry) noexcept nogil:
    return UNUSED <= entry.state < LENT_ALONE


cdef inline bint is_owned(const entry_t* entry) noexcept nogil:
    return entry.state == OWNED or is_unused(entry)


# Under the key's latch. Others look at state and slot without one, hence these are never written as plain words.

cdef inline void set_state(entry_t* entry, uint8_t state) noexcept nogil:
    put8(&entry.state, state)


cdef inline void set_slot(entry_t* entry, uint32_t slot) noexcept nogil:
    put32(&entry.slot, slot)


cdef inline void note_use(entry_t* entry) noexcept nogil:
    # Under the key's latch, before a worker of this host uses a key.
    if is_unused(entry):
        set_state(entry, OWNED)


cdef inline slab_t* slab_for(const store_t* store, key_t key) noexcept nogil:
    return &store.slabs[0 if store.slab_of == NULL else store.slab_of[key]]


cdef inline size_t value_bytes(const store_t* store, key_t key) noexcept nogil:
    return slab_for(store, key).row_bytes


cdef inline size_t change_bytes(const store_t* store, int kind, key_t key) noexcept nogil:
    """What a message or a parked operation carries to change a value: of a gradient its terms in front of it."""
    return slab_for(store, key).row_bytes + (sizeof(terms_t) if kind == GRADIENT else 0)


cdef inline store_t* view_of(store_t* store, key_t key) noexcept nogil:
    # The store in which the key was last owned, among the ranks that share memory with this one.
    return store if store.hints == NULL else store.views[peek8(&store.hints[key])]


cdef inline bint is_reachable(const store_t* store, key_t key) noexcept nogil:
    # As `is_here`, for this rank and the ranks that share memory with it. A hint is cleared before its key leaves, and
    # keys share its cache line with many others and with no latch, which every access writes.
    return (store.hints != NULL and peek8(&store.hints[key]) != 0) or is_here(&store.entries[key])


cdef inline void note_owner(store_t* store, key_t key, bint mine) noexcept nogil:
    # Under the key's latch, and before the value is sent on, so that the next owner on this host writes later.
    if store.hints != NULL:
        put8(&store.hints[key], store.holder if mine else 0)


cdef inline void lock_entry(const store_t* store, entry_t* entry) noexcept nogil:
    take_latch_as(&entry.latch, store.holder, <watch_t*>store.watch)


cdef inline void unlock_entry(entry_t* entry) noexcept nogil:
    drop_latch(&entry.latch)


# One key. The caller holds its latch if a slot is passed, or taken from the entry. -------------------

cdef void read_value(const store_t* store, key_t key, uint32_t slot, char* out) noexcept nogil
cdef bint read_reachable(store_t* store, key_t key, char* out) noexcept nogil
cdef void change_value(store_t* store, key_t key, uint32_t* slot, int kind, const char* given,
                       terms_t terms) noexcept nogil
cdef bint access_host_peer(store_t* store, int kind, key_t key, char* value, terms_t terms) noexcept nogil

# Batches ------------------------------------------------------------------------------------------------

cdef int64_t access_batch(store_t* store, int kind, const key_t* keys, int64_t count, const int64_t* offsets,
                          char* values, const float* weights, terms_t terms, uint32_t* missed,
                          tally_t* tally) noexcept nogil
cdef int64_t find_unreachable(store_t* store, const key_t* keys, int64_t count, uint32_t* missed) noexcept nogil


cdef class Store:
    cdef store_t c
    cdef readonly Segment segment
    cdef Segment replicas           # the memory of replicas, shared with the leader; set when keys are replicated
    cdef object shared              # keeps the mapped segments of other ranks, and of the hints, alive
    cdef readonly int64_t length    # elements per value; -1 if it varies
    cdef readonly object dtype
