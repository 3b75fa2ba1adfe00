/* The arithmetic of matrix factorization: steps of stochastic gradient descent, and squared errors.
 *
 * A value is the factor (rank elements), then the bias if there is one, then, with AdaGrad, as many
 * accumulated squares of gradients. Vectors of eight floats are spelled out in the dot product (a GCC
 * and Clang extension), because a compiler may not reorder a sum by itself; the other loops, without
 * a sum and on memory that does not overlap, it makes vectors of by itself. */
#ifndef LAPSE_MF_H
#define LAPSE_MF_H

#include <math.h>
#include <stdint.h>

typedef float mf_v8 __attribute__((vector_size(32), aligned(4), may_alias));

/* The same source for several generations of processors; the loader picks one. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define MF_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define MF_CLONES
#endif
#define MF_INLINE static inline __attribute__((always_inline))

/* Inside the root, as in AdaPM: the first step is at most the learning rate. */
static const float MF_EPSILON = 1e-6f;

typedef struct {
    int rank;                   /* elements of a factor */
    int biases;                 /* 0 or 1 elements of bias */
    int length;                 /* elements of a value */
    float mean;                 /* of the training ratings; 0 without biases */
    float low, high;            /* the range of the training ratings */
    float regularization, bias_regularization;
} mf_model;

typedef struct {
    double squares;             /* of errors of the score */
    double clipped_squares;     /* of errors of the prediction, the score clipped to the range */
    double penalty;             /* regularization, once per rating */
} mf_sums;

MF_INLINE float mf_dot(const float *a, const float *b, int n) {
    mf_v8 s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += *(const mf_v8 *)(a + i) * *(const mf_v8 *)(b + i);
        s1 += *(const mf_v8 *)(a + i + 8) * *(const mf_v8 *)(b + i + 8);
    }
    if (i + 8 <= n) {
        s0 += *(const mf_v8 *)(a + i) * *(const mf_v8 *)(b + i);
        i += 8;
    }
    s0 += s1;
    float sum = ((s0[0] + s0[4]) + (s0[2] + s0[6])) + ((s0[1] + s0[5]) + (s0[3] + s0[7]));
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* mean + p's bias + q's bias + <p, q> */
MF_INLINE float mf_score(const mf_model *m, const float *p, const float *q) {
    float biases = m->biases ? p[m->rank] + q[m->rank] : 0.0f;
    return m->mean + biases + mf_dot(p, q, m->rank);
}

/* a += rate (error b - regularization a), and b likewise with the old a */
MF_INLINE void mf_sgd_step(float *restrict a, float *restrict b, int n, float error, float regularization,
                           float rate) {
    float keep = 1.0f - rate * regularization, step = rate * error;
    for (int k = 0; k < n; k++) {
        float old = a[k];
        a[k] = keep * old + step * b[k];
        b[k] = keep * b[k] + step * old;
    }
}

/* Train ratings one after the other. Rating i is `ratings[i]`; its row's value begins at element
 * rows[i] * length of `values`, its column's at columns[i] * length. The gradient is that of
 * 1/2 (error^2 + regularization (|p|^2 + |q|^2) + bias_regularization (b_p^2 + b_q^2)). */
MF_CLONES
static void mf_sgd(const mf_model *m, float *values, const int32_t *rows, const int32_t *columns,
                   const float *ratings, int64_t count, float rate) {
    float bias_keep = 1.0f - rate * m->bias_regularization;
    for (int64_t i = 0; i < count; i++) {
        float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        float error = ratings[i] - mf_score(m, p, q);
        mf_sgd_step(p, q, m->rank, error, m->regularization, rate);
        if (m->biases) {
            p[m->rank] = bias_keep * p[m->rank] + rate * error;
            q[m->rank] = bias_keep * q[m->rank] + rate * error;
        }
    }
}

/* x += rate g / sqrt(G), where g is minus the gradient and G the sum of its squares, this one included */
MF_INLINE void mf_adagrad_move(float *x, float *squares, float g, float rate) {
    *squares += g * g;
    *x += rate * g / sqrtf(*squares + MF_EPSILON);
}

MF_INLINE void mf_adagrad_step(float *restrict a, float *restrict b, float *restrict a_squares,
                               float *restrict b_squares, int n, float error, float regularization, float rate) {
    for (int k = 0; k < n; k++) {
        float a_gradient = error * b[k] - regularization * a[k];
        float b_gradient = error * a[k] - regularization * b[k];
        mf_adagrad_move(a + k, a_squares + k, a_gradient, rate);
        mf_adagrad_move(b + k, b_squares + k, b_gradient, rate);
    }
}

/* As mf_sgd, with steps by AdaGrad (Duchi, Hazan, Singer 2011). */
MF_CLONES
static void mf_adagrad(const mf_model *m, float *values, const int32_t *rows, const int32_t *columns,
                       const float *ratings, int64_t count, float rate) {
    int width = m->rank + m->biases;
    for (int64_t i = 0; i < count; i++) {
        float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        float error = ratings[i] - mf_score(m, p, q);
        mf_adagrad_step(p, q, p + width, q + width, m->rank, error, m->regularization, rate);
        if (m->biases) {
            float *b = p + m->rank, *c = q + m->rank;
            mf_adagrad_move(b, b + width, error - m->bias_regularization * *b, rate);
            mf_adagrad_move(c, c + width, error - m->bias_regularization * *c, rate);
        }
    }
}

/* Add what ratings contribute to `sums`; places as in mf_sgd. */
MF_CLONES
static void mf_evaluate(const mf_model *m, const float *values, const int32_t *rows, const int32_t *columns,
                        const float *ratings, int64_t count, mf_sums *sums) {
    for (int64_t i = 0; i < count; i++) {
        const float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        float score = mf_score(m, p, q);
        float prediction = score < m->low ? m->low : score > m->high ? m->high : score; /* NaN stays NaN */
        double error = (double)ratings[i] - score, clipped = (double)ratings[i] - prediction;
        sums->squares += error * error;
        sums->clipped_squares += clipped * clipped;
        sums->penalty += m->regularization * (mf_dot(p, p, m->rank) + mf_dot(q, q, m->rank));
        if (m->biases)
            sums->penalty += m->bias_regularization * (p[m->rank] * p[m->rank] + q[m->rank] * q[m->rank]);
    }
}

/* new - old, in place of new */
MF_CLONES
static void mf_subtract(float *new_values, const float *old_values, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        new_values[i] -= old_values[i];
}

#endif
