"""Loss and gradients of a block of triples."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from lapse cimport key_t

cdef extern from "lapse/apps/kge/_gradients.h" nogil:
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


cdef class Gradients:
    cdef kge_config c
    cdef kge_work w
    cdef bint reciprocal, has_squares
    cdef int64_t num_entities, num_relations, max_triples, max_rows
    cdef float entity_n3, entity_l2, relation_n3, relation_l2
    cdef uint64_t state         # of dropout
    cdef uint64_t masks         # the state from which the masks of the relations were made

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

    cdef int64_t num_keys(self) noexcept nogil
    cdef int check_triples(self, const int64_t[:, ::1] triples) except -1
    cdef void add_triples(self, const int64_t* triples, int64_t n) noexcept nogil
    cdef void add_negatives(self, const key_t* keys) noexcept nogil
    cdef void forget_rows(self) noexcept nogil
    cdef double compute(self, int64_t n) noexcept nogil
    cdef double step(self, int64_t n, float rate, bint in_place) noexcept nogil

    cdef int _allocate_rows(self) except -1
    cdef int _allocate_work(self) except -1
    cdef int32_t _row(self, key_t key) noexcept nogil
    cdef int32_t _used_row(self, key_t key) noexcept nogil
    cdef int64_t _length(self, key_t key) noexcept nogil
    cdef double _compute(self, int64_t n) noexcept nogil
    cdef void _mask_relations(self) noexcept nogil
    cdef void _mask_relation_gradients(self) noexcept nogil
    cdef double _regularize(self, int64_t row) noexcept nogil
