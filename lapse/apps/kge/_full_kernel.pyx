"""The softmax over all entities, over a parameter server.

All workers train the same batch at the same time, each for its own entities and relations (`_full`). A worker pulls the
values of the batch's triples; its own ones it borrows for the steps of AdaGrad, which it alone takes. What it needs of
them in between, for products of matrices, it keeps in a copy that is as the server's values are. What workers have
computed of a batch is added up by `allreduce`.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memmove

import numpy as np

from lapse cimport Worker, key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps._shared._pipeline cimport Pipeline
from lapse.apps.kge._full cimport FULL_PANEL, FullGradients, Share

cdef extern from "lapse/apps/kge/_gradients.h" nogil:
    void kge_adagrad(float* value, const float* gradient, int64_t n, float rate, int in_place)

cdef enum:
    PULLING = 0     # number of the pipeline's operation: it writes into the values of the batch, or into `refused`


cdef class FullTrainer(Pipeline):
    """Trains batches of an epoch, in which all workers take part.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. With "adagrad" its server has values of twice the length of their
        vectors.
    own : array of int64
        The keys of this worker, sorted. All keys are divided among the workers of all ranks.
    rate
        Learning rate.
    optimizer
        "adagrad": the kernel takes steps. Otherwise the optimizer of the server does.
    slow_down, is_timed
        See `Pipeline.set_pace`.
    **parameters
        Those of `FullGradients`.

    Attributes
    ----------
    questions, loss
        Of all batches so far: how many (two for each triple), and the sum of their losses, without penalties.
    """

    cdef FullGradients gradients
    cdef float rate
    cdef bint takes_steps
    cdef const int64_t[::1] own
    cdef int64_t num_entities           # of `own`; relations follow
    cdef float* panel_gradients         # of a panel, in rows
    cdef float** steps                  # per key of a call of `_step`: its gradient
    cdef void** borrowed
    cdef const key_t* borrowed_keys
    cdef int64_t num_borrowed
    cdef float* refused                 # room for a value that is not lent

    cdef readonly int64_t questions
    cdef readonly double loss

    def __init__(self, Worker kv, const int64_t[::1] own, *, double rate, str optimizer="adagrad",
                 double slow_down=1.0, bint is_timed=False, **parameters):
        cdef int64_t longest
        self.kv, self.own, self.rate = kv, own, rate
        self.takes_steps = optimizer == "adagrad"
        self.gradients = FullGradients(own, kv.num_workers, has_squares=self.takes_steps, **parameters)
        self.num_entities = self.gradients.entities.count
        self.set_lookahead(0)
        self.set_pace(slow_down, is_timed)
        longest = max(self.gradients.x.length, self.gradients.x.relation_length)
        step = max(self.gradients.entities.step, self.gradients.x.relation_step)
        self.panel_gradients = <float*>allocate(FULL_PANEL * step, sizeof(float))
        self.steps = <float**>allocate(FULL_PANEL, sizeof(float*))
        self.borrowed = <void**>allocate(FULL_PANEL, sizeof(void*))
        self.refused = <float*>allocate(2 * longest, sizeof(float))
        self._load(self.gradients.entities, 0)
        if self.gradients.relations is not None:
            self._load(self.gradients.relations, self.num_entities)

    def __dealloc__(self):
        free(self.panel_gradients)
        free(self.steps)
        free(self.borrowed)
        free(self.refused)

    def _load(self, Share share, int64_t first):
        """Copy the vectors of the server, of the own keys from number `first` on."""
        cdef int64_t panel, i
        cdef float[:, ::1] values
        for panel in range((share.count + FULL_PANEL - 1) // FULL_PANEL):
            begin = first + panel * FULL_PANEL
            keys = np.asarray(self.own[begin : begin + share.size_of(panel)])
            values = self.kv.pull(keys).wait().reshape(len(keys), -1)
            for i in range(share.size_of(panel)):
                share.set_vector(panel * FULL_PANEL + i, &values[i, 0])
            share.pack(panel)

    def train(self, const int64_t[:, ::1] triples, int64_t num_objects):
        """Train a batch, the same on all workers.

        Collective over all workers. Before it, all of them must have ended the batch before.

        Parameters
        ----------
        triples : array of int64, shape (n, 3)
            The first `num_objects` of them are asked for their object, the others for their subject. Neighbors with the
            same given entity and relation cost little more than one of them.
        """
        cdef int64_t n = triples.shape[0], first, end
        cdef FullGradients gradients = self.gradients
        gradients.batch.check_triples(triples)
        if not 0 <= num_objects <= n:
            raise ValueError(f"num_objects is {num_objects}, but there are {n} triples")
        if n == 0:
            return
        try:
            with nogil:
                self._begin(&triples[0, 0], n, num_objects)
            for first in range(0, gradients.num_queries, gradients.chunk):
                end = min(first + gradients.chunk, gradients.num_queries)
                self._exchange(first, end, (end - first) * (gradients.x.step + 1))
            if gradients.num_relation_queries:
                self._exchange(-1, -1, gradients.num_relation_queries * (gradients.x.relation_step + 1))
            with nogil:
                self._take_steps()
        except BaseException:
            self.settle()
            raise
        self.questions += n
        self.loss += gradients.loss

    cdef int _begin(self, const int64_t* triples, int64_t n, int64_t num_objects) except -1 nogil:
        self.gradients.add_questions(triples, n, num_objects)
        self.kv.pull_keys(self.gradients.batch.keys, self.gradients.batch.count, self.gradients.batch.values,
                          &self.operations[PULLING])
        self.wait(PULLING)
        self.begin_computing()
        self.gradients.begin()
        self.end_computing()
        return 0

    cdef int _exchange(self, int64_t first, int64_t end, int64_t size) except -1:
        """Ask own entities, and answer with what all of them say; with -1 relations."""
        cdef FullGradients gradients = self.gradients
        cdef float[::1] room = gradients.room[:size]
        cdef float[::1] total
        with nogil:
            self.begin_computing()
            if first >= 0:
                gradients.ask(first, end, &room[0])
            else:
                gradients.ask_relations(&room[0])
            self.end_computing()
        total = room
        if self.kv.num_workers > 1:
            total = self.kv.allreduce(gradients.room[:size])
        with nogil:
            self.begin_computing()
            if first >= 0:
                gradients.answer(first, end, &total[0])
            else:
                gradients.answer_relations(&total[0])
            self.end_computing()
        return 0

    # --- steps

    cdef int _take_steps(self) except -1 nogil:
        self.begin_computing()
        self.gradients.finish()
        self._step_share(self.gradients.entities, 0)
        if self.gradients.relation_weight:
            self._step_share(self.gradients.relations, self.num_entities)
        else:
            self._step_relations()
        self.end_computing()
        self.gradients.forget()
        self.kv.wait_everything()  # what was not lent is set
        return 0

    cdef int _step_share(self, Share share, int64_t first) except -1 nogil:
        """The steps of all own keys of a kind, from number `first` on."""
        cdef int64_t panel, i, n
        cdef const key_t* keys
        for panel in range((share.count + FULL_PANEL - 1) // FULL_PANEL):
            n, keys = share.size_of(panel), &self.own[first + panel * FULL_PANEL]
            share.take_gradients(panel, self.panel_gradients)
            for i in range(n):
                self.steps[i] = self.panel_gradients + i * share.step
                self.gradients.add_sparse(keys[i], self.steps[i])
            self._step(keys, n, share.length, share, panel * FULL_PANEL)
            share.pack(panel)
        return 0

    cdef int _step_relations(self) except -1 nogil:
        """The steps of own relations of the batch."""
        cdef int64_t i
        for i in range(self.gradients.batch.count):
            if self.gradients.mine[i] and self.gradients.batch.keys[i] >= self.gradients.batch.num_entities:
                self.steps[0] = self.gradients.batch.gradients + self.gradients.batch.offsets[i]
                self._step(self.gradients.batch.keys + i, 1, self.gradients.x.relation_length, None, 0)
        return 0

    cdef int _step(self, const key_t* keys, int64_t n, int64_t length, Share share, int64_t place) except -1 nogil:
        """Take the steps of own keys where their values lie; `share`, if there is one, receives their vectors."""
        cdef int64_t i, refused
        cdef float* value
        if not self.takes_steps:
            return self._let_step(keys, n, length, share, place)
        self.borrowed_keys, self.num_borrowed = keys, n
        refused = self.kv.borrow_keys(keys, n, False, self.borrowed)
        for i in range(n):
            value = <float*>self.borrowed[i]
            if value != NULL:
                self._step_value(value, i, length, share, place)
                self.steps[i] = NULL
        self.give_back()
        for i in range(n if refused else 0):
            if self.steps[i] != NULL:
                self.kv.pull_keys(keys + i, 1, self.refused, &self.operations[PULLING])
                self.wait(PULLING)
                self._step_value(self.refused, i, length, share, place)
                self.kv.set_keys(keys + i, 1, self.refused, NULL)
        return 0

    cdef int _let_step(self, const key_t* keys, int64_t n, int64_t length, Share share, int64_t place) except -1 nogil:
        """`_step` by the server's optimizer."""
        cdef int64_t i
        for i in range(1, n):  # one behind the other; they are rows further apart
            memmove(self.steps[0] + i * length, self.steps[i], length * sizeof(float))
        self.kv.apply_gradients_to(keys, n, self.steps[0], self.rate, &self.operations[PULLING])
        self.wait(PULLING)
        if share is not None:
            self.kv.pull_keys(keys, n, self.steps[0], &self.operations[PULLING])
            self.wait(PULLING)
            for i in range(n):
                share.set_vector(place + i, self.steps[0] + i * length)
        return 0

    cdef void _step_value(self, float* value, int64_t i, int64_t length, Share share, int64_t place) noexcept nogil:
        kge_adagrad(value, self.steps[i], length, self.rate, True)
        if share is not None:
            share.set_vector(place + i, value)

    cdef int give_back(self) except -1 nogil:
        cdef int64_t n = self.num_borrowed
        if n:
            self.num_borrowed = 0
            self.kv.return_keys(self.borrowed_keys, n, self.borrowed)
        return 0
