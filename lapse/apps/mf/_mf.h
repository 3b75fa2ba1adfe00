/* The arithmetic of matrix factorization: steps of stochastic gradient descent, and squared errors.
 *
 * A value is the factor (rank elements), then the bias if there is one, then, with AdaGrad, as many
 * accumulated squares of gradients. */
#ifndef LAPSE_MF_H
#define LAPSE_MF_H

#include <math.h>
#include <stdint.h>

#include "lapse/apps/_shared/_vector.h"

enum { MF_AHEAD = 4 };

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
    double absolute;            /* absolute errors of the prediction */
} mf_sums;

/* mean + p's bias + q's bias + <p, q> */
LAPSE_INLINE float mf_score(const mf_model *m, const float *p, const float *q) {
    float biases = m->biases ? p[m->rank] + q[m->rank] : 0.0f;
    return m->mean + biases + lapse_dot(p, q, m->rank);
}

/* The values of the rating that comes `MF_AHEAD` later: a batch's lie in the second- or third-level cache. */
LAPSE_INLINE void mf_look_ahead(const mf_model *m, const float *values, const int32_t *rows, const int32_t *columns,
                                int64_t i, int64_t count) {
    if (i + MF_AHEAD >= count)
        return;
    const float *p = values + (int64_t)rows[i + MF_AHEAD] * m->length;
    const float *q = values + (int64_t)columns[i + MF_AHEAD] * m->length;
    for (int k = 0; k < m->length; k += 16) {
        __builtin_prefetch(p + k, 1);
        __builtin_prefetch(q + k, 1);
    }
}

/* a += rate (error b - regularization a), and b likewise with the old a */
LAPSE_INLINE void mf_sgd_step(float *restrict a, float *restrict b, int n, float error, float regularization,
                           float rate) {
    float keep = 1.0f - rate * regularization, step = rate * error;
    int k = 0;
    for (; k + 8 <= n; k += 8) {
        lapse_v8 *x = (lapse_v8 *)(a + k), *y = (lapse_v8 *)(b + k), old = *x;
        *x = keep * old + step * *y;
        *y = keep * *y + step * old;
    }
    for (; k < n; k++) {
        float old = a[k];
        a[k] = keep * old + step * b[k];
        b[k] = keep * b[k] + step * old;
    }
}

/* Train ratings one after the other. Rating i is `ratings[i]`; its row's value begins at element
 * rows[i] * length of `values`, its column's at columns[i] * length. The gradient is that of
 * 1/2 (error^2 + regularization (|p|^2 + |q|^2) + bias_regularization (b_p^2 + b_q^2)). */
LAPSE_CLONES
static void mf_sgd(const mf_model *m, float *values, const int32_t *rows, const int32_t *columns,
                   const float *ratings, int64_t count, float rate) {
    float bias_keep = 1.0f - rate * m->bias_regularization;
    for (int64_t i = 0; i < count; i++) {
        float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        mf_look_ahead(m, values, rows, columns, i, count);
        float error = ratings[i] - mf_score(m, p, q);
        mf_sgd_step(p, q, m->rank, error, m->regularization, rate);
        if (m->biases) {
            p[m->rank] = bias_keep * p[m->rank] + rate * error;
            q[m->rank] = bias_keep * q[m->rank] + rate * error;
        }
    }
}

/* x += rate g / sqrt(G), where g is minus the gradient and G the sum of its squares, this one included */
LAPSE_INLINE void mf_adagrad_move(float *x, float *squares, float g, float rate) {
    *squares += g * g;
    *x += rate * g / sqrtf(*squares + MF_EPSILON);
}

LAPSE_INLINE void mf_adagrad_step(float *restrict a, float *restrict b, float *restrict a_squares,
                               float *restrict b_squares, int n, float error, float regularization, float rate) {
    for (int k = 0; k < n; k++) {
        float a_gradient = error * b[k] - regularization * a[k];
        float b_gradient = error * a[k] - regularization * b[k];
        mf_adagrad_move(a + k, a_squares + k, a_gradient, rate);
        mf_adagrad_move(b + k, b_squares + k, b_gradient, rate);
    }
}

/* As mf_sgd, with steps by AdaGrad (Duchi, Hazan, Singer 2011). */
LAPSE_CLONES
static void mf_adagrad(const mf_model *m, float *values, const int32_t *rows, const int32_t *columns,
                       const float *ratings, int64_t count, float rate) {
    int width = m->rank + m->biases;
    for (int64_t i = 0; i < count; i++) {
        float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        mf_look_ahead(m, values, rows, columns, i, count);
        float error = ratings[i] - mf_score(m, p, q);
        mf_adagrad_step(p, q, p + width, q + width, m->rank, error, m->regularization, rate);
        if (m->biases) {
            float *b = p + m->rank, *c = q + m->rank;
            mf_adagrad_move(b, b + width, error - m->bias_regularization * *b, rate);
            mf_adagrad_move(c, c + width, error - m->bias_regularization * *c, rate);
        }
    }
}

/* Bayesian personalized ranking (Rendle et al. 2009): for each rating a column that its row has no rating of, at
 * negatives[i] * length, or none below 0. The gradient is that of log(1 + exp(-<p, q - n>)) + regularization / 2
 * (|p|^2 + |q|^2 + |n|^2). Returns the sum of the logarithms, before each step. */
LAPSE_CLONES
static double mf_rank_pairs(const mf_model *m, float *values, const int32_t *rows, const int32_t *columns,
                            const int32_t *negatives, int64_t count, float rate) {
    double loss = 0;
    float keep = 1.0f - rate * m->regularization;
    for (int64_t i = 0; i < count; i++) {
        mf_look_ahead(m, values, rows, columns, i, count);
        if (negatives[i] < 0)
            continue;
        float *restrict p = values + (int64_t)rows[i] * m->length;
        float *restrict q = values + (int64_t)columns[i] * m->length;
        float *restrict n = values + (int64_t)negatives[i] * m->length;
        float x = lapse_dot(p, q, m->rank) - lapse_dot(p, n, m->rank);
        float against = expf(-fabsf(x)), step = rate * (x < 0 ? 1.0f : against) / (1.0f + against);
        loss += log1pf(against) + (x < 0 ? -x : 0.0f);
        for (int k = 0; k < m->rank; k++) {
            float old = p[k], difference = q[k] - n[k];
            p[k] = keep * old + step * difference;
            q[k] = keep * q[k] + step * old;
            n[k] = keep * n[k] - step * old;
        }
    }
    return loss;
}

/* Add what ratings contribute to `sums`; places as in mf_sgd. */
LAPSE_CLONES
static void mf_evaluate(const mf_model *m, const float *values, const int32_t *rows, const int32_t *columns,
                        const float *ratings, int64_t count, mf_sums *sums) {
    for (int64_t i = 0; i < count; i++) {
        const float *p = values + (int64_t)rows[i] * m->length, *q = values + (int64_t)columns[i] * m->length;
        mf_look_ahead(m, values, rows, columns, i, count);
        float score = mf_score(m, p, q);
        float prediction = score < m->low ? m->low : score > m->high ? m->high : score; /* NaN stays NaN */
        double error = (double)ratings[i] - score, clipped = (double)ratings[i] - prediction;
        sums->squares += error * error;
        sums->clipped_squares += clipped * clipped;
        sums->absolute += fabs(clipped);
        sums->penalty += m->regularization * (lapse_dot(p, p, m->rank) + lapse_dot(q, q, m->rank));
        if (m->biases)
            sums->penalty += m->bias_regularization * (p[m->rank] * p[m->rank] + q[m->rank] * q[m->rank]);
    }
}

/* new - old, in place of new */
LAPSE_CLONES
static void mf_subtract(float *new_values, const float *old_values, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        new_values[i] -= old_values[i];
}

#endif
