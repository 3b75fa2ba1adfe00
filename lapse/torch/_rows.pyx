"""Floor 6. The rows of a batch: its distinct keys, gathered to where they are used, and gradients summed back.

Distinct keys are in the order of their first occurrence, so that a row's first gradient is known as such and is copied
instead of added to zeros. Needs no PyTorch: the arrays are NumPy's, those of tensors included.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

ctypedef fused real:
    float
    double

cdef enum:
    ROOM = 2    # slots for each id of the largest batch, at least


cdef inline Py_ssize_t slot_of(int64_t id, int shift) noexcept nogil:
    return <Py_ssize_t>((<uint64_t>id * <uint64_t>0x9E3779B97F4A7C15) >> shift)


cdef class Distinct:
    """Finds the distinct ids of batches, by a hash table that is kept from one to the next.

    Not for several threads at a time.
    """

    cdef int32_t[::1] slots     # 1 + the place of an id among the distinct ones; 0: free
    cdef int bits

    def __init__(self):
        self.grow(1024)

    cdef int grow(self, Py_ssize_t count) except -1:
        self.bits = max(10, int(ROOM * count - 1).bit_length())
        self.slots = np.empty(1 << self.bits, dtype=np.int32)
        return 0

    def of(self, const int64_t[::1] ids, int64_t limit, int64_t first):
        """The distinct ids of a batch, as keys.

        Parameters
        ----------
        ids : int64 array of shape (n,)
        limit : int
            Ids are from 0 to `limit` - 1.
        first : int
            The key of id 0.

        Returns
        -------
        keys : int64 array of shape (u,)
            `first` + id, in the order of first occurrence.
        places : int64 array of shape (n,)
            Where each id's key is among them.
        bad : int
            The position of the first id outside the range, or -1. The others are then undefined.
        """
        cdef Py_ssize_t n = ids.shape[0]
        cdef Py_ssize_t bad
        cdef Py_ssize_t count = 0
        if n > (1 << self.bits) // ROOM:
            self.grow(n)
        keys = np.empty(n, dtype=np.int64)
        places = np.empty(n, dtype=np.int64)
        cdef int64_t[::1] key_view = keys
        cdef int64_t[::1] place_view = places
        with nogil:
            bad = self.fill(ids, limit, first, key_view, place_view, &count)
        return keys[:count], places, bad

    cdef Py_ssize_t fill(self, const int64_t[::1] ids, int64_t limit, int64_t first, int64_t[::1] keys,
                         int64_t[::1] places, Py_ssize_t* count) noexcept nogil:
        cdef Py_ssize_t i, slot
        cdef Py_ssize_t mask = self.slots.shape[0] - 1
        cdef int shift = 64 - self.bits
        cdef int32_t found
        cdef int64_t key
        memset(&self.slots[0], 0, self.slots.shape[0] * sizeof(int32_t))
        for i in range(ids.shape[0]):
            if <uint64_t>ids[i] >= <uint64_t>limit:
                return i
            key = first + ids[i]
            slot = slot_of(key, shift)
            while True:
                found = self.slots[slot]
                if found == 0:
                    keys[count[0]] = key
                    count[0] += 1
                    self.slots[slot] = found = <int32_t>count[0]
                    break
                if keys[found - 1] == key:
                    break
                slot = (slot + 1) & mask
            places[i] = found - 1
        return -1


def are_shifted(const int64_t[::1] ids, int64_t first, const int64_t[::1] keys):
    """Whether ``keys[i] == first + ids[i]`` for all, and there are as many of both."""
    cdef Py_ssize_t i
    cdef int64_t differing = 0
    if ids.shape[0] != keys.shape[0]:
        return False
    with nogil:
        for i in range(ids.shape[0]):
            differing |= first + ids[i] ^ keys[i]
    return differing == 0


def gather(const real[:, ::1] rows, const int64_t[::1] places, real[:, ::1] out):
    """Copy the row of each place: ``out[i] = rows[places[i]]``."""
    cdef Py_ssize_t i
    cdef size_t row_bytes = rows.shape[1] * sizeof(real)
    with nogil:
        for i in range(places.shape[0]):
            memcpy(&out[i, 0], &rows[places[i], 0], row_bytes)


cdef inline void add_row(real* target, const real* source, real factor, Py_ssize_t length,
                         bint is_first) noexcept nogil:
    cdef Py_ssize_t j
    if is_first:
        for j in range(length):
            target[j] = factor * source[j]
    else:
        for j in range(length):
            target[j] += factor * source[j]


def sum_bags(const real[:, ::1] rows, const int64_t[::1] places, const int64_t[::1] starts, factors, int64_t skipped,
             bint is_mean, real[:, ::1] out):
    """The sum or mean of the rows of each bag.

    Parameters
    ----------
    rows : array of shape (u, L)
    places : int64 array of shape (n,)
    starts : int64 array of shape (b + 1,)
        Bag i has the places from ``starts[i]`` to ``starts[i + 1]``.
    factors : array of shape (n,), or None
    skipped : int
        A place that counts for nothing, or -1.
    is_mean : bool
        Divide by the number of places that count.
    out : array of shape (b, L)
        Zeros for an empty bag.
    """
    cdef Py_ssize_t bag, i, count, length = rows.shape[1]
    cdef const real[::1] weights
    cdef bint is_weighted = factors is not None
    if is_weighted:
        weights = factors
    with nogil:
        for bag in range(starts.shape[0] - 1):
            count = 0
            for i in range(starts[bag], starts[bag + 1]):
                if places[i] != skipped:
                    add_row(&out[bag, 0], &rows[places[i], 0], weights[i] if is_weighted else <real>1, length,
                            count == 0)
                    count += 1
            if count == 0:
                memset(&out[bag, 0], 0, length * sizeof(real))
            elif is_mean and count > 1:
                scale(&out[bag, 0], length, <real>count)


cdef inline void scale(real* row, Py_ssize_t length, real divisor) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(length):
        row[j] /= divisor


def sum_gradients(const real[:, ::1] gradients, const int64_t[::1] places, real[:, ::1] sums):
    """Sum the gradients of each row: ``sums[p]`` of all ``gradients[i]`` with ``places[i] == p``.

    Places are numbered by first occurrence, see `Distinct`.
    """
    cdef Py_ssize_t i, seen = 0, length = gradients.shape[1]
    with nogil:
        for i in range(places.shape[0]):
            add_row(&sums[places[i], 0], &gradients[i, 0], <real>1, length, places[i] == seen)
            seen += places[i] == seen


def sum_bag_gradients(const real[:, ::1] gradients, const int64_t[::1] places, const int64_t[::1] starts, factors,
                      int64_t skipped, bint is_mean, real[:, ::1] sums):
    """Sum the gradients of each row from those of the bags; parameters as in `sum_bags`.

    The row at `skipped` becomes zero.
    """
    cdef Py_ssize_t bag, i, count, seen = 0, length = gradients.shape[1]
    cdef const real[::1] weights
    cdef bint is_weighted = factors is not None
    cdef real factor
    if is_weighted:
        weights = factors
    with nogil:
        for bag in range(starts.shape[0] - 1):
            factor = 1
            if is_mean:
                count = 0
                for i in range(starts[bag], starts[bag + 1]):
                    count += places[i] != skipped
                factor = <real>1 / <real>max(count, 1)
            for i in range(starts[bag], starts[bag + 1]):
                add_row(&sums[places[i], 0], &gradients[bag, 0],
                        <real>0 if places[i] == skipped else factor * weights[i] if is_weighted else factor,
                        length, places[i] == seen)
                seen += places[i] == seen


def dot_bags(const real[:, ::1] gradients, const real[:, ::1] rows, const int64_t[::1] places,
             const int64_t[::1] starts, int64_t skipped, real[::1] out):
    """The gradients of the weights of a weighted sum: of each place its row times the gradient of its bag."""
    cdef Py_ssize_t bag, i, j, length = rows.shape[1]
    cdef real total
    with nogil:
        for bag in range(starts.shape[0] - 1):
            for i in range(starts[bag], starts[bag + 1]):
                total = 0
                if places[i] != skipped:
                    for j in range(length):
                        total += gradients[bag, j] * rows[places[i], j]
                out[i] = total


def first_not_finite(const real[:, ::1] rows):
    """The number of the first row that has a NaN or an infinite element, or -1."""
    cdef Py_ssize_t i, found = -1
    with nogil:
        for i in range(rows.shape[0]):
            if not is_finite(&rows[i, 0], rows.shape[1]):
                found = i
                break
    return found


cdef inline bint is_finite(const real* row, Py_ssize_t length) noexcept nogil:
    """Without a branch and a floating-point sum, so that it is computed in vectors: x - x is 0 for finite x alone."""
    cdef Py_ssize_t j
    cdef bint bad = False
    for j in range(length):
        bad |= row[j] - row[j] != 0
    return not bad
