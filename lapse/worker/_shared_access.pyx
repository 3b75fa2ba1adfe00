"""Floor 4. `access_batch` for a large batch, whose keys are shared by the threads of a call."""

from libc.stdint cimport int64_t, uint32_t

from lapse._store cimport access_batch, store_t, tally_t
from lapse.base._types cimport key_t, terms_t
from lapse.worker._call_threads cimport CallThreads

cdef enum:
    MOST_PIECES = 256
    PIECE_BYTES = 1 << 16   # of values: some 50 microseconds, as long as a thread takes to wake


cdef struct access_t:
    store_t* store
    int kind
    const key_t* keys
    int64_t count
    int64_t step            # keys of a piece
    const int64_t* offsets
    char* values
    const float* weights
    terms_t terms
    uint32_t* missed        # each piece writes to where its keys begin
    int64_t misses[MOST_PIECES]
    tally_t tallies[MOST_PIECES]


cdef inline int64_t keys_of_piece(CallThreads threads, const store_t* store, int64_t count) noexcept nogil:
    """How many keys a thread takes at a time: all if nobody helps."""
    if threads.helpers == 0:
        return count + 1
    return max(1, PIECE_BYTES // <int64_t>store.slabs[store.num_slabs - 1].row_bytes,  # of the longest values
               (count + MOST_PIECES - 1) // MOST_PIECES)


cdef int64_t access_shared(CallThreads threads, store_t* store, int kind, const key_t* keys, int64_t count,
                           const int64_t* offsets, char* values, const float* weights, terms_t terms,
                           uint32_t* missed, tally_t* tally) noexcept nogil:
    """As `access_batch`. Of a repeated key the changes take effect in any order."""
    cdef access_t access
    cdef int64_t step = keys_of_piece(threads, store, count)
    if count < 2 * step:
        return access_batch(store, kind, keys, count, offsets, values, weights, terms, missed, tally)
    access.store, access.kind, access.keys, access.count, access.step = store, kind, keys, count, step
    access.offsets, access.values, access.weights, access.terms = offsets, values, weights, terms
    access.missed = missed
    threads.share((count + step - 1) // step, access_piece, &access)
    return gather(&access, tally)


cdef void access_piece(void* work, int64_t number) noexcept nogil:
    cdef access_t* access = <access_t*>work
    cdef int64_t first = number * access.step
    cdef int64_t shift = first * <int64_t>access.store.slabs[0].row_bytes if access.offsets == NULL else 0
    cdef tally_t* tally = &access.tallies[number]
    tally.shared = tally.replicated = 0
    access.misses[number] = access_batch(
        access.store, access.kind, access.keys + first, min(access.step, access.count - first),
        NULL if access.offsets == NULL else access.offsets + first, access.values + shift,
        NULL if access.weights == NULL else access.weights + first, access.terms, access.missed + first, tally)


cdef int64_t gather(access_t* access, tally_t* tally) noexcept nogil:
    """Move the positions of missed keys together, and add up what was counted."""
    cdef int64_t number, i, first, misses = 0
    for number in range((access.count + access.step - 1) // access.step):
        first = number * access.step
        for i in range(access.misses[number]):
            access.missed[misses] = access.missed[first + i] + <uint32_t>first
            misses += 1
        tally.shared += access.tallies[number].shared
        tally.replicated += access.tallies[number].replicated
    return misses
