"""Floor 2. The scheme "pool": groups of keys are drawn and localized ahead, and each group is used several times."""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from lapse.sampling._draws cimport Generator, Table, shuffle
from lapse.sampling._sampler cimport Sampler, batch_t, put_last, sample_t, take_first
from lapse._store cimport is_reachable, store_t
from lapse.base._types cimport key_t

from lapse.sampling._sampler import ORDERS


@cython.final
cdef class PoolSampler(Sampler):
    """Draws that are shared by `reuse` passes over a group, each in a random order of its own.

    Raises
    ------
    MemoryError
        If there is no memory for two groups.
    """

    cdef Generator orders           # another stream, so that a pool has the draws of the other schemes
    cdef bint postpone
    cdef int64_t reuse
    cdef int64_t group_size
    # Two groups in one piece of memory. After `begin_group`, `drawn` are the keys to localize.
    cdef key_t* groups
    cdef key_t* group               # the one in use, in the order of this pass
    cdef key_t* drawn
    cdef int64_t num_drawn
    cdef int64_t position           # in this pass
    cdef int64_t passes_left        # after this one

    def __cinit__(self, sampling, Table table, seed, worker):
        self.draws_ahead = True
        self.orders = Generator(seed, worker, ORDERS)
        self.postpone = sampling.postpone
        self.reuse = sampling.reuse
        self.group_size = self.position = sampling.group_size
        self.groups = <key_t*>malloc(2 * self.group_size * sizeof(key_t))
        if self.groups == NULL:
            raise MemoryError(f"no memory for two groups of {self.group_size} keys")

    def __dealloc__(self):
        free(self.groups)

    def streams(self):
        return [self.draws, self.orders]

    def begin_anew(self):
        self.group = NULL
        self.position, self.passes_left = self.group_size, 0

    cdef bint draw_ahead(self, sample_t* sample, batch_t* batch) noexcept nogil:
        """A step is a new group, which is localized at once, or the whole sample, whose keys may have left since."""
        if sample.drawn == sample.prepared:
            return False
        if not self.is_group_used_up():
            sample.drawn += self.take_positions(sample.keys + sample.drawn, sample.prepared - sample.drawn)
        if sample.drawn == sample.prepared:
            batch.keys, batch.count = sample.keys, sample.prepared
        else:
            self.begin_group()
            batch.keys, batch.count = self.drawn, self.num_drawn
        return True

    cdef bint is_group_used_up(self) noexcept nogil:
        return self.position == self.group_size and self.passes_left == 0

    cdef void begin_group(self) noexcept nogil:
        """Switch to the next group and draw the one after it; the first time draw both."""
        if self.group == NULL:
            self.group = self.groups
            self.drawn, self.num_drawn = self.groups, 2 * self.group_size
        else:
            self.drawn, self.num_drawn = self.group, self.group_size
            self.group = self.groups + (self.group_size if self.group == self.groups else 0)
        self.draw(self.drawn, self.num_drawn)
        self.passes_left = self.reuse

    cdef int64_t take_positions(self, key_t* keys, int64_t count) noexcept nogil:
        """The next positions, at most up to the end of the group: how many these are."""
        cdef int64_t size, taken = 0
        while taken < count and not self.is_group_used_up():
            if self.position == self.group_size:
                shuffle(self.orders.c, self.group, self.group_size)
                self.passes_left -= 1
                self.position = 0
            size = min(count - taken, self.group_size - self.position)
            memcpy(keys + taken, self.group + self.position, size * sizeof(key_t))
            self.position += size
            taken += size
        return taken

    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil:
        cdef int64_t i
        for i in range(count):
            if self.postpone:
                postpone_keys(sample, store)
            sample.fresh -= sample.fresh > 0
            keys[i] = take_first(sample)


cdef void postpone_keys(sample_t* sample, const store_t* store) noexcept nogil:
    """Move keys that are not here behind the others, each at most once, until the next key is here or was moved."""
    while sample.fresh > 0 and sample.left > 1 and not is_reachable(store, sample.keys[sample.first]):
        put_last(sample, take_first(sample))
        sample.fresh -= 1
