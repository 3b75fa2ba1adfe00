/* The models of knowledge-graph embeddings: queries, and the scores of entities.
 *
 * Every model turns an entity and a relation into a *query*, a vector as long as an entity's, and scores an entity
 * against it: by the inner product (ComplEx, DistMult, RESCAL), or by the distance (TransE). So the scores of several
 * queries are one product of matrices. */
#ifndef LAPSE_KGE_SCORES_H
#define LAPSE_KGE_SCORES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lapse/apps/_shared/_vector.h"
#include "lapse/apps/kge/_product.h"

/* Triples, and queries in evaluation, that are worked on at once: a multiple of KGE_ROWS. */
enum { KGE_CHUNK = 48 };
enum { KGE_COMPLEX, KGE_DISTMULT, KGE_RESCAL, KGE_TRANSE };
enum { KGE_SUBJECT, KGE_OBJECT }; /* which entity a query asks for */

/* --- queries -------------------------------------------------------------------------------- */

/* ComplEx (Trouillon et al. 2016), score Re <s, r, conj o>: the query is s r for the object, o conj r for
 * the subject. A vector is its real half, then its imaginary half. */
LAPSE_INLINE void kge_complex_query(float sign, const float *restrict e, const float *restrict r, float *restrict q,
                                    int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float imaginary = sign * r[half + i];
        q[i] = e[i] * r[i] - e[half + i] * imaginary;
        q[half + i] = e[i] * imaginary + e[half + i] * r[i];
    }
}

LAPSE_INLINE void kge_complex_backward(float sign, const float *restrict e, const float *restrict r,
                                       const float *restrict dq, float *restrict de, float *restrict dr,
                                       int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float imaginary = sign * r[half + i];
        de[i] += dq[i] * r[i] + dq[half + i] * imaginary;
        de[half + i] += dq[half + i] * r[i] - dq[i] * imaginary;
        dr[i] += dq[i] * e[i] + dq[half + i] * e[half + i];
        dr[half + i] += sign * (dq[half + i] * e[i] - dq[i] * e[half + i]);
    }
}

/* RESCAL (Nickel et al. 2011), score s^T R o: the query is R^T s for the object, R o for the subject. */
LAPSE_INLINE void kge_rescal_query(int asked, const float *e, const float *r, float *q, int64_t dim) {
    if (asked == KGE_OBJECT) {
        memset(q, 0, dim * sizeof(float));
        for (int64_t i = 0; i < dim; i++)
            lapse_axpy(e[i], r + i * dim, q, dim);
    } else
        for (int64_t i = 0; i < dim; i++)
            q[i] = lapse_dot(r + i * dim, e, dim);
}

LAPSE_INLINE void kge_rescal_backward(int asked, const float *e, const float *r, const float *dq, float *de,
                                    float *dr, int64_t dim) {
    for (int64_t i = 0; i < dim; i++)
        if (asked == KGE_OBJECT) {
            de[i] += lapse_dot(r + i * dim, dq, dim);
            lapse_axpy(e[i], dq, dr + i * dim, dim);
        } else {
            lapse_axpy(dq[i], r + i * dim, de, dim);
            lapse_axpy(dq[i], e, dr + i * dim, dim);
        }
}

/* The query of an entity (the one that is known) and a relation, for the entity that is asked for. */
LAPSE_INLINE void kge_query(int model, int asked, const float *e, const float *r, float *q, int64_t dim) {
    float sign = asked == KGE_OBJECT ? 1.0f : -1.0f;
    if (model == KGE_COMPLEX)
        kge_complex_query(sign, e, r, q, dim / 2);
    else if (model == KGE_DISTMULT) /* Yang et al. 2015: sum of s r o */
        for (int64_t i = 0; i < dim; i++)
            q[i] = e[i] * r[i];
    else if (model == KGE_RESCAL)
        kge_rescal_query(asked, e, r, q, dim);
    else /* TransE (Bordes et al. 2013), -|s + r - o|: s + r for the object, o - r for the subject */
        for (int64_t i = 0; i < dim; i++)
            q[i] = e[i] + sign * r[i];
}

/* Adds the gradients of the entity and the relation, given that of the query. */
LAPSE_INLINE void kge_query_backward(int model, int asked, const float *e, const float *r, const float *dq,
                                   float *restrict de, float *restrict dr, int64_t dim) {
    float sign = asked == KGE_OBJECT ? 1.0f : -1.0f;
    if (model == KGE_COMPLEX)
        kge_complex_backward(sign, e, r, dq, de, dr, dim / 2);
    else if (model == KGE_RESCAL)
        kge_rescal_backward(asked, e, r, dq, de, dr, dim);
    else
        for (int64_t i = 0; i < dim; i++) {
            de[i] += model == KGE_DISTMULT ? dq[i] * r[i] : dq[i];
            dr[i] += model == KGE_DISTMULT ? dq[i] * e[i] : sign * dq[i];
        }
}

/* --- scores --------------------------------------------------------------------------------- */

/* -|q - e| in the norm 1 or 2; `padded` floats */
LAPSE_INLINE float kge_distance_score(int norm, const float *q, const float *e, int64_t padded) {
    lapse_v8 s0 = {0}, s1 = {0};
    for (int64_t i = 0; i < padded; i += 16) {
        lapse_v8 d0 = *(const lapse_v8 *)(q + i) - *(const lapse_v8 *)(e + i);
        lapse_v8 d1 = *(const lapse_v8 *)(q + i + 8) - *(const lapse_v8 *)(e + i + 8);
        if (norm == 1) {
            s0 += lapse_abs(d0);
            s1 += lapse_abs(d1);
        } else {
            s0 += d0 * d0;
            s1 += d1 * d1;
        }
    }
    float sum = lapse_sum(s0 + s1);
    return norm == 1 ? -sum : -sqrtf(sum);
}

/* Adds the gradients of the two vectors, given their score's gradient. */
LAPSE_INLINE void kge_distance_backward(int norm, float score, float g, const float *q, const float *e,
                                      float *restrict dq, float *restrict de, int64_t padded) {
    float f = norm == 1 ? g : -g / fmaxf(-score, 1e-12f); /* d(-|x|_2) = -x / |x| */
    if (g == 0.0f)
        return;
    for (int64_t i = 0; i < padded; i += 8) {
        lapse_v8 d = *(const lapse_v8 *)(q + i) - *(const lapse_v8 *)(e + i), step;
        if (norm == 1)
            step = (lapse_v8)(((lapse_i8)(lapse_v8){f, f, f, f, f, f, f, f} ^ ((lapse_i8)d & (int32_t)0x80000000)
                             ^ (int32_t)0x80000000) & (d != 0.0f));
        else
            step = f * d;
        *(lapse_v8 *)(dq + i) += step;
        *(lapse_v8 *)(de + i) -= step;
    }
}

/* Scores (queries x columns) of `columns` entities (a multiple of KGE_PANEL) against queries. `e` are their vectors,
 * one a row; `panels` the same, packed as a transpose (not used by TransE). */
LAPSE_INLINE void kge_scores(int model, int norm, int64_t queries, const float *q, int64_t columns, const float *e,
                             const float *panels, int64_t padded, float *scores, int64_t step) {
    if (model != KGE_TRANSE)
        kge_multiply(queries, columns, padded, q, padded, 1, panels, KGE_PANEL, padded * KGE_PANEL, scores, step, 0);
    else
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < columns; j++)
                scores[i * step + j] = kge_distance_score(norm, q + i * padded, e + j * padded, padded);
}

#endif
