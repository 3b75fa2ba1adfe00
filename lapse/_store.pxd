"""Floor 1. The values that lie on this rank, and for every key what this rank knows of it.

A directory entry of 8 bytes per key of the key space; the values in one flat slab per value
length, addressed by slot. No pointer and no allocation per key. What concerns one key is inline
here; the loops over a batch are functions of `_store.pyx`.

Entered by worker threads and by whoever drives the communication; nothing here needs the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse._replicas cimport replicas_t
from lapse._sync cimport drop_latch, take_latch
from lapse._types cimport key_t, status_t

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


cdef struct slab_t:
    # All values of one length that lie on this rank. The address range is reserved for every key
    # of this length (any rank may come to own them all); memory is taken when a row is first written.
    char* rows
    size_t reserved     # bytes
    size_t row_bytes
    uint32_t next_row   # rows from here on were never used
    uint32_t free_row   # the last one given back; each holds the number of the one before
    uint8_t latch       # taken for a moment, with or without a key's latch, never the other way round
    char padding[27]


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


cdef inline void lock_entry(const store_t* store, entry_t* entry) noexcept nogil:
    take_latch(&entry.latch)


cdef inline void unlock_entry(entry_t* entry) noexcept nogil:
    drop_latch(&entry.latch)


# One key; the caller holds its latch where a slot is concerned. ------------------------------------

cdef uint32_t take_row(slab_t* slab, bint zeroed) noexcept nogil
cdef void give_row_back(slab_t* slab, uint32_t slot) noexcept nogil
cdef void read_value(const store_t* store, key_t key, uint32_t slot, char* out) noexcept nogil
cdef bint read_here(const store_t* store, key_t key, char* out) noexcept nogil
cdef void change_value(store_t* store, key_t key, uint32_t* slot, int kind, const char* given) noexcept nogil

# Batches ------------------------------------------------------------------------------------------------

cdef int64_t access_batch(store_t* store, int kind, const key_t* keys, int64_t count, const int64_t* offsets,
                          char* values, uint32_t* missed, int64_t* replicated) noexcept nogil


cdef class Store:
    cdef store_t c
    cdef readonly int64_t length    # elements per value; -1 where it varies
    cdef readonly object dtype
