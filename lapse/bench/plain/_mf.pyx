"""Matrix factorization on an array in memory."""

from libc.stdint cimport int32_t, int64_t

from lapse.apps.mf._model cimport Model, check_order

cdef enum:
    GATHERED_AT_ONCE = 1024     # ratings that are put in order before they are trained


cdef class PlainTrainer:
    """The training of `lapse.apps.mf` without a server.

    Parameters
    ----------
    model
        A `Model`.
    values : array of float32, shape (rows and columns, length)
        Rows' values, then columns'; changed. Threads may share it, as in DSGD.
    rows, columns : arrays of int32
        Per rating: which of `values` belong to it.
    ratings : array of float32
    """

    cdef Model model
    cdef float[:, ::1] values
    cdef const int32_t[::1] rows
    cdef const int32_t[::1] columns
    cdef const float[::1] ratings

    def __init__(self, Model model, float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                 const float[::1] ratings):
        model.check(values, rows, columns, ratings)
        self.model, self.values, self.rows, self.columns, self.ratings = model, values, rows, columns, ratings

    def train(self, const int64_t[::1] order, float rate):
        """Train the ratings of the numbers in `order`, one after the other."""
        cdef int64_t begin = 0, size
        check_order(order, self.ratings.shape[0])
        with nogil:
            while begin < order.shape[0]:
                size = min(<int64_t>GATHERED_AT_ONCE, <int64_t>order.shape[0] - begin)
                self._train(&order[begin], size, rate)
                begin += size

    cdef void _train(self, const int64_t* order, int64_t size, float rate) noexcept nogil:
        cdef int32_t[GATHERED_AT_ONCE] rows, columns
        cdef float[GATHERED_AT_ONCE] ratings
        cdef int64_t i
        for i in range(size):
            rows[i], columns[i] = self.rows[order[i]], self.columns[order[i]]
            ratings[i] = self.ratings[order[i]]
        self.model.step(&self.values[0, 0], rows, columns, ratings, size, rate)
