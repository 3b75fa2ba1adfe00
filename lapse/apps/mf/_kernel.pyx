"""Matrix factorization over a parameter server, without the GIL.

A worker's ratings are trained in *batches*: some hundreds or thousands of them, in the order that the
schedule gives. A batch pulls the values of its rows and columns, each once, trains its ratings one
after the other, and pushes what changed: inside a batch the result is that of sequential stochastic
gradient descent. Batches are prepared ahead of their turn, and the columns of a batch are localized
then, so that they have arrived when it is trained. The batches are the same wherever parameters are.

A push is waited for before the next pull. (It is done at once where the keys are here.) So a worker
always reads its own updates, and where no two workers share a key, as in DSGD, the result is exact
under every management technique.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from lapse cimport Worker, key_t, operation_t

import numpy as np

cdef extern from "lapse/apps/_vector.h":    # included by the next one; named, so that its changes are seen
    pass

cdef extern from "_mf.h" nogil:
    ctypedef struct mf_model:
        int rank, biases, length
        float mean, low, high, regularization, bias_regularization
    ctypedef struct mf_sums:
        double squares, clipped_squares, penalty
    void mf_sgd(const mf_model* m, float* values, const int32_t* rows, const int32_t* columns, const float* ratings,
                int64_t count, float rate)
    void mf_adagrad(const mf_model* m, float* values, const int32_t* rows, const int32_t* columns,
                    const float* ratings, int64_t count, float rate)
    void mf_evaluate(const mf_model* m, const float* values, const int32_t* rows, const int32_t* columns,
                     const float* ratings, int64_t count, mf_sums* sums)
    void mf_subtract(float* new_values, const float* old_values, int64_t n)
    void mf_shuffle(const int32_t* groups, int64_t n, int64_t num_groups, uint64_t state, int64_t* order, int64_t* ends)


cdef struct batch_t:
    int64_t size
    float rate
    int32_t* rows               # per rating: place of its row's value among the batch's
    int32_t* columns            # the same for its column
    float* ratings
    key_t* keys                 # each once, in order of their places
    int64_t num_keys
    key_t* wanted               # those among them that are localized
    int64_t num_wanted


cdef void* allocate(size_t count, size_t size) except NULL:
    cdef void* memory = malloc(max(count * size, <size_t>1))
    if memory == NULL:
        raise MemoryError(f"no memory for {count} * {size} bytes")
    return memory


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

    cdef mf_model c
    cdef readonly bint adagrad

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
        self._check(values, rows, columns, ratings)
        if ratings.shape[0]:
            self.step(&values[0, 0], &rows[0], &columns[0], &ratings[0], ratings.shape[0], rate)

    def evaluate(self, const float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                 const float[::1] ratings):
        """Sums over ratings: of squared errors, of those of clipped predictions, of the penalty."""
        cdef mf_sums sums
        self._check(values, rows, columns, ratings)
        memset(&sums, 0, sizeof(sums))
        if ratings.shape[0]:
            mf_evaluate(&self.c, &values[0, 0], &rows[0], &columns[0], &ratings[0], ratings.shape[0], &sums)
        return sums.squares, sums.clipped_squares, sums.penalty

    cdef int _check(self, const float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                    const float[::1] ratings) except -1:
        cdef int64_t i
        if values.shape[1] != self.c.length:
            raise ValueError(f"values have {values.shape[1]} elements, but the model's have {self.c.length}")
        if not rows.shape[0] == columns.shape[0] == ratings.shape[0]:
            raise ValueError(f"{rows.shape[0]} rows and {columns.shape[0]} columns for {ratings.shape[0]} ratings")
        for i in range(rows.shape[0]):
            if not (0 <= rows[i] < values.shape[0] and 0 <= columns[i] < values.shape[0] and rows[i] != columns[i]):
                raise IndexError(f"rating {i} is at values {rows[i]} and {columns[i]} of {values.shape[0]}")
        return 0


cdef enum:
    GATHERED_AT_ONCE = 1024     # ratings that are put in order before they are trained


cdef class ArrayTrainer:
    """The same training on an array in memory, without a server: what the server's cost is compared with.

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
        model._check(values, rows, columns, ratings)
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


cdef int check_order(const int64_t[::1] order, int64_t ratings) except -1:
    cdef int64_t i
    for i in range(order.shape[0]):
        if not 0 <= order[i] < ratings:
            raise IndexError(f"rating {order[i]} of {ratings}")
    return 0


cdef class Trainer:
    """Trains and evaluates one worker's ratings.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods.
    model
        A `Model`.
    rows, columns, ratings
        One element per rating: its row, counted from `first_row`; its column; its value.
    first_row, num_rows
        The worker's rows: ``first_row .. first_row + num_rows - 1``, which are their keys.
    first_column, num_columns
        All columns; column j has the key ``first_column + j``.
    batch
        Ratings between a pull and a push, at most.
    lookahead
        How many batches are prepared before the first of them is trained.
    localize
        Per column, uint8: whether it is localized when a batch with it is prepared.

    Attributes
    ----------
    trained
        Ratings so far.
    compute_seconds, wait_seconds
        Time in the arithmetic, and in pulls and pushes.
    """

    cdef Worker kv
    cdef Model model
    cdef const int32_t[::1] rows
    cdef const int32_t[::1] columns
    cdef const float[::1] ratings
    cdef const uint8_t[::1] localize
    cdef key_t first_row, first_column
    cdef int64_t num_rows, num_columns, most_ratings, most_keys
    cdef int32_t* places        # per row of the worker, then per column: its place in the batch at hand, or -1
    cdef batch_t* ring          # in order of preparation
    cdef int ring_size, first, waiting
    cdef float* values
    cdef float* pulled          # what they were
    cdef operation_t* pulling   # writes into `values` until it is waited for
    cdef operation_t* pushing
    cdef int64_t compute_time, wait_time

    cdef readonly int64_t trained

    def __init__(self, Worker kv, Model model, const int32_t[::1] rows, const int32_t[::1] columns,
                 const float[::1] ratings, *, key_t first_row, int64_t num_rows, key_t first_column,
                 int64_t num_columns, int64_t batch, int lookahead, const uint8_t[::1] localize):
        if batch < 1 or lookahead < 0 or localize.shape[0] != num_columns:
            raise ValueError(f"batch is {batch}, lookahead {lookahead}, localize has {localize.shape[0]} elements for "
                             f"{num_columns} columns")
        self.kv, self.model = kv, model
        self.rows, self.columns, self.ratings, self.localize = rows, columns, ratings, localize
        self.first_row, self.num_rows = first_row, num_rows
        self.first_column, self.num_columns = first_column, num_columns
        self._check_ratings()
        self.most_ratings = max(min(batch, <int64_t>ratings.shape[0]), 1)
        self.most_keys = min(self.most_ratings, num_rows) + min(self.most_ratings, num_columns)
        self._allocate(lookahead + 1)

    cdef int _check_ratings(self) except -1:
        cdef int64_t i
        if not self.rows.shape[0] == self.columns.shape[0] == self.ratings.shape[0]:
            raise ValueError(f"{self.rows.shape[0]} rows and {self.columns.shape[0]} columns for "
                             f"{self.ratings.shape[0]} ratings")
        for i in range(self.rows.shape[0]):
            if not (0 <= self.rows[i] < self.num_rows and 0 <= self.columns[i] < self.num_columns):
                raise IndexError(f"rating {i} is at ({self.rows[i]}, {self.columns[i]}) of {self.num_rows} rows and "
                                 f"{self.num_columns} columns")
        return 0

    cdef int _allocate(self, int ring_size) except -1:
        cdef int64_t size = self.most_keys * self.model.c.length
        self.values = <float*>allocate(size, sizeof(float))
        self.pulled = <float*>allocate(size, sizeof(float))
        self.places = <int32_t*>allocate(self.num_rows + self.num_columns, sizeof(int32_t))
        memset(self.places, -1, (self.num_rows + self.num_columns) * sizeof(int32_t))
        self.ring = <batch_t*>allocate(ring_size, sizeof(batch_t))
        memset(self.ring, 0, ring_size * sizeof(batch_t))
        self.ring_size = ring_size
        for i in range(ring_size):
            self._allocate_batch(&self.ring[i])
        return 0

    cdef int _allocate_batch(self, batch_t* batch) except -1:
        batch.rows = <int32_t*>allocate(self.most_ratings, sizeof(int32_t))
        batch.columns = <int32_t*>allocate(self.most_ratings, sizeof(int32_t))
        batch.ratings = <float*>allocate(self.most_ratings, sizeof(float))
        batch.keys = <key_t*>allocate(self.most_keys, sizeof(key_t))
        batch.wanted = <key_t*>allocate(self.most_keys, sizeof(key_t))
        return 0

    def __dealloc__(self):
        cdef int i
        if self.ring != NULL:
            for i in range(self.ring_size):
                free(self.ring[i].rows)
                free(self.ring[i].columns)
                free(self.ring[i].ratings)
                free(self.ring[i].keys)
                free(self.ring[i].wanted)
        free(self.ring)
        free(self.places)
        free(self.values)
        free(self.pulled)

    @property
    def compute_seconds(self):
        return self.compute_time * 1e-9

    @property
    def wait_seconds(self):
        return self.wait_time * 1e-9

    def train(self, const int64_t[::1] order, float rate):
        """Train ratings in the given order; up to `lookahead` batches stay prepared.

        Parameters
        ----------
        order
            Numbers of ratings.
        rate
            The learning rate.
        """
        cdef int64_t begin = 0, size
        check_order(order, self.ratings.shape[0])
        try:
            with nogil:
                while begin < order.shape[0]:
                    size = min(self.most_ratings, <int64_t>order.shape[0] - begin)
                    self._add_batch(&order[begin], size, rate)
                    begin += size
        except BaseException:
            self._settle()
            raise

    def finish(self):
        """Train what is prepared and wait until every update has been applied."""
        cdef int64_t began = now()
        try:
            with nogil:
                while self.waiting:
                    self._train_first()
                self._wait_for_push()
                began = now()
                self.kv.wait_everything()
                self.wait_time += now() - began
        except BaseException:
            self._settle()
            raise

    def evaluate(self):
        """Sums over all ratings: squared errors, those of clipped predictions, the penalty."""
        cdef mf_sums sums
        cdef int64_t begin = 0
        memset(&sums, 0, sizeof(sums))
        try:
            with nogil:
                while begin < self.ratings.shape[0]:
                    begin += self._evaluate_from(begin, &sums)
        except BaseException:
            self._settle()
            raise
        return sums.squares, sums.clipped_squares, sums.penalty

    cdef void _settle(self):
        """After an error: nothing may write into our memory any more when it is freed."""
        self.kv.release_messages()
        self.kv.cancel(self.pulling)
        self.kv.cancel(self.pushing)
        self.pulling = self.pushing = NULL

    # --- preparing

    cdef int _add_batch(self, const int64_t* order, int64_t size, float rate) except -1 nogil:
        """Prepare a batch; then it is the oldest one's turn, if enough are ahead."""
        cdef batch_t* batch = self.ring + (self.first + self.waiting) % self.ring_size
        self._fill(batch, order, 0, size)
        batch.rate = rate
        self.kv.hold_messages()  # until the older batch, whose turn it is now, has pulled
        self.kv.localize_keys(batch.wanted, batch.num_wanted, NULL)
        self.waiting += 1
        if self.waiting == self.ring_size:
            self._train_first()
        self.kv.release_messages()
        return 0

    cdef void _fill(self, batch_t* batch, const int64_t* order, int64_t first, int64_t size) noexcept nogil:
        """Take `size` ratings: those in `order`, or without it those from `first` on."""
        cdef int64_t i, at
        batch.size, batch.num_keys, batch.num_wanted = size, 0, 0
        for i in range(size):
            at = order[i] if order != NULL else first + i
            batch.ratings[i] = self.ratings[at]
            batch.rows[i] = self._place(batch, self.rows[at], self.first_row + self.rows[at], False)
            batch.columns[i] = self._place(batch, self.num_rows + self.columns[at],
                                           self.first_column + self.columns[at], self.localize[self.columns[at]])
        for i in range(size):
            at = order[i] if order != NULL else first + i
            self.places[self.rows[at]] = self.places[self.num_rows + self.columns[at]] = -1

    cdef inline int32_t _place(self, batch_t* batch, int64_t number, key_t key, bint localize) noexcept nogil:
        """The place of a row or column in the batch, which may be new: the last one then."""
        cdef int32_t place = self.places[number]
        if place >= 0:
            return place
        place = self.places[number] = <int32_t>batch.num_keys
        batch.keys[place] = key
        batch.num_keys += 1
        if localize:
            batch.wanted[batch.num_wanted] = key
            batch.num_wanted += 1
        return place

    # --- using

    cdef int _train_first(self) except -1 nogil:
        cdef batch_t* batch = self.ring + self.first
        cdef int64_t began
        self._pull(batch)
        memcpy(self.pulled, self.values, batch.num_keys * self.model.c.length * sizeof(float))
        began = now()
        self.model.step(self.values, batch.rows, batch.columns, batch.ratings, batch.size, batch.rate)
        self.compute_time += now() - began
        self._push(batch)
        self.trained += batch.size
        self.first = (self.first + 1) % self.ring_size
        self.waiting -= 1
        return 0

    cdef int64_t _evaluate_from(self, int64_t begin, mf_sums* sums) except -1 nogil:
        """Evaluate a batch; how many ratings that is."""
        cdef batch_t* batch = self.ring
        self._fill(batch, NULL, begin, min(self.most_ratings, <int64_t>self.ratings.shape[0] - begin))
        self._pull(batch)
        mf_evaluate(&self.model.c, self.values, batch.rows, batch.columns, batch.ratings, batch.size, sums)
        return batch.size

    cdef int _pull(self, batch_t* batch) except -1 nogil:
        cdef int64_t began
        self._wait_for_push()
        began = now()
        self.kv.pull_keys(batch.keys, batch.num_keys, self.values, &self.pulling)
        self.kv.release_messages()
        if self.pulling != NULL:
            self.kv.wait_for(self.pulling)
            self.pulling = NULL
        self.wait_time += now() - began
        return 0

    cdef int _push(self, batch_t* batch) except -1 nogil:
        """Push what changed."""
        cdef int64_t began = now()
        mf_subtract(self.values, self.pulled, batch.num_keys * self.model.c.length)
        self.kv.push_keys(batch.keys, batch.num_keys, self.values, &self.pushing)
        self.wait_time += now() - began
        return 0

    cdef int _wait_for_push(self) except -1 nogil:
        cdef int64_t began = now()
        if self.pushing != NULL:
            self.kv.wait_for(self.pushing)
            self.pushing = NULL
        self.wait_time += now() - began
        return 0


cdef int64_t now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


def shuffle(const int32_t[::1] groups, int64_t num_groups, uint64_t seed):
    """Put items in order: group by group, at random inside each.

    Parameters
    ----------
    groups : array of int32, shape (n,)
        Each item's, from 0 to below `num_groups`; n below 2^32.
    seed
        Of the random order.

    Returns
    -------
    order : array of int64, shape (n,)
        Numbers of items.
    ends : array of int64, shape (num_groups,)
        Where each group ends in `order`.
    """
    cdef int64_t i, n = groups.shape[0]
    for i in range(n):
        if not 0 <= groups[i] < num_groups:
            raise IndexError(f"item {i} is of group {groups[i]} of {num_groups}")
    order, ends = np.empty(n, np.int64), np.zeros(num_groups, np.int64)
    cdef int64_t[::1] order_view = order, ends_view = ends
    if n:
        with nogil:
            mf_shuffle(&groups[0], n, num_groups, seed, &order_view[0], &ends_view[0])
    return order, ends
