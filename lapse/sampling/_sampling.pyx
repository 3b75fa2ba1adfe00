"""Floor 2. Which keys a worker's samples are: the schemes, without the calls that move keys and values.

The schemes are those of Renz-Wieland et al., *NuPS: A Parameter Server for Machine Learning with
Non-Uniform Parameter Access*, SIGMOD 2022. `lapse/options/sampling.py` says what each of them promises.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

import itertools

import numpy as np

from lapse.sampling._draws cimport draw_keys, shuffle
from lapse._store cimport REPLICATED, Store, is_reachable, read_reachable, value_bytes
from lapse.base._types cimport NO_MEMORY, OK
from lapse.base._values cimport prefetch

DRAWS, ORDERS = 1, 2  # the purposes of a worker's generators

cdef enum:
    GROUPS_SEARCHED = 10    # how many groups' worth of draws the local scheme makes for one sample
    MAX_KEPT = 65536       # keys for which a finished sample's memory is kept for the next
    # A handle is a number: which place in the table, which use of it, and which sampler's.
    PLACE_BITS = 24
    USE_BITS = 24
    MARK_BITS = 14

_SCHEMES = {"naive": NAIVE, "preloc": PRELOC, "pool": POOL, "local": LOCAL}
_marks = itertools.count()


cdef class Sampler:
    """The samples of one worker.

    Parameters
    ----------
    sampling : lapse.Sampling
    table : Table
        Of its distribution; shared by all workers of a rank.
    seed, worker : int
        The generators depend on nothing else.

    Raises
    ------
    MemoryError
        Where there is no room for two groups of a pool.
    """

    def __cinit__(self, sampling, Table table, seed, worker):
        self.sampling = sampling
        self.dropped = []
        self.table = table
        self.draws = Generator(seed, worker, DRAWS)
        self.orders = Generator(seed, worker, ORDERS)
        self.scheme = _SCHEMES[sampling.scheme]
        self.postpone = self.scheme == POOL and sampling.postpone
        self.reuse = sampling.reuse
        self.group_size = sampling.group_size
        self.mark = next(_marks) & ((1 << MARK_BITS) - 1)
        self.first_free = -1
        self.position = self.group_size
        if self.scheme == POOL:
            self.groups = <key_t*>malloc(2 * self.group_size * sizeof(key_t))
            if self.groups == NULL:
                raise MemoryError(f"no memory for two groups of {self.group_size} keys")

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self.num_samples):
            free(self.samples[i].keys)
        free(self.samples)
        free(self.groups)

    # Handles ---------------------------------------------------------------------------------------------

    cdef int64_t open(self, int64_t count) noexcept nogil:
        """The handle of a new sample, with room for its keys; -1 where there is no memory."""
        cdef sample_t* sample
        cdef int64_t place
        if self.first_free < 0 and self.add_places() != OK:
            return -1
        place = self.first_free
        sample = &self.samples[place]
        if (self.scheme == PRELOC or self.scheme == POOL) and sample.capacity < count:
            free(sample.keys)
            sample.capacity = 0
            sample.keys = <key_t*>malloc(count * sizeof(key_t))
            if sample.keys == NULL:
                return -1
            sample.capacity = count
        self.first_free = sample.next_free
        sample.prepared = sample.left = sample.fresh = count
        sample.first = 0
        sample.is_open = True
        return (((self.mark << USE_BITS) | sample.uses) << PLACE_BITS) | place

    cdef int add_places(self) noexcept nogil:
        cdef int64_t i, more = max(<int64_t>8, self.num_samples)
        cdef sample_t* grown
        if self.num_samples + more > <int64_t>1 << PLACE_BITS:
            return NO_MEMORY
        grown = <sample_t*>realloc(self.samples, (self.num_samples + more) * sizeof(sample_t))
        if grown == NULL:
            return NO_MEMORY
        self.samples = grown
        memset(&grown[self.num_samples], 0, more * sizeof(sample_t))
        for i in range(self.num_samples + more - 1, self.num_samples - 1, -1):
            grown[i].next_free = self.first_free
            self.first_free = i
        self.num_samples += more
        return OK

    cdef sample_t* find(self, int64_t number) noexcept nogil:
        """The open sample of a handle; NULL for one that is stale, of another sampler, or none at all."""
        cdef int64_t place = number & ((<int64_t>1 << PLACE_BITS) - 1)
        cdef int64_t uses = (number >> PLACE_BITS) & ((<int64_t>1 << USE_BITS) - 1)
        if number < 0 or number >> (PLACE_BITS + USE_BITS) != self.mark or place >= self.num_samples:
            return NULL
        if not self.samples[place].is_open or self.samples[place].uses != uses:
            return NULL
        return &self.samples[place]

    cdef void close(self, sample_t* sample) noexcept nogil:
        sample.is_open = False
        sample.uses = (sample.uses + 1) & ((1 << USE_BITS) - 1)
        if sample.capacity > MAX_KEPT:
            free(sample.keys)
            sample.keys = NULL
            sample.capacity = 0
        sample.next_free = self.first_free
        self.first_free = sample - self.samples

    def close_dropped(self):
        """Finish the samples whose handles nobody holds any more. In the worker's own thread."""
        cdef sample_t* sample
        while self.dropped:
            sample = self.find(self.dropped.pop())
            if sample != NULL:
                self.close(sample)

    def close_all(self):
        """Finish every sample: the worker's life is over."""
        cdef int64_t i
        for i in range(self.num_samples):
            if self.samples[i].is_open:
                self.close(&self.samples[i])

    @property
    def num_open(self):
        """How many samples are open."""
        return sum(self.samples[i].is_open for i in range(self.num_samples))

    cdef int refuse(self, int64_t number, int64_t count) except -1:
        """Raise what is wrong with pulling `count` keys of a sample."""
        cdef sample_t* sample = self.find(number)
        if sample == NULL:
            raise ValueError("this sample is finished, or is not one of this worker: prepare another")
        if count < 0:
            raise ValueError(f"{count} keys were asked of a sample, but the number must be from 0 to what is left, "
                             f"{sample.left}")
        raise ValueError(f"{count} keys were asked of a sample that has {sample.left} left of {sample.prepared}: "
                         "prepare more, or finish it and prepare another")

    # Drawing -------------------------------------------------------------------------------------------------

    cdef void draw(self, key_t* keys, int64_t count) noexcept nogil:
        draw_keys(&self.table.c, self.draws.c, keys, count)

    # The pool ------------------------------------------------------------------------------------------------

    cdef bint is_group_used_up(self) noexcept nogil:
        return self.position == self.group_size and self.passes_left == 0

    cdef void begin_group(self) noexcept nogil:
        """Go on to the next group and draw the one after it; the first time draw both."""
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

    # What a pull gets --------------------------------------------------------------------------------------

    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil:
        """The next keys of a sample that has so many left. The local scheme's are found one by one (`find_here`)."""
        cdef int64_t i
        if self.scheme == NAIVE or self.scheme == LOCAL:
            sample.left -= count
            if self.scheme == NAIVE:
                self.draw(keys, count)
            return
        for i in range(count):
            if self.postpone:
                postpone_keys(sample, store)
            sample.fresh -= sample.fresh > 0
            keys[i] = take_first(sample)

    cdef bint find_here(self, store_t* store, key_t* key, char* out) noexcept nogil:
        """Draw until a key is here, and copy its value, if `out` is given. False where none was found: `key` is then to be pulled.

        The first draw decides between replicated and other keys, with the probabilities of the whole
        distribution. Once it was one of the others, and not here, replicated keys do not count any more.
        """
        cdef key_t candidate
        cdef int64_t i
        cdef bint is_replicated, relocated_only = False
        for i in range(GROUPS_SEARCHED * self.group_size):
            candidate = self.next_candidate(store)
            is_replicated = store.entries[candidate].state == REPLICATED  # for good, so that a look without the latch will do
            if is_replicated and relocated_only:
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


    def search(self, Store store, int64_t count):
        """What the local scheme finds in a store: keys, and whether each was there. For tests, which have no worker."""
        cdef int64_t i
        cdef size_t most = max(value_bytes(&store.c, key) for key in range(store.c.num_keys))
        cdef char[::1] row = bytearray(most)
        keys, found = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.uint8)
        cdef key_t[::1] key_view = keys
        cdef unsigned char[::1] found_view = found
        for i in range(count):
            found_view[i] = self.find_here(&store.c, &key_view[i], &row[0])
        return keys, found.view(np.bool_)


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


cdef void postpone_keys(sample_t* sample, const store_t* store) noexcept nogil:
    """Move keys that are not here behind the others, each at most once, until the next key is here or was moved."""
    while sample.fresh > 0 and sample.left > 1 and not is_reachable(store, sample.keys[sample.first]):
        put_last(sample, take_first(sample))
        sample.fresh -= 1


cdef class Sample:
    """Keys that were prepared and can be pulled; comes from `Worker.prepare_sample`.

    For the worker's own thread, as its calls are.

    Attributes
    ----------
    number : int
        What kernels know this sample by.
    """

    def __init__(self):
        raise TypeError("samples come from Worker.prepare_sample")

    @property
    def left(self):
        """How many keys can still be pulled; 0 once the sample is finished."""
        cdef sample_t* sample = self.sampler.find(self.number)
        return 0 if sample == NULL else sample.left

    def __del__(self):
        if self.sampler is not None:
            self.sampler.dropped.append(self.number)  # the worker's thread finishes it when it prepares the next

    def __repr__(self):
        cdef sample_t* sample = self.sampler.find(self.number)
        if sample == NULL:
            return "<lapse.Sample: finished>"
        return f"<lapse.Sample: {sample.left} left of {sample.prepared}>"


def new_sample(Sampler sampler, int64_t number):
    """The Python face of a handle."""
    cdef Sample sample = Sample.__new__(Sample)
    sample.sampler = sampler
    sample.number = number
    return sample
