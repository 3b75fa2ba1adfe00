"""Sentences as units of pairs, and units in blocks.

A *unit* is some hundred pairs (context word, centre word), in *groups*: the pairs of one centre word, which share their
negatives. If each pair has negatives of its own, each pair is a group. A unit numbers the vectors it needs, its *rows*:
a row that several groups use is the same row. A *block* is some units that are prepared together. Keys that are
replicated have their rows by unit, the others by block.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from lapse cimport key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.word2vec._sgns cimport sgns_group
from lapse.base._random cimport next_below, next_u64


# --- sets of keys ----------------------------------------------------------------------------

cdef int make_keys(keys_t* keys, int64_t max_keys, int32_t first) except -1:
    cdef uint64_t size = 2
    while size < 2 * <uint64_t>max_keys:
        size *= 2
    keys.first = first
    keys.keys = <key_t*>allocate(max_keys, sizeof(key_t))
    keys.table.entries = <entry_t*>allocate(size, sizeof(entry_t))
    keys.table.mask = size - 1
    keys.table.stamp = 1
    return 0


cdef void free_keys(keys_t* keys) noexcept:
    free(keys.keys)
    free(keys.table.entries)


cdef void forget_keys(keys_t* keys) noexcept nogil:
    keys.count = 0
    keys.table.stamp += 1
    if keys.table.stamp == 0:  # all stamps have been used: erase the old ones
        memset(keys.table.entries, 0, (keys.table.mask + 1) * sizeof(entry_t))
        keys.table.stamp = 1


cdef int32_t row_of(keys_t* keys, key_t key) noexcept nogil:
    """The row of a key; a new key gets the next one."""
    cdef table_t* table = &keys.table
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15 >> 32) & table.mask
    cdef entry_t* entry = table.entries + at
    while entry.stamp == table.stamp:
        if entry.key == key:
            return entry.row
        at = (at + 1) & table.mask
        entry = table.entries + at
    entry.key = key
    entry.stamp = table.stamp
    entry.row = keys.first + <int32_t>keys.count
    keys.keys[keys.count] = key
    keys.count += 1
    return entry.row


# --- units -------------------------------------------------------------------------------------

cdef class Pairs(Pipeline):
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

    def __cinit__(self, *_, int window, int negative, const uint32_t[::1] keep, const uint8_t[::1] is_replicated,
                  int unit_pairs, int block_units, int lookahead, seeds, bint shares_negatives=True,
                  int negative_reuse=1, **others):
        if window < 1 or negative < 0 or block_units < 1 or negative_reuse < 1:
            raise ValueError(f"window is {window}, block_units {block_units}, negative_reuse {negative_reuse}, but "
                             f"must be at least 1; negative is {negative}, but must be at least 0")
        if is_replicated.shape[0] != 2 * keep.shape[0]:
            raise ValueError(f"is_replicated has {is_replicated.shape[0]} keys, but {keep.shape[0]} words have "
                             f"{2 * keep.shape[0]}")
        self.window, self.width = window, 1 + negative
        self.keep, self.num_words, self.is_replicated = keep, keep.shape[0], is_replicated
        self.subsample_state, self.window_state = seeds
        self.block_units = block_units
        self.shares_negatives, self.negative_reuse = shares_negatives, negative_reuse
        self.max_pairs = max(unit_pairs, 2 * window)
        self.max_unit_keys = min(self.max_pairs * (1 + self.width), <int64_t>is_replicated.shape[0])
        self.max_block_keys = min(self.max_unit_keys * block_units, <int64_t>is_replicated.shape[0])
        self.set_lookahead(lookahead)
        self._allocate_blocks()
        self._open_block()

    cdef int _allocate_blocks(self) except -1:
        cdef int i, j
        self.blocks = <block_t*>allocate(self.num_slots, sizeof(block_t))
        for i in range(self.num_slots):
            make_keys(&self.blocks[i].keys, self.max_block_keys, 0)
            self.blocks[i].units = <unit_t*>allocate(self.block_units, sizeof(unit_t))
            for j in range(self.block_units):
                self._allocate_unit(&self.blocks[i].units[j])
        return 0

    cdef int _allocate_unit(self, unit_t* unit) except -1:
        unit.groups = <sgns_group*>allocate(self.max_pairs, sizeof(sgns_group))
        unit.inputs = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
        unit.centres = <int32_t*>allocate(self.max_pairs, sizeof(int32_t))
        make_keys(&unit.replicated, self.max_unit_keys, <int32_t>self.max_block_keys)
        return 0

    def __dealloc__(self):
        cdef int i, j
        if self.blocks != NULL:
            for i in range(self.num_slots):
                free_keys(&self.blocks[i].keys)
                for j in range(self.block_units if self.blocks[i].units != NULL else 0):
                    free(self.blocks[i].units[j].groups)
                    free(self.blocks[i].units[j].inputs)
                    free(self.blocks[i].units[j].centres)
                    free_keys(&self.blocks[i].units[j].replicated)
                free(self.blocks[i].units)
        free(self.blocks)
        free(self.kept)
        free(self.input_rows)
        free(self.row_of_key)

    cdef int unit_is_complete(self, unit_t* unit) except -1 nogil:
        """A step of the kernels that inherit, besides those of `Pipeline`, whose slots are blocks."""
        return 0

    cdef int add_sentences(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha,
                           float alpha_end) except -1:
        """Turn some sentences into units. The last unit may stay open, and up to `lookahead` blocks stay prepared."""
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
            if not 0 <= words[i] < self.num_words:
                raise IndexError(f"word {words[i]} is outside the vocabulary of {self.num_words} words")
        return 0

    cdef int _reserve(self, int64_t size) except -1:
        """Allocate for the longest possible sentence, twice what is needed, so that this is rare."""
        if size <= self.kept_size:
            return 0
        free(self.kept)
        free(self.input_rows)
        self.kept, self.input_rows, self.kept_size = NULL, NULL, 0
        self.kept = <int32_t*>allocate(2 * size, sizeof(int32_t))
        self.input_rows = <int32_t*>allocate(2 * size, sizeof(int32_t))
        self.kept_size = 2 * size
        return 0

    cdef int _add_sentence(self, const int32_t[::1] words, int64_t begin, int64_t end, float alpha) except -1 nogil:
        cdef int64_t n
        self.begin_computing()
        n = self._subsample(words, begin, end)
        if n >= 2:
            self._add_centres(n, alpha)
        self.pause_computing()
        return 0

    cdef int _add_centres(self, int64_t n, float alpha) except -1 nogil:
        cdef int64_t centre
        self._forget_rows(0, self.window, n)
        for centre in range(n):
            if self.unit.num_pairs + 2 * self.window > self.max_pairs:
                self.pause_computing()
                self._close_unit()
                self.begin_computing()
                self._forget_rows(centre - self.window, centre + self.window, n)
            elif centre + self.window < n:
                self.input_rows[centre + self.window] = -1
            if self.unit.num_pairs == 0:
                self.unit.alpha = alpha
            self._add_centre(n, centre)
        return 0

    cdef void _forget_rows(self, int64_t first, int64_t last, int64_t n) noexcept nogil:
        cdef int64_t position
        for position in range(max(first, 0), min(last + 1, n)):
            self.input_rows[position] = -1

    cdef int64_t _subsample(self, const int32_t[::1] words, int64_t begin, int64_t end) noexcept nogil:
        cdef int64_t i, n = 0
        for i in range(begin, end):
            self.kept[n] = words[i]
            n += <uint32_t>(next_u64(&self.subsample_state) >> 32) <= self.keep[words[i]]
        return n

    cdef void _add_centre(self, int64_t n, int64_t centre) noexcept nogil:
        cdef int64_t reach = 1 + <int64_t>next_below(&self.window_state, self.window)
        cdef int64_t position, first = max(centre - reach, 0), end = min(centre + reach + 1, n)
        cdef block_t* block = self.block
        cdef unit_t* unit = self.unit
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

    cdef void place_outputs(self, block_t* block, unit_t* unit, const key_t* negatives,
                            int32_t* outputs) noexcept nogil:
        """The rows of each group's outputs, group after group. A negative that is the word itself is left out."""
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
            return <int32_t>key if self.row_of_key == NULL else self.row_of_key[key]
        return row_of(&unit.replicated if self.is_replicated[key] else &block.keys, key)

    # --- the open unit and the open block

    cdef void _open_block(self) noexcept nogil:
        cdef block_t* block = self.blocks + self.filling()
        cdef int i
        self.block, self.unit = block, block.units
        block.num_units = 0
        forget_keys(&block.keys)
        for i in range(self.block_units):
            block.units[i].num_pairs = block.units[i].num_groups = 0
            forget_keys(&block.units[i].replicated)

    cdef int _close_unit(self) except -1 nogil:
        if self.unit.num_pairs == 0:
            return 0
        self.unit_is_complete(self.unit)
        self.block.num_units += 1
        self.unit += 1
        if self.block.num_units == self.block_units:
            self._close_block()
        return 0

    cdef int _close_block(self) except -1 nogil:
        if self.block.num_units:
            self.advance()
            self._open_block()
        return 0

    cdef int close_last(self) except -1 nogil:
        self._close_unit()
        self._close_block()
        return 0
