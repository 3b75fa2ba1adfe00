"""Matrix factorization over a parameter server, without the GIL.

A worker's ratings are trained in *batches* of some hundreds or thousands, in the order that the schedule gives. A batch
pulls the values of its rows and columns, each once, trains its ratings one after the other, and pushes what changed:
inside a batch the result is that of sequential stochastic gradient descent. Batches are prepared ahead of their turn
(see `_pipeline.pyx`): then their columns are localized. The batches are the same whichever rank holds the parameters.

If nobody else uses the rows and columns meanwhile, as in a sub-epoch of DSGD, and all of them are on this rank, the
worker borrows them and trains them where they are: no value is copied. If some are elsewhere, batches set what they
have trained, instead of pushing changes: so the result is the same, to the last bit.

For ranking, each rating of a batch has a negative, a column without a rating in its row. They come from the server's
samples: prepared with the batch, chosen when its turn begins; a rating whose negative has a rating in its row, too, is
left out, not drawn again.

A push is waited for before the next pull. (It is done at once if the keys are on this rank.) So a worker always reads
its own updates, and if no two workers share a key, as in DSGD, the result is exact under every management technique.
"""

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.mf._model cimport Model, check_order, mf_evaluate, mf_rank_pairs, mf_subtract, mf_sums

cdef enum:
    # Numbers of the pipeline's operations: both use `values`.
    PULLING = 0
    PUSHING = 1     # or setting

cdef enum:
    TRAINED_AT_ONCE = 1024      # ratings that are put in order before they are trained in place
    # Distances of rows and columns that have none, below all others:
    NOT_BORROWED = -0x7FFFFFFF
    WANTED = -0x7FFFFFFE


cdef struct batch_t:
    int64_t size
    float rate
    int32_t* rows               # per rating: place of its row's value among the batch's
    int32_t* columns            # the same for its column
    float* ratings
    key_t* keys                 # each once, in order of their places
    int64_t num_keys
    int64_t sample              # handle of its negatives
    key_t* wanted               # those among them that are localized
    int64_t num_wanted


cdef class Trainer(Pipeline):
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
    seen
        For ranking: where the columns of each row of the worker begin in `seen_columns`, one more than there are rows,
        int64; None: predict ratings.
    seen_columns
        For ranking: the columns with a rating, row after row, increasing; int32.
    exclusive
        Whether nobody else uses the rows and columns of the ratings between a call of `train` and `finish`.
    slow_down, is_timed
        See `Pipeline.set_pace`.

    Attributes
    ----------
    trained
        Ratings so far.
    ranked
        Those among them that had a negative.
    loss
        For ranking: the sum of the logarithmic losses of these, before each step.
    """

    cdef Model model
    cdef const int32_t[::1] rows
    cdef const int32_t[::1] columns
    cdef const float[::1] ratings
    cdef const uint8_t[::1] localize
    cdef key_t first_row, first_column
    cdef int64_t num_rows, num_columns, max_ratings, max_keys
    cdef int32_t* places        # per row of the worker, then per column: its place in the batch at hand, or -1
    cdef batch_t* batches       # one per slot of the pipeline
    cdef float* values
    cdef float* pulled          # what they were

    cdef bint exclusive, in_place
    cdef int64_t num_borrowed
    cdef key_t* borrowed        # rows and columns, in the order in which they were needed
    cdef void** addresses       # of their values
    cdef int32_t* distances     # per row of the worker, then per column: of its value from the first one, in values

    cdef bint ranks
    cdef const int64_t[::1] seen
    cdef const int32_t[::1] seen_columns
    cdef key_t* sampled
    cdef int32_t* negatives     # per rating of the batch at hand: the place of its negative, or -1

    cdef readonly int64_t trained, ranked
    cdef readonly double loss

    def __init__(self, Worker kv, Model model, const int32_t[::1] rows, const int32_t[::1] columns,
                 const float[::1] ratings, *, key_t first_row, int64_t num_rows, key_t first_column,
                 int64_t num_columns, int64_t batch, int lookahead, const uint8_t[::1] localize,
                 const int64_t[::1] seen=None, const int32_t[::1] seen_columns=None, bint exclusive=False,
                 double slow_down=1.0, bint is_timed=False):
        if batch < 1 or localize.shape[0] != num_columns:
            raise ValueError(f"batch is {batch}, but must be at least 1; localize has {localize.shape[0]} elements for "
                             f"{num_columns} columns")
        self.kv, self.model = kv, model
        self.rows, self.columns, self.ratings, self.localize = rows, columns, ratings, localize
        self.first_row, self.num_rows = first_row, num_rows
        self.first_column, self.num_columns = first_column, num_columns
        self.ranks = seen is not None
        if self.ranks and exclusive:
            raise ValueError("negatives may be columns of others: ranking is never exclusive")
        if self.ranks:
            self.seen, self.seen_columns = seen, seen_columns
            self._check_seen()
        self._check_ratings()
        self.max_ratings = max(min(batch, <int64_t>ratings.shape[0]), 1)
        self.max_keys = min(self.max_ratings, num_rows) + min((1 + self.ranks) * self.max_ratings, num_columns)
        self.set_lookahead(lookahead)
        self.set_pace(slow_down, is_timed)
        self._allocate()
        self.exclusive = self.in_place = exclusive
        if exclusive:
            self._allocate_in_place()

    cdef int _check_ratings(self) except -1:
        cdef int64_t i
        if not self.rows.shape[0] == self.columns.shape[0] == self.ratings.shape[0]:
            raise ValueError(f"{self.rows.shape[0]} rows and {self.columns.shape[0]} columns for "
                             f"{self.ratings.shape[0]} ratings")
        for i in range(self.rows.shape[0]):
            if not (0 <= self.rows[i] < self.num_rows and 0 <= self.columns[i] < self.num_columns):
                raise IndexError(f"rating {i} is at ({self.rows[i]}, {self.columns[i]}), but there are {self.num_rows} "
                                 f"rows and {self.num_columns} columns")
        return 0

    cdef int _check_seen(self) except -1:
        cdef int64_t row
        if self.seen.shape[0] != self.num_rows + 1 or self.seen[0] != 0:
            raise ValueError(f"seen has {self.seen.shape[0]} elements for {self.num_rows} rows")
        for row in range(self.num_rows):
            if not self.seen[row] <= self.seen[row + 1] <= self.seen_columns.shape[0]:
                raise ValueError(f"the columns of row {row} are those from {self.seen[row]} to {self.seen[row + 1]} of "
                                 f"{self.seen_columns.shape[0]}")
        return 0

    cdef int _allocate(self) except -1:
        cdef int64_t i, size = self.max_keys * self.model.c.length
        self.values = <float*>allocate(size, sizeof(float))
        self.pulled = <float*>allocate(size, sizeof(float))
        if self.ranks:
            self.sampled = <key_t*>allocate(self.max_ratings, sizeof(key_t))
            self.negatives = <int32_t*>allocate(self.max_ratings, sizeof(int32_t))
        self.places = <int32_t*>allocate(self.num_rows + self.num_columns, sizeof(int32_t))
        memset(self.places, -1, (self.num_rows + self.num_columns) * sizeof(int32_t))
        self.batches = <batch_t*>allocate(self.num_slots, sizeof(batch_t))
        for i in range(self.num_slots):
            self._allocate_batch(&self.batches[i])
        return 0

    cdef int _allocate_in_place(self) except -1:
        cdef int64_t i, count = self.num_rows + self.num_columns
        self.borrowed = <key_t*>allocate(count, sizeof(key_t))
        self.addresses = <void**>allocate(count, sizeof(void*))
        self.distances = <int32_t*>allocate(count, sizeof(int32_t))
        for i in range(count):
            self.distances[i] = NOT_BORROWED
        return 0

    cdef int _allocate_batch(self, batch_t* batch) except -1:
        batch.rows = <int32_t*>allocate(self.max_ratings, sizeof(int32_t))
        batch.columns = <int32_t*>allocate(self.max_ratings, sizeof(int32_t))
        batch.ratings = <float*>allocate(self.max_ratings, sizeof(float))
        batch.keys = <key_t*>allocate(self.max_keys, sizeof(key_t))
        batch.wanted = <key_t*>allocate(self.max_keys, sizeof(key_t))
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.num_slots if self.batches != NULL else 0):
            free(self.batches[i].rows)
            free(self.batches[i].columns)
            free(self.batches[i].ratings)
            free(self.batches[i].keys)
            free(self.batches[i].wanted)
        free(self.batches)
        free(self.places)
        free(self.values)
        free(self.pulled)
        free(self.borrowed)
        free(self.addresses)
        free(self.distances)
        free(self.sampled)
        free(self.negatives)

    def train(self, const int64_t[::1] order, float rate):
        """Train ratings in the given order; up to `lookahead` batches stay prepared.

        Parameters
        ----------
        order
            Numbers of ratings.
        rate
            The learning rate.
        """
        cdef int64_t begin = 0
        check_order(order, self.ratings.shape[0])
        try:
            with nogil:
                self.wait(PUSHING)  # of what may be borrowed now
                while begin < order.shape[0] and self.in_place:
                    begin += self._train_in_place(&order[begin], order.shape[0] - begin, rate)
                while begin < order.shape[0]:
                    begin += self._add_batch(&order[begin], order.shape[0] - begin, rate)
        except BaseException:
            self.settle()
            raise

    def evaluate(self):
        """Sums over all ratings; see `Model.evaluate`."""
        cdef mf_sums sums
        cdef int64_t begin = 0
        memset(&sums, 0, sizeof(sums))
        try:
            with nogil:
                while begin < self.ratings.shape[0]:
                    begin += self._evaluate_from(begin, &sums)
        except BaseException:
            self.settle()
            raise
        return sums.squares, sums.clipped_squares, sums.penalty, sums.absolute

    # --- preparing

    cdef int64_t _add_batch(self, const int64_t* order, int64_t size, float rate) except -1 nogil:
        """Make a batch of the first ratings; returns how many it has."""
        cdef batch_t* batch = self.batches + self.filling()
        size = min(self.max_ratings, size)
        self.begin_computing()
        self._fill(batch, order, 0, size)
        self.end_computing()
        batch.rate = rate
        self.advance()
        return size

    cdef int prepare(self, int slot) except -1 nogil:
        self.kv.localize_keys(self.batches[slot].wanted, self.batches[slot].num_wanted, NULL)
        if self.ranks:
            self.batches[slot].sample = self.kv.prepare_sample_of(self.batches[slot].size)
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

    cdef int request(self, int slot) except -1 nogil:
        cdef batch_t* batch = self.batches + slot
        self.wait(PUSHING)
        if self.ranks:
            self._choose_negatives(batch)
        self.kv.pull_keys(batch.keys, batch.num_keys, self.values, &self.operations[PULLING])
        return 0

    cdef int _choose_negatives(self, batch_t* batch) except -1 nogil:
        cdef int64_t i, row, column, positives = batch.num_keys
        self.kv.choose_sample_of(batch.sample, batch.size, self.sampled)
        self.kv.finish_sample_of(batch.sample)
        self.begin_computing()
        for i in range(positives):
            self.places[self._number_of(batch.keys[i])] = <int32_t>i
        for i in range(batch.size):
            row, column = batch.keys[batch.rows[i]] - self.first_row, self.sampled[i] - self.first_column
            self.negatives[i] = -1
            if not self._has_seen(row, <int32_t>column):
                self.negatives[i] = self._place(batch, self.num_rows + column, self.sampled[i], False)
                self.ranked += 1
        for i in range(batch.num_keys):
            self.places[self._number_of(batch.keys[i])] = -1
        self.end_computing()
        return 0

    cdef inline bint _has_seen(self, int64_t row, int32_t column) noexcept nogil:
        cdef int64_t low = self.seen[row], high = self.seen[row + 1], end = high, middle
        while low < high:
            middle = (low + high) // 2
            if self.seen_columns[middle] < column:
                low = middle + 1
            else:
                high = middle
        return low < end and self.seen_columns[low] == column

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef batch_t* batch = self.batches + slot
        cdef int64_t elements = batch.num_keys * self.model.c.length
        self.wait(PULLING)
        self.begin_computing()
        if not self.exclusive:
            memcpy(self.pulled, self.values, elements * sizeof(float))
        if self.ranks:
            self.loss += mf_rank_pairs(&self.model.c, self.values, batch.rows, batch.columns, self.negatives,
                                       batch.size, batch.rate)
        else:
            self.model.step(self.values, batch.rows, batch.columns, batch.ratings, batch.size, batch.rate)
        if not self.exclusive:
            mf_subtract(self.values, self.pulled, elements)
        self.end_computing()
        if self.exclusive:
            self.kv.set_keys(batch.keys, batch.num_keys, self.values, &self.operations[PUSHING])
        else:
            self.kv.push_keys(batch.keys, batch.num_keys, self.values, &self.operations[PUSHING])
        self.trained += batch.size
        return 0

    # --- in place

    cdef int64_t _train_in_place(self, const int64_t* order, int64_t size, float rate) except -1 nogil:
        """Train the first ratings; returns how many. None if a value is not lent: from then on values are copied."""
        cdef batch_t* batch = self.batches
        size = min(min(<int64_t>TRAINED_AT_ONCE, self.max_ratings), size)
        self.begin_computing()
        self._gather(batch, order, size)
        self.end_computing()
        if not self._borrow(batch):
            self.give_back()
            self.in_place = False
            return 0
        self.begin_computing()
        self._find_values(batch)
        self.model.step(<float*>self.addresses[0], batch.rows, batch.columns, batch.ratings, size, rate)
        self.end_computing()
        self.trained += size
        return size

    cdef void _gather(self, batch_t* batch, const int64_t* order, int64_t size) noexcept nogil:
        """Put ratings in order, and list the rows and columns that are not borrowed yet."""
        cdef int64_t i
        batch.size, batch.num_keys = size, 0
        for i in range(size):
            batch.ratings[i] = self.ratings[order[i]]
            batch.rows[i] = self.rows[order[i]]
            batch.columns[i] = self.columns[order[i]]
            self._want(batch, batch.rows[i], self.first_row + batch.rows[i])
            self._want(batch, self.num_rows + batch.columns[i], self.first_column + batch.columns[i])

    cdef inline void _want(self, batch_t* batch, int64_t number, key_t key) noexcept nogil:
        if self.distances[number] == NOT_BORROWED:
            self.distances[number] = WANTED
            self.borrowed[self.num_borrowed + batch.num_keys] = key
            batch.num_keys += 1

    cdef bint _borrow(self, batch_t* batch) except -1 nogil:
        """Borrow what the ratings need; whether all of it is here."""
        cdef int64_t i, difference, size = self.model.c.length * sizeof(float), first = self.num_borrowed
        cdef Py_ssize_t refused
        if batch.num_keys == 0:
            return True
        self.num_borrowed += batch.num_keys
        memset(self.addresses + first, 0, batch.num_keys * sizeof(void*))
        refused = self.kv.borrow_keys(self.borrowed + first, batch.num_keys, False, self.addresses + first)
        if refused:
            return False
        for i in range(first, self.num_borrowed):
            difference = <char*>self.addresses[i] - <char*>self.addresses[0]
            if not WANTED < difference // size <= INT32_MAX:
                return False
            self.distances[self._number_of(self.borrowed[i])] = <int32_t>(difference // size)
        return True

    cdef inline int64_t _number_of(self, key_t key) noexcept nogil:
        return self.num_rows + key - self.first_column if key >= self.first_column else key - self.first_row

    cdef void _find_values(self, batch_t* batch) noexcept nogil:
        cdef int64_t i
        for i in range(batch.size):
            batch.rows[i] = self.distances[batch.rows[i]]
            batch.columns[i] = self.distances[self.num_rows + batch.columns[i]]

    cdef int give_back(self) except -1 nogil:
        cdef int64_t i, count = self.num_borrowed
        self.num_borrowed = 0
        for i in range(count):
            self.distances[self._number_of(self.borrowed[i])] = NOT_BORROWED
        if count:
            self.kv.return_keys(self.borrowed, count, self.addresses)
        return 0

    # --- evaluating

    cdef int64_t _evaluate_from(self, int64_t begin, mf_sums* sums) except -1 nogil:
        """Evaluate a batch; returns how many ratings it has."""
        cdef int slot = self.filling()
        cdef batch_t* batch = self.batches + slot
        self._fill(batch, NULL, begin, min(self.max_ratings, <int64_t>self.ratings.shape[0] - begin))
        self.request(slot)
        self.wait(PULLING)
        mf_evaluate(&self.model.c, self.values, batch.rows, batch.columns, batch.ratings, batch.size, sums)
        return batch.size
