"""Skip-gram with negative sampling over a parameter server, without the GIL.

Sentences are turned into *units*: some hundred pairs (context word, centre word), with their
negatives drawn and the keys they need collected, each key once. A unit is prepared some
units before it is trained: its keys are localized at once, so that they have arrived when its turn
comes. Then it pulls its keys into local rows, trains them one pair after the other, and pushes what
changed. A row that several pairs of a unit use is the same row, so that inside a unit the result is
that of sequential stochastic gradient descent.

Nobody waits for pushes. They are additive, so that none is lost; the worker's own next pull of a
remote key goes the same way behind the push and in practice finds it applied. Were it to overtake,
that pull would be stale by one unit, which is what every other worker sees anyway.

As in the word2vec program and in gensim, the *input* vector of the context word predicts the
*output* vector of the centre word (for one pair the two roles are symmetric), and a negative that
is the centre word itself is left out, not drawn again.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lapse cimport Worker, key_t, operation_t

cdef extern from "_sgns.h" nogil:
    void sgns_prepare()
    double sgns_train(float* rows, const int32_t* inputs, const int32_t* targets, int64_t pairs,
                      int width, int dim, float alpha, float* gradient)
    void sgns_subtract(float* new_rows, const float* old_rows, int64_t n)

sgns_prepare()


cdef struct unit_t:
    int64_t num_pairs
    int64_t num_keys
    float alpha
    int32_t* inputs         # per pair: row of the context word's input vector
    int32_t* targets        # per pair: rows of the centre word and of the negatives, -1 for none
    key_t* keys             # per row: its key


cdef struct slot_t:         # of the table that finds the row of a key
    key_t key
    int32_t row
    uint32_t stamp          # belongs to the present unit, or the slot is free


cdef inline uint64_t next_random(uint64_t* state) noexcept nogil:
    """SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    cdef uint64_t z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline uint32_t scale(uint32_t bits, uint32_t n) noexcept nogil:
    """An even choice of 0 .. n-1 from 32 random bits."""
    return <uint32_t>((<uint64_t>bits * n) >> 32)


cdef void* allocate(size_t count, size_t size) except NULL:
    cdef void* memory = malloc(max(count * size, <size_t>1))
    if memory == NULL:
        raise MemoryError(f"no memory for {count} * {size} bytes")
    return memory


cdef class Trainer:
    """Trains one worker's sentences of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods.
    dim, window, negative
        Length of the vectors, largest distance of a pair, negatives per pair.
    keep
        Per word: `Vocabulary.keep_thresholds`.
    noise_thresholds, noise_aliases
        The columns of the `AliasTable` that negatives are drawn from.
    unit_pairs
        Pairs of a unit, at most (but at least those of one centre word).
    lookahead
        How many units are prepared before the first of them is trained.
    localize
        Whether keys are localized when a unit is prepared.
    seeds
        Three numbers: for subsampling, windows and negatives.
    """

    cdef Worker kv
    cdef int dim, window, negative, width
    cdef bint localize
    cdef const uint32_t[::1] keep, noise_thresholds
    cdef const int32_t[::1] noise_aliases
    cdef uint64_t subsample_state, window_state, noise_state
    cdef uint32_t num_words

    cdef unit_t* ring           # units in preparation order; the one after the last is being filled
    cdef int ring_size, first, waiting
    cdef int64_t max_pairs, max_keys

    cdef slot_t* slots
    cdef uint64_t slot_mask
    cdef uint32_t stamp

    cdef int32_t* kept          # the present sentence after subsampling
    cdef int64_t kept_size
    cdef float* rows
    cdef float* pulled
    cdef float* gradient
    cdef operation_t* pulling   # writes into `rows` until it is waited for

    cdef readonly int64_t pairs
    cdef readonly double loss

    def __cinit__(self, Worker kv, int dim, int window, int negative,
                  const uint32_t[::1] keep, const uint32_t[::1] noise_thresholds,
                  const int32_t[::1] noise_aliases, int unit_pairs, int lookahead, bint localize,
                  seeds):
        if dim < 1 or window < 1 or negative < 0 or lookahead < 0:
            raise ValueError("dim and window are at least 1, negative and lookahead at least 0")
        self.kv = kv
        self.dim, self.window, self.negative = dim, window, negative
        self.width = 1 + negative
        self.localize = localize
        self.keep, self.num_words = keep, keep.shape[0]
        self.noise_thresholds, self.noise_aliases = noise_thresholds, noise_aliases
        self.subsample_state, self.window_state, self.noise_state = seeds
        self.max_pairs = max(unit_pairs, 2 * window)
        self.max_keys = self.max_pairs * (1 + self.width)
        self._allocate_ring(lookahead + 1)
        self._allocate_table()
        self._allocate_rows()
        self._open_unit()

    cdef int _allocate_ring(self, int size) except -1:
        cdef int i
        self.ring = <unit_t*>allocate(size, sizeof(unit_t))
        memset(self.ring, 0, size * sizeof(unit_t))
        self.ring_size = size
        for i in range(size):
            self.ring[i].inputs = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
            self.ring[i].targets = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
            self.ring[i].keys = <key_t*>allocate(self.max_keys, sizeof(key_t))
        return 0

    cdef int _allocate_table(self) except -1:
        cdef uint64_t size = 2
        while size < 2 * <uint64_t>self.max_keys:
            size *= 2
        self.slots = <slot_t*>allocate(size, sizeof(slot_t))
        memset(self.slots, 0, size * sizeof(slot_t))
        self.slot_mask = size - 1
        return 0

    cdef int _allocate_rows(self) except -1:
        self.rows = <float*>allocate(self.max_keys * self.dim, sizeof(float))
        self.pulled = <float*>allocate(self.max_keys * self.dim, sizeof(float))
        self.gradient = <float*>allocate(self.dim, sizeof(float))
        return 0

    def __dealloc__(self):
        cdef int i
        if self.ring != NULL:
            for i in range(self.ring_size):
                free(self.ring[i].inputs)
                free(self.ring[i].targets)
                free(self.ring[i].keys)
        free(self.ring)
        free(self.slots)
        free(self.kept)
        free(self.rows)
        free(self.pulled)
        free(self.gradient)

    def train(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha,
              float alpha_end):
        """Train a block of sentences; up to `lookahead` units stay prepared.

        Parameters
        ----------
        words
            Indexes of the words of all sentences.
        ends
            Where each sentence ends in `words`.
        alpha, alpha_end
            The learning rate falls from one to the other over the block.
        """
        cdef int64_t s
        self._check_words(words, ends)
        self._reserve(words.shape[0])
        try:
            with nogil:
                for s in range(ends.shape[0]):
                    self._add_sentence(words, ends[s - 1] if s else 0, ends[s],
                                       alpha + (alpha_end - alpha) * s / ends.shape[0])
        except BaseException:
            self._settle()
            raise

    def finish(self):
        """Train what is prepared and wait until every update has been applied."""
        try:
            with nogil:
                self._close_unit()
                while self.waiting:
                    self._train_first()
                self.kv.wait_everything()
        except BaseException:
            self._settle()
            raise

    cdef int _check_words(self, const int32_t[::1] words, const int64_t[::1] ends) except -1:
        cdef int64_t i, end = 0
        for i in range(ends.shape[0]):
            if not end <= ends[i] <= words.shape[0]:
                raise ValueError(f"sentence {i} ends at {ends[i]} of {words.shape[0]} words")
            end = ends[i]
        for i in range(words.shape[0]):
            if not 0 <= words[i] < <int64_t>self.num_words:
                raise IndexError(f"word {words[i]} of a vocabulary of {self.num_words}")
        return 0

    cdef int _reserve(self, int64_t size) except -1:
        """Room for the longest possible sentence; twice what is needed, to do this rarely."""
        if size <= self.kept_size:
            return 0
        free(self.kept)
        self.kept, self.kept_size = NULL, 0
        self.kept = <int32_t*>allocate(2 * size, sizeof(int32_t))
        self.kept_size = 2 * size
        return 0

    cdef void _settle(self):
        """After an error: nothing may write into our memory any more when it is freed."""
        self.kv.cancel(self.pulling)
        self.pulling = NULL

    # --- preparing units ---------------------------------------------------------------------

    cdef int _add_sentence(self, const int32_t[::1] words, int64_t begin, int64_t end,
                           float alpha) except -1 nogil:
        cdef int64_t centre, n = self._subsample(words, begin, end)
        if n < 2:
            return 0
        for centre in range(n):
            if self._filling().num_pairs + 2 * self.window > self.max_pairs:
                self._close_unit()
            if self._filling().num_pairs == 0:
                self._filling().alpha = alpha
            self._add_centre(n, centre)
        return 0

    cdef int64_t _subsample(self, const int32_t[::1] words, int64_t begin,
                            int64_t end) noexcept nogil:
        cdef int64_t i, n = 0
        for i in range(begin, end):
            self.kept[n] = words[i]
            n += <uint32_t>(next_random(&self.subsample_state) >> 32) <= self.keep[words[i]]
        return n

    cdef void _add_centre(self, int64_t n, int64_t centre) noexcept nogil:
        cdef uint32_t bits = <uint32_t>(next_random(&self.window_state) >> 32)
        cdef int64_t reach = 1 + scale(bits, self.window)
        cdef int64_t position
        for position in range(max(centre - reach, 0), min(centre + reach + 1, n)):
            if position != centre:
                self._add_pair(self.kept[position], self.kept[centre])

    cdef void _add_pair(self, int32_t context, int32_t centre) noexcept nogil:
        cdef unit_t* unit = self._filling()
        cdef int32_t* targets = unit.targets + unit.num_pairs * self.width
        cdef int32_t word
        cdef int k
        unit.inputs[unit.num_pairs] = self._row_of(unit, 2 * <key_t>context)
        targets[0] = self._row_of(unit, 2 * <key_t>centre + 1)
        for k in range(1, self.width):
            word = self._draw_negative()
            targets[k] = -1 if word == centre else self._row_of(unit, 2 * <key_t>word + 1)
        unit.num_pairs += 1

    cdef int32_t _draw_negative(self) noexcept nogil:
        cdef uint64_t bits = next_random(&self.noise_state)
        cdef uint32_t column = scale(<uint32_t>(bits >> 32), self.num_words)
        if <uint32_t>bits <= self.noise_thresholds[column]:
            return <int32_t>column
        return self.noise_aliases[column]

    cdef int32_t _row_of(self, unit_t* unit, key_t key) noexcept nogil:
        """The row of a key in its unit; open addressing, at most half of the slots are taken."""
        cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15 >> 32) & self.slot_mask
        while self.slots[at].stamp == self.stamp:
            if self.slots[at].key == key:
                return self.slots[at].row
            at = (at + 1) & self.slot_mask
        self.slots[at].key = key
        self.slots[at].stamp = self.stamp
        self.slots[at].row = <int32_t>unit.num_keys
        unit.keys[unit.num_keys] = key
        unit.num_keys += 1
        return self.slots[at].row

    # --- the ring of units -------------------------------------------------------------------

    cdef inline unit_t* _filling(self) noexcept nogil:
        return self.ring + (self.first + self.waiting) % self.ring_size

    cdef void _open_unit(self) noexcept nogil:
        cdef unit_t* unit = self._filling()
        unit.num_pairs = unit.num_keys = 0
        self.stamp += 1
        if self.stamp == 0:  # all stamps are used up: forget the old ones
            memset(self.slots, 0, (self.slot_mask + 1) * sizeof(slot_t))
            self.stamp = 1

    cdef int _close_unit(self) except -1 nogil:
        """The unit is complete: ask for its keys; then train the oldest, if it is time."""
        cdef unit_t* unit = self._filling()
        if unit.num_pairs == 0:
            return 0
        if self.localize:
            self.kv.localize_keys(unit.keys, unit.num_keys, NULL)
        self.waiting += 1
        if self.waiting == self.ring_size:
            self._train_first()
        self._open_unit()
        return 0

    cdef int _train_first(self) except -1 nogil:
        cdef unit_t* unit = self.ring + self.first
        cdef int64_t size = unit.num_keys * self.dim
        self._pull(unit)
        memcpy(self.pulled, self.rows, size * sizeof(float))
        self.loss += sgns_train(self.rows, unit.inputs, unit.targets, unit.num_pairs, self.width,
                                self.dim, unit.alpha, self.gradient)
        self.pairs += unit.num_pairs
        sgns_subtract(self.rows, self.pulled, size)
        self.kv.push_keys(unit.keys, unit.num_keys, self.rows, NULL)
        self.first = (self.first + 1) % self.ring_size
        self.waiting -= 1
        return 0

    cdef int _pull(self, unit_t* unit) except -1 nogil:
        self.kv.pull_keys(unit.keys, unit.num_keys, self.rows, &self.pulling)
        self.kv.wait_for(self.pulling)
        self.pulling = NULL
        return 0
