/* The normal equations of one row (or column) of a matrix: gathered from its ratings, factorized, and solved or drawn
 * from.
 *
 * Let x be the value of a rating's other side, its bias replaced by 1. The equations are A v = b with
 * A = prior + ratings * diag(regularization) + sum of w x x', and b = shift + prior * row_mean + sum of t x, where
 *
 *   explicit:  w = scale,                   t = scale (rating - mean - bias of the other side)
 *   implicit:  w = scale * rating,          t = 1 + scale * rating, or 0 if the rating is 0
 *
 * Without ratings and regularization there is no equation: v is 0 then.
 * Least squares takes v; a Gibbs sampler draws from the normal distribution with mean v and precision A. */
#ifndef LAPSE_MF_NORMAL_EQUATIONS_H
#define LAPSE_MF_NORMAL_EQUATIONS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lapse/apps/_shared/_vector.h"
#include "lapse/apps/mf/_normals.h"

enum {
    MF_PANEL = 32,              /* ratings that are gathered before they are multiplied */
    MF_PANELS_IN_FLOAT = 32,    /* panels that are added up in single precision */
    MF_GATHER_AHEAD = 8
};

typedef struct {
    int rank, biases, length, implicit;
    int stride;                 /* of a row of `sums`: `length`, rounded up to vectors of eight */
    float mean, scale;
    double regularization, bias_regularization; /* added to the diagonal for each rating */
    const double *prior, *shift; /* of length x length and length elements */
    /* Working memory */
    float *sums, *target;       /* stride x stride, stride */
    float *panel;               /* MF_PANEL x stride */
    float weights[MF_PANEL], targets[MF_PANEL];
    double *matrix, *vector;    /* length x length, of which the upper triangle is used; length */
} mf_equations;

/* Add the panel's w x x' to the upper triangle of `sums`, and its t x to `target`. */
LAPSE_CLONES
static void mf_add_panel(mf_equations *e, int count) {
    int stride = e->stride;
    for (int j = count; j & 3; j++) /* complete the last four with nothing */
        e->weights[j] = e->targets[j] = 0.0f;
    for (int j = 0; j < count; j += 4) {
        const float *x0 = e->panel + j * stride, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
        const float *w = e->weights + j, *t = e->targets + j;
        for (int i = 0; i < e->length; i++) {
            float f0 = w[0] * x0[i], f1 = w[1] * x1[i], f2 = w[2] * x2[i], f3 = w[3] * x3[i];
            float *row = e->sums + i * stride;
            for (int c = i & ~7; c < stride; c += 8)
                *(lapse_v8 *)(row + c) += (f0 * *(const lapse_v8 *)(x0 + c) + f1 * *(const lapse_v8 *)(x1 + c)) +
                                          (f2 * *(const lapse_v8 *)(x2 + c) + f3 * *(const lapse_v8 *)(x3 + c));
        }
        for (int c = 0; c < stride; c += 8)
            *(lapse_v8 *)(e->target + c) += (t[0] * *(const lapse_v8 *)(x0 + c) + t[1] * *(const lapse_v8 *)(x1 + c)) +
                                            (t[2] * *(const lapse_v8 *)(x2 + c) + t[3] * *(const lapse_v8 *)(x3 + c));
    }
}

/* Move what was added up in single precision to the matrix and the vector. */
LAPSE_CLONES
static void mf_flush_sums(mf_equations *e) {
    int n = e->length;
    for (int i = 0; i < n; i++) {
        double *row = e->matrix + i * n;
        const float *from = e->sums + i * e->stride;
        for (int c = i; c < n; c++)
            row[c] += from[c];
        e->vector[i] += e->target[i];
    }
    memset(e->sums, 0, (size_t)e->stride * e->stride * sizeof(float));
    memset(e->target, 0, e->stride * sizeof(float));
}

/* Copy the value of a rating's other side to the panel. */
LAPSE_INLINE void mf_fill_panel(mf_equations *e, int at, const float *other, float rating) {
    float *x = e->panel + at * e->stride;
    memcpy(x, other, e->rank * sizeof(float));
    if (e->biases)
        x[e->rank] = 1.0f;
    if (e->implicit) {
        e->weights[at] = e->scale * rating;
        e->targets[at] = rating > 0 ? 1.0f + e->scale * rating : 0.0f;
    } else {
        e->weights[at] = e->scale;
        e->targets[at] = e->scale * (rating - e->mean - (e->biases ? other[e->rank] : 0.0f));
    }
}

/* Begin with what is known without ratings; `row_mean` may be NULL for 0. */
static void mf_begin(mf_equations *e, const float *row_mean) {
    int n = e->length;
    memcpy(e->matrix, e->prior, (size_t)n * n * sizeof(double));
    memcpy(e->vector, e->shift, n * sizeof(double));
    for (int i = 0; row_mean && i < n; i++)
        for (int k = 0; k < n; k++)
            e->vector[i] += e->prior[i * n + k] * row_mean[k];
}

/* Gather the equations from `count` ratings; the value of rating i begins at element places[i] * length of `values`. */
static void mf_gather(mf_equations *e, const float *row_mean, const float *values, const int32_t *places,
                      const float *ratings, int64_t count) {
    int n = e->length, in_panel = 0, panels = 0;
    mf_begin(e, row_mean);
    for (int i = 0; i < n; i++)
        e->matrix[i * n + i] += count * (i < e->rank ? e->regularization : e->bias_regularization);
    for (int64_t i = 0; i < count; i++) {
        if (i + MF_GATHER_AHEAD < count) {
            const float *next = values + (int64_t)places[i + MF_GATHER_AHEAD] * n;
            for (int k = 0; k < n; k += 16)
                __builtin_prefetch(next + k);
        }
        mf_fill_panel(e, in_panel, values + (int64_t)places[i] * n, ratings[i]);
        if (++in_panel == MF_PANEL || i + 1 == count) {
            mf_add_panel(e, in_panel);
            in_panel = 0;
            if (++panels == MF_PANELS_IN_FLOAT || i + 1 == count) {
                mf_flush_sums(e);
                panels = 0;
            }
        }
    }
}

/* Factorize the matrix, A = U' U, in its upper triangle (Cholesky). Returns 0, or -1 if it is not positive definite. */
LAPSE_CLONES
static int mf_factorize(double *a, int n) {
    for (int j = 0; j < n; j++) {
        double *restrict pivot = a + j * n;
        if (!(pivot[j] > 0) || !isfinite(pivot[j]))
            return -1;
        double root = sqrt(pivot[j]);
        for (int c = j; c < n; c++)
            pivot[c] /= root;
        for (int i = j + 1; i < n; i++) {
            double *restrict row = a + i * n;
            double factor = pivot[i];
            for (int c = i; c < n; c++)
                row[c] -= factor * pivot[c];
        }
    }
    return 0;
}

static inline int mf_is_empty(const mf_equations *e) {
    for (int i = 0; i < e->length; i++)
        if (e->matrix[i * e->length + i] != 0 || e->vector[i] != 0)
            return 0;
    return 1;
}

/* Solve the gathered equations; with `state` draw instead. Returns 0, or -1 if the matrix is not positive definite. */
static int mf_solve(mf_equations *e, uint64_t *state, float *value) {
    int n = e->length;
    double *b = e->vector;
    if (mf_is_empty(e)) {
        memset(value, 0, n * sizeof(float));
        return 0;
    }
    if (mf_factorize(e->matrix, n))
        return -1;
    for (int j = 0; j < n; j++) { /* U' y = b */
        const double *row = e->matrix + j * n;
        b[j] /= row[j];
        for (int c = j + 1; c < n; c++)
            b[c] -= row[c] * b[j];
    }
    if (state) /* U v = y + z has the mean of A v = b and the precision U' U */
        mf_add_normals(state, b, n);
    for (int j = n - 1; j >= 0; j--) {
        const double *row = e->matrix + j * n;
        for (int c = j + 1; c < n; c++)
            b[j] -= row[c] * b[c];
        b[j] /= row[j];
        value[j] = (float)b[j];
    }
    return 0;
}

/* The sum of squared errors of ratings; explicit ones. */
static double mf_squares(const mf_equations *e, const float *value, const float *values, const int32_t *places,
                         const float *ratings, int64_t count) {
    double squares = 0;
    for (int64_t i = 0; i < count; i++) {
        const float *other = values + (int64_t)places[i] * e->length;
        float biases = e->biases ? value[e->rank] + other[e->rank] : 0.0f;
        double error = (double)ratings[i] - (e->mean + biases + lapse_dot(value, other, e->rank));
        squares += error * error;
    }
    return squares;
}

#endif
