"""Floor 2. Samples and their handles, for all schemes; what a scheme has to say is in its subclass of `Sampler`."""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

import itertools

from lapse.base.checks import brief

from lapse.sampling._draws cimport draw_keys
from lapse._store cimport access_batch, is_reachable
from lapse.base._types cimport NO_MEMORY, OK, PULL, terms_of

DRAWS, ORDERS = 1, 2  # the purposes of a worker's generators

cdef enum:
    MAX_KEPT = 65536       # keys for which a finished sample's memory is kept for the next
    # A handle is a number: which place in the table, which use of it, and which sampler's.
    PLACE_BITS = 24
    USE_BITS = 24
    MARK_BITS = 14

_marks = itertools.count()


cdef class Sampler:
    """The samples of one worker. A subclass says how their keys are drawn.

    Parameters
    ----------
    sampling : lapse.Sampling
    table : Table
        Of its distribution; shared by all workers of a rank.
    seed, worker : int
        The generators depend on nothing else.
    """

    def __cinit__(self, sampling, Table table, seed, worker):
        self.dropped = []
        self.table = table
        self.draws = Generator(seed, worker, DRAWS)
        self.mark = next(_marks) & ((1 << MARK_BITS) - 1)
        self.first_free = -1

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self.num_samples):
            free(self.samples[i].keys)
        free(self.samples)

    # What a scheme decides; here as it is if keys are drawn when they are pulled, and then fixed ----------------------

    cdef bint draw_ahead(self, sample_t* sample, batch_t* batch) noexcept nogil:
        return False

    cdef void hand_out(self, sample_t* sample, const store_t* store, key_t* keys, int64_t count) noexcept nogil:
        self.draw(keys, count)
        sample.left -= count

    cdef int64_t read_here(self, store_t* store, key_t* keys, int64_t count, int64_t* offsets, char* values,
                           uint32_t* missed, tally_t* tally) noexcept nogil:
        return access_batch(store, PULL, keys, count, offsets, values, NULL, terms_of(0), missed, tally)

    cdef int64_t count_here(self, store_t* store, key_t* keys, int64_t count) noexcept nogil:
        cdef int64_t i, here = 0
        for i in range(count):
            here += is_reachable(store, keys[i])
        return here

    cdef void draw(self, key_t* keys, int64_t count) noexcept nogil:
        draw_keys(&self.table.c, self.draws.c, keys, count)

    # Handles ---------------------------------------------------------------------------------------------------------

    cdef int64_t open(self, int64_t count) noexcept nogil:
        """The handle of a new sample, with room for its keys; -1 if there is no memory."""
        cdef sample_t* sample
        cdef int64_t place
        if self.first_free < 0 and self.add_places() != OK:
            return -1
        place = self.first_free
        sample = &self.samples[place]
        if self.draws_ahead and sample.capacity < count:
            free(sample.keys)
            sample.capacity = 0
            sample.keys = <key_t*>malloc(count * sizeof(key_t))
            if sample.keys == NULL:
                return -1
            sample.capacity = count
        self.first_free = sample.next_free
        sample.prepared = sample.left = sample.fresh = count
        sample.first = sample.drawn = 0
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
        """The open sample of a handle; NULL if it is stale, of another sampler, or none at all."""
        cdef int64_t place = number & ((<int64_t>1 << PLACE_BITS) - 1)
        cdef int64_t uses = (number >> PLACE_BITS) & ((<int64_t>1 << USE_BITS) - 1)
        if number < 0 or number >> (PLACE_BITS + USE_BITS) != self.mark or place >= self.num_samples:
            return NULL
        if not self.samples[place].is_open or self.samples[place].uses != uses:
            return NULL
        return &self.samples[place]

    cdef sample_t* find_with(self, int64_t number, int64_t count) except NULL nogil:
        """The open sample of a handle, which must have `count` keys left."""
        cdef sample_t* sample = self.find(number)
        if sample == NULL or count < 0 or count > sample.left:
            with gil:
                self.refuse(number, count)
        return sample

    cdef int refuse(self, int64_t number, int64_t count) except -1:
        """Raise what is wrong with pulling `count` keys of a sample."""
        cdef sample_t* sample = self.find(number)
        if sample == NULL:
            raise ValueError("this sample is finished, or belongs to another worker: prepare another one")
        if count < 0:
            raise ValueError(f"{count} keys were requested from a sample, but the number must be from 0 to "
                             f"what is left, {sample.left}")
        raise ValueError(f"{count} keys were requested from a sample that has {sample.left} left of {sample.prepared}: "
                         "prepare more keys, or finish this sample and prepare another one")

    cdef int64_t number_of(self, handle) except -1:
        """The number of a handle, which must belong to this worker."""
        if not isinstance(handle, Sample):
            raise ValueError(f"{brief(handle)} is not a sample: use what prepare_sample returns")
        if (<Sample>handle).sampler is not self:
            raise ValueError(f"{handle!r} belongs to another worker or server: a worker can only pull samples "
                             "that it has prepared itself")
        return (<Sample>handle).number

    cdef void close(self, sample_t* sample) noexcept nogil:
        sample.is_open = False
        sample.uses = (sample.uses + 1) & ((1 << USE_BITS) - 1)
        if sample.capacity > MAX_KEPT:
            free(sample.keys)
            sample.keys = NULL
            sample.capacity = 0
        sample.next_free = self.first_free
        self.first_free = sample - self.samples

    cdef int close_dropped(self) except -1:
        """Finish the samples whose handles nobody holds any more. In the worker's own thread."""
        cdef sample_t* sample
        while self.dropped:
            sample = self.find(self.dropped.pop())
            if sample != NULL:
                self.close(sample)
        return 0

    cdef void close_all(self) noexcept nogil:
        """Finish every sample: the worker's life is over."""
        cdef int64_t i
        for i in range(self.num_samples):
            if self.samples[i].is_open:
                self.close(&self.samples[i])

    def streams(self):
        """The generators that the keys are drawn from: a list, the same in every sampler of a scheme."""
        return [self.draws]

    def begin_anew(self):
        """Forget what was drawn ahead for samples to come: the streams are now somewhere else."""

    @property
    def num_open(self):
        """How many samples are open."""
        return sum(self.samples[i].is_open for i in range(self.num_samples))


cdef class Sample:
    """Keys that were prepared and can be pulled, returned by `Worker.prepare_sample`.

    Only the worker's own thread may use it, as with the worker's calls.

    Attributes
    ----------
    number : int
        The handle of this sample in the C-level calls.
    """

    def __init__(self):
        raise TypeError("samples are created by Worker.prepare_sample")

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


cdef Sample new_sample(Sampler sampler, int64_t number):
    """The Python face of a handle."""
    cdef Sample sample = Sample.__new__(Sample)
    sample.sampler = sampler
    sample.number = number
    return sample
