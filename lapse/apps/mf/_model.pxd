"""The model of matrix factorization."""

from libc.stdint cimport int32_t, int64_t

cdef extern from "lapse/apps/mf/_mf.h" nogil:
    ctypedef struct mf_model:
        int rank, biases, length
        float mean, low, high, regularization, bias_regularization
    ctypedef struct mf_sums:
        double squares, clipped_squares, penalty, absolute
    void mf_sgd(const mf_model* m, float* values, const int32_t* rows, const int32_t* columns, const float* ratings,
                int64_t count, float rate)
    void mf_adagrad(const mf_model* m, float* values, const int32_t* rows, const int32_t* columns,
                    const float* ratings, int64_t count, float rate)
    double mf_rank_pairs(const mf_model* m, float* values, const int32_t* rows, const int32_t* columns,
                         const int32_t* negatives, int64_t count, float rate)
    void mf_evaluate(const mf_model* m, const float* values, const int32_t* rows, const int32_t* columns,
                     const float* ratings, int64_t count, mf_sums* sums)
    void mf_subtract(float* new_values, const float* old_values, int64_t n)


cdef class Model:
    cdef mf_model c
    cdef readonly bint adagrad

    cdef void step(self, float* values, const int32_t* rows, const int32_t* columns, const float* ratings,
                   int64_t count, float rate) noexcept nogil
    cdef int check(self, const float[:, ::1] values, const int32_t[::1] rows, const int32_t[::1] columns,
                   const float[::1] ratings) except -1


cdef int check_order(const int64_t[::1] order, int64_t num_ratings) except -1
