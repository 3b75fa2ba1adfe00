"""Knowledge-graph embeddings over a parameter server, without the GIL.

Triples are trained in *blocks*. A block pulls the values it needs, each once, sums the gradients of all
its triples per key, and pushes one AdaGrad step for each: a value is ``[vector | sum of squares]``, and
what is pushed is ``[step | squares of the gradient]``. Both are added, so that no worker's push is lost;
a sum of squares counts the blocks of all workers, as if one had trained them all.

A block's negatives come from the server's samples, one group for each side that is corrupted. They are
prepared with the block and chosen when it is trained. Blocks are prepared ahead of their turn: the keys of
their triples are localized at once, so that they have arrived when they are pulled. Which keys are
replicated makes no difference here: localizing them does nothing, pulling and pushing them stays on
the rank.

Nobody waits for pushes. They are additive; the worker's own next pull of a remote key goes the same way
behind the push and in practice finds it applied. Were it to overtake, that pull would be stale by one
block, which is what every other worker sees anyway.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lapse cimport Worker, key_t, operation_t

import numpy as np

cdef extern from "lapse/apps/_vector.h":    # included by the next one; named, so that its changes are seen
    pass

cdef extern from "_kge.h" nogil:
    enum:
        KGE_PANEL, KGE_CHUNK, KGE_COMPLEX, KGE_TRANSE, KGE_SUBJECT, KGE_OBJECT
    ctypedef struct kge_config:
        int model, loss, norm
        int64_t dim, padded, relation_length, negatives, padded_negatives, score_step
        float margin, entity_dropout, relation_dropout
    ctypedef struct kge_work:
        const float** vectors
        float* gradients
        const int64_t* offsets
        const float* masked
        float* negatives
        float* panels
        float* transposed
        float* negative_gradients
        float* inputs
        float* queries
        float* query_gradients
        float* scores
        float* distance_scores
        float* room
    uint64_t kge_mix(uint64_t z)
    void kge_dropout(float* x, int64_t n, float rate, uint64_t state)
    double kge_side(const kge_config* c, const kge_work* w, int asked, int64_t n, const int32_t* entities,
                    const int32_t* relations, const int32_t* targets, const int32_t* negatives, uint64_t state)
    double kge_regularize(const float* x, float* gradient, int64_t n, int64_t half, float n3, float l2)
    void kge_adagrad(float* value, const float* gradient, int64_t n, float rate, int in_place)
    void kge_queries(int model, int asked, int64_t n, const float* entities, const float* relations,
                     const int64_t* rows, int64_t relation_length, float* queries, int64_t dim, int64_t padded)
    void kge_pack_entities(int64_t columns, const float* e, int64_t padded, float* panels)
    void kge_score_entities(int model, int norm, int64_t queries, const float* q, int64_t columns, const float* e,
                            const float* panels, int64_t padded, float* scores, int64_t step)
    int64_t kge_place(float score, float wanted)
    int64_t kge_places(int64_t n, const float* scores, float wanted)

#: Numbers of the models and losses, in the order of the enumerations in _kge.h.
MODELS = {"complex": 0, "distmult": 1, "rescal": 2, "transe": 3}
LOSSES = {"softmax": 0, "bce": 1, "margin": 2}
SUBJECT, OBJECT = KGE_SUBJECT, KGE_OBJECT


cdef struct block_t:
    # Some triples, ahead of their turn.
    int64_t num_triples
    int64_t* triples            # subject, relation, object: three numbers each
    int64_t sample              # handle of the negatives of both sides
    key_t* keys                 # of the triples, each once
    int64_t num_keys


cdef void* allocate(size_t count, size_t size) except NULL:
    """Zeros: the padding of rows must be."""
    cdef void* memory = malloc(max(count * size, <size_t>1))
    if memory == NULL:
        raise MemoryError(f"no memory for {count} * {size} bytes")
    memset(memory, 0, count * size)
    return memory


cdef inline int64_t pad(int64_t n) noexcept nogil:
    return (n + KGE_PANEL - 1) // KGE_PANEL * KGE_PANEL


cdef class Gradients:
    """Loss and gradients of a block of triples, for values that are given.

    Entity e has the key e; relation r the key `num_entities` + r, and where `reciprocal`, its inverse
    the key `num_entities` + `num_relations` + r.

    Parameters
    ----------
    model, loss
        By name: see `MODELS`, `LOSSES`.
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
    """

    cdef kge_config c
    cdef kge_work w
    cdef bint reciprocal
    cdef int64_t num_entities, num_relations, most_triples, most_rows
    cdef float entity_n3, entity_l2, relation_n3, relation_l2
    cdef uint64_t state

    cdef key_t* keys            # of the rows, in their order
    cdef int64_t count
    cdef int64_t* offsets
    cdef int32_t* row_of        # per key: its row, -1 for none
    cdef int32_t* uses          # per row: in how many places of the triples
    cdef float** vectors        # per row: its value, here or elsewhere
    cdef float* values          # room for the values of all rows, one behind the other
    cdef float* gradients
    cdef float* masked
    cdef int32_t* subjects      # rows, per triple
    cdef int32_t* relations
    cdef int32_t* inverses
    cdef int32_t* objects
    cdef int32_t* negatives     # rows, those of the objects' side first

    def __cinit__(self, *_, str model, str loss, int64_t dim, int64_t relation_length, int64_t num_entities,
                  int64_t num_relations, bint reciprocal, int64_t block, int64_t negatives, int norm=1,
                  float margin=1.0, float entity_dropout=0.0, float relation_dropout=0.0, float entity_n3=0.0,
                  float entity_l2=0.0, float relation_n3=0.0, float relation_l2=0.0, uint64_t seed=0, **others):
        if dim < 1 or relation_length < 1 or block < 1 or negatives < 1 or num_entities < 1 or num_relations < 1:
            raise ValueError("dim, relation_length, block, negatives and the numbers of entities and relations "
                             "must be at least 1")
        if not (0 <= entity_dropout < 1 and 0 <= relation_dropout < 1):
            raise ValueError(f"dropout rates are {entity_dropout} and {relation_dropout}, but must be from 0 "
                             "to below 1")
        self.c.model, self.c.loss, self.c.norm = MODELS[model], LOSSES[loss], norm
        self.c.dim, self.c.padded, self.c.relation_length = dim, pad(dim), relation_length
        self.c.negatives, self.c.padded_negatives = negatives, pad(negatives)
        self.c.score_step = self.c.padded_negatives | KGE_PANEL  # not a power of 2: columns would share a cache line
        self.c.margin = margin
        self.c.entity_dropout, self.c.relation_dropout = entity_dropout, relation_dropout
        self.reciprocal = reciprocal
        self.num_entities, self.num_relations, self.most_triples = num_entities, num_relations, block
        self.entity_n3, self.entity_l2 = entity_n3, entity_l2
        self.relation_n3, self.relation_l2 = relation_n3, relation_l2
        self.state = kge_mix(seed)
        self._allocate_rows()
        self._allocate_work()

    cdef int64_t _num_keys(self) noexcept nogil:
        return self.num_entities + self.num_relations * (2 if self.reciprocal else 1)

    cdef int _allocate_rows(self) except -1:
        cdef int64_t entities = min(2 * (self.most_triples + self.c.negatives), self.num_entities)
        cdef int64_t sides = 2 if self.reciprocal else 1
        cdef int64_t relations = sides * min(self.most_triples, self.num_relations)
        cdef int64_t elements = entities * self.c.dim + relations * self.c.relation_length
        self.most_rows = entities + relations
        self.keys = <key_t*>allocate(self.most_rows, sizeof(key_t))
        self.offsets = <int64_t*>allocate(self.most_rows + 1, sizeof(int64_t))
        self.row_of = <int32_t*>allocate(self._num_keys(), sizeof(int32_t))
        memset(self.row_of, 0xFF, self._num_keys() * sizeof(int32_t))
        self.uses = <int32_t*>allocate(self.most_rows, sizeof(int32_t))
        self.vectors = <float**>allocate(self.most_rows, sizeof(float*))
        self.values = <float*>allocate(2 * elements, sizeof(float))
        self.gradients = <float*>allocate(elements, sizeof(float))
        if self.c.relation_dropout > 0:
            self.masked = <float*>allocate(elements, sizeof(float))
        return 0

    cdef int _allocate_work(self) except -1:
        cdef int64_t n = self.most_triples, p = self.c.padded, k = self.c.padded_negatives, step = self.c.score_step
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
        """The row of a key, which may be new: the last one then."""
        cdef int32_t row = self.row_of[key]
        if row < 0:
            row = self.row_of[key] = <int32_t>self.count
            self.keys[row] = key
            self.uses[row] = 0
            self.vectors[row] = self.values + 2 * self.offsets[row]
            self.offsets[row + 1] = self.offsets[row] + self._length(key)
            self.count += 1
        return row

    cdef inline int64_t _length(self, key_t key) noexcept nogil:
        return self.c.dim if key < self.num_entities else self.c.relation_length

    cdef void _forget_rows(self) noexcept nogil:
        cdef int64_t i
        for i in range(self.count):
            self.row_of[self.keys[i]] = -1
        self.count = 0

    cdef void _add_triples(self, const int64_t* triples, int64_t n) noexcept nogil:
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

    cdef void _add_negatives(self, const key_t* keys) noexcept nogil:
        cdef int64_t i
        for i in range(2 * self.c.negatives):
            self.negatives[i] = self._row(keys[i])

    # --- the block

    cdef double _compute(self, int64_t n) noexcept nogil:
        """The gradients of the block's `n` triples; returns the sum of the losses of both sides."""
        cdef double loss
        memset(self.gradients, 0, self.offsets[self.count] * sizeof(float))
        self._mask_relations()
        loss = kge_side(&self.c, &self.w, KGE_OBJECT, n, self.subjects, self.relations, self.objects,
                        self.negatives, self._next_state())
        if self.reciprocal:
            loss += kge_side(&self.c, &self.w, KGE_OBJECT, n, self.objects, self.inverses, self.subjects,
                             self.negatives + self.c.negatives, self._next_state())
        else:
            loss += kge_side(&self.c, &self.w, KGE_SUBJECT, n, self.objects, self.relations, self.subjects,
                             self.negatives + self.c.negatives, self._next_state())
        self._mask_relation_gradients()
        return loss

    cdef uint64_t _next_state(self) noexcept nogil:
        self.state += <uint64_t>0x9E3779B97F4A7C15
        return kge_mix(self.state)

    cdef void _mask_relations(self) noexcept nogil:
        cdef int64_t i, length
        if self.masked == NULL:
            return
        self._next_state()
        for i in range(self.count):
            if self.keys[i] >= self.num_entities:
                length = self.c.relation_length
                memcpy(self.masked + self.offsets[i], self.vectors[i], length * sizeof(float))
                kge_dropout(self.masked + self.offsets[i], length, self.c.relation_dropout, kge_mix(self.state + i))

    cdef void _mask_relation_gradients(self) noexcept nogil:
        """What was dropped has no gradient: the same masks again, those of two states ago."""
        cdef uint64_t state = self.state - 2 * <uint64_t>0x9E3779B97F4A7C15
        cdef int64_t i
        if self.masked == NULL:
            return
        for i in range(self.count):
            if self.keys[i] >= self.num_entities:
                kge_dropout(self.gradients + self.offsets[i], self.c.relation_length, self.c.relation_dropout,
                            kge_mix(state + i))

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

    cdef double _step(self, int64_t n, float rate, bint in_place) noexcept nogil:
        """Values become what is to be added to them, or with `in_place` what they then are; the loss of `n` triples."""
        cdef int64_t i
        cdef double loss = self._compute(n)
        for i in range(self.count):
            self._regularize(i)
            kge_adagrad(self.vectors[i], self.gradients + self.offsets[i], self._length(self.keys[i]), rate, in_place)
        return loss

    cdef int _check_triples(self, const int64_t[:, ::1] triples) except -1:
        cdef int64_t i
        if triples.shape[1] != 3 or triples.shape[0] > self.most_triples:
            raise ValueError(f"triples have shape ({triples.shape[0]}, {triples.shape[1]}), but a block has at "
                             f"most {self.most_triples} rows of 3")
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
        self._check_triples(triples)
        self._forget_rows()
        self._add_triples(&triples[0, 0], triples.shape[0])
        self._add_negatives(<const key_t*>&negatives[0])
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


cdef class Trainer(Gradients):
    """Trains one worker's triples of one epoch.

    Parameters
    ----------
    kv
        The worker; its thread calls all methods. Its server samples entities, and has values of twice the
        length of their vectors.
    rate
        Learning rate.
    localize
        Whether the keys of a block's triples are localized when it is prepared.
    lookahead
        How many blocks are prepared before the first of them is trained.
    **parameters
        Those of `Gradients`.
    """

    cdef Worker kv
    cdef bint localize
    cdef float rate
    cdef block_t* ring          # blocks in preparation order
    cdef int ring_size, first, waiting
    cdef key_t* sampled
    cdef operation_t* pulling   # writes into `values` until it is waited for

    cdef readonly int64_t triples
    cdef readonly double loss

    def __init__(self, Worker kv, *, double rate, bint localize, int lookahead, **parameters):
        if lookahead < 0:
            raise ValueError(f"lookahead is {lookahead}, but must be at least 0")
        self.kv, self.rate, self.localize = kv, rate, localize
        self.sampled = <key_t*>allocate(2 * self.c.negatives, sizeof(key_t))
        self._allocate_ring(lookahead + 1)

    cdef int _allocate_ring(self, int size) except -1:
        cdef int i
        self.ring = <block_t*>allocate(size, sizeof(block_t))
        self.ring_size = size
        for i in range(size):
            self.ring[i].triples = <int64_t*>allocate(3 * self.most_triples, sizeof(int64_t))
            self.ring[i].keys = <key_t*>allocate(self.most_rows, sizeof(key_t))
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.ring_size if self.ring != NULL else 0):
            free(self.ring[i].triples)
            free(self.ring[i].keys)
        free(self.ring)
        free(self.sampled)

    def train(self, const int64_t[:, ::1] triples):
        """Take a block of triples (shape (n, 3)); up to `lookahead` blocks stay prepared."""
        self._check_triples(triples)
        if triples.shape[0] == 0:
            return
        try:
            with nogil:
                self._prepare(&triples[0, 0], triples.shape[0])
                if self.waiting == self.ring_size:
                    self._use_first()
        except BaseException:
            self._settle()
            raise

    def finish(self):
        """Train what is prepared and wait until every update has been applied."""
        try:
            with nogil:
                while self.waiting:
                    self._use_first()
                self.kv.wait_everything()
        except BaseException:
            self._settle()
            raise

    cdef void _settle(self):
        """After an error: nothing may write into our memory any more when it is freed."""
        self.kv.release_messages()
        self.kv.cancel(self.pulling)
        self.pulling = NULL

    cdef int _prepare(self, const int64_t* triples, int64_t n) except -1 nogil:
        cdef block_t* block = self.ring + (self.first + self.waiting) % self.ring_size
        memcpy(block.triples, triples, 3 * n * sizeof(int64_t))
        block.num_triples = n
        self._add_triples(triples, n)
        memcpy(block.keys, self.keys, self.count * sizeof(key_t))
        block.num_keys = self.count
        self._forget_rows()
        self.kv.hold_messages()  # until the older block, whose turn may be now, pulls
        if self.localize:
            self.kv.localize_keys(block.keys, block.num_keys, NULL)
        block.sample = self.kv.prepare_sample_of(2 * self.c.negatives)
        self.waiting += 1
        if self.waiting < self.ring_size:
            self.kv.release_messages()
        return 0

    cdef int _use_first(self) except -1 nogil:
        cdef block_t* block = self.ring + self.first
        self._pull(block)
        self.loss += self._step(block.num_triples, self.rate, False)
        self.triples += block.num_triples
        self.kv.push_keys(self.keys, self.count, self.values, NULL)
        self._forget_rows()
        self.first = (self.first + 1) % self.ring_size
        self.waiting -= 1
        return 0

    cdef int _pull(self, block_t* block) except -1 nogil:
        """Choose the negatives, and pull everything, each key once."""
        self.kv.hold_messages()
        self.kv.choose_sample_of(block.sample, 2 * self.c.negatives, self.sampled)
        self.kv.finish_sample_of(block.sample)
        self._add_triples(block.triples, block.num_triples)
        self._add_negatives(self.sampled)
        self.kv.pull_keys(self.keys, self.count, self.values, &self.pulling)
        self.kv.release_messages()
        if self.pulling != NULL:
            self.kv.wait_for(self.pulling)
            self.pulling = NULL
        return 0


cdef class ArrayTrainer(Gradients):
    """The same training on arrays in memory, without a server: what the server's cost is compared with.

    Several threads may train the same arrays, each with a trainer of its own, as if nobody else did (Niu, Recht, Re,
    Wright: *Hogwild!*, NIPS 2011).

    Parameters
    ----------
    entities, relations : arrays of float32, shape (n, 2 * length)
        Vectors and sums of squares, as in a server's values; changed.
    rate
        Learning rate.
    **parameters
        Those of `Gradients`; `seed` is that of the negatives too.

    Attributes
    ----------
    triples, loss
        Triples so far, and the sum of the losses of both sides.
    """

    cdef float[:, ::1] entities
    cdef float[:, ::1] relation_values
    cdef float rate
    cdef uint64_t draws
    cdef key_t* sampled

    cdef readonly int64_t triples
    cdef readonly double loss

    def __init__(self, float[:, ::1] entities, float[:, ::1] relations, *, double rate, **parameters):
        if (entities.shape[0], entities.shape[1]) != (self.num_entities, 2 * self.c.dim) or (
                relations.shape[0] + self.num_entities != self._num_keys()
                or relations.shape[1] != 2 * self.c.relation_length):
            raise ValueError("the arrays do not have the shapes that the model's sizes ask for")
        self.entities, self.relation_values, self.rate = entities, relations, rate
        self.draws = kge_mix(self.state)
        self.sampled = <key_t*>allocate(2 * self.c.negatives, sizeof(key_t))

    def __dealloc__(self):
        free(self.sampled)

    def train(self, const int64_t[:, ::1] triples):
        """Train a block of triples (shape (n, 3))."""
        self._check_triples(triples)
        if triples.shape[0]:
            with nogil:
                self._train(&triples[0, 0], triples.shape[0])

    cdef void _train(self, const int64_t* triples, int64_t n) noexcept nogil:
        cdef int64_t i
        for i in range(2 * self.c.negatives):
            self.draws += <uint64_t>0x9E3779B97F4A7C15
            self.sampled[i] = <key_t>((kge_mix(self.draws) >> 33) * <uint64_t>self.num_entities >> 31)
        self._add_triples(triples, n)
        self._add_negatives(self.sampled)
        for i in range(self.count):
            if self.keys[i] < self.num_entities:
                self.vectors[i] = &self.entities[self.keys[i], 0]
            else:
                self.vectors[i] = &self.relation_values[self.keys[i] - self.num_entities, 0]
        self.loss += self._step(n, self.rate, True)
        self.triples += n
        self._forget_rows()


# --- evaluation ------------------------------------------------------------------------------------------------


def queries(str model, int asked, const float[:, ::1] entities, const float[:, ::1] relations,
            const int64_t[::1] rows, int64_t dim):
    """The queries of entities that are known and relations.

    Parameters
    ----------
    asked
        `SUBJECT` or `OBJECT`: the entity that is asked for.
    entities : shape (n, padded)
        See `padded`.
    relations : shape (m, relation_length)
    rows : array of int64, shape (n,)
        Which of `relations` each query has.

    Returns
    -------
    array of float32, shape (n, padded)
    """
    result = np.zeros((entities.shape[0], entities.shape[1]), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef int number = MODELS[model]
    cdef int64_t i
    _check(entities.shape[0] == rows.shape[0] and dim <= entities.shape[1], "queries")
    for i in range(rows.shape[0]):
        _check(0 <= rows[i] < relations.shape[0], "queries")
    if entities.shape[0]:
        with nogil:
            kge_queries(number, asked, entities.shape[0], &entities[0, 0], &relations[0, 0], &rows[0],
                        relations.shape[1], &out[0, 0], dim, entities.shape[1])
    return result


def scores(str model, int norm, const float[:, ::1] queries, const float[:, ::1] entities):
    """The scores of entities for queries.

    Parameters
    ----------
    queries : shape (n, padded)
    entities : shape (m, padded)
        m a multiple of 16 (`padded` rows of zeros at the end).

    Returns
    -------
    array of float32, shape (n, m)
    """
    result = np.empty((queries.shape[0], entities.shape[0]), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef int64_t m = entities.shape[0], p = entities.shape[1]
    cdef float[::1] panels = np.empty(max(m * p, 1), dtype=np.float32)
    cdef int number = MODELS[model]
    _check(queries.shape[1] == p and p % KGE_PANEL == 0 and m % KGE_PANEL == 0, "scores")
    if result.size:
        with nogil:
            kge_pack_entities(m, &entities[0, 0], p, &panels[0])
            kge_score_entities(number, norm, queries.shape[0], &queries[0, 0], m, &entities[0, 0], &panels[0], p,
                               &out[0, 0], m)
    return result


def pair_scores(str model, int norm, const float[:, ::1] queries, const float[:, ::1] entities):
    """The score of each query for one entity of its own, to the last bit as in `scores`; shape (n,)."""
    cdef int64_t first, i, n = queries.shape[0], p = queries.shape[1]
    result = np.empty(n, dtype=np.float32)
    cdef float[::1] out = result
    cdef float[:, ::1] some = np.zeros((KGE_PANEL, p), dtype=np.float32)
    cdef float[:, ::1] each
    _check(n == entities.shape[0] and p == entities.shape[1] and p % KGE_PANEL == 0, "pair_scores")
    for first in range(0, n, KGE_PANEL):
        some[: min(KGE_PANEL, n - first)] = entities[first : first + KGE_PANEL]
        each = scores(model, norm, queries[first : first + KGE_PANEL], some)
        for i in range(each.shape[0]):
            out[first + i] = each[i, i]
    return result


cdef enum:
    RANKED_AT_ONCE = 512    # entities: their panels and a chunk's scores stay in the second-level cache


cdef class Ranks:
    """Ranks of the true entities of queries, from scores of entities that pass by in blocks, in ascending order.

    Parameters
    ----------
    targets : array of int64, shape (n,)
        The true entity of each query.
    target_scores : array of float32, shape (n,)
        Its score, as `pair_scores` has it.
    rows, entities : arrays of int64, shape (m,)
        Entity ``entities[i]`` is left out of the filtered rank of query ``rows[i]``; in ascending order.

    Attributes
    ----------
    raw, filtered : arrays of float64, shape (n,)
        From 1 on; entities with an equal score count half.

    Notes
    -----
    A score that is no number counts as higher than all, that of a true entity as lower than all: a model that
    has diverged must not look good.
    """

    cdef const int64_t[::1] targets
    cdef const int64_t[::1] entities
    cdef float[::1] wanted
    cdef int64_t[::1] next              # per query: the first of `entities` that has not passed by
    cdef const int64_t[::1] ends
    cdef int64_t[::1] places            # per query: 2 for each entity that is before it, 1 for each beside it
    cdef int64_t[::1] left_out          # the same of those that the filter leaves out

    def __init__(self, targets, target_scores, rows, entities):
        bounds = np.searchsorted(rows, np.arange(len(targets) + 1))
        _check(len(targets) == len(target_scores) and len(entities) == len(rows), "Ranks")
        self.targets, self.entities = (np.ascontiguousarray(array, np.int64) for array in (targets, entities))
        self.wanted = np.nan_to_num(target_scores, nan=np.finfo(np.float32).min, posinf=np.inf,
                                    neginf=-np.inf).astype(np.float32)
        self.next, self.ends = bounds[:-1].copy(), bounds[1:]
        self.places, self.left_out = np.zeros((2, len(targets)), np.int64)

    @property
    def raw(self):
        return 1 + np.asarray(self.places) / 2

    @property
    def filtered(self):
        return 1 + (np.asarray(self.places) - np.asarray(self.left_out)) / 2

    def count(self, int64_t first, const float[:, :] scores):
        """Take the scores (n, m) of entities `first` .. `first` + m - 1; a row's lie side by side."""
        cdef int64_t i
        _check(scores.shape[0] == self.targets.shape[0] and scores.strides[1] == sizeof(float), "Ranks.count")
        with nogil:
            for i in range(scores.shape[0]):
                self._take(i, first, scores.shape[1], &scores[i, 0])

    def score(self, str model, int norm, const float[:, ::1] queries, int64_t first, int64_t count,
              const float[:, ::1] entities):
        """Take `count` entities from `first` on, whose vectors are in the first rows of `entities`.

        Shapes as in `scores`.
        """
        cdef int64_t m = entities.shape[0], p = entities.shape[1], begin = 0, size
        cdef float[::1] room = np.empty(RANKED_AT_ONCE * p + KGE_CHUNK * RANKED_AT_ONCE, dtype=np.float32)
        cdef int number = MODELS[model]
        _check(queries.shape[0] == self.targets.shape[0] and queries.shape[1] == p and p % KGE_PANEL == 0
               and m % KGE_PANEL == 0 and count <= m, "Ranks.score")
        with nogil:
            while begin < count:
                size = min(<int64_t>RANKED_AT_ONCE, m - begin)
                kge_pack_entities(size, &entities[begin, 0], p, &room[0])
                self._score(number, norm, queries, first + begin, min(size, count - begin), size, &entities[begin, 0],
                            &room[0], &room[RANKED_AT_ONCE * p])
                begin += size

    cdef void _score(self, int model, int norm, const float[:, ::1] queries, int64_t first, int64_t count,
                     int64_t size, const float* entities, const float* panels, float* scores) noexcept nogil:
        cdef int64_t begin = 0, i, some, p = queries.shape[1]
        while begin < queries.shape[0]:
            some = min(<int64_t>KGE_CHUNK, queries.shape[0] - begin)
            kge_score_entities(model, norm, some, &queries[begin, 0], size, entities, panels, p, scores, size)
            for i in range(some):
                self._take(begin + i, first, count, scores + i * size)
            begin += some

    cdef void _take(self, int64_t query, int64_t first, int64_t count, const float* scores) noexcept nogil:
        cdef float wanted = self.wanted[query]
        cdef int64_t places = kge_places(count, scores, wanted), target = self.targets[query] - first
        cdef int64_t end = first + count, at = self.next[query]
        if 0 <= target < count:
            places -= kge_place(scores[target], wanted)  # not ranked against itself
        self.places[query] += places
        while at < self.ends[query] and self.entities[at] < end:
            self.left_out[query] += kge_place(scores[self.entities[at] - first], wanted)
            at += 1
        self.next[query] = at


cdef int _check(bint good, str name) except -1:
    if not good:
        raise ValueError(f"{name}: shapes do not fit together, or rows are not padded to a multiple of {KGE_PANEL}")
    return 0


def padded(int64_t n):
    """`n`, rounded up to what rows and numbers of rows are padded to."""
    return pad(n)
