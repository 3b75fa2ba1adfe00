"""word2vec on an array in memory."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free

from lapse cimport key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps.word2vec._pairs cimport Pairs, unit_t
from lapse.apps.word2vec._sgns cimport (
    LONGEST_VECTOR, free_scratch, make_scratch, sgns_prepare, sgns_scratch, sgns_train,
)
from lapse.sampling._draws cimport Generator, Table, draw_keys

sgns_prepare(LONGEST_VECTOR)


cdef class PlainTrainer(Pairs):
    """The training of `lapse.apps.word2vec` without a server.

    Threads train on the same array, each with a trainer of its own, and take no notice of each other (Niu, Recht, Re,
    Wright: *Hogwild!*, NIPS 2011).

    Parameters
    ----------
    table : float32 array of shape (2 * words, dim)
        Input vectors at 2w, output vectors at 2w + 1; changed.
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
            raise ValueError(f"the table has {table.shape[0]} rows, but there are {self.is_replicated.shape[0]} keys")
        self.rows_are_keys = True
        self.table, self.distribution, self.generator = table, distribution, generator
        self.negative = self.width - 1
        self.sampled = <key_t*>allocate(self.max_pairs * self.negative, sizeof(key_t))
        self.outputs = <int32_t*>allocate(self.max_pairs * self.width, sizeof(int32_t))
        make_scratch(&self.scratch, 2 * self.window, self.width, 0)

    def __dealloc__(self):
        free(self.sampled)
        free(self.outputs)
        free_scratch(&self.scratch)

    def train(self, const int32_t[::1] words, const int64_t[::1] ends, float alpha, float alpha_end):
        """Train some sentences, as `lapse.apps.word2vec`'s `Trainer.train`."""
        self.add_sentences(words, ends, alpha, alpha_end)

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef int i
        for i in range(self.blocks[slot].num_units):
            self._train_unit(&self.blocks[slot].units[i])
        return 0

    cdef void _train_unit(self, unit_t* unit) noexcept nogil:
        draw_keys(&self.distribution.c, self.generator.c, self.sampled, self.num_sets(unit) * self.negative)
        self.place_outputs(NULL, unit, self.sampled, self.outputs)
        self.loss += sgns_train(&self.table[0, 0], unit.groups, unit.num_groups, unit.inputs, self.outputs,
                                <int>self.table.shape[1], unit.alpha, True, &self.scratch)
        self.pairs += unit.num_pairs
