"""Skip-gram with negative sampling over a parameter server, without the GIL.

Sentences are turned into *units*: some hundred pairs (context word, centre word). A unit pulls the
vectors it needs, each once, trains its pairs in *groups*, one after the other, and pushes what changed.
A group has the pairs of one centre word, which share their negatives; its scores and its gradients are
products of small matrices (`_sgns.h`). With negatives of its own, each pair is a group. A row that
several groups of a unit use is the same row, so that inside a unit the result is that of stochastic
gradient descent with groups as its batches. Negatives come from the server's samples: prepared with
the unit, chosen when it is trained.

Units are gathered in *blocks*, prepared ahead of their turn: a block's keys that are not replicated
are localized at once, so that they have arrived when its turn comes. They are pulled when it begins
and pushed when it ends, and so are the samples that are not replicated: a rare word's row may well
be held for some thousand pairs, and which rank owns the key meanwhile does not matter. Replicated
keys, the words that everybody uses, are pulled and pushed by each unit, without leaving the rank.
Where nothing is replicated a block is one unit.

Nobody waits for pushes. They are additive, so that none is lost; the worker's own next pull of a
remote key goes the same way behind the push and in practice finds it applied. Were it to overtake,
that pull would be stale by one block, which is what every other worker sees anyway.

As in the word2vec program and in gensim, the *input* vector of the context word predicts the
*output* vector of the centre word (for one pair the two roles are symmetric), and a negative that
is the centre word itself is left out, not drawn again.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

from lapse cimport Worker, key_t, operation_t
from lapse.sampling._draws cimport Generator, Table, draw_keys

cdef extern from "_sgns.h" nogil:
    ctypedef struct sgns_group:
        int32_t num_inputs
        int32_t num_outputs

    ctypedef struct sgns_scratch:
        float** inputs
        float** outputs
        float* sums
        float* scores
        float* signs

    int sgns_prepare(int most)
    int64_t sgns_scores_room(int64_t pairs)
    double sgns_train(float* rows, const sgns_group* groups, int64_t num_groups, const int32_t* inputs,
                      const int32_t* outputs, int dim, float alpha, int ahead, sgns_scratch* scratch)
    void sgns_subtract(float* new_rows, const float* old_rows, int64_t n)

cdef enum:
    LONGEST_VECTOR = 16     # floats; shorter ones where the processor has no such

sgns_prepare(LONGEST_VECTOR)


cdef struct table_t:
    # Finds the row of a key: open addressing, at most half of the places are taken.
    place_t* places
    uint64_t mask
    uint32_t stamp


cdef struct place_t:
    key_t key
    int32_t row
    uint32_t stamp              # that of the table, or the place is free


cdef struct keys_t:
    # Keys, each once, and the rows they have: row `first + i` for keys[i].
    key_t* keys
    int64_t count
    int32_t first
    table_t table


cdef struct unit_t:
    int64_t num_groups
    int64_t num_pairs
    float alpha
    int64_t sample              # handle of its negatives
    sgns_group* groups
    int32_t* inputs             # of each group: rows of the context words' input vectors
    int32_t* centres            # of each group: row of the centre word's output vector
    keys_t replicated


cdef struct block_t:
    unit_t* units
    int num_units               # closed ones; the next is being filled
    keys_t keys                 # that are not replicated


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


cdef int make_scratch(sgns_scratch* scratch, int64_t inputs, int64_t outputs) except -1:
    """Room for groups of so many rows; all pointers are NULL before."""
    cdef int64_t room = sgns_scores_room(inputs * outputs)
    scratch.inputs = <float**>allocate(inputs, sizeof(float*))
    scratch.outputs = <float**>allocate(outputs, sizeof(float*))
    scratch.sums = <float*>allocate(4 * room, sizeof(float))
    scratch.scores = <float*>allocate(room, sizeof(float))
    scratch.signs = <float*>allocate(room, sizeof(float))
    return 0


cdef void free_scratch(sgns_scratch* scratch) noexcept:
    free(scratch.inputs)
    free(scratch.outputs)
    free(scratch.sums)
    free(scratch.scores)
    free(scratch.signs)


# --- sets of keys ----------------------------------------------------------------------------

cdef int make_keys(keys_t* keys, int64_t most, int32_t first) except -1:
    cdef uint64_t size = 2
    while size < 2 * <uint64_t>most:
        size *= 2
    keys.first = first
    keys.keys = <key_t*>allocate(most, sizeof(key_t))
    keys.table.places = <place_t*>allocate(size, sizeof(place_t))
    memset(keys.table.places, 0, size * sizeof(place_t))
    keys.table.mask = size - 1
    keys.table.stamp = 1
    return 0


cdef void free_keys(keys_t* keys) noexcept:
    free(keys.keys)
    free(keys.table.places)


cdef void forget_keys(keys_t* keys) noexcept nogil:
    keys.count = 0
    keys.table.stamp += 1
    if keys.table.stamp == 0:  # all stamps are used up: forget the old ones
        memset(keys.table.places, 0, (keys.table.mask + 1) * sizeof(place_t))
        keys.table.stamp = 1


cdef int32_t row_of(keys_t* keys, key_t key) noexcept nogil:
    """The row of a key, which may be new: the last one then."""
    cdef table_t* table = &keys.table
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15 >> 32) & table.mask
    cdef place_t* place = table.places + at
    while place.stamp == table.stamp:
        if place.key == key:
            return place.row
        at = (at + 1) & table.mask
        place = table.places + at
    place.key = key
    place.stamp = table.stamp
    place.row = keys.first + <int32_t>keys.count
    keys.keys[keys.count] = key
    keys.count += 1
    return place.row


# --- units -------------------------------------------------------------------------------------

cdef class Pairs:
    """Turns sentences into units of pairs, and units into blocks.

    Parameters
    ----------
    window, negative
        Largest distance of a pair, negatives per pair.
    keep
        Per word: `Vocabulary.keep_thresholds`.
    is_replicated
        Per key: whether every rank has a replica.
    unit_pairs
        Pairs of a unit, at most (but at least those of one centre word).
    block_units
        Units of a block.
    lookahead
        How many blocks are prepared before the first of them is trained.
    seeds
        Two numbers: for subsampling and windows.
    shares_negatives
        Whether the pairs of a centre word have the same negatives, or each pair its own.
    negative_reuse
        How many groups of a unit, far from each other, have the same negatives.
    """

    cdef int window, width, block_units, ring_size, negative_reuse
    cdef bint shares_negatives
    cdef bint rows_are_keys     # for those who need no rows of their own: no key is looked up
    cdef const uint32_t[::1] keep
    cdef const uint8_t[::1] is_replicated
    cdef uint64_t subsample_state, window_state
    cdef uint32_t num_words
    cdef int64_t max_pairs, most_unit_keys, most_block_keys

    cdef block_t* ring          # blocks in preparation order; the one after the last is being filled
    cdef int first, waiting

    cdef int32_t* kept          # the present sentence after subsampling
    cdef int32_t* input_rows    # per word of it, as far as the window reaches: its row in the open unit, or -1
    cdef int64_t kept_size

    def __cinit__(self, *_, int window, int negative, const uint32_t[::1] keep, const uint8_t[::1] is_replicated,
                  int unit_pairs, int block_units, int lookahead, seeds, bint shares_negatives=True,
                  int negative_reuse=1, **others):
        if window < 1 or negative < 0 or block_units < 1 or lookahead < 0 or negative_reuse < 1:
            raise ValueError("window, block_units and negative_reuse are at least 1, negative and lookahead at least 0")
        if is_replicated.shape[0] != 2 * keep.shape[0]:
            raise ValueError(f"is_replicated has {is_replicated.shape[0]} keys, but {keep.shape[0]} words have "
                             f"{2 * keep.shape[0]}")
        self.window, self.width = window, 1 + negative
        self.keep, self.num_words, self.is_replicated = keep, keep.shape[0], is_replicated
        self.subsample_state, self.window_state = seeds
        self.block_units = block_units
        self.shares_negatives, self.negative_reuse = shares_negatives, negative_reuse
        self.max_pairs = max(unit_pairs, 2 * window)
        self.most_unit_keys = min(self.max_pairs * (1 + self.width), <int64_t>is_replicated.shape[0])
        self.most_block_keys = min(self.most_unit_keys * block_units, <int64_t>is_replicated.shape[0])
        self._allocate_ring(lookahead + 1)
        self._open_block()

    cdef int _allocate_ring(self, int size) except -1:
        cdef int i, j
        self.ring = <block_t*>allocate(size, sizeof(block_t))
        memset(self.ring, 0, size * sizeof(block_t))
        self.ring_size = size
        for i in range(size):
            make_keys(&self.ring[i].keys, self.most_block_keys, 0)
            self.ring[i].units = <unit_t*>allocate(self.block_units, sizeof(unit_t))
            memset(self.ring[i].units, 0, self.block_units * sizeof(unit_t))
            for j in range(self.block_units):
                self._allocate_unit(&self.ring[i].units[j])
        return 0

    cdef int _allocate_unit(self, unit_t* unit) except -1:
        unit.groups = <sgns_group*>allocate(self.max_pairs, sizeof(sgns_group))
        unit.inputs = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
        unit.centres = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
        make_keys(&unit.replicated, self.most_unit_keys, <int32_t>self.most_block_keys)
        return 0

    def __dealloc__(self):
        cdef int i, j
        if self.ring != NULL:
            for i in range(self.ring_size):
                free_keys(&self.ring[i].keys)
                for j in range(self.block_units if self.ring[i].units != NULL else 0):
                    free(self.ring[i].units[j].groups)
                    free(self.ring[i].units[j].inputs)
                    free(self.ring[i].units[j].centres)
                    free_keys(&self.ring[i].units[j].replicated)
                free(self.ring[i].units)
        free(self.ring)
        free(self.kept)
        free(self.input_rows)

    # What is done with them; for those who inherit.

    cdef int unit_is_complete(self, unit_t* unit) except -1 nogil:
        return 0

    cdef int block_is_complete(self, block_t* block) except -1 nogil:
        return 0

    cdef int use_block(self, block_t* block) except -1 nogil:
        return 0

    cdef int _add_block(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha,
                        float alpha_end) except -1:
        """Turn some sentences into units; the last one may stay open, and blocks that are ahead wait."""
        cdef int64_t s
        self._check_words(words, ends)
        self._reserve(words.shape[0])
        with nogil:
            for s in range(ends.shape[0]):
                self._add_sentence(words, ends[s - 1] if s else 0, ends[s],
                                   alpha + (alpha_end - alpha) * s / ends.shape[0])
        return 0

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
        free(self.input_rows)
        self.kept, self.input_rows, self.kept_size = NULL, NULL, 0
        self.kept = <int32_t*>allocate(2 * size, sizeof(int32_t))
        self.input_rows = <int32_t*>allocate(2 * size, sizeof(int32_t))
        self.kept_size = 2 * size
        return 0

    cdef int _add_sentence(self, const int32_t[::1] words, int64_t begin, int64_t end,
                           float alpha) except -1 nogil:
        cdef int64_t centre, n = self._subsample(words, begin, end)
        if n < 2:
            return 0
        self._forget_rows(0, self.window, n)
        for centre in range(n):
            if self._open_unit().num_pairs + 2 * self.window > self.max_pairs:
                self._close_unit()
                self._forget_rows(centre - self.window, centre + self.window, n)
            elif centre + self.window < n:
                self.input_rows[centre + self.window] = -1
            if self._open_unit().num_pairs == 0:
                self._open_unit().alpha = alpha
            self._add_centre(n, centre)
        return 0

    cdef void _forget_rows(self, int64_t first, int64_t last, int64_t n) noexcept nogil:
        cdef int64_t position
        for position in range(max(first, 0), min(last + 1, n)):
            self.input_rows[position] = -1

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
        cdef int64_t position, first = max(centre - reach, 0), end = min(centre + reach + 1, n)
        cdef block_t* block = self._filling()
        cdef unit_t* unit = self._open_unit()
        cdef int32_t* inputs = unit.inputs + unit.num_pairs
        cdef int32_t centre_row = self._row(block, unit, 2 * <key_t>self.kept[centre] + 1)
        for position in range(first, end):
            if position == centre:
                continue
            if self.input_rows[position] < 0:
                self.input_rows[position] = self._row(block, unit, 2 * <key_t>self.kept[position])
            inputs[0] = self.input_rows[position]
            inputs += 1
        self._add_groups(unit, centre_row, <int32_t>(end - first - 1))

    cdef inline void _add_groups(self, unit_t* unit, int32_t centre_row, int32_t pairs) noexcept nogil:
        cdef int32_t size = pairs if self.shares_negatives else 1
        unit.num_pairs += pairs
        while pairs > 0:
            unit.groups[unit.num_groups].num_inputs = size
            unit.groups[unit.num_groups].num_outputs = 1
            unit.centres[unit.num_groups] = centre_row
            unit.num_groups += 1
            pairs -= size

    cdef inline int64_t num_sets(self, const unit_t* unit) noexcept nogil:
        """How many times as many negatives as a group has are drawn for a unit."""
        return (unit.num_groups + self.negative_reuse - 1) // self.negative_reuse

    cdef void place_outputs(self, block_t* block, unit_t* unit, const key_t* negatives, int32_t* outputs) noexcept nogil:
        """The rows of each group's outputs, one group after the other; a negative that is the word itself is left out."""
        cdef int64_t group, num_sets = self.num_sets(unit)
        cdef int i
        cdef int32_t* end
        cdef const key_t* first = negatives
        for group in range(unit.num_groups):
            if group % num_sets == 0:
                negatives = first
            outputs[0] = unit.centres[group]
            end = outputs + 1
            for i in range(self.width - 1):
                end[0] = self._row(block, unit, negatives[i])
                end += end[0] != outputs[0]
            negatives += self.width - 1
            unit.groups[group].num_outputs = <int32_t>(end - outputs)
            outputs = end

    cdef inline int32_t _row(self, block_t* block, unit_t* unit, key_t key) noexcept nogil:
        if self.rows_are_keys:
            return <int32_t>key
        return row_of(&unit.replicated if self.is_replicated[key] else &block.keys, key)

    # --- the ring of blocks

    cdef inline block_t* _filling(self) noexcept nogil:
        return self.ring + (self.first + self.waiting) % self.ring_size

    cdef inline unit_t* _open_unit(self) noexcept nogil:
        cdef block_t* block = self._filling()
        return block.units + block.num_units

    cdef void _open_block(self) noexcept nogil:
        cdef block_t* block = self._filling()
        cdef int i
        block.num_units = 0
        forget_keys(&block.keys)
        for i in range(self.block_units):
            block.units[i].num_pairs = block.units[i].num_groups = 0
            forget_keys(&block.units[i].replicated)

    cdef int _close_unit(self) except -1 nogil:
        cdef block_t* block = self._filling()
        if self._open_unit().num_pairs == 0:
            return 0
        self.unit_is_complete(self._open_unit())
        block.num_units += 1
        if block.num_units == self.block_units:
            self._close_block()
        return 0

    cdef int _close_block(self) except -1 nogil:
        """The block is complete; then it is the oldest one's turn, if enough are ahead."""
        if self._filling().num_units == 0:
            return 0
        self.block_is_complete(self._filling())
        self.waiting += 1
        if self.waiting == self.ring_size:
            self._use_first()
        self._open_block()
        return 0

    cdef int _use_first(self) except -1 nogil:
        self.use_block(self.ring + self.first)
        self.first = (self.first + 1) % self.ring_size
        self.waiting -= 1
        return 0

    cdef int _use_rest(self) except -1 nogil:
        if self._filling().num_units < self.block_units:
            self._close_unit()
        self._close_block()
        while self.waiting:
            self._use_first()
        return 0


cdef class Counter(Pairs):
    """Counts in how many units each key occurs, negatives left aside: a trial run without a server.

    Parameters
    ----------
    counts
        Per key; grows.
    **parameters
        Those of `Pairs`.
    """

    cdef int64_t[::1] counts
    cdef readonly int64_t units
    cdef readonly int64_t pairs
    cdef readonly int64_t sets      # of negatives

    def __init__(self, *, int64_t[::1] counts, **parameters):
        self.counts = counts

    def add(self, const int32_t[::1] words, const int64_t[::1] ends):
        """Count some sentences: indexes of words, and where each sentence ends in them."""
        self._add_block(words, ends, 0.0, 0.0)

    def finish(self):
        """Count what is left."""
        self._use_rest()

    cdef int use_block(self, block_t* block) except -1 nogil:
        cdef int64_t i
        cdef int unit
        for i in range(block.keys.count):
            self.counts[block.keys.keys[i]] += 1
        for unit in range(block.num_units):
            self.units += 1
            self.pairs += block.units[unit].num_pairs
            self.sets += self.num_sets(&block.units[unit])
        return 0


cdef class Trainer(Pairs):
    """Trains one worker's sentences of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. Its server samples output vectors (keys 2w + 1).
    dim
        Length of the vectors.
    localize
        Whether a block's keys are localized when it is prepared.
    slow_down
        For experiments: sleep after each unit, so that it takes this many times as long.
    **parameters
        Those of `Pairs`.
    """

    cdef Worker kv
    cdef int dim, negative
    cdef bint localize
    cdef double slow_down
    cdef float* rows            # of the block, then of the unit
    cdef float* pulled          # what they were
    cdef key_t* sampled
    cdef int32_t* outputs       # of the unit at hand: per group the centre word's row and those of its negatives
    cdef sgns_scratch scratch
    cdef operation_t* pulling_block     # these write into `rows` until they are waited for
    cdef operation_t* pulling_unit

    cdef readonly int64_t pairs
    cdef readonly double loss

    def __init__(self, Worker kv, *, int dim, bint localize, double slow_down=1.0, **parameters):
        cdef int64_t most_rows = self.most_block_keys + self.most_unit_keys
        if dim < 1:
            raise ValueError(f"dim is {dim}, but must be at least 1")
        self.kv = kv
        self.dim, self.negative = dim, self.width - 1
        self.localize = localize
        self.slow_down = slow_down
        self.rows = <float*>allocate(most_rows * dim, sizeof(float))
        self.pulled = <float*>allocate(most_rows * dim, sizeof(float))
        self.sampled = <key_t*>allocate(self.max_pairs * self.negative, sizeof(key_t))
        self.outputs = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
        make_scratch(&self.scratch, 2 * self.window, self.width)

    def __dealloc__(self):
        free(self.rows)
        free(self.pulled)
        free(self.sampled)
        free(self.outputs)
        free_scratch(&self.scratch)

    def train(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha,
              float alpha_end):
        """Train some sentences; up to `lookahead` blocks stay prepared.

        Parameters
        ----------
        words
            Indexes of the words of all sentences.
        ends
            Where each sentence ends in `words`.
        alpha, alpha_end
            The learning rate falls from one to the other over the sentences.
        """
        try:
            self._add_block(words, ends, alpha, alpha_end)
        except BaseException:
            self._settle()
            raise

    def finish(self):
        """Train what is prepared and wait until every update has been applied."""
        try:
            with nogil:
                self._use_rest()
                self.kv.wait_everything()
        except BaseException:
            self._settle()
            raise

    cdef void _settle(self):
        """After an error: nothing may write into our memory any more when it is freed."""
        self.kv.release_messages()
        self.kv.cancel(self.pulling_block)
        self.kv.cancel(self.pulling_unit)
        self.pulling_block = self.pulling_unit = NULL

    # --- preparing

    cdef int unit_is_complete(self, unit_t* unit) except -1 nogil:
        if self.negative:
            unit.sample = self.kv.prepare_sample_of(self.num_sets(unit) * self.negative)
        return 0

    cdef int block_is_complete(self, block_t* block) except -1 nogil:
        if self.localize:
            self.kv.hold_messages()  # until the older block, whose turn it is now, has pulled
            self.kv.localize_keys(block.keys.keys, block.keys.count, NULL)
            if self.waiting + 1 < self.ring_size:
                self.kv.release_messages()
        return 0

    # --- training

    cdef int use_block(self, block_t* block) except -1 nogil:
        cdef int i
        cdef int64_t pulled = 0
        for i in range(block.num_units):
            self._place_negatives(block, &block.units[i])
            self._pull(block, &block.units[i], pulled)
            pulled = block.keys.count
            self._train_unit(&block.units[i])
        self._push(&block.keys)
        return 0

    cdef int _place_negatives(self, block_t* block, unit_t* unit) except -1 nogil:
        """Choose the unit's negatives and give each its row, which may be one that is there already."""
        if self.negative:
            self.kv.choose_sample_of(unit.sample, self.num_sets(unit) * self.negative, self.sampled)
            self.kv.finish_sample_of(unit.sample)
        self.place_outputs(block, unit, self.sampled, self.outputs)
        return 0

    cdef int _pull(self, block_t* block, unit_t* unit, int64_t pulled) except -1 nogil:
        """Pull the unit's replicated keys, and those of the block beyond the `pulled` ones that are there."""
        self.kv.hold_messages()
        self.kv.pull_keys(block.keys.keys + pulled, block.keys.count - pulled, self.rows + pulled * self.dim,
                          &self.pulling_block)
        self.kv.pull_keys(unit.replicated.keys, unit.replicated.count,
                          self.rows + <int64_t>unit.replicated.first * self.dim, &self.pulling_unit)
        self.kv.release_messages()
        self._wait(&self.pulling_block)
        self._wait(&self.pulling_unit)
        self._note_pulled(pulled, block.keys.count - pulled)
        self._note_pulled(unit.replicated.first, unit.replicated.count)
        return 0

    cdef int _wait(self, operation_t** operation) except -1 nogil:
        if operation[0] != NULL:
            self.kv.wait_for(operation[0])
            operation[0] = NULL
        return 0

    cdef void _note_pulled(self, int64_t first, int64_t count) noexcept nogil:
        memcpy(self.pulled + first * self.dim, self.rows + first * self.dim, count * self.dim * sizeof(float))

    cdef int _train_unit(self, unit_t* unit) except -1 nogil:
        cdef int64_t began = self._now() if self.slow_down > 1 else 0
        self.loss += sgns_train(self.rows, unit.groups, unit.num_groups, unit.inputs, self.outputs,
                                self.dim, unit.alpha, False, &self.scratch)
        self.pairs += unit.num_pairs
        if unit.replicated.count:
            self._push(&unit.replicated)
        if self.slow_down > 1:
            self._sleep(<int64_t>((self.slow_down - 1) * (self._now() - began)))
        return 0

    cdef int _push(self, keys_t* keys) except -1 nogil:
        """Push what changed."""
        cdef float* rows = self.rows + <int64_t>keys.first * self.dim
        sgns_subtract(rows, self.pulled + <int64_t>keys.first * self.dim, keys.count * self.dim)
        self.kv.push_keys(keys.keys, keys.count, rows, NULL)
        return 0

    cdef int64_t _now(self) noexcept nogil:
        cdef timespec time
        clock_gettime(CLOCK_MONOTONIC, &time)
        return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec

    cdef void _sleep(self, int64_t nanoseconds) noexcept nogil:
        cdef timespec time
        time.tv_sec = nanoseconds // 1000000000
        time.tv_nsec = nanoseconds % 1000000000
        nanosleep(&time, NULL)


cdef class PlainTrainer(Pairs):
    """The same training on one array of all vectors, without a server: what a server's cost is measured against.

    Threads train on the same array and take no notice of each other (Niu, Recht, Re, Wright: Hogwild!, 2011).

    Parameters
    ----------
    table : float32 array of shape (2 * words, dim)
        Input vectors at 2w, output vectors at 2w + 1; changes.
    distribution : lapse.sampling._draws.Table
        Of the negatives, which are keys.
    generator : lapse.sampling._draws.Generator
    **parameters
        Those of `Pairs`.
    """

    cdef float[:, ::1] table
    cdef Table distribution
    cdef Generator generator
    cdef int negative
    cdef key_t* sampled
    cdef int32_t* outputs
    cdef sgns_scratch scratch

    cdef readonly int64_t pairs
    cdef readonly double loss

    def __init__(self, float[:, ::1] table, Table distribution, Generator generator, **parameters):
        if table.shape[0] != self.is_replicated.shape[0]:
            raise ValueError(f"the table has {table.shape[0]} rows for {self.is_replicated.shape[0]} keys")
        self.rows_are_keys = True
        self.table, self.distribution, self.generator = table, distribution, generator
        self.negative = self.width - 1
        self.sampled = <key_t*>allocate(self.max_pairs * self.negative, sizeof(key_t))
        self.outputs = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
        make_scratch(&self.scratch, 2 * self.window, self.width)

    def __dealloc__(self):
        free(self.sampled)
        free(self.outputs)
        free_scratch(&self.scratch)

    def train(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha, float alpha_end):
        """Train some sentences, as `Trainer.train`."""
        self._add_block(words, ends, alpha, alpha_end)

    def finish(self):
        """Train what is left."""
        with nogil:
            self._use_rest()

    cdef int use_block(self, block_t* block) except -1 nogil:
        cdef int i
        for i in range(block.num_units):
            self._train_unit(&block.units[i])
        return 0

    cdef int _train_unit(self, unit_t* unit) except -1 nogil:
        draw_keys(&self.distribution.c, self.generator.c, self.sampled, self.num_sets(unit) * self.negative)
        self.place_outputs(NULL, unit, self.sampled, self.outputs)
        self.loss += sgns_train(&self.table[0, 0], unit.groups, unit.num_groups, unit.inputs, self.outputs,
                                <int>self.table.shape[1], unit.alpha, True, &self.scratch)
        self.pairs += unit.num_pairs
        return 0
