"""Floor 2. Keys drawn at random, each in constant time, without the GIL."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport floor
from libc.stdlib cimport free, malloc

import numpy as np

cdef extern from "numpy/random/bitgen.h":
    ctypedef struct bitgen_t:
        void* state
        uint64_t (*next_uint64)(void* state) noexcept nogil

cdef extern from *:
    r"""
    #include <stdint.h>
    #define lapse_fetch(p) __builtin_prefetch(p, 0)
    /* a * b in 128 bits: the upper 64 returned, the lower ones put aside. */
    static inline uint64_t lapse_multiply(uint64_t a, uint64_t b, uint64_t *lower) {
        unsigned __int128 product = (unsigned __int128)a * b;
        *lower = (uint64_t)product;
        return (uint64_t)(product >> 64);
    }
    """
    void fetch "lapse_fetch"(const void* address) noexcept nogil
    uint64_t multiply "lapse_multiply"(uint64_t a, uint64_t b, uint64_t* lower) noexcept nogil


cdef enum:
    BLOCK = 32      # draws whose columns are fetched together


cdef uint64_t FULL = <uint64_t>1 << 32     # the height of a column


# Drawing --------------------------------------------------------------------------------------------

cdef inline uint64_t next_word(void* generator) noexcept nogil:
    cdef bitgen_t* bits = <bitgen_t*>generator
    return bits.next_uint64(bits.state)


cdef void draw_keys(const table_t* table, void* generator, key_t* keys, int64_t count) noexcept nogil:
    """One random word per key: multiplied by the number of keys, its upper half is the column, its lower the height.

    The bias of that, below 2**-32 for the largest range, is too small for any test to detect. (Lemire,
    *Fast Random Integer Generation in an Interval*, 2019, describes the multiplication and how to remove the bias.)
    """
    cdef int64_t i, j, size
    cdef uint64_t lower
    cdef uint64_t chosen[BLOCK]
    cdef uint32_t height[BLOCK]
    cdef const column_t* column
    i = 0
    while i < count:
        size = min(count - i, <int64_t>BLOCK)
        for j in range(size):
            chosen[j] = multiply(next_word(generator), table.span, &lower)
            height[j] = <uint32_t>(lower >> 32)
            if table.columns != NULL:
                fetch(&table.columns[chosen[j]])
        for j in range(size):
            if table.columns != NULL:
                column = &table.columns[chosen[j]]
                if height[j] >= column.share:
                    chosen[j] = column.other
            keys[i + j] = table.low + <key_t>chosen[j]
        i += size


cdef void shuffle(void* generator, key_t* keys, int64_t count) noexcept nogil:
    """Fisher and Yates."""
    cdef int64_t i, j
    cdef uint64_t lower
    for i in range(count - 1, 0, -1):
        j = <int64_t>multiply(next_word(generator), <uint64_t>i + 1, &lower)
        keys[i], keys[j] = keys[j], keys[i]


# Tables --------------------------------------------------------------------------------------------

cdef void apportion(const double* weights, int64_t count, double total, double most, uint64_t* parts) noexcept nogil:
    """Divide count * 2**32 parts among the keys, in proportion to their weights, without a rest.

    The rounding error of one key is carried to the next, so that each is off by at most one part; the error
    of `total` itself, at most count parts (2**-32 of all), is added to the heaviest key. A weight of 0 gets none.
    """
    cdef int64_t i, heaviest = 0
    cdef double scale = <double>count * FULL / total
    cdef double carried = 0
    cdef uint64_t given = 0
    for i in range(count):
        parts[i] = 0
        if weights[i] > weights[heaviest]:
            heaviest = i
        if weights[i] > 0:
            carried += weights[i] / most * scale
            parts[i] = <uint64_t>floor(carried + 0.5)
            carried -= <double>parts[i]
            given += parts[i]
    parts[heaviest] += <uint64_t>count * FULL - given


cdef void fill_columns(uint64_t* parts, uint32_t* waiting, int64_t count, column_t* columns) noexcept nogil:
    """Pair every key that does not fill its column with one that has more than a column (Walker 1977, Vose 1991).

    In whole numbers: the parts left always equal the columns left, so that nothing remains at the end,
    and a key without parts is never the other one. `waiting` has the small keys at its front and the
    large ones at its back.
    """
    cdef int64_t i, num_small = 0, first_large = count
    cdef uint32_t small, large
    for i in range(count):
        if parts[i] < FULL:
            waiting[num_small] = <uint32_t>i
            num_small += 1
        else:
            first_large -= 1
            waiting[first_large] = <uint32_t>i
    while num_small:
        num_small -= 1
        small, large = waiting[num_small], waiting[first_large]
        columns[small].share = <uint32_t>parts[small]
        columns[small].other = large
        parts[large] -= FULL - parts[small]
        if parts[large] < FULL:
            first_large += 1
            waiting[num_small] = large
            num_small += 1
    for i in range(first_large, count):
        columns[waiting[i]].share = 0
        columns[waiting[i]].other = waiting[i]


cdef class Table:
    """A distribution in the form from which keys are drawn: an alias table.

    Parameters
    ----------
    low, high : int
        The keys are low .. high - 1.
    weights : float64 array of shape (high - low,), optional
        Finite, not negative, one of them positive. Without it keys are equally likely.

    Raises
    ------
    MemoryError
        If there is no memory for 8 bytes per weight, and 12 more while the table is built.
    """

    def __cinit__(self, int64_t low, int64_t high, weights=None):
        self.c.low = low
        self.c.span = <uint64_t>(high - low)
        if weights is not None:
            self._fill(weights)

    def _fill(self, const double[::1] weights):
        cdef int64_t count = weights.shape[0]
        cdef double most = np.max(weights)
        cdef double total = 0
        cdef int64_t first
        cdef uint64_t* parts = <uint64_t*>malloc(count * sizeof(uint64_t))
        cdef uint32_t* waiting = <uint32_t*>malloc(count * sizeof(uint32_t))
        self.c.columns = <column_t*>malloc(count * sizeof(column_t))
        if parts == NULL or waiting == NULL or self.c.columns == NULL:
            free(parts)
            free(waiting)
            raise MemoryError(f"no memory for an alias table of {count} weights")
        for first in range(0, count, 1 << 20):  # relative to the largest, since the plain sum may overflow
            total += np.sum(np.divide(weights[first:first + (1 << 20)], most))
        with nogil:
            apportion(&weights[0], count, total, most, parts)
            fill_columns(parts, waiting, count, self.c.columns)
        free(parts)
        free(waiting)

    def __dealloc__(self):
        free(self.c.columns)

    def parts(self):
        """How many of the (high - low) * 2**32 equally likely parts each key has: a uint64 array."""
        cdef int64_t i, count = self.c.span
        parts = np.full(count, FULL, dtype=np.uint64)
        cdef uint64_t[::1] view = parts
        if self.c.columns != NULL:
            for i in range(count):
                view[i] -= FULL - self.c.columns[i].share
                view[self.c.columns[i].other] += FULL - self.c.columns[i].share
        return parts

    def draw(self, Generator generator, int64_t count):
        """Keys drawn independently: an int64 array of shape (count,)."""
        keys = np.empty(count, dtype=np.int64)
        cdef key_t[::1] view = keys
        if count:
            with nogil:
                draw_keys(&self.c, generator.c, &view[0], count)
        return keys


cdef class Generator:
    """A stream of random words that depends on a seed, a worker's number and a purpose.

    Parameters
    ----------
    seed, worker, purpose : int
        Not negative.
    """

    def __cinit__(self, seed, worker, purpose):
        sequence = np.random.SeedSequence(seed, spawn_key=(worker, purpose))
        self.source = np.random.SFC64(sequence)
        self.c = PyCapsule_GetPointer(self.source.capsule, "BitGenerator")

    @property
    def state(self):
        """Where the stream is: the state of NumPy's SFC64, which can be set."""
        return self.source.state

    @state.setter
    def state(self, state):
        self.source.state = state
