"""Which lines of a matrix have ratings with which: a matrix of ones that values are multiplied by, without the GIL."""

from libc.stdint cimport int32_t, int64_t, uint64_t

import numpy as np

cdef extern from "lapse/apps/_shared/_vector.h":    # included by the next ones; named, so that its changes are seen
    pass

cdef extern from "lapse/apps/mf/_incidence.h" nogil:
    void mf_sum_others(const int64_t* starts, const int32_t* others, int64_t lines, int64_t stride,
                       const float* values, float* sums)
    void mf_add_to_others(const int64_t* starts, const int32_t* others, int64_t lines, int64_t stride,
                          const float* values, float* sums)

cdef extern from "lapse/apps/mf/_normals.h" nogil:
    uint64_t mf_stream(uint64_t seed, int64_t key)
    void mf_add_normals(uint64_t* state, double* to, int64_t n)

ctypedef void (*add_function)(const int64_t*, const int32_t*, int64_t, int64_t, const float*, float*) noexcept nogil

cdef enum:
    LANES = 8


def padded(int64_t length):
    """The number of elements of a value of so many, with zeros behind them up to whole vectors."""
    return (length + LANES - 1) // LANES * LANES


def check_lines(const int64_t[::1] starts, const int32_t[::1] others, int64_t num_others):
    """Raise `ValueError` or `IndexError` if this is not what `Incidence` takes."""
    cdef int64_t i, lines = starts.shape[0] - 1
    if lines < 0 or starts[0] != 0 or starts[lines] != others.shape[0]:
        raise ValueError(f"starts must go from 0 to the number of ratings, {others.shape[0]}")
    for i in range(lines):
        if starts[i] > starts[i + 1]:
            raise ValueError(f"starts decreases after line {i}")
    for i in range(others.shape[0]):
        if not 0 <= others[i] < num_others:
            raise IndexError(f"rating {i} has the other side {others[i]}, but there are {num_others}")


cdef class Incidence:
    """The ratings of some lines.

    Parameters
    ----------
    starts : array of int64, shape (lines + 1,)
        The ratings of line i are those from ``starts[i]`` to ``starts[i + 1] - 1``.
    others : array of int32
        Per rating: its other side, from 0 to `num_others` - 1.

    Raises
    ------
    ValueError, IndexError
        If `starts` does not fit `others`, or one of these is out of range.
    """

    cdef const int64_t[::1] starts
    cdef const int32_t[::1] others
    cdef readonly int64_t num_lines, num_others

    def __init__(self, const int64_t[::1] starts, const int32_t[::1] others, int64_t num_others):
        check_lines(starts, others, num_others)
        self.starts, self.others = starts, others
        self.num_lines, self.num_others = starts.shape[0] - 1, num_others

    def sum_others(self, const float[:, ::1] values):
        """For each line, the sum of the values of its ratings' other sides.

        Parameters
        ----------
        values : array of float32, shape (num_others, n)
            n is a multiple of 8 (`padded`).

        Returns
        -------
        array of float32, shape (num_lines, n)
        """
        return self.sums_of(mf_sum_others, values, self.num_others, self.num_lines)

    def add_to_others(self, const float[:, ::1] values):
        """For each other side, the sum of the values of the lines that have a rating with it.

        Parameters
        ----------
        values : array of float32, shape (num_lines, n)
            n is a multiple of 8 (`padded`).

        Returns
        -------
        array of float32, shape (num_others, n)
        """
        return self.sums_of(mf_add_to_others, values, self.num_lines, self.num_others)

    cdef object sums_of(self, add_function add, const float[:, ::1] values, int64_t given, int64_t wanted):
        cdef int64_t stride = values.shape[1]
        if values.shape[0] != given or stride % LANES or stride == 0:
            raise ValueError(f"values have the shape ({values.shape[0]}, {stride}), but must have {given} rows of a "
                             f"multiple of {LANES} elements")
        cdef float[:, ::1] sums = np.zeros((wanted, stride), np.float32)
        if self.others.shape[0]:
            with nogil:
                add(&self.starts[0], &self.others[0], self.num_lines, stride, &values[0, 0], &sums[0, 0])
        return np.asarray(sums)


def draw_normals(int64_t first_key, int64_t count, int length, uint64_t seed):
    """Draw from the standard normal distribution, for each key by (seed, key) alone.

    Returns
    -------
    array of float64, shape (count, length)
    """
    cdef double[:, ::1] draws = np.zeros((count, length))
    cdef int64_t i
    cdef uint64_t state
    with nogil:
        for i in range(count):
            state = mf_stream(seed, first_key + i)
            mf_add_normals(&state, &draws[i, 0], length)
    return np.asarray(draws)
