"""Floor 2. The scheme "preloc": all keys of a sample are drawn when it is prepared, and localized meanwhile."""

cimport cython
from libc.stdint cimport int64_t

from lapse.sampling._sampler cimport Sampler, batch_t, sample_t, take_first
from lapse._store cimport store_t
from lapse.base._types cimport key_t


@cython.final
cdef class PrelocSampler(Sampler):
    """Independent draws, handed out in the order in which they were made."""

    def __cinit__(self, *_):
        self.draws_ahead = True

    cdef bint draw_ahead(self, sample_t* sample, batch_t* batch) noexcept nogil:
        if sample.drawn == sample.prepared:
            return False
        self.draw(sample.keys, sample.prepared)
        sample.drawn = sample.prepared
        batch.keys, batch.count = sample.keys, sample.prepared
        return True

    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil:
        cdef int64_t i
        for i in range(count):
            keys[i] = take_first(sample)
