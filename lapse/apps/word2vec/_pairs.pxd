"""Sentences as units of pairs, and units in blocks."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from lapse cimport key_t
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.word2vec._sgns cimport sgns_group


cdef struct entry_t:
    key_t key
    int32_t row
    uint32_t stamp              # the table's stamp, or the entry is free


cdef struct table_t:
    # Finds the row of a key: open addressing, at most half of the entries are taken.
    entry_t* entries
    uint64_t mask
    uint32_t stamp


cdef struct keys_t:
    # Keys, each once, and their rows: row `first + i` for keys[i].
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
    int num_units               # complete ones; the next is being filled
    keys_t keys                 # those that are not replicated


cdef class Pairs(Pipeline):
    cdef int window, width, block_units, negative_reuse
    cdef bint shares_negatives
    cdef bint rows_are_keys     # for a kernel that needs no rows of its own: no key is looked up
    cdef int32_t* row_of_key    # for the same: the row that each key has for good; NULL: that of its number
    cdef const uint32_t[::1] keep
    cdef const uint8_t[::1] is_replicated
    cdef uint64_t subsample_state, window_state
    cdef int64_t num_words, max_pairs, max_unit_keys, max_block_keys
    cdef block_t* blocks        # one per slot of the pipeline
    cdef block_t* block         # the one that is being filled
    cdef unit_t* unit           # its unit that is being filled

    cdef int32_t* kept          # the present sentence after subsampling
    cdef int32_t* input_rows    # per word of it, as far as the window reaches: its row in the open unit, or -1
    cdef int64_t kept_size

    cdef int unit_is_complete(self, unit_t* unit) except -1 nogil
    cdef int add_sentences(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha,
                           float alpha_end) except -1
    cdef int64_t num_sets(self, const unit_t* unit) noexcept nogil
    cdef void place_outputs(self, block_t* block, unit_t* unit, const key_t* negatives, int32_t* outputs) noexcept nogil

    cdef int _allocate_blocks(self) except -1
    cdef int _allocate_unit(self, unit_t* unit) except -1
    cdef int _check_words(self, const int32_t[::1] words, const int64_t[::1] ends) except -1
    cdef int _reserve(self, int64_t size) except -1
    cdef int _add_sentence(self, const int32_t[::1] words, int64_t begin, int64_t end, float alpha) except -1 nogil
    cdef int _add_centres(self, int64_t n, float alpha) except -1 nogil
    cdef int64_t _subsample(self, const int32_t[::1] words, int64_t begin, int64_t end) noexcept nogil
    cdef void _forget_rows(self, int64_t first, int64_t last, int64_t n) noexcept nogil
    cdef void _add_centre(self, int64_t n, int64_t centre) noexcept nogil
    cdef void _add_groups(self, unit_t* unit, int32_t centre_row, int32_t pairs) noexcept nogil
    cdef int32_t _row(self, block_t* block, unit_t* unit, key_t key) noexcept nogil
    cdef void _open_block(self) noexcept nogil
    cdef int _close_unit(self) except -1 nogil
    cdef int _close_block(self) except -1 nogil
