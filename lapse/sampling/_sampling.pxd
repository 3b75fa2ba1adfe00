"""Floor 2. Which keys a worker's samples are: the schemes, without the calls that move keys and values.

One sampler per worker worker_slot, used by that worker's thread only. It outlives the worker.
"""

from libc.stdint cimport int64_t, uint32_t

from lapse.sampling._draws cimport Generator, Table, table_t
from lapse._store cimport store_t
from lapse.base._types cimport key_t


cdef enum scheme_t:
    NAIVE
    PRELOC
    POOL
    LOCAL


cdef enum:
    BATCH = 64      # draws of the local scheme that are made together, their entries prefetched


cdef struct sample_t:
    # What a handle stands for. The keys are a ring of `prepared` places, the next one at `first`.
    key_t* keys         # NULL in schemes that draw when samples are pulled
    int64_t capacity
    int64_t prepared
    int64_t first
    int64_t left
    int64_t fresh       # how many of those left were not postponed; they come first
    uint32_t uses       # of this place in the table; a handle of an older use is stale
    bint is_open
    int64_t next_free   # in the list of places that are not open; -1 at its end


cdef class Sampler:
    cdef readonly object sampling
    cdef object dropped             # numbers of the handles that nobody holds any more
    cdef Table table
    cdef Generator draws            # two streams, so that a pool has the draws of the other schemes
    cdef Generator orders
    cdef scheme_t scheme
    cdef bint postpone
    cdef int64_t reuse
    cdef int64_t group_size
    cdef int64_t mark               # which sampler a handle is of

    cdef sample_t* samples
    cdef int64_t num_samples
    cdef int64_t first_free

    # The pool: two groups in one piece of memory. After `begin_group`, `drawn` are the keys to localize.
    cdef key_t* groups
    cdef key_t* group               # the one in use, in the order of this pass
    cdef key_t* drawn
    cdef int64_t num_drawn
    cdef int64_t position           # in this pass
    cdef int64_t passes_left        # after this one

    # Draws of the local scheme that were not looked at yet
    cdef key_t candidates[BATCH]
    cdef int64_t num_candidates

    cdef int64_t open(self, int64_t count) noexcept nogil
    cdef int add_places(self) noexcept nogil
    cdef sample_t* find(self, int64_t number) noexcept nogil
    cdef void close(self, sample_t* sample) noexcept nogil
    cdef void draw(self, key_t* keys, int64_t count) noexcept nogil
    cdef bint is_group_used_up(self) noexcept nogil
    cdef void begin_group(self) noexcept nogil
    cdef int64_t take_positions(self, key_t* keys, int64_t count) noexcept nogil
    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil
    cdef bint find_here(self, store_t* store, key_t* key, char* out) noexcept nogil
    cdef key_t next_candidate(self, const store_t* store) noexcept nogil
    cdef int refuse(self, int64_t number, int64_t count) except -1


cdef class Sample:
    cdef Sampler sampler
    cdef readonly int64_t number
