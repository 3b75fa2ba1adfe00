/* The curvature that values of one length give each other: the second moment of the values, weighted by how often they
 * change, its first eigenvectors, and what additions that were computed apart come to along each of them.
 *
 * For models whose scores are dot products of two values the curvature for one value is the mean of s(1 - s) u u^T over
 * the values u that it meets: a constant times their second moment. The eigenvectors follow the moment from one time to
 * the next by subspace iteration (Rutishauser, Computational Aspects of F. L. Bauer's Simultaneous Iteration Method,
 * Numerische Mathematik 13, 1969). */
#ifndef LAPSE_CURVATURE_H
#define LAPSE_CURVATURE_H

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define LAPSE_CURVATURE_CLONES __attribute__((unused, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LAPSE_CURVATURE_CLONES __attribute__((unused))
#endif

enum {
    LAPSE_DIRECTIONS = 8,       /* eigenvectors; the other directions share their mean curvature */
    LAPSE_ROWS = 8,             /* values that are added to the moment together */
    LAPSE_FIRST_STEPS = 12,     /* of subspace iteration */
    LAPSE_NEXT_STEPS = 2,
    LAPSE_SWEEPS = 12           /* of Jacobi rotations, at most */
};

typedef struct {
    size_t length;              /* of a value, and of each vector here */
    int directions;
    int is_known;               /* the eigenvectors have been computed */
    float *moment;              /* length x length; only the lower triangle while values are added */
    float *vectors;             /* directions x length, orthonormal */
    float *products;            /* directions x length: scratch */
    float *rows;                /* LAPSE_ROWS values that are not part of the moment yet, each times the root of its weight */
    int num_rows;
    double total;               /* the weight of all values in the moment */
    double trace;               /* the sum of all eigenvalues of the moment divided by `total` */
    double values[LAPSE_DIRECTIONS];    /* eigenvalues of the moment divided by `total` */
    double rest;                /* the mean of the other ones */
} lapse_curvature;

static void lapse_free_curvature(lapse_curvature *c) {
    free(c->moment);
    c->moment = NULL;
}

/* Whether there was memory. */
static int lapse_make_curvature(lapse_curvature *c, size_t length) {
    memset(c, 0, sizeof *c);
    c->length = length;
    c->directions = length < LAPSE_DIRECTIONS ? (int)length : LAPSE_DIRECTIONS;
    c->moment = (float *)calloc(length * (length + 2 * c->directions + LAPSE_ROWS), sizeof(float));
    if (!c->moment) return 0;
    c->vectors = c->moment + length * length;
    c->products = c->vectors + length * c->directions;
    c->rows = c->products + length * c->directions;
    return 1;
}

LAPSE_CURVATURE_CLONES
static void lapse_add_rows(float *restrict moment, const float *restrict rows, size_t length) {
    const float *r0 = rows, *r1 = r0 + length, *r2 = r1 + length, *r3 = r2 + length;
    const float *r4 = r3 + length, *r5 = r4 + length, *r6 = r5 + length, *r7 = r6 + length;
    for (size_t i = 0; i < length; i++) {
        float *restrict to = moment + i * length;
        const float a0 = r0[i], a1 = r1[i], a2 = r2[i], a3 = r3[i], a4 = r4[i], a5 = r5[i], a6 = r6[i], a7 = r7[i];
        for (size_t j = 0; j <= i; j++)
            to[j] += (a0 * r0[j] + a1 * r1[j] + a2 * r2[j] + a3 * r3[j])
                   + (a4 * r4[j] + a5 * r5[j] + a6 * r6[j] + a7 * r7[j]);
    }
}

static void lapse_begin_moment(lapse_curvature *c) {
    memset(c->moment, 0, c->length * c->length * sizeof(float));
    c->num_rows = 0;
    c->total = 0;
}

static void lapse_flush_rows(lapse_curvature *c) {
    if (!c->num_rows) return;
    memset(c->rows + c->num_rows * c->length, 0, (LAPSE_ROWS - c->num_rows) * c->length * sizeof(float));
    lapse_add_rows(c->moment, c->rows, c->length);
    c->num_rows = 0;
}

/* The value is `first` plus `factor` times `second`, which may be NULL. */
static void lapse_add_to_moment(lapse_curvature *c, const float *first, const float *second, double factor,
                                double weight) {
    float *row = c->rows + c->num_rows * c->length, root = (float)sqrt(weight), part = (float)factor;
    if (second)
        for (size_t i = 0; i < c->length; i++) row[i] = root * (first[i] + part * second[i]);
    else
        for (size_t i = 0; i < c->length; i++) row[i] = root * first[i];
    c->total += weight;
    if (++c->num_rows == LAPSE_ROWS) lapse_flush_rows(c);
}

typedef float lapse_four __attribute__((vector_size(16), aligned(4), may_alias));

static inline double lapse_dot(const float *a, const float *b, size_t length) {
    lapse_four s = {0}, t = {0};
    double rest = 0;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        s += *(const lapse_four *)(a + i) * *(const lapse_four *)(b + i);
        t += *(const lapse_four *)(a + i + 4) * *(const lapse_four *)(b + i + 4);
    }
    for (; i < length; i++) rest += (double)a[i] * b[i];
    s += t;
    return (double)s[0] + s[1] + s[2] + s[3] + rest;
}

static inline void lapse_add_scaled(float *restrict to, const float *restrict vector, double factor, size_t length) {
    float f = (float)factor;
    for (size_t i = 0; i < length; i++) to[i] += f * vector[i];
}

/* Vectors of unit length, each orthogonal to those before it. One that is none gets a direction of its own. */
static void lapse_orthonormalize(lapse_curvature *c, float *vectors) {
    for (int i = 0; i < c->directions; i++) {
        float *vector = vectors + i * c->length;
        for (int attempt = 0;; attempt++) {
            double before = lapse_dot(vector, vector, c->length), after;
            for (int pass = 0; pass < 2; pass++)
                for (int j = 0; j < i; j++) {
                    const float *other = vectors + j * c->length;
                    lapse_add_scaled(vector, other, -lapse_dot(vector, other, c->length), c->length);
                }
            after = lapse_dot(vector, vector, c->length);
            if (after > 1e-10 * before && after > 1e-30 && after < 1e30) {
                double factor = 1 / sqrt(after);
                for (size_t k = 0; k < c->length; k++) vector[k] = (float)(vector[k] * factor);
                break;
            }
            memset(vector, 0, c->length * sizeof(float));
            vector[(size_t)(i + attempt) % c->length] = 1;
        }
    }
}

static void lapse_multiply(const lapse_curvature *c, const float *vectors, float *products) {
    for (int i = 0; i < c->directions; i++)
        for (size_t k = 0; k < c->length; k++)
            products[i * c->length + k] = (float)lapse_dot(c->moment + k * c->length, vectors + i * c->length, c->length);
}

/* Jacobi rotations of a small symmetric matrix, which the vectors follow. */
static void lapse_rotate(lapse_curvature *c, double a[LAPSE_DIRECTIONS][LAPSE_DIRECTIONS]) {
    int n = c->directions;
    for (int sweep = 0; sweep < LAPSE_SWEEPS; sweep++) {
        int rotated = 0;
        for (int p = 0; p < n; p++)
            for (int q = p + 1; q < n; q++) {
                if (!(fabs(a[p][q]) > 1e-7 * sqrt(fabs(a[p][p] * a[q][q])) + 1e-300)) continue;
                double angle = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                double t = (angle >= 0 ? 1 : -1) / (fabs(angle) + sqrt(angle * angle + 1));
                double cosine = 1 / sqrt(t * t + 1), sine = t * cosine;
                for (int i = 0; i < n; i++) {
                    double x = a[i][p], y = a[i][q];
                    a[i][p] = cosine * x - sine * y;
                    a[i][q] = sine * x + cosine * y;
                }
                for (int i = 0; i < n; i++) {
                    double x = a[p][i], y = a[q][i];
                    a[p][i] = cosine * x - sine * y;
                    a[q][i] = sine * x + cosine * y;
                }
                float *v = c->vectors + p * c->length, *w = c->vectors + q * c->length;
                for (size_t k = 0; k < c->length; k++) {
                    float x = v[k], y = w[k];
                    v[k] = (float)(cosine * x - sine * y);
                    w[k] = (float)(sine * x + cosine * y);
                }
                rotated = 1;
            }
        if (!rotated) break;
    }
}

/* All values are part of the moment: its eigenvectors and eigenvalues, from those that it had before. Returns by which
 * part of it the trace has changed: 1 at first, and 0 if the moment cannot be used. */
static double lapse_finish_moment(lapse_curvature *c) {
    double trace = 0, found = 0, before = c->trace, a[LAPSE_DIRECTIONS][LAPSE_DIRECTIONS];
    size_t d = c->length;
    lapse_flush_rows(c);
    for (size_t i = 0; i < d; i++) {
        trace += c->moment[i * d + i];
        for (size_t j = 0; j < i; j++) c->moment[j * d + i] = c->moment[i * d + j];
    }
    if (!(c->total > 0) || !(trace > 0) || !(trace < 1e30)) return 0; /* as it was */
    int steps = c->is_known ? LAPSE_NEXT_STEPS : LAPSE_FIRST_STEPS;
    if (!c->is_known)
        for (int i = 0; i < c->directions; i++)
            for (size_t k = 0; k < d; k++) c->vectors[i * d + k] = (float)cos((double)(i + 1) * (k + 0.5) * 1.7);
    lapse_orthonormalize(c, c->vectors);
    for (int step = 0; step < steps; step++) {
        lapse_multiply(c, c->vectors, c->products);
        lapse_orthonormalize(c, c->products);
        memcpy(c->vectors, c->products, c->directions * d * sizeof(float));
    }
    lapse_multiply(c, c->vectors, c->products);
    for (int i = 0; i < c->directions; i++)
        for (int j = 0; j < c->directions; j++)
            a[i][j] = 0.5 * (lapse_dot(c->vectors + i * d, c->products + j * d, d)
                             + lapse_dot(c->vectors + j * d, c->products + i * d, d));
    lapse_rotate(c, a);
    for (int i = 0; i < c->directions; i++) {
        c->values[i] = fmax(a[i][i], 0) / c->total;
        found += c->values[i];
    }
    c->trace = trace / c->total;
    c->rest = (size_t)c->directions < d ? fmax(c->trace - found, 0) / (double)(d - c->directions) : 0;
    c->is_known = 1;
    return fabs(c->trace - before) / c->trace;
}

/* Along a direction of curvature h, steps of total rate n bring a value (1 - exp(-h n)) of the way to its target. So m
 * ranks that take n / m each, all from the same value, come to m (1 - exp(-h n / m)) in sum, where one after the other
 * would have come to 1 - exp(-h n): the quotient, between 1 for few steps and 1 / m for many. */
static inline double lapse_saturation(double x, double ranks) {
    return x < 1e-9 ? 1 : expm1(-x) / (ranks * expm1(-x / ranks));
}

/* Additions that come to one value together, and what had been sent before. */
typedef struct {
    double rate;                /* of all of them */
    double ranks;               /* how many have made them */
    double late;                /* the part of the rate that was computed before the last sum had come */
    double last_rate;           /* of that sum */
} lapse_additions;

/* By what their sum is multiplied along a direction of curvature h. Late ones do not know of the steps of the last sum,
 * which had brought the value (1 - exp(-h last_rate)) of the way already: after these, exp(-h last_rate) of a late step
 * would have been left. */
static inline double lapse_factor(const lapse_additions *a, double h) {
    return lapse_saturation(h * a->rate, a->ranks) * (1 + a->late * expm1(-h * a->last_rate));
}

/* Replace a sum of additions by what they come to one after the other. */
static void lapse_combine(const lapse_curvature *c, float *sum, const lapse_additions *additions) {
    double along[LAPSE_DIRECTIONS], others = lapse_factor(additions, c->rest);
    float factor = (float)others;
    if (!c->is_known) return;
    for (int i = 0; i < c->directions; i++) along[i] = lapse_dot(sum, c->vectors + i * c->length, c->length);
    for (size_t k = 0; k < c->length; k++) sum[k] *= factor;
    for (int i = 0; i < c->directions; i++)
        lapse_add_scaled(sum, c->vectors + i * c->length,
                         (lapse_factor(additions, c->values[i]) - others) * along[i], c->length);
}
#endif
