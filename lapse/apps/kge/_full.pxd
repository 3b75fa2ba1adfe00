"""The softmax over all entities: what a worker computes of a batch."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from lapse cimport key_t
from lapse.apps.kge._gradients cimport Gradients

cdef extern from "lapse/apps/kge/_gradients.h":
    pass

cdef extern from "lapse/apps/kge/_scores.h":
    pass

cdef extern from "lapse/apps/kge/_full_panel.h":
    enum:
        FULL_PANEL

cdef extern from "lapse/apps/kge/_full_questions.h" nogil:
    ctypedef struct full_questions:
        int model
        int64_t length, relation_length, step, relation_step
        float entity_dropout, dura
        const float** vectors
        float* gradients
        const int64_t* offsets
        const uint8_t* mine
        const float* masked
        const int32_t* given
        const int32_t* relations
        const int32_t* targets
        const int32_t* begins
        int64_t num_objects
        int asked
        float* inputs
        float* queries
        float* highest
        float* gaps
        float* room


cdef class Share:
    cdef readonly int64_t count, length, step
    cdef int64_t max_queries
    cdef float* rows            # count x step
    cdef float* panels          # the same, in panels
    cdef float* gradients       # in panels
    cdef float* weights         # per panel, of the queries at hand
    cdef float* lanes           # per query: the parts of its sum

    cdef void set_vector(self, int64_t place, const float* vector) noexcept nogil
    cdef void pack(self, int64_t panel) noexcept nogil
    cdef int64_t size_of(self, int64_t panel) noexcept nogil
    cdef void forward(self, int64_t n, const float* queries, const float* offsets, float* pulls,
                      float* sums) noexcept nogil
    cdef void backward(self, int64_t n, const float* queries) noexcept nogil
    cdef void take_gradients(self, int64_t panel, float* rows) noexcept nogil


cdef class FullGradients:
    cdef Gradients batch        # its rows: each key of the batch once
    cdef full_questions x
    cdef readonly Share entities, relations     # None: relations are not predicted
    cdef readonly int64_t chunk, num_queries, num_relation_queries
    cdef float relation_weight
    cdef int64_t max_questions
    cdef int64_t num_asked      # queries whose questions are asked for their relation, too
    cdef int32_t* place_of      # per key: its place among the own ones of its kind, or -1
    cdef int32_t* given         # rows, per query
    cdef int32_t* relation_rows
    cdef int32_t* begins        # per query: where its targets begin
    cdef int32_t* targets
    cdef uint8_t* mine          # per row
    cdef float* scores          # of the true relations
    cdef float* relation_queries
    cdef uint64_t state         # of the dropout of the batch at hand
    cdef object room            # for `exchange`
    cdef readonly double loss   # of the batch at hand
    cdef double penalties       # of its questions

    cdef void add_questions(self, const int64_t* triples, int64_t n, int64_t num_objects) noexcept nogil
    cdef void _add_question(self, int64_t i, key_t given, key_t relation, key_t target, int64_t first) noexcept nogil
    cdef void begin(self) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef void ask(self, int64_t first, int64_t end, float* exchanged) noexcept nogil
    cdef void answer(self, int64_t first, int64_t end, float* exchanged) noexcept nogil
    cdef void ask_relations(self, float* exchanged) noexcept nogil
    cdef void answer_relations(self, float* exchanged) noexcept nogil
    cdef double finish(self) noexcept nogil
    cdef void add_sparse(self, key_t key, float* gradient) noexcept nogil
    cdef int _allocate(self) except -1
