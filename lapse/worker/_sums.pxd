"""Floor 4. Gradients of repeated keys, summed before they are applied."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse._store cimport store_t
from lapse.base._types cimport key_t


cdef struct sums_t:
    # The memory of one worker for this, kept from one call to the next.
    key_t* keys         # the distinct ones, in the order of their first positions
    uint32_t* table     # by hash: the number of a distinct key, plus 1
    int64_t slots       # of `table` now: a power of two, at least twice the keys of the call
    int64_t capacity    # slots that there is memory for
    char* sums          # of the keys that are repeated
    int64_t used        # bytes of `sums`
    int64_t room


cdef int64_t sum_repeated(sums_t* self, const store_t* store, const key_t* keys, int64_t count, const char* given,
                          int64_t** offsets) noexcept nogil
cdef void free_sums(sums_t* self) noexcept
