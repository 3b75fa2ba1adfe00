"""Floor 2. The scheme "local": keys are drawn when they are pulled, until one is here."""

cimport cython
from libc.stdint cimport int64_t, uint32_t

from lapse.sampling._draws cimport Table
from lapse.sampling._sampler cimport Sampler, sample_t
from lapse._store cimport is_reachable, is_replicated, read_reachable, store_t, tally_t, value_bytes
from lapse.base._types cimport key_t
from lapse.base._values cimport prefetch

cdef enum:
    BATCH = 64              # draws that are made together, their entries prefetched
    GROUPS_SEARCHED = 10    # how many groups' worth of draws are made for one sample


@cython.final
cdef class LocalSampler(Sampler):
    """Draws among what is here, which is known only while values are read."""

    cdef int64_t max_draws          # for one key
    cdef key_t candidates[BATCH]    # draws that were not looked at yet, the last ones
    cdef int64_t num_candidates

    def __cinit__(self, sampling, Table table, seed, worker):
        self.chooses_among_local = True
        self.max_draws = GROUPS_SEARCHED * sampling.group_size

    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil:
        sample.left -= count  # which keys these are, `read_here` or `count_here` finds out

    cdef int64_t read_here(self, store_t* store, key_t* keys, int64_t count, int64_t* offsets, char* values,
                           uint32_t* missed, tally_t* tally) noexcept nogil:
        cdef int64_t i, offset, misses = 0
        cdef int64_t row_bytes = store.slabs[0].row_bytes
        for i in range(count):
            offset = i * row_bytes if offsets == NULL else offsets[i]
            if not self.find_here(store, &keys[i], values + offset):
                missed[misses] = <uint32_t>i
                misses += 1
            if offsets != NULL:
                offsets[i + 1] = offset + <int64_t>value_bytes(store, keys[i])
        return misses

    cdef int64_t count_here(self, store_t* store, key_t* keys, int64_t count) noexcept nogil:
        cdef int64_t i, here = 0
        for i in range(count):
            here += self.find_here(store, &keys[i], NULL)
        return here

    cdef bint find_here(self, store_t* store, key_t* key, char* out) noexcept nogil:
        """Draw until a key is here, and copy its value if `out` is given. If False, the last draw is to be pulled.

        The first draw decides between replicated and other keys, with the probabilities of the whole
        distribution. If it was one of the others, and not here, replicated keys do not count any more.
        """
        cdef key_t candidate
        cdef int64_t _i
        cdef bint found_replica, relocated_only = False
        for _i in range(self.max_draws):
            candidate = self.next_candidate(store)
            found_replica = is_replicated(&store.entries[candidate])
            if found_replica and relocated_only:
                continue
            key[0] = candidate
            if is_reachable(store, candidate) and (out == NULL or read_reachable(store, candidate, out)):
                return True
            relocated_only = True
        return False

    cdef key_t next_candidate(self, const store_t* store) noexcept nogil:
        """The next draw; what one search leaves over is for the next."""
        cdef int64_t i
        if self.num_candidates == 0:
            self.draw(self.candidates, BATCH)
            self.num_candidates = BATCH
            for i in range(BATCH):
                prefetch(&store.entries[self.candidates[i]])
        self.num_candidates -= 1
        return self.candidates[BATCH - 1 - self.num_candidates]
