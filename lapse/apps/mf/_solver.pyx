"""Rows (or columns) of a matrix by their normal equations, over a parameter server, without the GIL.

While the values of one side are fixed, those of the other side are independent of each other: each is the solution of
its own equations, or a draw from their distribution. A worker solves the rows of its own in *batches*. A batch pulls
each value of the other side that its ratings need once; it does so while the batch before it is solved. What is solved
is set: nobody else changes it.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

import numpy as np

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.mf._incidence import check_lines, padded

cdef extern from "lapse/apps/_shared/_vector.h":    # included by the last one; named, so that its changes are seen
    pass

cdef extern from "lapse/apps/mf/_normals.h" nogil:
    uint64_t mf_stream(uint64_t seed, int64_t key)

cdef extern from "lapse/apps/mf/_normal_equations.h" nogil:
    enum:
        MF_PANEL
    ctypedef struct mf_equations:
        int rank, biases, length, implicit, stride
        float mean, scale
        double regularization, bias_regularization
        const double* prior
        const double* shift
        float* sums
        float* target
        float* panel
        double* matrix
        double* vector
    void mf_gather(mf_equations* e, const float* row_mean, const float* values, const int32_t* places,
                   const float* ratings, int64_t count)
    int mf_solve(mf_equations* e, uint64_t* state, float* value)
    double mf_squares(const mf_equations* e, const float* value, const float* values, const int32_t* places,
                      const float* ratings, int64_t count)

cdef enum:
    SLOTS = 2       # one batch is solved while the values of the next one arrive


cdef struct batch_t:
    int64_t first, end      # the rows
    key_t* keys             # of the other side, each once
    int64_t num_keys
    int32_t* places         # per rating: place of its other side among `keys`
    float* values           # of `keys`


cdef class Equations:
    """Which equations are solved: how a rating counts, and what is known without ratings.

    Parameters
    ----------
    rank
        Elements of a factor.
    biases
        Whether a value has a bias behind its factor.
    implicit
        Whether a rating is the confidence that a cell is 1 instead of 0, which it is believed to be otherwise (Hu,
        Koren, Volinsky 2008).
    mean
        What is subtracted from explicit ratings.
    scale
        Explicit: the precision of the noise (1 for least squares); implicit: how much confidence there is per unit of
        a rating.
    regularization, bias_regularization
        Added to the diagonal for each rating of a row (Zhou et al. 2008).
    prior : array of float64, shape (length, length)
        Added to the matrix.
    shift : array of float64, shape (length,)
        Added to the right side.
    """

    cdef mf_equations c
    cdef readonly const double[:, ::1] prior
    cdef readonly const double[::1] shift

    def __init__(self, *, int rank, bint biases, bint implicit=False, float mean=0.0, float scale=1.0,
                 double regularization=0.0, double bias_regularization=0.0, prior=None, shift=None):
        cdef int length = rank + biases
        if rank < 1:
            raise ValueError(f"rank is {rank}, but must be at least 1")
        self.prior = np.zeros((length, length)) if prior is None else np.ascontiguousarray(prior, np.float64)
        self.shift = np.zeros(length) if shift is None else np.ascontiguousarray(shift, np.float64)
        if self.prior.shape[0] != length or self.prior.shape[1] != length or self.shift.shape[0] != length:
            raise ValueError(f"prior and shift must have the shapes ({length}, {length}) and ({length},)")
        self.c.rank, self.c.biases, self.c.length, self.c.implicit = rank, biases, length, implicit
        self.c.stride = padded(length)
        self.c.mean, self.c.scale = mean, scale
        self.c.regularization, self.c.bias_regularization = regularization, bias_regularization
        self.c.prior, self.c.shift = &self.prior[0, 0], &self.shift[0]
        self.c.sums = <float*>allocate(self.c.stride * self.c.stride, sizeof(float))
        self.c.target = <float*>allocate(self.c.stride, sizeof(float))
        self.c.panel = <float*>allocate(MF_PANEL * self.c.stride, sizeof(float))
        self.c.matrix = <double*>allocate(length * length, sizeof(double))
        self.c.vector = <double*>allocate(length, sizeof(double))

    def __dealloc__(self):
        free(self.c.sums)
        free(self.c.target)
        free(self.c.panel)
        free(self.c.matrix)
        free(self.c.vector)

    @property
    def length(self):
        """Elements of a value."""
        return self.c.length

    def solve(self, const float[:, ::1] values, const int32_t[::1] places, const float[::1] ratings, seed=None,
              const float[::1] row_mean=None):
        """Solve one row on values in memory, for trials and tests.

        Parameters
        ----------
        values
            Shape (n, length): of the other side.
        places
            Per rating: which of them belongs to it.
        ratings
            As many as `places`.
        seed
            Draw with this seed instead.
        row_mean
            Shape (length,): see `Solver`.

        Returns
        -------
        array of float32, shape (length,)

        Raises
        ------
        ValueError
            If the matrix is not positive definite.
        """
        cdef int64_t i
        cdef uint64_t state = 0 if seed is None else seed
        cdef float[::1] value = np.empty(self.c.length, np.float32)
        if row_mean is not None and row_mean.shape[0] != self.c.length:
            raise ValueError(f"row_mean has {row_mean.shape[0]} elements instead of {self.c.length}")
        if values.shape[1] != self.c.length or places.shape[0] != ratings.shape[0]:
            raise ValueError(f"values have {values.shape[1]} elements instead of {self.c.length}, or there are "
                             f"{places.shape[0]} places for {ratings.shape[0]} ratings")
        for i in range(places.shape[0]):
            if not 0 <= places[i] < values.shape[0]:
                raise IndexError(f"rating {i} uses the value {places[i]} of {values.shape[0]}")
        mf_gather(&self.c, &row_mean[0] if row_mean is not None else NULL, &values[0, 0] if values.shape[0] else NULL,
                  &places[0] if places.shape[0] else NULL, &ratings[0] if ratings.shape[0] else NULL,
                  ratings.shape[0])
        if mf_solve(&self.c, NULL if seed is None else &state, &value[0]):
            raise ValueError(NOT_DEFINITE)
        return np.asarray(value)


NOT_DEFINITE = "the equations have no unique solution: choose a larger regularization"


cdef class Solver(Pipeline):
    """Solves a worker's rows, one after the other; or its columns.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods.
    equations
        `Equations`; no other solver uses them.
    starts : array of int64, shape (rows + 1,)
        The ratings of row i are those from ``starts[i]`` to ``starts[i + 1] - 1``.
    others : array of int32
        Per rating: its other side, from 0 to `num_others` - 1.
    ratings : array of float32
        As many as `others`.
    first_key, first_other_key
        Row i has the key ``first_key + i``, and likewise the other side.
    num_others
        Of the other side.
    batch
        Ratings whose other side is pulled together, about.
    row_means : array of float32, shape (rows, length)
        What is expected of each row besides what `equations` say: the prior times it is added to the right side.
        None: nothing.
    seed
        Draw instead of solving, each row by (seed, key) alone; None: solve.
    slow_down, is_timed
        See `Pipeline.set_pace`.

    Attributes
    ----------
    solved
        Ratings whose rows are solved.
    squares
        With a seed: the sum of their squared errors after it.
    """

    cdef Equations equations
    cdef const int64_t[::1] starts
    cdef const int32_t[::1] others
    cdef const float[::1] ratings
    cdef const float[:, ::1] row_means
    cdef key_t first_key, first_other_key
    cdef int64_t num_others, max_ratings
    cdef bint draws
    cdef uint64_t seed
    cdef int32_t* places            # per value of the other side: its place in the batch at hand, or -1
    cdef batch_t batches[SLOTS]
    cdef key_t* solved_keys         # of a batch
    cdef float* solutions
    cdef readonly int64_t solved
    cdef readonly double squares

    def __init__(self, Worker kv, Equations equations, const int64_t[::1] starts, const int32_t[::1] others,
                 const float[::1] ratings, *, key_t first_key, key_t first_other_key, int64_t num_others,
                 int64_t batch, const float[:, ::1] row_means=None, seed=None, double slow_down=1.0,
                 bint is_timed=False):
        if batch < 1:
            raise ValueError(f"batch is {batch}, but must be at least 1")
        self.kv, self.equations = kv, equations
        self.starts, self.others, self.ratings, self.row_means = starts, others, ratings, row_means
        self.first_key, self.first_other_key, self.num_others = first_key, first_other_key, num_others
        self.draws = seed is not None
        self.seed = seed or 0
        self.max_ratings = batch
        self._check()
        self.set_lookahead(SLOTS - 1)
        self.set_pace(slow_down, is_timed)
        self._allocate()

    cdef int _check(self) except -1:
        cdef int64_t rows = self.starts.shape[0] - 1
        check_lines(self.starts, self.others, self.num_others)
        if self.others.shape[0] != self.ratings.shape[0]:
            raise ValueError(f"there are {self.ratings.shape[0]} ratings, but {self.others.shape[0]} others")
        if self.row_means is not None \
                and (self.row_means.shape[0] != rows or self.row_means.shape[1] != self.equations.c.length):
            raise ValueError(f"row_means has the shape ({self.row_means.shape[0]}, {self.row_means.shape[1]}) instead "
                             f"of ({rows}, {self.equations.c.length})")
        return 0

    cdef int _allocate(self) except -1:
        cdef int64_t i, ratings = self.max_ratings, rows = self.starts.shape[0] - 1, most
        for i in range(rows):  # a row is never divided
            ratings = max(ratings, self.starts[i + 1] - self.starts[i])
        ratings = min(ratings, <int64_t>self.ratings.shape[0])
        most = min(ratings, self.num_others)
        self.places = <int32_t*>allocate(self.num_others, sizeof(int32_t))
        memset(self.places, -1, self.num_others * sizeof(int32_t))
        for i in range(SLOTS):
            self.batches[i].keys = <key_t*>allocate(most, sizeof(key_t))
            self.batches[i].places = <int32_t*>allocate(ratings, sizeof(int32_t))
            self.batches[i].values = <float*>allocate(most * self.equations.c.length, sizeof(float))
        most = min(rows, self.max_ratings)  # rows without ratings are in batches, too
        self.solved_keys = <key_t*>allocate(most, sizeof(key_t))
        self.solutions = <float*>allocate(most * self.equations.c.length, sizeof(float))
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(SLOTS):
            free(self.batches[i].keys)
            free(self.batches[i].places)
            free(self.batches[i].values)
        free(self.places)
        free(self.solved_keys)
        free(self.solutions)

    def solve(self, int64_t first, int64_t end):
        """Solve the rows from `first` to `end` - 1; the last of them when `finish` is called."""
        if not 0 <= first <= end < self.starts.shape[0]:
            raise IndexError(f"rows from {first} to {end}, but there are {self.starts.shape[0] - 1}")
        try:
            with nogil:
                while first < end:
                    first = self._add_batch(first, end)
        except BaseException:
            self.settle()
            raise

    cdef int64_t _add_batch(self, int64_t first, int64_t end) except -1 nogil:
        """Make a batch of the first rows; returns the row behind them."""
        cdef batch_t* batch = &self.batches[self.filling()]
        cdef int64_t last = min(end, first + self.max_ratings)
        batch.first, batch.end = first, first + 1
        while batch.end < last and self.starts[batch.end + 1] - self.starts[first] <= self.max_ratings:
            batch.end += 1
        self.begin_computing()
        self._place(batch)
        self.end_computing()
        self.advance()
        return batch.end

    cdef void _place(self, batch_t* batch) noexcept nogil:
        cdef int64_t i, begin = self.starts[batch.first], end = self.starts[batch.end]
        cdef int32_t other
        batch.num_keys = 0
        for i in range(begin, end):
            other = self.others[i]
            if self.places[other] < 0:
                self.places[other] = <int32_t>batch.num_keys
                batch.keys[batch.num_keys] = self.first_other_key + other
                batch.num_keys += 1
            batch.places[i - begin] = self.places[other]
        for i in range(batch.num_keys):
            self.places[batch.keys[i] - self.first_other_key] = -1

    cdef int prepare(self, int slot) except -1 nogil:
        cdef batch_t* batch = &self.batches[slot]
        self.kv.pull_keys(batch.keys, batch.num_keys, batch.values, &self.operations[slot])
        return 0

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef batch_t* batch = &self.batches[slot]
        cdef int64_t row
        self.wait(slot)
        self.begin_computing()
        for row in range(batch.first, batch.end):
            if self._solve_row(batch, row):
                with gil:
                    raise ValueError(NOT_DEFINITE)
        self.end_computing()
        self._set_rows(batch)
        self.solved += self.starts[batch.end] - self.starts[batch.first]
        return 0

    cdef int _solve_row(self, batch_t* batch, int64_t row) noexcept nogil:
        cdef mf_equations* equations = &self.equations.c
        cdef int64_t begin = self.starts[row], count = self.starts[row + 1] - begin
        cdef const int32_t* places = batch.places + (begin - self.starts[batch.first])
        cdef const float* ratings = &self.ratings[begin] if count else NULL
        cdef float* value = self.solutions + (row - batch.first) * equations.length
        cdef uint64_t state = mf_stream(self.seed, self.first_key + row)
        mf_gather(equations, &self.row_means[row, 0] if self.row_means is not None else NULL, batch.values, places,
                  ratings, count)
        if mf_solve(equations, &state if self.draws else NULL, value):
            return -1
        if self.draws:
            self.squares += mf_squares(equations, value, batch.values, places, ratings, count)
        return 0

    cdef int _set_rows(self, batch_t* batch) except -1 nogil:
        cdef int64_t i
        for i in range(batch.end - batch.first):
            self.solved_keys[i] = self.first_key + batch.first + i
        self.kv.set_keys(self.solved_keys, batch.end - batch.first, self.solutions, NULL)
        return 0
