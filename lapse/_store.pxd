"""Floor 1. The values that lie on this rank, and for every key what this rank knows of it.

A directory entry of 8 bytes per key of the key space; the values in one flat slab per value
length, addressed by slot. No pointer and no allocation per key. What concerns one key is inline
here; the loops over a batch are functions of `_store.pyx`.

All this lies in one segment, which ranks of one host may share. A key that another rank of the host
*owns* is then pulled, pushed and set right there, under that rank's latch: the same as a message
that is served at once in that tenure. Every other state of a key concerns only the rank itself.

Entered by worker threads and by whoever drives the communication; nothing here needs the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.storage._replicas cimport replicas_t
from lapse.storage._segment cimport Segment
from lapse.base._sync cimport drop_latch, take_latch_as, watch_t
from lapse.base._types cimport key_t, status_t

cdef enum key_state:
    # Odd: the value can be read here.
    ABSENT = 0      # the value is elsewhere; `route` says whom to ask
    OWNED = 1       # the value is here; without a slot it was never written and reads as zeros
    ARRIVING = 2    # a localize is under way; `slot` is the number of its arrival record
    REPLICATED = 3  # every rank has the value, for good; `slot` is the number of its replica


cdef enum:
    NO_SLOT = 0xFFFFFFFF


cdef struct entry_t:
    uint32_t slot
    uint8_t latch   # guards the entry and the value in its slot
    uint8_t state
    uint16_t route  # at the key's home: the last rank in the chain of those who asked for it; elsewhere: the home


cdef struct pool_t:
    # The part of a slab that changes; whoever shares the slab shares it.
    uint32_t next_row   # rows from here on were never used
    uint32_t free_row   # the last one given back; each holds the number of the one before
    uint8_t latch       # taken for a moment, with or without a key's latch, never the other way round
    char padding[55]


cdef struct slab_t:
    # All values of one length that lie on a rank. The address range is reserved for every key
    # of this length (any rank may come to own them all); memory is taken when a row is first written.
    char* rows
    pool_t* pool
    size_t row_bytes
    size_t num_rows


cdef struct store_t:
    entry_t* entries
    uint32_t* slab_of   # by key; NULL where all values have one length
    slab_t* slabs
    int64_t num_keys
    int32_t num_slabs
    int32_t itemsize    # 4: float32, 8: float64
    uint64_t mix_mask   # see home_of
    int32_t mix_shift
    int32_t rank
    int32_t size
    replicas_t replicas
    uint8_t holder      # what this process writes into latches
    watch_t* watch      # for long waits for a latch; NULL where nobody else holds latches
    uint8_t* hints      # by key: the holder's number of the rank of this host that owned it last, 0: none known. Shared; NULL
                        # where nothing is. Written with the entry, without a latch, read as a guess
    store_t** views     # by hint: that rank's store as it is mapped here; 0 and one's own lead to this one


cdef struct tally_t:
    # What became of the keys of a batch, besides those that were missed.
    int64_t shared      # served at another rank of this host
    int64_t replicated  # pushes to replicas


cdef inline int32_t home_of(const store_t* store, key_t key) noexcept nogil:
    # A bijective mix of the key, then modulo ranks: neighbouring keys, and keys with a common
    # stride, spread evenly over all homes. Multiplying by an odd number and xor with a right shift
    # are bijective on numbers of b bits; walking on until the result is a key keeps that for any
    # number of keys (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    cdef uint64_t x = <uint64_t>key
    while True:
        x = (x * <uint64_t>0x9E3779B97F4A7C15) & store.mix_mask
        x ^= x >> store.mix_shift
        x = (x * <uint64_t>0xBF58476D1CE4E5B9) & store.mix_mask
        x ^= x >> store.mix_shift
        x = (x * <uint64_t>0x94D049BB133111EB) & store.mix_mask
        if x < <uint64_t>store.num_keys:
            return <int32_t>(x % <uint64_t>store.size)


cdef inline bint is_here(const entry_t* entry) noexcept nogil:
    # A look: without the key's latch the answer may be old when it is used.
    return entry.state & 1


cdef inline slab_t* slab_for(const store_t* store, key_t key) noexcept nogil:
    return &store.slabs[0 if store.slab_of == NULL else store.slab_of[key]]


cdef inline size_t value_bytes(const store_t* store, key_t key) noexcept nogil:
    return slab_for(store, key).row_bytes


cdef inline char* row_at(const slab_t* slab, uint32_t slot) noexcept nogil:
    return slab.rows + slot * slab.row_bytes


cdef inline store_t* view_of(store_t* store, key_t key) noexcept nogil:
    # Where the key was owned last among the ranks that share memory with this one.
    return store if store.hints == NULL else store.views[store.hints[key]]


cdef inline bint is_reachable(const store_t* store, key_t key) noexcept nogil:
    # As `is_here`, for this rank and those that share memory with it.
    return is_here(&store.entries[key]) or (
        store.hints != NULL and store.views[store.hints[key]].entries[key].state == OWNED)


cdef inline void note_owner(store_t* store, key_t key, bint mine) noexcept nogil:
    # Under the key's latch, before the value is sent on: the next owner of this host overwrites it later.
    if store.hints != NULL:
        store.hints[key] = store.holder if mine else 0


cdef inline void lock_entry(const store_t* store, entry_t* entry) noexcept nogil:
    take_latch_as(&entry.latch, store.holder, <watch_t*>store.watch)


cdef inline void unlock_entry(entry_t* entry) noexcept nogil:
    drop_latch(&entry.latch)


# One key; the caller holds its latch where a slot is concerned. ------------------------------------

cdef uint32_t take_row(const store_t* store, slab_t* slab, bint zeroed) noexcept nogil
cdef void give_row_back(const store_t* store, slab_t* slab, uint32_t slot) noexcept nogil
cdef void read_value(const store_t* store, key_t key, uint32_t slot, char* out) noexcept nogil
cdef bint read_reachable(store_t* store, key_t key, char* out) noexcept nogil
cdef void change_value(store_t* store, key_t key, uint32_t* slot, int kind, const char* given) noexcept nogil
cdef bint access_host_peer(store_t* store, int kind, key_t key, char* value) noexcept nogil

# Batches ------------------------------------------------------------------------------------------------

cdef int64_t access_batch(store_t* store, int kind, const key_t* keys, int64_t count, const int64_t* offsets,
                          char* values, uint32_t* missed, tally_t* tally) noexcept nogil
cdef int64_t find_unreachable(store_t* store, const key_t* keys, int64_t count, uint32_t* missed) noexcept nogil


cdef class Store:
    cdef store_t c
    cdef readonly Segment segment
    cdef object shared              # the segments of other ranks and the hints, while they are in use
    cdef readonly int64_t length    # elements per value; -1 where it varies
    cdef readonly object dtype
