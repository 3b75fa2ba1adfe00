"""Sparse logistic regression over a parameter server, without the GIL.

A batch of examples pulls its keys, each once, into a copy of its own. Its examples are trained there one by one, by
AdaGrad: a value is ``[weight | sum of squared gradients]``. What has changed is pushed: it is added, so that no
worker's push is lost.

Batches are prepared ahead of their turn: their keys are localized, so that they have arrived when they are pulled.
Which of them are replicated makes no difference here: localizing these does nothing, pulling and pushing them stays on
the rank.

Nothing waits for pushes. If the worker's next pull of a remote key overtakes its push, it is stale by one batch, which
is what every other worker sees anyway.
"""

from libc.math cimport expf, log1pf, sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline

cdef enum:
    PULLING = 0     # number of the pipeline's operation: it writes into the values
    LENGTH = 2      # of a value

cdef float EPSILON = 1e-8           # added to a sum of squares, which begins with 0
cdef uint64_t MIX = 0x9E3779B97F4A7C15


cdef struct batch_t:
    # Some examples, ahead of their turn.
    int64_t num_examples
    uint8_t* clicked
    int32_t* places             # of each field of each example, among the keys
    key_t* keys                 # of the examples, each once
    int64_t num_keys


cdef struct place_t:
    # In a hash table: where a key is among those of the batch that `batch` numbers. Small, so that it stays in caches.
    int32_t place
    uint32_t batch


cdef class Trainer(Pipeline):
    """Trains one worker's examples of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. Its server has float32 values of length 2.
    fields
        Number of keys of each example.
    batch
        The largest number of examples between a pull and a push.
    rate
        Learning rate.
    localize
        Whether the keys of a batch are localized when it is prepared.
    lookahead
        How many batches are prepared before the first of them is trained.
    slow_down, is_timed
        See `Pipeline.set_pace`.

    Attributes
    ----------
    examples, loss
        How many are trained, and the sum of their losses, each before its step.
    """

    cdef int64_t fields, batch
    cdef float rate
    cdef bint localize
    cdef batch_t* batches       # one per slot of the pipeline
    cdef place_t* table         # of a power of two
    cdef uint64_t mask
    cdef int shift
    cdef uint32_t number        # of the batch that was added last
    cdef float* values          # of the batch whose turn it is, and as they were pulled
    cdef float* pulled

    cdef readonly int64_t examples
    cdef readonly double loss

    def __init__(self, Worker kv, *, int64_t fields, int64_t batch, double rate, bint localize, int lookahead,
                 double slow_down=1.0, bint is_timed=False):
        if fields < 1 or batch < 1 or fields * batch > 1 << 24:
            raise ValueError(f"{batch} examples of {fields} keys are {fields * batch}, but must be 1 to {1 << 24}")
        self.kv, self.fields, self.batch, self.rate, self.localize = kv, fields, batch, rate, localize
        self.set_lookahead(lookahead)
        self.set_pace(slow_down, is_timed)
        self._allocate(fields * batch)

    cdef int _allocate(self, int64_t places) except -1:
        cdef int bits = 1
        cdef int i
        while (<int64_t>1 << bits) < places + places // 2:
            bits += 1
        self.mask = (<uint64_t>1 << bits) - 1
        self.shift = 64 - bits
        self.table = <place_t*>allocate(self.mask + 1, sizeof(place_t))
        self.values = <float*>allocate(places, LENGTH * sizeof(float))
        self.pulled = <float*>allocate(places, LENGTH * sizeof(float))
        self.batches = <batch_t*>allocate(self.num_slots, sizeof(batch_t))
        for i in range(self.num_slots):
            self.batches[i].clicked = <uint8_t*>allocate(self.batch, 1)
            self.batches[i].places = <int32_t*>allocate(places, sizeof(int32_t))
            self.batches[i].keys = <key_t*>allocate(places, sizeof(key_t))
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.num_slots if self.batches != NULL else 0):
            free(self.batches[i].clicked)
            free(self.batches[i].places)
            free(self.batches[i].keys)
        free(self.batches)
        free(self.table)
        free(self.values)
        free(self.pulled)

    def train(self, const key_t[:, ::1] keys, const uint8_t[::1] clicked, int64_t batch):
        """Take examples: keys of shape (n, fields), and whether each was clicked. Some batches stay prepared.

        A batch has so many examples, at most as many as those that the trainer was made for.
        """
        cdef int64_t first, n, size = min(max(batch, 1), self.batch)
        if keys.shape[1] != self.fields or clicked.shape[0] != keys.shape[0]:
            raise ValueError(f"keys have shape ({keys.shape[0]}, {keys.shape[1]}) for {clicked.shape[0]} examples, but "
                             f"must have {self.fields} columns, and a row for each example")
        try:
            for first in range(0, keys.shape[0], size):
                n = min(size, keys.shape[0] - first)
                with nogil:
                    self._fill(self.batches + self.filling(), &keys[first, 0], &clicked[first], n)
                    self.advance()
        except BaseException:
            self.settle()
            raise

    cdef void _fill(self, batch_t* batch, const key_t* keys, const uint8_t* clicked, int64_t n) noexcept nogil:
        cdef int64_t i
        cdef place_t* found
        self.begin_computing()
        self.number += 1
        batch.num_examples = n
        batch.num_keys = 0
        memcpy(batch.clicked, clicked, n)
        for i in range(n * self.fields):
            found = self._find(batch.keys, keys[i])
            if found.batch != self.number:
                found.batch = self.number
                found.place = <int32_t>batch.num_keys
                batch.keys[batch.num_keys] = keys[i]
                batch.num_keys += 1
            batch.places[i] = found.place
        self.end_computing()

    cdef inline place_t* _find(self, const key_t* keys, key_t key) noexcept nogil:
        """Where a key of this batch is, or can be put."""
        cdef uint64_t at = (<uint64_t>key * MIX) >> self.shift
        while self.table[at].batch == self.number and keys[self.table[at].place] != key:
            at = (at + 1) & self.mask
        return self.table + at

    cdef int prepare(self, int slot) except -1 nogil:
        if self.localize:
            self.kv.localize_keys(self.batches[slot].keys, self.batches[slot].num_keys, NULL)
        return 0

    cdef int request(self, int slot) except -1 nogil:
        self.kv.pull_keys(self.batches[slot].keys, self.batches[slot].num_keys, self.values, &self.operations[PULLING])
        return 0

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef batch_t* batch = self.batches + slot
        cdef int64_t i
        self.wait(PULLING)
        self.begin_computing()
        memcpy(self.pulled, self.values, batch.num_keys * LENGTH * sizeof(float))
        for i in range(batch.num_examples):
            self.loss += step(self.values, batch.places + i * self.fields, self.fields, batch.clicked[i], self.rate)
        for i in range(batch.num_keys * LENGTH):
            self.values[i] -= self.pulled[i]
        self.examples += batch.num_examples
        self.end_computing()
        self.kv.push_keys(batch.keys, batch.num_keys, self.values, NULL)
        return 0


cdef inline float step(float* values, const int32_t* places, int64_t fields, bint clicked, float rate) noexcept nogil:
    """Train one example where its values are; its loss before that."""
    cdef float score = 0, gradient
    cdef float* value
    cdef int64_t i
    for i in range(fields):
        score += values[LENGTH * places[i]]
    gradient = 1 / (1 + expf(-score)) - clicked
    for i in range(fields):
        value = values + LENGTH * places[i]
        value[1] += gradient * gradient
        value[0] -= rate * gradient / sqrtf(value[1] + EPSILON)
    if clicked:
        score = -score
    return log1pf(expf(score)) if score < 15 else score
