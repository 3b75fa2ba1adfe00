"""The model of matrix factorization: predictions, steps and errors, on values in memory."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset


cdef class Model:
    """What a prediction and a step are: ``mean + b_row + b_column + <p, q>``, clipped to ``low .. high``.

    Parameters
    ----------
    rank
        Elements of a factor.
    biases
        Whether rows and columns have a bias, and the mean is added.
    adagrad
        Steps by AdaGrad instead of plain ones; a value then holds the accumulated squares too.
    mean, low, high
        Of the training ratings.
    regularization, bias_regularization
        Of factors and biases, once per rating.

    Attributes
    ----------
    length
        Elements of a value: factor, bias if there is one, then the accumulated squares of both.
    """

    def __init__(self, *, int rank, bint biases, bint adagrad, float mean, float low, float high,
                 float regularization, float bias_regularization):
        if rank < 1:
            raise ValueError(f"rank is {rank}, but must be at least 1")
        self.adagrad = adagrad
        self.c.rank, self.c.biases = rank, biases
        self.c.length = (rank + biases) * (2 if adagrad else 1)
        self.c.mean = mean if biases else 0.0
        self.c.low, self.c.high = low, high
        self.c.regularization, self.c.bias_regularization = regularization, bias_regularization

    @property
    def length(self):
        return self.c.length

    @property
    def rank(self):
        return self.c.rank

    @property
    def biases(self):
        return bool(self.c.biases)

    cdef void step(self, float* values, const int32_t* rows, const int32_t* columns, const float* ratings,
                   int64_t count, float rate) noexcept nogil:
        if self.adagrad:
            mf_adagrad(&self.c, values, rows, columns, ratings, count, rate)
        else:
            mf_sgd(&self.c, values, rows, columns, ratings, count, rate)

    def train(self, float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
              const float[::1] ratings, float rate):
        """Train ratings on values in memory, for trials and tests.

        Parameters
        ----------
        values
            Shape (n, length); changed.
        rows, columns
            Per rating: which of the values belong to its row and its column; never the same.
        ratings
            As many as `rows`.
        rate
            The learning rate.
        """
        self.check(values, rows, columns, ratings)
        if ratings.shape[0]:
            self.step(&values[0, 0], &rows[0], &columns[0], &ratings[0], ratings.shape[0], rate)

    def evaluate(self, const float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                 const float[::1] ratings):
        """Sums over ratings: squared errors, those of clipped predictions, the penalty, absolute errors of those."""
        cdef mf_sums sums
        self.check(values, rows, columns, ratings)
        memset(&sums, 0, sizeof(sums))
        if ratings.shape[0]:
            mf_evaluate(&self.c, &values[0, 0], &rows[0], &columns[0], &ratings[0], ratings.shape[0], &sums)
        return sums.squares, sums.clipped_squares, sums.penalty, sums.absolute

    cdef int check(self, const float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                   const float[::1] ratings) except -1:
        cdef int64_t i
        if values.shape[1] != self.c.length:
            raise ValueError(f"values have {values.shape[1]} elements, but the model's have {self.c.length}")
        if not rows.shape[0] == columns.shape[0] == ratings.shape[0]:
            raise ValueError(f"{rows.shape[0]} rows and {columns.shape[0]} columns for {ratings.shape[0]} ratings")
        for i in range(rows.shape[0]):
            if not (0 <= rows[i] < values.shape[0] and 0 <= columns[i] < values.shape[0] and rows[i] != columns[i]):
                raise IndexError(f"rating {i} uses the values {rows[i]} and {columns[i]}, but must use two different "
                                 f"ones of {values.shape[0]}")
        return 0


cdef int check_order(const int64_t[::1] order, int64_t num_ratings) except -1:
    cdef int64_t i
    for i in range(order.shape[0]):
        if not 0 <= order[i] < num_ratings:
            raise IndexError(f"the order contains rating {order[i]}, but there are {num_ratings} ratings")
    return 0
