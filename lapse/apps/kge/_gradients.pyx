"""Loss and gradients of a block of triples, and its AdaGrad step."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy as np

from lapse cimport key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps.kge._scores cimport KGE_CHUNK, KGE_COMPLEX, KGE_OBJECT, KGE_PANEL, KGE_SUBJECT, model_number, pad
from lapse.base._random cimport mix, next_u64

cdef extern from "lapse/apps/kge/_gradients.h" nogil:
    enum:
        KGE_SOFTMAX, KGE_BCE, KGE_MARGIN
    void kge_dropout(float* x, int64_t n, float rate, uint64_t state)
    double kge_side(const kge_config* c, const kge_work* w, int asked, int64_t n, const int32_t* entities,
                    const int32_t* relations, const int32_t* targets, const int32_t* negatives, uint64_t state)
    double kge_regularize(const float* x, float* gradient, int64_t n, int64_t half, float n3, float l2)
    void kge_adagrad(float* value, const float* gradient, int64_t n, float rate, int in_place)

LOSSES = {"softmax": KGE_SOFTMAX, "bce": KGE_BCE, "margin": KGE_MARGIN}


cdef class Gradients:
    """Loss and gradients of a block of triples, for values that are given.

    Entity e has the key e; relation r the key `num_entities` + r, and with `reciprocal` its inverse
    the key `num_entities` + `num_relations` + r.

    Parameters
    ----------
    model, loss
        By name: see `models.DEFAULTS`, `LOSSES`.
    dim, relation_length
        Length of an entity's and of a relation's vector.
    num_entities, num_relations
        How many there are (relations without their inverses).
    reciprocal
        Ask for subjects by relations of their own (Lacroix, Usunier, Obozinski: *Canonical Tensor
        Decomposition for Knowledge Base Completion*, ICML 2018).
    block, negatives
        Triples of a block, at most; negatives of each side.
    norm
        TransE: 1 or 2.
    margin
        Of the margin loss.
    entity_dropout, relation_dropout
        Rates: for the entity that a query is made of, in each triple anew; for a relation, in each block.
    entity_n3, entity_l2, relation_n3, relation_l2
        Weights of the penalties, for each occurrence in a (true) triple.
    seed
        Of dropout.
    has_squares
        Whether AdaGrad's sums of squares are behind a vector, as a part of its value. Otherwise that is all of it.
    """

    def __cinit__(self, *, str model, str loss, int64_t dim, int64_t relation_length, int64_t num_entities,
                  int64_t num_relations, bint reciprocal, int64_t block, int64_t negatives, int norm=1,
                  float margin=1.0, float entity_dropout=0.0, float relation_dropout=0.0, float entity_n3=0.0,
                  float entity_l2=0.0, float relation_n3=0.0, float relation_l2=0.0, uint64_t seed=0,
                  bint has_squares=True):
        if dim < 1 or relation_length < 1 or block < 1 or negatives < 1 or num_entities < 1 or num_relations < 1:
            raise ValueError(f"dim is {dim}, relation_length {relation_length}, block {block}, negatives {negatives}, "
                             f"num_entities {num_entities}, num_relations {num_relations}, but all must be at least 1")
        if not (0 <= entity_dropout < 1 and 0 <= relation_dropout < 1):
            raise ValueError(f"entity_dropout is {entity_dropout} and relation_dropout {relation_dropout}, but "
                             "must be at least 0 and below 1")
        self.c.model, self.c.loss, self.c.norm = model_number(model), LOSSES[loss], norm
        self.c.dim, self.c.padded, self.c.relation_length = dim, pad(dim), relation_length
        self.c.negatives, self.c.padded_negatives = negatives, pad(negatives)
        self.c.score_step = self.c.padded_negatives | KGE_PANEL  # not a power of 2: columns would share a cache line
        self.c.margin = margin
        self.c.entity_dropout, self.c.relation_dropout = entity_dropout, relation_dropout
        self.reciprocal, self.has_squares = reciprocal, has_squares
        self.num_entities, self.num_relations, self.max_triples = num_entities, num_relations, block
        self.entity_n3, self.entity_l2 = entity_n3, entity_l2
        self.relation_n3, self.relation_l2 = relation_n3, relation_l2
        self.state = mix(seed)
        self._allocate_rows()
        self._allocate_work()

    cdef int64_t num_keys(self) noexcept nogil:
        return self.num_entities + self.num_relations * (2 if self.reciprocal else 1)

    cdef int _allocate_rows(self) except -1:
        cdef int64_t entities = min(2 * (self.max_triples + self.c.negatives), self.num_entities)
        cdef int64_t sides = 2 if self.reciprocal else 1
        cdef int64_t relations = sides * min(self.max_triples, self.num_relations)
        cdef int64_t elements = entities * self.c.dim + relations * self.c.relation_length
        self.max_rows = entities + relations
        self.keys = <key_t*>allocate(self.max_rows, sizeof(key_t))
        self.offsets = <int64_t*>allocate(self.max_rows + 1, sizeof(int64_t))
        self.row_of = <int32_t*>allocate(self.num_keys(), sizeof(int32_t))
        memset(self.row_of, 0xFF, self.num_keys() * sizeof(int32_t))
        self.uses = <int32_t*>allocate(self.max_rows, sizeof(int32_t))
        self.vectors = <float**>allocate(self.max_rows, sizeof(float*))
        self.values = <float*>allocate(2 * elements, sizeof(float))
        self.gradients = <float*>allocate(elements, sizeof(float))
        if self.c.relation_dropout > 0:
            self.masked = <float*>allocate(elements, sizeof(float))
        return 0

    cdef int _allocate_work(self) except -1:
        cdef int64_t n = self.max_triples, p = self.c.padded, k = self.c.padded_negatives, step = self.c.score_step
        self.subjects = <int32_t*>allocate(4 * n, sizeof(int32_t))
        self.relations, self.inverses = self.subjects + n, self.subjects + 2 * n
        self.objects = self.subjects + 3 * n
        self.negatives = <int32_t*>allocate(2 * self.c.negatives, sizeof(int32_t))
        self.w.negatives = <float*>allocate(k * p, sizeof(float))
        self.w.panels = <float*>allocate(k * p, sizeof(float))
        self.w.transposed = <float*>allocate(k * p, sizeof(float))
        self.w.negative_gradients = <float*>allocate(k * p, sizeof(float))
        self.w.inputs = <float*>allocate(KGE_CHUNK * p, sizeof(float))
        self.w.queries = <float*>allocate(KGE_CHUNK * p, sizeof(float))
        self.w.query_gradients = <float*>allocate(KGE_CHUNK * p, sizeof(float))
        self.w.scores = <float*>allocate(KGE_CHUNK * step, sizeof(float))
        self.w.distance_scores = <float*>allocate(KGE_CHUNK * step, sizeof(float))
        self.w.room = <float*>allocate(2 * p, sizeof(float))
        self.w.vectors, self.w.gradients, self.w.offsets = <const float**>self.vectors, self.gradients, self.offsets
        self.w.masked = self.masked
        return 0

    def __dealloc__(self):
        cdef void** memory = [
            self.keys, self.offsets, self.row_of, self.uses, self.vectors, self.values, self.gradients, self.masked,
            self.subjects, self.negatives, self.w.negatives, self.w.panels, self.w.transposed,
            self.w.negative_gradients, self.w.inputs, self.w.queries, self.w.query_gradients, self.w.scores,
            self.w.distance_scores, self.w.room]
        cdef int i
        for i in range(20):
            free(memory[i])

    # --- rows

    cdef inline int32_t _row(self, key_t key) noexcept nogil:
        """The row of a key; a new key gets the next one."""
        cdef int32_t row = self.row_of[key]
        if row < 0:
            row = self.row_of[key] = <int32_t>self.count
            self.keys[row] = key
            self.uses[row] = 0
            self.vectors[row] = self.values + self.offsets[row] * (2 if self.has_squares else 1)
            self.offsets[row + 1] = self.offsets[row] + self._length(key)
            self.count += 1
        return row

    cdef inline int64_t _length(self, key_t key) noexcept nogil:
        return self.c.dim if key < self.num_entities else self.c.relation_length

    cdef void forget_rows(self) noexcept nogil:
        cdef int64_t i
        for i in range(self.count):
            self.row_of[self.keys[i]] = -1
        self.count = 0

    cdef void add_triples(self, const int64_t* triples, int64_t n) noexcept nogil:
        """Give the keys of triples their rows."""
        cdef int64_t i
        for i in range(n):
            self.subjects[i] = self._used_row(triples[3 * i])
            self.relations[i] = self._used_row(self.num_entities + triples[3 * i + 1])
            if self.reciprocal:
                self.inverses[i] = self._used_row(self.num_entities + self.num_relations + triples[3 * i + 1])
            self.objects[i] = self._used_row(triples[3 * i + 2])

    cdef inline int32_t _used_row(self, key_t key) noexcept nogil:
        cdef int32_t row = self._row(key)
        self.uses[row] += 1
        return row

    cdef void add_negatives(self, const key_t* keys) noexcept nogil:
        cdef int64_t i
        for i in range(2 * self.c.negatives):
            self.negatives[i] = self._row(keys[i])

    # --- the block

    cdef double _compute(self, int64_t n) noexcept nogil:
        """The gradients of the block's `n` triples; returns the sum of the losses of both sides."""
        cdef double loss
        cdef int asked = KGE_OBJECT if self.reciprocal else KGE_SUBJECT
        memset(self.gradients, 0, self.offsets[self.count] * sizeof(float))
        self._mask_relations()
        loss = kge_side(&self.c, &self.w, KGE_OBJECT, n, self.subjects, self.relations, self.objects,
                        self.negatives, next_u64(&self.state))
        loss += kge_side(&self.c, &self.w, asked, n, self.objects, self.inverses if self.reciprocal else self.relations,
                         self.subjects, self.negatives + self.c.negatives, next_u64(&self.state))
        self._mask_relation_gradients()
        return loss

    cdef void _mask_relations(self) noexcept nogil:
        cdef int64_t i, length
        if self.masked == NULL:
            return
        next_u64(&self.state)
        self.masks = self.state
        for i in range(self.count):
            if self.keys[i] >= self.num_entities:
                length = self.c.relation_length
                memcpy(self.masked + self.offsets[i], self.vectors[i], length * sizeof(float))
                kge_dropout(self.masked + self.offsets[i], length, self.c.relation_dropout, mix(self.masks + i))

    cdef void _mask_relation_gradients(self) noexcept nogil:
        """What was dropped has no gradient: the same masks again."""
        cdef int64_t i
        if self.masked == NULL:
            return
        for i in range(self.count):
            if self.keys[i] >= self.num_entities:
                kge_dropout(self.gradients + self.offsets[i], self.c.relation_length, self.c.relation_dropout,
                            mix(self.masks + i))

    cdef double _regularize(self, int64_t row) noexcept nogil:
        """Adds the gradient of a row's penalty, and returns that."""
        cdef bint is_entity = self.keys[row] < self.num_entities
        cdef float n3 = self.uses[row] * (self.entity_n3 if is_entity else self.relation_n3)
        cdef float l2 = self.uses[row] * (self.entity_l2 if is_entity else self.relation_l2)
        cdef int64_t length = self._length(self.keys[row])
        if n3 == 0 and l2 == 0:
            return 0
        return kge_regularize(self.vectors[row], self.gradients + self.offsets[row], length,
                              length // 2 if self.c.model == KGE_COMPLEX else 0, n3, l2)

    cdef double step(self, int64_t n, float rate, bint in_place) noexcept nogil:
        """Values become what is to be added to them, or with `in_place` what they then are; the loss of `n` triples."""
        cdef int64_t i
        cdef double loss = self._compute(n)
        for i in range(self.count):  # both while it is in the cache
            self._regularize(i)
            kge_adagrad(self.vectors[i], self.gradients + self.offsets[i], self._length(self.keys[i]), rate, in_place)
        return loss

    cdef double compute(self, int64_t n) noexcept nogil:
        """The gradients of all rows, those of the penalties among them; the loss of `n` triples."""
        cdef int64_t i
        cdef double loss = self._compute(n)
        for i in range(self.count):
            self._regularize(i)
        return loss

    cdef int check_triples(self, const int64_t[:, ::1] triples) except -1:
        cdef int64_t i
        if triples.shape[1] != 3 or triples.shape[0] > self.max_triples:
            raise ValueError(f"triples have shape ({triples.shape[0]}, {triples.shape[1]}), but a block has at "
                             f"most {self.max_triples} rows of 3")
        for i in range(triples.shape[0]):
            if not (0 <= triples[i, 0] < self.num_entities and 0 <= triples[i, 2] < self.num_entities
                    and 0 <= triples[i, 1] < self.num_relations):
                raise IndexError(f"triple {i} is {tuple(triples[i])}, but there are {self.num_entities} entities "
                                 f"and {self.num_relations} relations")
        return 0

    def of(self, entities, relations, const int64_t[:, ::1] triples, const int64_t[::1] negatives):
        """Loss and gradients for values in arrays: what tests compare with finite differences.

        Parameters
        ----------
        entities : array of float32, shape (num_entities, dim)
        relations : array of float32, shape (relations and their inverses, relation_length)
        triples : array of int64, shape (n, 3)
        negatives : array of int64, shape (2 * number of negatives,)
            Those of the objects' side first.

        Returns
        -------
        loss : float
            With the penalties.
        entity_gradients, relation_gradients
            As `entities` and `relations`.
        """
        cdef uint64_t state = self.state
        cdef int64_t i
        cdef float[::1] row
        self.check_triples(triples)
        self.forget_rows()
        self.add_triples(&triples[0, 0], triples.shape[0])
        self.add_negatives(<const key_t*>&negatives[0])
        for i in range(self.count):
            is_entity = self.keys[i] < self.num_entities
            row = entities[self.keys[i]] if is_entity else relations[self.keys[i] - self.num_entities]
            memcpy(self.vectors[i], &row[0], row.shape[0] * sizeof(float))
        loss = self._compute(triples.shape[0])
        for i in range(self.count):
            loss += self._regularize(i)
        results = np.zeros_like(entities), np.zeros_like(relations)
        for i in range(self.count):
            is_entity = self.keys[i] < self.num_entities
            row = results[0][self.keys[i]] if is_entity else results[1][self.keys[i] - self.num_entities]
            memcpy(&row[0], self.gradients + self.offsets[i], row.shape[0] * sizeof(float))
        self.state = state  # the same masks every time
        return loss, *results
