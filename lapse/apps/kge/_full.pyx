"""The softmax over all entities: what a worker computes of a batch of triples.

The entities are divided among all workers, and so are the relations. For a batch, which all workers have, each of them
computes the scores of its own entities, and what they contribute to the denominators of the softmax and to the
gradients of the queries. When these have been added up over the workers, it computes the gradients of its own entities
and relations, and nobody else does. So the result does not depend on the number of workers, but for rounding.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy as np

from lapse cimport key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps.kge._gradients cimport Gradients
from lapse.apps.kge._scores cimport KGE_COMPLEX, KGE_DISTMULT, KGE_OBJECT, KGE_SUBJECT, KGE_TRANSE
from lapse.base._random cimport next_u64

cdef extern from "lapse/apps/kge/_full_panel.h" nogil:
    void full_to_panel(const float* rows, int64_t step, int64_t count, int64_t length, float* panel)
    void full_from_panel(const float* panel, int64_t count, int64_t length, float* rows, int64_t step)

cdef extern from "lapse/apps/kge/_full.h" nogil:
    enum:
        FULL_LANES, FULL_BLOCK
    int full_prepare(int most)
    float* full_allocate(int64_t count)
    void full_forward(int64_t n, const float* q, const float* panels, const float* vectors, int64_t count, int64_t step,
                      int64_t length, int64_t panel_step, const float* offsets, float* weights, float* sums,
                      float* pulls)
    void full_backward(int64_t n, const float* q, int64_t count, int64_t step, int64_t length, int64_t panel_step,
                       const float* weights, float* gradients)
    void full_sum(int64_t n, const float* lanes, float* sums)

cdef extern from "lapse/apps/kge/_full_questions.h" nogil:
    void full_ask(const full_questions* x, int64_t n, uint64_t state)
    double full_answer(const full_questions* x, int64_t first, int64_t end, uint64_t state, const float* sums,
                       float* pulls, double* penalties)
    void full_ask_relations(const full_questions* x, int64_t n, float* queries, float* scores)
    double full_answer_relations(const full_questions* x, int64_t n, float weight, const float* sums,
                                 float* queries, float* pulls)

full_prepare(16)


def use_width(int most):
    """Use vectors of at most so many floats, for tests; returns how many they have. Not while a kernel runs."""
    return full_prepare(most)


def step_of(int64_t length):
    """Floats from one row of a matrix to the next: an odd number of lines, so that columns are spread over a cache."""
    return ((length + 15) // 16) * 16 | 16


cdef float* floats(int64_t count) except NULL:
    cdef float* memory = full_allocate(count)
    if memory == NULL:
        raise MemoryError(f"no memory for {4 * count:,} bytes")
    return memory


cdef class Share:
    """The vectors of one worker, of those that a softmax is over.

    Parameters
    ----------
    count, length
        How many there are, and their length.
    max_queries
        That are asked at once, at most.

    Attributes
    ----------
    step
        Floats from one query to the next one.
    """

    def __cinit__(self, int64_t count, int64_t length, int64_t max_queries):
        cdef int64_t padded = (count + FULL_PANEL - 1) // FULL_PANEL * FULL_PANEL
        self.count, self.length, self.step, self.max_queries = count, length, step_of(length), max_queries
        self.rows = floats(padded * self.step)
        self.panels = floats(padded * length)
        self.gradients = floats(padded * length)
        self.weights = floats(padded * max_queries)
        self.lanes = floats(max_queries * FULL_LANES)

    def __dealloc__(self):
        free(self.rows)
        free(self.panels)
        free(self.gradients)
        free(self.weights)
        free(self.lanes)

    cdef void set_vector(self, int64_t place, const float* vector) noexcept nogil:
        """To be followed by `pack`."""
        memcpy(self.rows + place * self.step, vector, self.length * sizeof(float))

    cdef int64_t size_of(self, int64_t panel) noexcept nogil:
        return min(<int64_t>FULL_PANEL, self.count - panel * FULL_PANEL)

    cdef void pack(self, int64_t panel) noexcept nogil:
        """The vectors of a panel have changed."""
        cdef int64_t first = panel * FULL_PANEL
        full_to_panel(self.rows + first * self.step, self.step, self.size_of(panel), self.length,
                      self.panels + first * self.length)

    cdef void forward(self, int64_t n, const float* queries, const float* offsets, float* pulls,
                      float* sums) noexcept nogil:
        """Contributions to the sums of exp(score - offset), and to the sums of vectors times that."""
        cdef int64_t first = 0, some
        memset(pulls, 0, n * self.step * sizeof(float))
        memset(self.lanes, 0, n * FULL_LANES * sizeof(float))
        while first < n:
            some = min(<int64_t>FULL_BLOCK, n - first)
            full_forward(some, queries + first * self.step, self.panels, self.rows, self.count, self.step, self.length,
                         n * FULL_PANEL, offsets + first, self.weights + first * FULL_PANEL,
                         self.lanes + first * FULL_LANES, pulls + first * self.step)
            first += some
        full_sum(n, self.lanes, sums)

    cdef void backward(self, int64_t n, const float* queries) noexcept nogil:
        """Add the gradients of the vectors, for the n queries of the last `forward`, divided by their sums."""
        cdef int64_t first = 0, some
        while first < n:
            some = min(<int64_t>FULL_BLOCK, n - first)
            full_backward(some, queries + first * self.step, self.count, self.step, self.length, n * FULL_PANEL,
                          self.weights + first * FULL_PANEL, self.gradients)
            first += some

    cdef void take_gradients(self, int64_t panel, float* rows) noexcept nogil:
        """Move the gradients of a panel to rows, `step` floats apart."""
        cdef float* gradients = self.gradients + panel * FULL_PANEL * self.length
        full_from_panel(gradients, self.size_of(panel), self.length, rows, self.step)
        memset(gradients, 0, FULL_PANEL * self.length * sizeof(float))


cdef class FullGradients:
    """Loss and gradients of a batch with all entities as negatives, for the entities and relations of one worker.

    A batch has *questions*: triples that are asked for their object or for their subject. Neighbors with the same given
    entity and relation are one *query* with several targets, of which the scores are computed once.

    For a batch: `add_questions`; `batch` receives the values of its keys; `begin`; then for each chunk of queries
    `ask`, the sum over all workers of what that has written, and `answer` with it; the same for relations; `finish`.

    Parameters
    ----------
    own : array of int64
        The keys of this worker, sorted.
    workers
        Of all ranks: among how many the keys are divided.
    relation_weight
        Weight of predicting the relation from both entities (Chen, Minervini, Riedel, Stenetorp: *Relation Prediction
        as an Auxiliary Training Objective*, AKBC 2021); 0: it is not predicted.
    dura
        Weight of the squared norms of queries and entities, for both questions of a triple; see `full_dura`.
    most_weights
        How many weights (queries times own entities) are kept at once.
    block
        Questions of a batch, at most.
    entity_n3, entity_l2, relation_n3, relation_l2
        Weights of the penalties, for each occurrence in a triple: of two questions together.
    **parameters
        Those of `Gradients`.

    Attributes
    ----------
    chunk
        Queries that are asked at once: the same for all workers.
    num_queries
        Of the batch.
    num_relation_queries
        Of the batch: one for each question if relations have inverses, otherwise for each question for an object.
    loss
        Of the batch, over all of its questions.
    """

    def __cinit__(self, const int64_t[::1] own, int64_t workers, float relation_weight=0.0,
                  float dura=0.0, int64_t most_weights=1 << 24, **parameters):
        cdef Gradients batch = Gradients(negatives=1, **parameters)
        cdef int64_t i, parts, most
        cdef int64_t[2] num_own
        if batch.c.model == KGE_TRANSE:
            raise ValueError("the scores of TransE are no products of vectors")
        if relation_weight and batch.c.model not in (KGE_COMPLEX, KGE_DISTMULT):
            raise ValueError("relations are predicted by ComplEx and DistMult only")
        self.batch, self.relation_weight = batch, relation_weight
        self.place_of = <int32_t*>allocate(batch.num_keys(), sizeof(int32_t))
        memset(self.place_of, -1, batch.num_keys() * sizeof(int32_t))
        num_own[0] = num_own[1] = 0
        for i in range(own.shape[0]):
            if not 0 <= own[i] < batch.num_keys() or i and own[i] <= own[i - 1]:
                raise ValueError(f"own[{i}] is {own[i]}, but must increase, up to {batch.num_keys() - 1}")
            is_relation = own[i] >= batch.num_entities
            self.place_of[own[i]] = <int32_t>num_own[is_relation]
            num_own[is_relation] += 1
        batch.entity_n3, batch.entity_l2 = batch.entity_n3 / 2, batch.entity_l2 / 2
        if not batch.reciprocal:  # a relation with an inverse is used by one of a triple's two questions
            batch.relation_n3, batch.relation_l2 = batch.relation_n3 / 2, batch.relation_l2 / 2
        self.max_questions = batch.max_triples
        most = max(most_weights // ((batch.num_entities + workers - 1) // workers), <int64_t>1)
        parts = (self.max_questions + most - 1) // most
        self.chunk = (self.max_questions + parts - 1) // parts
        self.entities = Share(num_own[0], batch.c.dim, self.chunk)
        if relation_weight:
            self.relations = Share(num_own[1], batch.c.relation_length, self.max_questions)
        self.x.dura = dura
        self._allocate()

    cdef int _allocate(self) except -1:
        cdef Gradients batch = self.batch
        cdef int64_t n = self.max_questions
        self.given = <int32_t*>allocate(4 * n + 1, sizeof(int32_t))
        self.relation_rows, self.targets, self.begins = self.given + n, self.given + 2 * n, self.given + 3 * n
        self.mine = <uint8_t*>allocate(batch.max_rows, 1)
        self.scores = <float*>allocate(3 * n, sizeof(float))
        self.x.highest, self.x.gaps = self.scores + n, self.scores + 2 * n
        self.x.model, self.x.length, self.x.relation_length = batch.c.model, batch.c.dim, batch.c.relation_length
        self.x.step, self.x.entity_dropout = self.entities.step, batch.c.entity_dropout
        self.x.vectors, self.x.gradients, self.x.offsets = <const float**>batch.vectors, batch.gradients, batch.offsets
        self.x.mine, self.x.masked = self.mine, batch.masked
        self.x.given, self.x.relations, self.x.targets = self.given, self.relation_rows, self.targets
        self.x.begins = self.begins
        self.x.asked = KGE_OBJECT if batch.reciprocal else KGE_SUBJECT
        self.x.queries = floats(n * self.x.step)
        self.x.room = floats(2 * self.x.length)
        if batch.c.entity_dropout > 0:
            self.x.inputs = floats(n * self.x.length)
        if self.relations is not None:
            self.x.relation_step = self.relations.step
            self.relation_queries = floats(n * self.x.relation_step)
        size = self.chunk * (self.x.step + 1)
        if self.relations is not None:
            size = max(size, n * (self.x.relation_step + 1))
        self.room = np.zeros(size, np.float32)
        return 0

    def __dealloc__(self):
        free(self.place_of)
        free(self.given)
        free(self.mine)
        free(self.scores)
        free(self.x.queries)
        free(self.x.room)
        free(self.x.inputs)
        free(self.relation_queries)

    # --- a batch

    cdef void add_questions(self, const int64_t* triples, int64_t n, int64_t num_objects) noexcept nogil:
        """Give the keys of n triples their rows in `batch`; the first `num_objects` are asked for their object."""
        cdef key_t first_relation = self.batch.num_entities
        cdef int64_t i
        self.batch.forget_rows()
        self.num_queries = 0
        for i in range(num_objects):
            self._add_question(i, triples[3 * i], first_relation + triples[3 * i + 1], triples[3 * i + 2], 0)
        self.x.num_objects = self.num_queries
        if self.batch.reciprocal:
            first_relation += self.batch.num_relations
        for i in range(num_objects, n):
            self._add_question(i, triples[3 * i + 2], first_relation + triples[3 * i + 1], triples[3 * i],
                               self.x.num_objects)
        self.begins[self.num_queries] = <int32_t>n
        for i in range(self.batch.count):
            self.mine[i] = self.place_of[self.batch.keys[i]] >= 0
        self.num_asked = self.num_relation_queries = 0
        if self.relation_weight:
            self.num_asked = self.num_queries if self.batch.reciprocal else self.x.num_objects
            self.num_relation_queries = self.begins[self.num_asked]

    cdef void _add_question(self, int64_t i, key_t given, key_t relation, key_t target, int64_t first) noexcept nogil:
        """Number i: of the query before, unless that comes before query `first`, or of a new one."""
        cdef int32_t given_row = self.batch._used_row(given), relation_row = self.batch._used_row(relation)
        cdef int64_t last = self.num_queries - 1
        self.targets[i] = self.batch._used_row(target)
        if last < first or self.given[last] != given_row or self.relation_rows[last] != relation_row:
            self.given[last + 1], self.relation_rows[last + 1] = given_row, relation_row
            self.begins[last + 1] = <int32_t>i
            self.num_queries += 1

    cdef void forget(self) noexcept nogil:
        self.batch.forget_rows()

    cdef void begin(self) noexcept nogil:
        """The values of `batch` have come: make the queries."""
        memset(self.batch.gradients, 0, self.batch.offsets[self.batch.count] * sizeof(float))
        self.batch._mask_relations()
        self.state = next_u64(&self.batch.state)
        self.loss = self.penalties = 0
        full_ask(&self.x, self.num_queries, self.state)

    cdef void ask(self, int64_t first, int64_t end, float* exchanged) noexcept nogil:
        """What own entities contribute for queries `first` to `end` - 1: pulls of all of them, and then sums."""
        cdef int64_t n = end - first
        self.entities.forward(n, self.x.queries + first * self.x.step, self.x.highest + first, exchanged,
                              exchanged + n * self.x.step)

    cdef void answer(self, int64_t first, int64_t end, float* exchanged) noexcept nogil:
        """Take what all entities have contributed."""
        cdef int64_t n = end - first
        self.loss += full_answer(&self.x, first, end, self.state, exchanged + n * self.x.step, exchanged,
                                 &self.penalties)
        self.entities.backward(n, self.x.queries + first * self.x.step)

    cdef void ask_relations(self, float* exchanged) noexcept nogil:
        cdef int64_t n = self.num_relation_queries
        self.batch._mask_relation_gradients()  # relations are predicted without dropout
        full_ask_relations(&self.x, self.num_asked, self.relation_queries, self.scores)
        self.relations.forward(n, self.relation_queries, self.scores, exchanged, exchanged + n * self.x.relation_step)

    cdef void answer_relations(self, float* exchanged) noexcept nogil:
        cdef int64_t n = self.num_relation_queries
        self.loss += full_answer_relations(&self.x, self.num_asked, self.relation_weight,
                                           exchanged + n * self.x.relation_step, self.relation_queries, exchanged)
        self.relations.backward(n, self.relation_queries)

    cdef double finish(self) noexcept nogil:
        """Add the penalties to the gradients of own rows; returns the penalties."""
        cdef int64_t i
        cdef double penalties = self.penalties
        if not self.num_relation_queries:
            self.batch._mask_relation_gradients()
        for i in range(self.batch.count):
            if self.mine[i]:
                penalties += self.batch._regularize(i)
        return penalties

    cdef void add_sparse(self, key_t key, float* gradient) noexcept nogil:
        """Add what a key has received as a part of triples."""
        cdef int32_t row = self.batch.row_of[key]
        cdef int64_t k
        cdef float* more
        if row >= 0:
            more = self.batch.gradients + self.batch.offsets[row]
            for k in range(self.batch.offsets[row + 1] - self.batch.offsets[row]):
                gradient[k] += more[k]

    # --- for tests

    def of(self, entities, relations, const int64_t[:, ::1] triples, int64_t num_objects):
        """Loss and gradients of one worker that has all keys, for values in arrays; as `Gradients.of`.

        The first `num_objects` of the triples are asked for their object, the others for their subject.
        """
        cdef Gradients batch = self.batch
        cdef uint64_t state = batch.state
        cdef float[::1] room = self.room, row
        cdef int64_t i, first, end
        batch.check_triples(triples)
        for share, vectors in ((self.entities, entities), (self.relations, relations)):
            if share is not None:
                load(share, vectors)
        self.add_questions(&triples[0, 0], triples.shape[0], num_objects)
        for i in range(batch.count):
            is_entity = batch.keys[i] < batch.num_entities
            row = entities[batch.keys[i]] if is_entity else relations[batch.keys[i] - batch.num_entities]
            memcpy(batch.vectors[i], &row[0], row.shape[0] * sizeof(float))
        self.begin()
        for first in range(0, self.num_queries, self.chunk):
            end = min(first + self.chunk, self.num_queries)
            self.ask(first, end, &room[0])
            self.answer(first, end, &room[0])
        if self.num_relation_queries:
            self.ask_relations(&room[0])
            self.answer_relations(&room[0])
        loss = self.finish() + self.loss
        batch.state = state  # the same masks every time
        return loss, dense(self.entities, self, 0, entities), dense(self.relations, self, batch.num_entities, relations)


cdef int load(Share share, const float[:, ::1] vectors) except -1:
    cdef int64_t i
    for i in range(share.count):
        share.set_vector(i, &vectors[i, 0])
    for i in range((share.count + FULL_PANEL - 1) // FULL_PANEL):
        share.pack(i)
    return 0


cdef dense(Share share, FullGradients gradients, key_t first_key, vectors):
    """The gradients of all keys from `first_key` on, as `vectors`."""
    cdef int64_t i
    cdef int64_t first, size
    cdef float[:, ::1] result = np.zeros_like(vectors)
    cdef float[:, ::1] panel
    if share is not None:
        panel = np.zeros((FULL_PANEL, share.step), np.float32)
        for i in range((share.count + FULL_PANEL - 1) // FULL_PANEL):
            share.take_gradients(i, &panel[0, 0])
            first, size = i * FULL_PANEL, share.size_of(i)
            result[first : first + size] = panel[:size, : share.length]
    for i in range(result.shape[0]):
        gradients.add_sparse(first_key + i, &result[i, 0])
    return np.asarray(result)
