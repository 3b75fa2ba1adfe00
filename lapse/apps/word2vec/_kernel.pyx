"""Skip-gram and CBOW with negative sampling over a parameter server, without the GIL.

A unit of pairs (see `_pairs.pyx`) pulls the vectors it needs, each once, trains its groups one after the other, and
pushes what changed. The scores and gradients of a group are products of small matrices (`_sgns.h`), so that inside a
unit the result is that of stochastic gradient descent with groups as its batches. Negatives come from the server's
samples: prepared with the unit, chosen when it is trained.

Blocks of units are prepared ahead of their turn: their keys that are not replicated are localized, pulled when the turn
begins, and pushed when it ends, and so are the samples that are not replicated. A rare word's row may well be held for
some thousand pairs, and which rank owns the key meanwhile does not matter. Replicated keys, the words that everybody
uses, are pulled and pushed by each unit, without leaving the rank. If nothing is replicated, a block is one unit.

If all vectors are replicated, a unit borrows the replicas that it needs, trains them where they are, and returns them.
It pulls and pushes them only if one cannot be lent at that moment.

On one rank all vectors stay here for good. Then the workers borrow them together and train them where they are, as
threads do that share an array (Niu, Recht, Re, Wright: *Hogwild!*, NIPS 2011): if two of them change a vector at the
same moment, part of one change may be lost.

Nothing waits for pushes. They are additive, so that none is lost; the worker's own next pull of a remote key goes the
same way behind the push and in practice finds it applied. If it were to overtake, that pull would be stale by one
block, which is what every other worker sees anyway.

As in the word2vec program and in gensim, the *input* vector of the context word predicts the *output* vector of the
centre word (for one pair the two roles are symmetric), and a negative that is the centre word itself is left out, not
drawn again. In CBOW the mean of the context words' vectors predicts, and all of them get its gradient.
"""

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps.word2vec._pairs cimport Pairs, block_t, keys_t, unit_t
from lapse.apps.word2vec._sgns cimport (
    LONGEST_VECTOR, cbow_train, free_scratch, make_scratch, sgns_group, sgns_prepare, sgns_scratch, sgns_subtract,
    sgns_train, sgns_train_function,
)

sgns_prepare(LONGEST_VECTOR)

cdef enum:
    # Numbers of the pipeline's operations: both write into `rows`.
    PULL_BLOCK = 0
    PULL_UNIT = 1


cdef class Trainer(Pairs):
    """Trains one worker's sentences of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. Its server samples output vectors (keys 2w + 1).
    dim
        Length of the vectors.
    is_localized
        Per key: whether it is localized when a block that uses it is prepared.
    in_place
        Whether vectors are borrowed for good and trained where they are, if all of them are on this rank.
    borrows_units
        Whether each unit borrows its vectors, all of which are replicated, if `Replication.in_place` is set.
    is_cbow
        Whether a group is one prediction, by the mean of its inputs, and not one for each input.
    slow_down, is_timed
        See `Pipeline.set_pace`.
    **parameters
        Those of `Pairs`.
    """

    cdef int dim, negative
    cdef bint localizes, in_place, borrows_units, is_cbow
    cdef const uint8_t[::1] is_localized
    cdef key_t* localized       # those of a block
    cdef sgns_train_function train_groups
    cdef float* rows            # of the block, then of the unit
    cdef float* pulled          # what they were
    cdef float* weights         # of the unit's replicated keys: the learning rate times the pairs that changed them
    cdef key_t* sampled
    cdef int32_t* outputs       # of the unit at hand: per group the centre word's row and those of its negatives
    cdef sgns_scratch scratch
    cdef int64_t pulled_keys    # of the block that takes its turn
    cdef key_t* borrowed        # all keys, if they are borrowed
    cdef void** addresses       # of their values
    cdef void** replicas        # of the unit at hand, while it has borrowed them: their addresses
    cdef int32_t* places        # where they are, in rows from the first of them
    cdef int32_t* placed_inputs     # the unit's inputs and outputs as such places
    cdef int32_t* placed_outputs

    cdef readonly int64_t pairs  # in CBOW: predictions
    cdef readonly double loss

    def __init__(self, Worker kv, *, int dim, const uint8_t[::1] is_localized, bint in_place=False,
                 bint borrows_units=False, bint is_cbow=False, double slow_down=1.0, bint is_timed=False, **parameters):
        cdef int64_t key, max_rows = self.max_block_keys + self.max_unit_keys
        if dim < 1:
            raise ValueError(f"dim is {dim}, but must be at least 1")
        self.kv = kv
        self.dim, self.negative = dim, self.width - 1
        if is_cbow and not self.shares_negatives:
            raise ValueError("in CBOW a word is predicted once: its pairs share their negatives")
        if is_localized.shape[0] != 2 * self.num_words:
            raise ValueError(f"is_localized is of {is_localized.shape[0]} keys instead of {2 * self.num_words}")
        self.is_localized, self.in_place, self.is_cbow = is_localized, in_place, is_cbow
        for key in range(is_localized.shape[0]):
            self.localizes |= is_localized[key] != 0
        self.borrows_units = borrows_units
        self.train_groups = cbow_train if is_cbow else sgns_train
        self.set_pace(slow_down, is_timed)
        self.rows = <float*>allocate(max_rows * dim, sizeof(float))
        self.pulled = <float*>allocate(max_rows * dim, sizeof(float))
        self.weights = <float*>allocate(self.max_unit_keys, sizeof(float))
        self.localized = <key_t*>allocate(self.max_block_keys, sizeof(key_t))
        self.sampled = <key_t*>allocate(self.max_pairs * self.negative, sizeof(key_t))
        self.outputs = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
        if borrows_units:
            self.replicas = <void**>allocate(self.max_unit_keys, sizeof(void*))
            self.places = <int32_t*>allocate(self.max_unit_keys, sizeof(int32_t))
            self.placed_inputs = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
            self.placed_outputs = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
        make_scratch(&self.scratch, 2 * self.window, self.width, 2 * self.dim if is_cbow else 0)

    def __dealloc__(self):
        free(self.rows)
        free(self.pulled)
        free(self.borrowed)
        free(self.addresses)
        free(self.replicas)
        free(self.places)
        free(self.placed_inputs)
        free(self.placed_outputs)
        free(self.weights)
        free(self.localized)
        free(self.sampled)
        free(self.outputs)
        free_scratch(&self.scratch)

    def train(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha, float alpha_end):
        """Train some sentences; up to `lookahead` blocks stay prepared.

        Parameters
        ----------
        words
            Indexes of the words of all sentences.
        ends
            The end of each sentence in `words`.
        alpha, alpha_end
            The learning rate falls from one to the other over the sentences.
        """
        try:
            if self.in_place and self.borrowed == NULL:
                self._borrow()
            self.add_sentences(words, ends, alpha, alpha_end)
        except BaseException:
            self.settle()
            raise

    cdef int _borrow(self) except -1:
        """Borrow all vectors; if one of them is not here, they are pulled and pushed by units."""
        cdef int64_t key, row, size = self.dim * sizeof(float), count = 2 * self.num_words
        self.borrowed = <key_t*>allocate(count, sizeof(key_t))
        self.addresses = <void**>allocate(count, sizeof(void*))
        self.row_of_key = <int32_t*>allocate(count, sizeof(int32_t))
        for key in range(count):
            self.borrowed[key] = key
        self.rows_are_keys = self.kv.borrow_keys(self.borrowed, count, True, self.addresses) == 0
        for key in range(count if self.rows_are_keys else 0):
            row = (<char*>self.addresses[key] - <char*>self.addresses[0]) // size
            self.rows_are_keys &= -INT32_MAX <= row <= INT32_MAX
            self.row_of_key[key] = <int32_t>row
        if not self.rows_are_keys:
            self.give_back()
        self.in_place = self.rows_are_keys
        return 0

    cdef int give_back(self) except -1 nogil:
        if self.addresses != NULL:
            self.kv.return_keys(self.borrowed, 2 * self.num_words, self.addresses)
        return 0

    cdef int unit_is_complete(self, unit_t* unit) except -1 nogil:
        if self.negative:
            unit.sample = self.kv.prepare_sample_of(self.num_sets(unit) * self.negative)
        return 0

    cdef int prepare(self, int slot) except -1 nogil:
        cdef block_t* block = self.blocks + slot
        cdef int64_t i, count = 0
        for i in range(block.keys.count if self.localizes else 0):
            if self.is_localized[block.keys.keys[i]]:
                self.localized[count] = block.keys.keys[i]
                count += 1
        if count:
            self.kv.localize_keys(self.localized, count, NULL)
        return 0

    cdef int request(self, int slot) except -1 nogil:
        self.pulled_keys = 0
        self._request_unit(self.blocks + slot, self.blocks[slot].units)
        return 0

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef block_t* block = self.blocks + slot
        cdef int i
        for i in range(block.num_units):
            if i > 0:
                self._hold_and_request_unit(block, &block.units[i])
            self._await_unit(block, &block.units[i])
            self._train_unit(&block.units[i])
        if block.keys.count:
            self._push(&block.keys, NULL)
        return 0

    cdef int _hold_and_request_unit(self, block_t* block, unit_t* unit) except -1 nogil:
        self.kv.hold_messages()
        try:
            self._request_unit(block, unit)
        finally:
            self.kv.release_messages()
        return 0

    cdef int _request_unit(self, block_t* block, unit_t* unit) except -1 nogil:
        """Choose the unit's negatives; pull its replicated keys, and those of the block that have not been pulled."""
        cdef int64_t first = self.pulled_keys
        if self.negative:
            self.kv.choose_sample_of(unit.sample, self.num_sets(unit) * self.negative, self.sampled)
            self.kv.finish_sample_of(unit.sample)
        self.begin_computing()
        self.place_outputs(block, unit, self.sampled, self.outputs)
        self.pause_computing()  # messages are held
        if self.rows_are_keys or self.borrows_units:
            return 0
        self.kv.pull_keys(block.keys.keys + first, block.keys.count - first, self.rows + first * self.dim,
                          &self.operations[PULL_BLOCK])
        self._request_replicas(unit)
        return 0

    cdef int _request_replicas(self, unit_t* unit) except -1 nogil:
        self.kv.pull_keys(unit.replicated.keys, unit.replicated.count,
                          self.rows + <int64_t>unit.replicated.first * self.dim, &self.operations[PULL_UNIT])
        return 0

    cdef int _await_unit(self, block_t* block, unit_t* unit) except -1 nogil:
        if self.rows_are_keys or self.borrows_units:
            return 0
        self.wait(PULL_BLOCK)
        self._note_pulled(self.pulled_keys, block.keys.count - self.pulled_keys)
        self.pulled_keys = block.keys.count
        self._await_replicas(unit)
        return 0

    cdef int _await_replicas(self, unit_t* unit) except -1 nogil:
        self.wait(PULL_UNIT)
        self._note_pulled(unit.replicated.first, unit.replicated.count)
        return 0

    cdef void _note_pulled(self, int64_t first, int64_t count) noexcept nogil:
        memcpy(self.pulled + first * self.dim, self.rows + first * self.dim, count * self.dim * sizeof(float))

    cdef int _train_unit(self, unit_t* unit) except -1 nogil:
        if self.borrows_units:
            if self._borrow_unit(unit):
                self._train_replicas(unit)
                return 0
            self._request_replicas(unit)
            self._await_replicas(unit)
        if self.rows_are_keys:
            self._compute(unit, <float*>self.addresses[0], unit.inputs, self.outputs, True)
        else:
            self._compute(unit, self.rows, unit.inputs, self.outputs, False)
        if unit.replicated.count:
            self._weigh(unit)
            self._push(&unit.replicated, self.weights)
        return 0

    cdef void _compute(self, unit_t* unit, float* rows, const int32_t* inputs, const int32_t* outputs,
                       bint ahead) noexcept nogil:
        self.begin_computing()
        self.loss += self.train_groups(rows, unit.groups, unit.num_groups, inputs, outputs, self.dim, unit.alpha, ahead,
                                       &self.scratch)
        self.end_computing()
        self.pairs += unit.num_groups if self.is_cbow else unit.num_pairs

    cdef bint _borrow_unit(self, unit_t* unit) except -1 nogil:
        """Borrow the unit's replicas; False: one of them cannot be lent now, and none is."""
        cdef keys_t* keys = &unit.replicated
        if self.kv.borrow_keys(keys.keys, keys.count, True, self.replicas) == 0:
            return True
        memset(self.weights, 0, keys.count * sizeof(float))     # nothing was changed
        self.kv.return_weighted_keys(keys.keys, keys.count, self.weights, self.replicas)
        return False

    cdef int _train_replicas(self, unit_t* unit) except -1 nogil:
        """Train borrowed replicas where they are, and return them. Nothing raises until they are returned."""
        cdef keys_t* keys = &unit.replicated
        self._place(unit)
        self._compute(unit, <float*>self.replicas[0], self.placed_inputs, self.placed_outputs, True)
        self._weigh(unit)
        self.kv.return_weighted_keys(keys.keys, keys.count, self.weights, self.replicas)
        return 0

    cdef void _place(self, unit_t* unit) noexcept nogil:
        cdef int32_t first = unit.replicated.first
        cdef int64_t size = self.dim * sizeof(float)
        cdef int64_t i, num_outputs = 0
        for i in range(unit.replicated.count):
            self.places[i] = <int32_t>((<char*>self.replicas[i] - <char*>self.replicas[0]) // size)
        for i in range(unit.num_pairs):
            self.placed_inputs[i] = self.places[unit.inputs[i] - first]
        for i in range(unit.num_groups):
            num_outputs += unit.groups[i].num_outputs
        for i in range(num_outputs):
            self.placed_outputs[i] = self.places[self.outputs[i] - first]

    cdef void _weigh(self, unit_t* unit) noexcept nogil:
        """How much the unit has changed each of its replicated keys."""
        cdef int32_t* inputs = unit.inputs
        cdef int32_t* outputs = self.outputs
        cdef int32_t first = unit.replicated.first
        cdef int64_t group
        cdef sgns_group size
        memset(self.weights, 0, unit.replicated.count * sizeof(float))
        for group in range(unit.num_groups):
            size = unit.groups[group]
            add_weight(self.weights, inputs, size.num_inputs, first, unit.alpha * size.num_outputs)
            add_weight(self.weights, outputs, size.num_outputs, first,
                       unit.alpha * (1 if self.is_cbow else size.num_inputs))
            inputs += size.num_inputs
            outputs += size.num_outputs

    cdef int _push(self, keys_t* keys, const float* weights) except -1 nogil:
        """Push what changed."""
        cdef float* rows = self.rows + <int64_t>keys.first * self.dim
        sgns_subtract(rows, self.pulled + <int64_t>keys.first * self.dim, keys.count * self.dim)
        self.kv.push_weighted_keys(keys.keys, keys.count, rows, weights, NULL)
        return 0


cdef inline void add_weight(float* weights, const int32_t* rows, int32_t count, int32_t first,
                            float weight) noexcept nogil:
    # rows below `first` are not replicated
    cdef int32_t i
    for i in range(count):
        if rows[i] >= first:
            weights[rows[i] - first] += weight
