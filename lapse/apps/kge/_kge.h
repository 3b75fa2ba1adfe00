/* The arithmetic of knowledge-graph embeddings: scores, losses and gradients of a block of triples.
 *
 * Every model turns an entity and a relation into a *query*, a vector as long as an entity's, and scores
 * an entity against it: by the inner product (ComplEx, DistMult, RESCAL), or by the distance (TransE).
 * So a block's scores against the negatives that it shares are one product of matrices, and the rest is
 * done triple by triple. A block is gone through a few triples at a time, so that what belongs to them, and the
 * negatives, stay in the second-level cache.
 *
 * Matrices are row-major, their rows padded with zeros to a multiple of KGE_PANEL floats. */
#ifndef LAPSE_KGE_H
#define LAPSE_KGE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lapse/apps/_vector.h"

enum { KGE_PANEL = 16, KGE_DEPTH = 256, KGE_ROWS = 6 };
/* Triples, and queries in evaluation, that are worked on at once: a multiple of KGE_ROWS. */
enum { KGE_CHUNK = 48 };
enum { KGE_COMPLEX, KGE_DISTMULT, KGE_RESCAL, KGE_TRANSE };
enum { KGE_SOFTMAX, KGE_BCE, KGE_MARGIN };
enum { KGE_SUBJECT, KGE_OBJECT }; /* which entity a query asks for */

LAPSE_INLINE uint64_t kge_mix(uint64_t z) { /* the finalizer of SplitMix64 (Steele, Lea, Flood 2014) */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Dropout: each element is zeroed with probability `rate`, the others grow by 1 / (1 - rate). Which ones
 * depends on `state` alone, so that a gradient meets the mask of its value. */
static void kge_dropout(float *x, int64_t n, float rate, uint64_t state) {
    const uint32_t limit = (uint32_t)(rate * 65536.0f);
    const float scale = 1.0f / (1.0f - rate);
    for (int64_t i = 0; i < n; i += 4) {
        uint64_t bits = kge_mix(state += 0x9E3779B97F4A7C15u);
        for (int64_t j = i; j < i + 4 && j < n; j++, bits >>= 16)
            x[j] = (bits & 0xFFFF) < limit ? 0.0f : x[j] * scale;
    }
}

/* --- a product of matrices ------------------------------------------------------------------ */

/* rows x 16 of C (+)= A * panel, whose rows are `b_step` floats apart. Every element is summed in the order of the
 * depth, whatever the tile: equal vectors have equal scores. */
LAPSE_INLINE void kge_tile(int rows, const float *a, int64_t row_step, int64_t depth_step, const float *panel,
                           int64_t b_step, int64_t depth, float *c, int64_t c_step, int add) {
    lapse_v8 sums[KGE_ROWS][2];
    for (int i = 0; i < rows; i++) {
        lapse_v8 *old = (lapse_v8 *)(c + i * c_step);
        sums[i][0] = add ? old[0] : (lapse_v8){0};
        sums[i][1] = add ? old[1] : (lapse_v8){0};
    }
    for (int64_t k = 0; k < depth; k++) {
        lapse_v8 b0 = *(const lapse_v8 *)(panel + k * b_step);
        lapse_v8 b1 = *(const lapse_v8 *)(panel + k * b_step + 8);
        for (int i = 0; i < rows; i++) {
            float x = a[i * row_step + k * depth_step];
            sums[i][0] += x * b0;
            sums[i][1] += x * b1;
        }
    }
    for (int i = 0; i < rows; i++) {
        ((lapse_v8 *)(c + i * c_step))[0] = sums[i][0];
        ((lapse_v8 *)(c + i * c_step))[1] = sums[i][1];
    }
}

LAPSE_INLINE void kge_tiles(int64_t rows, const float *a, int64_t row_step, int64_t depth_step, const float *panel,
                            int64_t b_step, int64_t depth, float *c, int64_t c_step, int add) {
    int64_t i = 0;
    for (; i + KGE_ROWS <= rows; i += KGE_ROWS)
        kge_tile(KGE_ROWS, a + i * row_step, row_step, depth_step, panel, b_step, depth, c + i * c_step, c_step, add);
    for (; i < rows; i++)
        kge_tile(1, a + i * row_step, row_step, depth_step, panel, b_step, depth, c + i * c_step, c_step, add);
}

/* C (rows x columns) = A B, or += with `add`. Element (i, k) of A is a[i * row_step + k * depth_step]. B is given
 * in panels of KGE_PANEL columns, `panel_step` floats apart, in which its rows are `b_step` floats apart: as
 * `kge_pack` makes them, or, where it is small, as it is. `columns` is a multiple of KGE_PANEL. */
LAPSE_INLINE void kge_multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row_step,
                               int64_t depth_step, const float *b, int64_t b_step, int64_t panel_step, float *c,
                               int64_t c_step, int add) {
    for (int64_t column = 0; column < columns; column += KGE_PANEL, b += panel_step)
        for (int64_t first = 0; first < depth; first += KGE_DEPTH) /* a part of a panel stays in the first-level cache */
            kge_tiles(rows, a + first * depth_step, row_step, depth_step, b + first * b_step, b_step,
                      depth - first < KGE_DEPTH ? depth - first : KGE_DEPTH, c + column, c_step, add || first > 0);
}

/* B (depth x columns), or with `transposed` its transpose's rows, as panels one behind the other. */
LAPSE_INLINE void kge_pack(int64_t columns, int64_t depth, const float *b, int64_t b_step, int transposed,
                           float *restrict panels) {
    for (int64_t column = 0; column < columns; column += KGE_PANEL, panels += depth * KGE_PANEL)
        if (transposed)
            for (int j = 0; j < KGE_PANEL; j++)
                for (int64_t k = 0; k < depth; k++)
                    panels[k * KGE_PANEL + j] = b[(column + j) * b_step + k];
        else
            for (int64_t k = 0; k < depth; k++)
                memcpy(panels + k * KGE_PANEL, b + k * b_step + column, KGE_PANEL * sizeof(float));
}

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

/* --- losses --------------------------------------------------------------------------------- */

/* In place: a row of scores becomes the row of their gradients. `target` is the true entity's score, `*dt`
 * receives its gradient. Scores of `KGE_MASKED` or below do not count. `n` is a multiple of 8. */
static const float KGE_MASKED = -1e30f;

LAPSE_INLINE double kge_softmax(float target, float *scores, int64_t n, float *dt) {
    lapse_v8 most = target + (lapse_v8){0};
    for (int64_t j = 0; j < n; j += 8) {
        lapse_v8 s = *(lapse_v8 *)(scores + j);
        lapse_i8 more = s > most;
        most = (lapse_v8)(((lapse_i8)s & more) | ((lapse_i8)most & ~more));
    }
    float top = most[0];
    for (int j = 1; j < 8; j++)
        top = most[j] > top ? most[j] : top;
    lapse_v8 sums = {0};
    for (int64_t j = 0; j < n; j += 8) {
        lapse_v8 e = lapse_exp(*(lapse_v8 *)(scores + j) - top);
        *(lapse_v8 *)(scores + j) = e;
        sums += e;
    }
    float sum = lapse_sum(sums) + expf(target - top), scale = 1.0f / sum;
    for (int64_t j = 0; j < n; j += 8)
        *(lapse_v8 *)(scores + j) *= scale;
    *dt = expf(target - top) * scale - 1.0f;
    return logf(sum) + (double)top - target;
}

/* log(1 + exp(-t)) for the target, log(1 + exp(s)) for each negative */
LAPSE_INLINE double kge_bce(float target, float *scores, int64_t n, float *dt) {
    double loss = (target < 0 ? -target : 0.0f) + log1p(exp(-fabs(target)));
    *dt = -1.0f / (1.0f + expf(target));
    for (int64_t first = 0; first < n; first += 512) { /* products of numbers from 1 to 2 stay finite */
        lapse_v8 product = 1.0f + (lapse_v8){0}, positive = {0};
        int64_t end = n - first < 512 ? n : first + 512;
        for (int64_t j = first; j < end; j += 8) {
            lapse_v8 s = *(lapse_v8 *)(scores + j);
            lapse_i8 above = s > 0.0f;
            lapse_v8 e = lapse_exp(-lapse_abs(s));
            lapse_v8 small = e / (1.0f + e), large = 1.0f / (1.0f + e);
            product *= 1.0f + e;
            positive += (lapse_v8)((lapse_i8)s & above);
            *(lapse_v8 *)(scores + j) = (lapse_v8)(((lapse_i8)large & above) | ((lapse_i8)small & ~above));
        }
        loss += lapse_sum(positive);
        for (int j = 0; j < 8; j++)
            loss += log((double)product[j]);
    }
    return loss;
}

/* max(0, margin - t + s) for each negative */
LAPSE_INLINE double kge_margin(float margin, float target, float *scores, int64_t n, float *dt) {
    float loss = 0, violations = 0;
    for (int64_t j = 0; j < n; j++) {
        float excess = margin - target + scores[j];
        scores[j] = excess > 0 ? 1.0f : 0.0f;
        loss += excess > 0 ? excess : 0.0f;
        violations += scores[j];
    }
    *dt = -violations;
    return loss;
}

/* --- a block of triples, asked for one of their two entities -------------------------------- */

typedef struct {
    int model, loss, norm;
    int64_t dim, padded;               /* of an entity's vector, and with the padding */
    int64_t relation_length;
    int64_t negatives, padded_negatives;
    int64_t score_step;                /* floats from one triple's scores to the next one's */
    float margin, entity_dropout, relation_dropout;
} kge_config;

typedef struct {
    /* Row i has its vector at vectors[i] (behind it lie the sums of squares), and its gradient at
     * gradients + offsets[i]. */
    const float *const *vectors;
    float *gradients;
    const int64_t *offsets;
    const float *masked;               /* relations after dropout, at offsets[i]; NULL without */
    /* room for a side: the negatives, padded; as panels, and those of their transpose; their gradients */
    float *negatives, *panels, *transposed, *negative_gradients;
    /* room for KGE_CHUNK triples */
    float *inputs;                     /* entities after dropout */
    float *queries, *query_gradients, *scores;
    float *distance_scores;            /* TransE: the scores, when `scores` are gradients already */
    float *room;                       /* two padded vectors */
} kge_work;

LAPSE_INLINE const float *kge_relation(const kge_work *w, int32_t row) {
    return w->masked ? w->masked + w->offsets[row] : w->vectors[row];
}

/* The entity that triple i's query is made of. */
LAPSE_INLINE const float *kge_input(const kge_config *c, const kge_work *w, int64_t i, const int32_t *entities) {
    return c->entity_dropout > 0 ? w->inputs + i * c->padded : w->vectors[entities[i]];
}

LAPSE_INLINE void kge_make_queries(const kge_config *c, const kge_work *w, int asked, int64_t n,
                                   const int32_t *entities, const int32_t *relations, uint64_t state) {
    for (int64_t i = 0; i < n; i++) {
        if (c->entity_dropout > 0) {
            float *input = w->inputs + i * c->padded;
            memcpy(input, w->vectors[entities[i]], c->dim * sizeof(float));
            kge_dropout(input, c->dim, c->entity_dropout, kge_mix(state + i));
        }
        kge_query(c->model, asked, kge_input(c, w, i, entities), kge_relation(w, relations[i]),
                  w->queries + i * c->padded, c->dim);
    }
}

LAPSE_INLINE double kge_row_loss(const kge_config *c, float target, float *scores, float *dt) {
    if (c->loss == KGE_SOFTMAX)
        return kge_softmax(target, scores, c->padded_negatives, dt);
    if (c->loss == KGE_BCE)
        return kge_bce(target, scores, c->padded_negatives, dt);
    return kge_margin(c->margin, target, scores, c->padded_negatives, dt);
}

/* A triple's scores become gradients; those of its query are set, those of its target added. Returns the loss. */
LAPSE_INLINE double kge_product_loss(const kge_config *c, const kge_work *w, int64_t i, int32_t target) {
    const float *query = w->queries + i * c->padded, *vector = w->vectors[target];
    float *dq = w->query_gradients + i * c->padded, dt;
    double loss = kge_row_loss(c, lapse_dot(query, vector, c->dim), w->scores + i * c->score_step, &dt);
    float *gradient = w->gradients + w->offsets[target];
    for (int64_t k = 0; k < c->dim; k++) {
        dq[k] = dt * vector[k]; /* the padding stays 0 */
        gradient[k] += dt * query[k];
    }
    return loss;
}

LAPSE_INLINE double kge_distance_loss(const kge_config *c, const kge_work *w, int64_t i, int32_t target) {
    const float *query = w->queries + i * c->padded;
    float *dq = w->query_gradients + i * c->padded, *vector = w->room, *step = w->room + c->padded, dt;
    float *scores = w->scores + i * c->score_step;
    memcpy(vector, w->vectors[target], c->dim * sizeof(float));
    float score = kge_distance_score(c->norm, query, vector, c->padded);
    memcpy(w->distance_scores + i * c->score_step, scores, c->padded_negatives * sizeof(float));
    double loss = kge_row_loss(c, score, scores, &dt);
    memset(dq, 0, c->padded * sizeof(float));
    memset(step, 0, c->padded * sizeof(float));
    kge_distance_backward(c->norm, score, dt, query, vector, dq, step, c->padded);
    lapse_axpy(1.0f, step, w->gradients + w->offsets[target], c->dim);
    return loss;
}

LAPSE_INLINE double kge_losses(const kge_config *c, const kge_work *w, int64_t n, const int32_t *targets,
                               const int32_t *negatives) {
    double loss = 0;
    for (int64_t i = 0; i < n; i++) {
        float *scores = w->scores + i * c->score_step;
        int32_t target = targets[i];
        for (int64_t j = 0; j < c->negatives; j++)
            scores[j] = negatives[j] == target ? KGE_MASKED : scores[j];
        for (int64_t j = c->negatives; j < c->padded_negatives; j++)
            scores[j] = KGE_MASKED;
        loss += c->model == KGE_TRANSE ? kge_distance_loss(c, w, i, target) : kge_product_loss(c, w, i, target);
    }
    return loss;
}

/* The negatives' part of the queries' gradients is added, and the negatives' own. */
LAPSE_INLINE void kge_negatives_backward(const kge_config *c, const kge_work *w, int64_t n) {
    int64_t p = c->padded, k = c->negatives, step = c->score_step;
    if (c->model == KGE_TRANSE) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < k; j++)
                kge_distance_backward(c->norm, w->distance_scores[i * step + j], w->scores[i * step + j],
                                      w->queries + i * p, w->negatives + j * p, w->query_gradients + i * p,
                                      w->negative_gradients + j * p, p);
    } else {
        kge_multiply(k, p, n, w->scores, 1, step, w->queries, p, KGE_PANEL, w->negative_gradients, p, 1);
        kge_multiply(n, p, k, w->scores, step, 1, w->panels, KGE_PANEL, k * KGE_PANEL, w->query_gradients, p, 1);
    }
}

LAPSE_INLINE void kge_queries_backward(const kge_config *c, const kge_work *w, int asked, int64_t n,
                                       const int32_t *entities, const int32_t *relations, uint64_t state) {
    for (int64_t i = 0; i < n; i++) {
        float *gradient = w->gradients + w->offsets[entities[i]], *de = c->entity_dropout > 0 ? w->room : gradient;
        if (c->entity_dropout > 0)
            memset(de, 0, c->dim * sizeof(float));
        kge_query_backward(c->model, asked, kge_input(c, w, i, entities), kge_relation(w, relations[i]),
                           w->query_gradients + i * c->padded, de, w->gradients + w->offsets[relations[i]], c->dim);
        if (c->entity_dropout > 0) {
            kge_dropout(de, c->dim, c->entity_dropout, kge_mix(state + i));
            lapse_axpy(1.0f, de, gradient, c->dim);
        }
    }
}

LAPSE_INLINE void kge_take_negatives(const kge_config *c, const kge_work *w, const int32_t *rows) {
    for (int64_t j = 0; j < c->negatives; j++)
        memcpy(w->negatives + j * c->padded, w->vectors[rows[j]], c->dim * sizeof(float));
    memset(w->negative_gradients, 0, c->negatives * c->padded * sizeof(float));
    if (c->model == KGE_TRANSE)
        return;
    kge_pack(c->padded_negatives, c->padded, w->negatives, c->padded, 1, w->transposed);
    kge_pack(c->padded, c->negatives, w->negatives, c->padded, 0, w->panels);
}

/* Adds the gradients of one side of n triples and returns the sum of their losses.
 *
 * entities, relations, targets: rows per triple (the entity that is known and the one that is asked for);
 * negatives: their rows. Those equal to a triple's target are left out for it. */
LAPSE_CLONES
static double kge_side(const kge_config *c, const kge_work *w, int asked, int64_t n, const int32_t *entities,
                       const int32_t *relations, const int32_t *targets, const int32_t *negatives, uint64_t state) {
    double loss = 0;
    kge_take_negatives(c, w, negatives);
    for (int64_t first = 0; first < n; first += KGE_CHUNK, state += KGE_CHUNK) {
        int64_t some = n - first < KGE_CHUNK ? n - first : KGE_CHUNK;
        kge_make_queries(c, w, asked, some, entities + first, relations + first, state);
        kge_scores(c->model, c->norm, some, w->queries, c->padded_negatives, w->negatives, w->transposed, c->padded,
                   w->scores, c->score_step);
        loss += kge_losses(c, w, some, targets + first, negatives);
        kge_negatives_backward(c, w, some);
        kge_queries_backward(c, w, asked, some, entities + first, relations + first, state);
    }
    for (int64_t j = 0; j < c->negatives; j++)
        lapse_axpy(1.0f, w->negative_gradients + j * c->padded, w->gradients + w->offsets[negatives[j]], c->dim);
    return loss;
}

/* --- regularisation and the step ------------------------------------------------------------- */

/* Adds the gradient of n3 * sum |x|^3 + l2 * sum x^2 and returns that sum. With `half` above 0, x are
 * complex numbers, imaginary parts `half` floats behind the real ones (Lacroix et al. 2018). */
LAPSE_CLONES
static double kge_regularize(const float *restrict x, float *restrict gradient, int64_t n, int64_t half,
                             float n3, float l2) {
    float penalty = 0;
    for (int64_t i = 0; i < (half ? half : n); i++) {
        float square = x[i] * x[i] + (half ? x[half + i] * x[half + i] : 0.0f);
        float modulus = sqrtf(square), factor = 3.0f * n3 * modulus + 2.0f * l2;
        penalty += n3 * modulus * square + l2 * square;
        gradient[i] += factor * x[i];
        if (half)
            gradient[half + i] += factor * x[half + i];
    }
    return penalty;
}

/* AdaGrad (Duchi et al. 2011): the value [vector | sum of squares] becomes what is to be added to it, or with
 * `in_place` the sum of both. */
LAPSE_CLONES
static void kge_adagrad(float *restrict value, const float *restrict gradient, int64_t n, float rate, int in_place) {
    float *squares = value + n;
    for (int64_t i = 0; i < n; i++) {
        float square = gradient[i] * gradient[i], sum = squares[i] + square;
        float step = -rate * gradient[i] / (sqrtf(sum) + 1e-10f);
        value[i] = in_place ? value[i] + step : step;
        squares[i] = in_place ? sum : square;
    }
}

/* --- evaluation ------------------------------------------------------------------------------ */

/* Queries of n entities (padded rows); the relation of query i is row `rows[i]`. */
LAPSE_CLONES
static void kge_queries(int model, int asked, int64_t n, const float *entities, const float *relations,
                        const int64_t *rows, int64_t relation_length, float *queries, int64_t dim, int64_t padded) {
    for (int64_t i = 0; i < n; i++)
        kge_query(model, asked, entities + i * padded, relations + rows[i] * relation_length,
                  queries + i * padded, dim);
}

/* `panels`: room for the entities' vectors. */
LAPSE_CLONES
static void kge_pack_entities(int64_t columns, const float *e, int64_t padded, float *panels) {
    kge_pack(columns, padded, e, padded, 1, panels);
}

LAPSE_CLONES
static void kge_score_entities(int model, int norm, int64_t queries, const float *q, int64_t columns, const float *e,
                               const float *panels, int64_t padded, float *scores, int64_t step) {
    kge_scores(model, norm, queries, q, columns, e, panels, padded, scores, step);
}

/* By how much a score worsens the rank of the wanted one: 2 where it is higher (or no number), 1 where it is equal. */
LAPSE_INLINE int64_t kge_place(float score, float wanted) {
    return score > wanted ? 2 : score == wanted ? 1 : score < wanted ? 0 : 2;
}

/* The sum of that over the scores of a query. */
LAPSE_CLONES
static int64_t kge_places(int64_t n, const float *scores, float wanted) {
    int64_t places = 0;
    for (int64_t first = 0; first < n; first += 4096) {
        int64_t end = n - first < 4096 ? n : first + 4096;
        int32_t lower = 0, different = 0; /* 32 bits: as many lanes as scores */
        for (int64_t j = first; j < end; j++) {
            lower += scores[j] < wanted;
            different += scores[j] != wanted;
        }
        places += (int64_t)(end - first - lower) + (different - lower);
    }
    return places;
}

#endif
