"""Knowledge-graph embeddings over a parameter server, without the GIL.

Triples are trained in *blocks*. A block pulls the values it needs, each once, sums the gradients of all
its triples per key, and pushes one AdaGrad step for each: a value is ``[vector | sum of squares]``, and
what is pushed is ``[step | squares of the gradient]``. Both are added, so that no worker's push is lost;
a sum of squares counts the blocks of all workers, as if one had trained them all.

With an optimizer of the server the value is the vector alone, and what is sent is the gradient: the server
takes the step where the value lies.

A block's negatives come from the server's samples, one group for each side that is corrupted. They are
prepared with the block and chosen when it is trained. Blocks are prepared ahead of their turn: the keys of
their triples are localized at once, so that they have arrived when they are pulled. Which keys are
replicated makes no difference here: localizing them does nothing, pulling and pushing them stays on
the rank.

Nothing waits for pushes. They are additive; the worker's own next pull of a remote key goes the same way
behind the push and in practice finds it applied. If it were to overtake, that pull would be stale by one
block, which is what every other worker sees anyway.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.kge._gradients cimport Gradients

cdef enum:
    PULLING = 0     # number of the pipeline's operation: it writes into the values


cdef struct block_t:
    # Some triples, ahead of their turn.
    int64_t num_triples
    int64_t* triples            # subject, relation, object: three numbers each
    int64_t sample              # handle of the negatives of both sides
    key_t* keys                 # of the triples, each once
    int64_t num_keys


cdef class Trainer(Pipeline):
    """Trains one worker's triples of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. Its server samples entities; with "adagrad" its values have
        twice the length of their vectors.
    rate
        Learning rate.
    localize
        Whether the keys of a block's triples are localized when it is prepared.
    lookahead
        How many blocks are prepared before the first of them is trained.
    optimizer
        "adagrad": the kernel takes steps, of values as above. Otherwise that of the server does.
    slow_down, is_timed
        See `Pipeline.set_pace`.
    **parameters
        Those of `Gradients`.
    """

    cdef Gradients gradients
    cdef bint localize, takes_steps
    cdef float rate
    cdef int64_t num_negatives  # of a block
    cdef block_t* blocks        # one per slot of the pipeline
    cdef key_t* sampled

    cdef readonly int64_t triples
    cdef readonly double loss

    def __init__(self, Worker kv, *, double rate, bint localize, int lookahead, str optimizer="adagrad",
                 double slow_down=1.0, bint is_timed=False, **parameters):
        self.kv, self.rate, self.localize = kv, rate, localize
        self.takes_steps = optimizer == "adagrad"
        self.gradients = Gradients(has_squares=self.takes_steps, **parameters)
        self.num_negatives = 2 * self.gradients.c.negatives
        self.sampled = <key_t*>allocate(self.num_negatives, sizeof(key_t))
        self.set_lookahead(lookahead)
        self.set_pace(slow_down, is_timed)
        self._allocate_blocks()

    cdef int _allocate_blocks(self) except -1:
        cdef int i
        self.blocks = <block_t*>allocate(self.num_slots, sizeof(block_t))
        for i in range(self.num_slots):
            self.blocks[i].triples = <int64_t*>allocate(3 * self.gradients.max_triples, sizeof(int64_t))
            self.blocks[i].keys = <key_t*>allocate(self.gradients.max_rows, sizeof(key_t))
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.num_slots if self.blocks != NULL else 0):
            free(self.blocks[i].triples)
            free(self.blocks[i].keys)
        free(self.blocks)
        free(self.sampled)

    def train(self, const int64_t[:, ::1] triples):
        """Take a block of triples (shape (n, 3)); up to `lookahead` blocks stay prepared."""
        self.gradients.check_triples(triples)
        if triples.shape[0] == 0:
            return
        try:
            with nogil:
                self._fill(self.blocks + self.filling(), &triples[0, 0], triples.shape[0])
                self.advance()
        except BaseException:
            self.settle()
            raise

    cdef void _fill(self, block_t* block, const int64_t* triples, int64_t n) noexcept nogil:
        self.begin_computing()
        memcpy(block.triples, triples, 3 * n * sizeof(int64_t))
        block.num_triples = n
        self.gradients.add_triples(triples, n)
        memcpy(block.keys, self.gradients.keys, self.gradients.count * sizeof(key_t))
        block.num_keys = self.gradients.count
        self.gradients.forget_rows()
        self.end_computing()

    cdef int prepare(self, int slot) except -1 nogil:
        cdef block_t* block = self.blocks + slot
        if self.localize:
            self.kv.localize_keys(block.keys, block.num_keys, NULL)
        block.sample = self.kv.prepare_sample_of(self.num_negatives)
        return 0

    cdef int request(self, int slot) except -1 nogil:
        """Choose the negatives, and pull everything, each key once."""
        cdef block_t* block = self.blocks + slot
        self.kv.choose_sample_of(block.sample, self.num_negatives, self.sampled)
        self.kv.finish_sample_of(block.sample)
        self.begin_computing()
        self.gradients.add_triples(block.triples, block.num_triples)
        self.gradients.add_negatives(self.sampled)
        self.pause_computing()  # messages are held
        self.kv.pull_keys(self.gradients.keys, self.gradients.count, self.gradients.values, &self.operations[PULLING])
        return 0

    cdef int train_batch(self, int slot) except -1 nogil:
        cdef int64_t n = self.blocks[slot].num_triples
        self.wait(PULLING)
        self.begin_computing()
        self.loss += self.gradients.step(n, self.rate, False) if self.takes_steps else self.gradients.compute(n)
        self.end_computing()
        self.triples += n
        if self.takes_steps:
            self.kv.push_keys(self.gradients.keys, self.gradients.count, self.gradients.values, NULL)
        else:
            self.kv.apply_gradients_to(self.gradients.keys, self.gradients.count, self.gradients.gradients, self.rate,
                                       NULL)
        self.gradients.forget_rows()
        return 0
