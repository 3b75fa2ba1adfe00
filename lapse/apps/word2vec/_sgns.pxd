"""The arithmetic of `_sgns.h`. A module that trains calls `sgns_prepare` once."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free

from lapse.apps._shared._memory cimport allocate

cdef extern from "lapse/apps/word2vec/_sgns.h" nogil:
    ctypedef struct sgns_group:
        int32_t num_inputs
        int32_t num_outputs

    ctypedef struct sgns_scratch:
        float** inputs
        float** outputs
        float* sums
        float* scores
        float* signs
        float* middle

    ctypedef double (*sgns_train_function)(float* rows, const sgns_group* groups, int64_t num_groups,
                                           const int32_t* inputs, const int32_t* outputs, int dim, float alpha,
                                           int ahead, sgns_scratch* scratch) noexcept nogil

    int sgns_prepare(int most)
    int64_t sgns_scores_room(int64_t pairs)
    sgns_train_function sgns_train, cbow_train
    void sgns_subtract(float* new_rows, const float* old_rows, int64_t n)

cdef enum:
    LONGEST_VECTOR = 16     # floats; processors without such vectors use shorter ones


cdef inline int make_scratch(sgns_scratch* scratch, int64_t inputs, int64_t outputs, int64_t middle) except -1:
    """Room for groups of so many rows, and so many numbers for CBOW's mean; all pointers are NULL before."""
    cdef int64_t room = sgns_scores_room(inputs * outputs)
    scratch.inputs = <float**>allocate(inputs, sizeof(float*))
    scratch.outputs = <float**>allocate(outputs, sizeof(float*))
    scratch.sums = <float*>allocate(4 * room, sizeof(float))
    scratch.scores = <float*>allocate(room, sizeof(float))
    scratch.signs = <float*>allocate(room, sizeof(float))
    scratch.middle = <float*>allocate(middle, sizeof(float))
    return 0


cdef inline void free_scratch(sgns_scratch* scratch) noexcept:
    free(scratch.inputs)
    free(scratch.outputs)
    free(scratch.sums)
    free(scratch.scores)
    free(scratch.signs)
    free(scratch.middle)
