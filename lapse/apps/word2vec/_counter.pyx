"""A trial run over sentences that counts how often keys are used."""

from libc.stdint cimport int32_t, int64_t

from lapse.apps.word2vec._pairs cimport Pairs, block_t


cdef class Counter(Pairs):
    """Counts in how many units each key occurs, without negatives: a trial run without a server.

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
        """Count some sentences: indexes of words, and the end of each sentence among them."""
        self.add_sentences(words, ends, 0.0, 0.0)

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef block_t* block = self.blocks + slot
        cdef int64_t i
        cdef int unit
        for i in range(block.keys.count):
            self.counts[block.keys.keys[i]] += 1
        for unit in range(block.num_units):
            self.units += 1
            self.pairs += block.units[unit].num_pairs
            self.sets += self.num_sets(&block.units[unit])
        return 0
