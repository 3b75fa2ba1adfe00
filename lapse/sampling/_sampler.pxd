"""Floor 2. Which keys a worker's samples are, without the calls that move keys and values.

A scheme is a subclass of `Sampler`, in a module of its own; `lapse/options/sampling.py` registers it by name. There is
one sampler per worker slot, used by that slot's thread only. It outlives the worker.
"""

from libc.stdint cimport int64_t, uint32_t

from lapse.sampling._draws cimport Generator, Table
from lapse._store cimport store_t, tally_t
from lapse.base._types cimport key_t


cdef struct sample_t:
    # What a handle stands for. The keys are a ring of `prepared` places, the next one at `first`.
    key_t* keys         # NULL in schemes that draw when samples are pulled
    int64_t capacity
    int64_t prepared
    int64_t drawn       # how many of the keys are drawn; all of them once `draw_ahead` has returned False
    int64_t first
    int64_t left
    int64_t fresh       # how many of those left were not postponed; they come first
    uint32_t uses       # of this place in the table; a handle of an older use is stale
    bint is_open
    int64_t next_free   # in the list of places that are not open; -1 at its end


cdef struct batch_t:
    # Keys to be localized.
    const key_t* keys
    int64_t count


cdef class Sampler:
    cdef object dropped             # numbers of the handles that nobody holds any more
    cdef Table table
    cdef Generator draws
    cdef int64_t mark               # which sampler a handle is of

    cdef sample_t* samples
    cdef int64_t num_samples
    cdef int64_t first_free

    # What a scheme decides. `draw_ahead` takes one step of preparing a sample: either there are keys to be localized
    # now, in `batch`, or the sample is prepared and the result is False. `hand_out` takes the next `count` keys of a
    # sample that has so many left. `read_here` reads those of them that are here, as `access_batch` does;
    # `count_here` only counts them.
    cdef bint draws_ahead           # samples have memory for their keys
    cdef bint chooses_among_local   # keys, and hence `offsets`, are final only after `read_here` or `count_here`
    cdef bint draw_ahead(self, sample_t* sample, batch_t* batch) noexcept nogil
    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil
    cdef int64_t read_here(self, store_t* store, key_t* keys, int64_t count, int64_t* offsets, char* values,
                           uint32_t* missed, tally_t* tally) noexcept nogil
    cdef int64_t count_here(self, store_t* store, key_t* keys, int64_t count) noexcept nogil

    cdef void draw(self, key_t* keys, int64_t count) noexcept nogil
    cdef int64_t open(self, int64_t count) noexcept nogil
    cdef int add_places(self) noexcept nogil
    cdef sample_t* find(self, int64_t number) noexcept nogil
    cdef sample_t* find_with(self, int64_t number, int64_t count) except NULL nogil
    cdef int refuse(self, int64_t number, int64_t count) except -1
    cdef int64_t number_of(self, handle) except -1
    cdef void close(self, sample_t* sample) noexcept nogil
    cdef int close_dropped(self) except -1
    cdef void close_all(self) noexcept nogil


cdef inline key_t take_first(sample_t* sample) noexcept nogil:
    cdef key_t key = sample.keys[sample.first]
    sample.first += 1
    if sample.first == sample.prepared:
        sample.first = 0
    sample.left -= 1
    return key


cdef inline void put_last(sample_t* sample, key_t key) noexcept nogil:
    cdef int64_t end = sample.first + sample.left
    sample.keys[end if end < sample.prepared else end - sample.prepared] = key
    sample.left += 1


cdef class Sample:
    cdef Sampler sampler
    cdef readonly int64_t number


cdef Sample new_sample(Sampler sampler, int64_t number)
