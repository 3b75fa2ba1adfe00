/* The arithmetic of knowledge-graph embeddings: scores, losses and gradients of a block of triples.
 *
 * Every model turns an entity and a relation into a *query*, a vector as long as an entity's, and scores
 * an entity against it: by the inner product (ComplEx, DistMult, RESCAL), or by the distance (TransE).
 * So a block's scores against the negatives that it shares are one product of matrices, and the rest is
 * done triple by triple.
 *
 * Matrices are row-major, their rows padded with zeros to a multiple of KGE_PANEL floats. Vectors of
 * eight floats are spelled out (a GCC and Clang extension), because a compiler may not reorder sums by
 * itself, and -ffast-math would free it to do more than that. */
#ifndef LAPSE_KGE_H
#define LAPSE_KGE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float kge_v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t kge_i8 __attribute__((vector_size(32), aligned(4), may_alias));

/* The same source for several generations of processors; the loader picks one. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define KGE_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define KGE_CLONES
#endif
#define KGE_INLINE static inline __attribute__((always_inline))

enum { KGE_PANEL = 16, KGE_DEPTH = 256, KGE_ROWS = 6 };
enum { KGE_COMPLEX, KGE_DISTMULT, KGE_RESCAL, KGE_TRANSE };
enum { KGE_SOFTMAX, KGE_BCE, KGE_MARGIN };
enum { KGE_SUBJECT, KGE_OBJECT }; /* which entity a query asks for */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only */
#endif

/* --- vectors -------------------------------------------------------------------------------- */

KGE_INLINE float kge_sum(kge_v8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

KGE_INLINE float kge_dot(const float *a, const float *b, int64_t n) {
    kge_v8 s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += *(const kge_v8 *)(a + i) * *(const kge_v8 *)(b + i);
        s1 += *(const kge_v8 *)(a + i + 8) * *(const kge_v8 *)(b + i + 8);
    }
    float sum = kge_sum(s0 + s1);
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += f * x */
KGE_INLINE void kge_add(float f, const float *restrict x, float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += f * x[i];
}

/* exp(x), relative error below 2e-7; 0 below -86 (no subnormal numbers: they are slow) */
KGE_INLINE kge_v8 kge_exp(kge_v8 x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, found in the low bits */
    kge_i8 tiny = x < -86.0f;
    kge_v8 high = x - 88.0f; /* min(x, 88) without a branch */
    x = x - (kge_v8)((kge_i8)high & (x > 88.0f));
    kge_v8 t = x * 1.44269504f + shift;
    kge_v8 n = t - shift;
    kge_v8 r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts (Cephes) */
    kge_v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    kge_i8 bits = (kge_i8)p + ((kge_i8)t << 23);
    return (kge_v8)(bits & ~tiny);
}

KGE_INLINE uint64_t kge_mix(uint64_t z) { /* the finalizer of SplitMix64 (Steele, Lea, Flood 2014) */
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

/* rows x 16 of C (+)= A * panel. Every element is summed in the order of the depth, whatever the tile:
 * equal vectors have equal scores. */
KGE_INLINE void kge_tile(int rows, const float *a, int64_t row_step, int64_t depth_step,
                         const float *panel, int64_t depth, float *c, int64_t c_step, int add) {
    kge_v8 sums[KGE_ROWS][2];
    for (int i = 0; i < rows; i++) {
        kge_v8 *old = (kge_v8 *)(c + i * c_step);
        sums[i][0] = add ? old[0] : (kge_v8){0};
        sums[i][1] = add ? old[1] : (kge_v8){0};
    }
    for (int64_t k = 0; k < depth; k++) {
        kge_v8 b0 = *(const kge_v8 *)(panel + k * KGE_PANEL);
        kge_v8 b1 = *(const kge_v8 *)(panel + k * KGE_PANEL + 8);
        for (int i = 0; i < rows; i++) {
            float x = a[i * row_step + k * depth_step];
            sums[i][0] += x * b0;
            sums[i][1] += x * b1;
        }
    }
    for (int i = 0; i < rows; i++) {
        ((kge_v8 *)(c + i * c_step))[0] = sums[i][0];
        ((kge_v8 *)(c + i * c_step))[1] = sums[i][1];
    }
}

KGE_INLINE void kge_tiles(int64_t rows, const float *a, int64_t row_step, int64_t depth_step,
                          const float *panel, int64_t depth, float *c, int64_t c_step, int add) {
    int64_t i = 0;
    for (; i + KGE_ROWS <= rows; i += KGE_ROWS)
        kge_tile(KGE_ROWS, a + i * row_step, row_step, depth_step, panel, depth, c + i * c_step, c_step, add);
    for (; i < rows; i++)
        kge_tile(1, a + i * row_step, row_step, depth_step, panel, depth, c + i * c_step, c_step, add);
}

/* C (rows x columns) = A B. Element (i, k) of A is a[i * row_step + k * depth_step]. B has `b_step` floats
 * a row; with `transposed` it is given as its transpose. `columns` is a multiple of KGE_PANEL. `panel` is
 * room for KGE_DEPTH * KGE_PANEL floats: a part of B that stays in the first-level cache. */
KGE_CLONES
static void kge_multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row_step,
                         int64_t depth_step, const float *b, int64_t b_step, int transposed, float *c,
                         int64_t c_step, float *panel) {
    for (int64_t column = 0; column < columns; column += KGE_PANEL)
        for (int64_t first = 0; first < depth; first += KGE_DEPTH) {
            int64_t part = depth - first < KGE_DEPTH ? depth - first : KGE_DEPTH;
            if (transposed)
                for (int j = 0; j < KGE_PANEL; j++)
                    for (int64_t k = 0; k < part; k++)
                        panel[k * KGE_PANEL + j] = b[(column + j) * b_step + first + k];
            else
                for (int64_t k = 0; k < part; k++)
                    memcpy(panel + k * KGE_PANEL, b + (first + k) * b_step + column, KGE_PANEL * sizeof(float));
            kge_tiles(rows, a + first * depth_step, row_step, depth_step, panel, part, c + column, c_step,
                      first > 0);
        }
}

/* --- queries -------------------------------------------------------------------------------- */

/* ComplEx (Trouillon et al. 2016), score Re <s, r, conj o>: the query is s r for the object, o conj r for
 * the subject. A vector is its real half, then its imaginary half. */
KGE_INLINE void kge_complex_query(float sign, const float *e, const float *r, float *q, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float imaginary = sign * r[half + i];
        q[i] = e[i] * r[i] - e[half + i] * imaginary;
        q[half + i] = e[i] * imaginary + e[half + i] * r[i];
    }
}

KGE_INLINE void kge_complex_backward(float sign, const float *e, const float *r, const float *dq, float *de,
                                     float *dr, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float imaginary = sign * r[half + i];
        de[i] += dq[i] * r[i] + dq[half + i] * imaginary;
        de[half + i] += dq[half + i] * r[i] - dq[i] * imaginary;
        dr[i] += dq[i] * e[i] + dq[half + i] * e[half + i];
        dr[half + i] += sign * (dq[half + i] * e[i] - dq[i] * e[half + i]);
    }
}

/* RESCAL (Nickel et al. 2011), score s^T R o: the query is R^T s for the object, R o for the subject. */
KGE_INLINE void kge_rescal_query(int asked, const float *e, const float *r, float *q, int64_t dim) {
    if (asked == KGE_OBJECT) {
        memset(q, 0, dim * sizeof(float));
        for (int64_t i = 0; i < dim; i++)
            kge_add(e[i], r + i * dim, q, dim);
    } else
        for (int64_t i = 0; i < dim; i++)
            q[i] = kge_dot(r + i * dim, e, dim);
}

KGE_INLINE void kge_rescal_backward(int asked, const float *e, const float *r, const float *dq, float *de,
                                    float *dr, int64_t dim) {
    for (int64_t i = 0; i < dim; i++)
        if (asked == KGE_OBJECT) {
            de[i] += kge_dot(r + i * dim, dq, dim);
            kge_add(e[i], dq, dr + i * dim, dim);
        } else {
            kge_add(dq[i], r + i * dim, de, dim);
            kge_add(dq[i], e, dr + i * dim, dim);
        }
}

/* The query of an entity (the one that is known) and a relation, for the entity that is asked for. */
KGE_INLINE void kge_query(int model, int asked, const float *e, const float *r, float *q, int64_t dim) {
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
KGE_INLINE void kge_query_backward(int model, int asked, const float *e, const float *r, const float *dq,
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

KGE_INLINE kge_v8 kge_abs(kge_v8 x) {
    return (kge_v8)((kge_i8)x & 0x7FFFFFFF);
}

/* -|q - e| in the norm 1 or 2; `padded` floats */
KGE_INLINE float kge_distance_score(int norm, const float *q, const float *e, int64_t padded) {
    kge_v8 s0 = {0}, s1 = {0};
    for (int64_t i = 0; i < padded; i += 16) {
        kge_v8 d0 = *(const kge_v8 *)(q + i) - *(const kge_v8 *)(e + i);
        kge_v8 d1 = *(const kge_v8 *)(q + i + 8) - *(const kge_v8 *)(e + i + 8);
        if (norm == 1) {
            s0 += kge_abs(d0);
            s1 += kge_abs(d1);
        } else {
            s0 += d0 * d0;
            s1 += d1 * d1;
        }
    }
    float sum = kge_sum(s0 + s1);
    return norm == 1 ? -sum : -sqrtf(sum);
}

/* Adds the gradients of the two vectors, given their score's gradient. */
KGE_INLINE void kge_distance_backward(int norm, float score, float g, const float *q, const float *e,
                                      float *restrict dq, float *restrict de, int64_t padded) {
    float f = norm == 1 ? g : -g / fmaxf(-score, 1e-12f); /* d(-|x|_2) = -x / |x| */
    if (g == 0.0f)
        return;
    for (int64_t i = 0; i < padded; i += 8) {
        kge_v8 d = *(const kge_v8 *)(q + i) - *(const kge_v8 *)(e + i), step;
        if (norm == 1)
            step = (kge_v8)(((kge_i8)(kge_v8){f, f, f, f, f, f, f, f} ^ ((kge_i8)d & (int32_t)0x80000000)
                             ^ (int32_t)0x80000000) & (d != 0.0f));
        else
            step = f * d;
        *(kge_v8 *)(dq + i) += step;
        *(kge_v8 *)(de + i) -= step;
    }
}

/* Scores (queries x columns) of `columns` entities (a multiple of KGE_PANEL rows) against queries. */
KGE_CLONES
static void kge_scores(int model, int norm, int64_t queries, const float *q, int64_t columns, const float *e,
                       int64_t padded, float *scores, int64_t step, float *panel) {
    if (model != KGE_TRANSE)
        kge_multiply(queries, columns, padded, q, padded, 1, e, padded, 1, scores, step, panel);
    else
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < columns; j++)
                scores[i * step + j] = kge_distance_score(norm, q + i * padded, e + j * padded, padded);
}

/* The score of each query against an entity of its own, to the last bit as `kge_scores` has it. */
static void kge_pair_scores(int model, int norm, int64_t queries, const float *q, const float *e,
                            int64_t padded, float *scores, float *room, float *panel) {
    /* room: KGE_PANEL * (padded + 1) floats */
    float *columns = room + KGE_PANEL;
    for (int64_t i = 0; i < queries; i++) {
        for (int j = 0; j < KGE_PANEL; j++)
            memcpy(columns + j * padded, e + i * padded, padded * sizeof(float));
        kge_scores(model, norm, 1, q + i * padded, KGE_PANEL, columns, padded, room, KGE_PANEL, panel);
        scores[i] = room[0];
    }
}

/* --- losses --------------------------------------------------------------------------------- */

/* In place: a row of scores becomes the row of their gradients. `target` is the true entity's score, `*dt`
 * receives its gradient. Scores of `KGE_MASKED` or below do not count. `n` is a multiple of 8. */
static const float KGE_MASKED = -1e30f;

KGE_INLINE double kge_softmax(float target, float *scores, int64_t n, float *dt) {
    kge_v8 most = target + (kge_v8){0};
    for (int64_t j = 0; j < n; j += 8) {
        kge_v8 s = *(kge_v8 *)(scores + j);
        kge_i8 more = s > most;
        most = (kge_v8)(((kge_i8)s & more) | ((kge_i8)most & ~more));
    }
    float top = most[0];
    for (int j = 1; j < 8; j++)
        top = most[j] > top ? most[j] : top;
    kge_v8 sums = {0};
    for (int64_t j = 0; j < n; j += 8) {
        kge_v8 e = kge_exp(*(kge_v8 *)(scores + j) - top);
        *(kge_v8 *)(scores + j) = e;
        sums += e;
    }
    float sum = kge_sum(sums) + expf(target - top), scale = 1.0f / sum;
    for (int64_t j = 0; j < n; j += 8)
        *(kge_v8 *)(scores + j) *= scale;
    *dt = expf(target - top) * scale - 1.0f;
    return logf(sum) + (double)top - target;
}

/* log(1 + exp(-t)) for the target, log(1 + exp(s)) for each negative */
KGE_INLINE double kge_bce(float target, float *scores, int64_t n, float *dt) {
    double loss = (target < 0 ? -target : 0.0f) + log1p(exp(-fabs(target)));
    *dt = -1.0f / (1.0f + expf(target));
    for (int64_t first = 0; first < n; first += 512) { /* products of numbers from 1 to 2 stay finite */
        kge_v8 product = 1.0f + (kge_v8){0}, positive = {0};
        int64_t end = n - first < 512 ? n : first + 512;
        for (int64_t j = first; j < end; j += 8) {
            kge_v8 s = *(kge_v8 *)(scores + j);
            kge_i8 above = s > 0.0f;
            kge_v8 e = kge_exp(-kge_abs(s));
            kge_v8 small = e / (1.0f + e), large = 1.0f / (1.0f + e);
            product *= 1.0f + e;
            positive += (kge_v8)((kge_i8)s & above);
            *(kge_v8 *)(scores + j) = (kge_v8)(((kge_i8)large & above) | ((kge_i8)small & ~above));
        }
        loss += kge_sum(positive);
        for (int j = 0; j < 8; j++)
            loss += log((double)product[j]);
    }
    return loss;
}

/* max(0, margin - t + s) for each negative */
KGE_INLINE double kge_margin(float margin, float target, float *scores, int64_t n, float *dt) {
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
    float margin, entity_dropout, relation_dropout;
} kge_config;

typedef struct {
    /* Rows are keys' values: row i has its vector at values + 2 * offsets[i] (behind it lies the sum of
     * squares), and its gradient at gradients + offsets[i]. */
    const float *values;
    float *gradients;
    const int64_t *offsets;
    const float *masked;               /* relations after dropout, at offsets[i]; NULL without */
    /* room */
    float *inputs, *queries, *query_gradients, *distance_scores;    /* per triple */
    float *negatives, *negative_gradients, *scores, *panel, *room;
} kge_work;

KGE_INLINE const float *kge_value(const kge_work *w, int32_t row) {
    return w->values + 2 * w->offsets[row];
}

KGE_INLINE const float *kge_relation(const kge_work *w, int32_t row) {
    return w->masked ? w->masked + w->offsets[row] : kge_value(w, row);
}

KGE_INLINE void kge_make_queries(const kge_config *c, const kge_work *w, int asked, int64_t n,
                                 const int32_t *entities, const int32_t *relations, uint64_t state) {
    for (int64_t i = 0; i < n; i++) {
        float *input = w->inputs + i * c->padded;
        memcpy(input, kge_value(w, entities[i]), c->dim * sizeof(float));
        if (c->entity_dropout > 0)
            kge_dropout(input, c->dim, c->entity_dropout, kge_mix(state + i));
        kge_query(c->model, asked, input, kge_relation(w, relations[i]), w->queries + i * c->padded, c->dim);
    }
}

KGE_INLINE double kge_row_loss(const kge_config *c, float target, float *scores, float *dt) {
    if (c->loss == KGE_SOFTMAX)
        return kge_softmax(target, scores, c->padded_negatives, dt);
    if (c->loss == KGE_BCE)
        return kge_bce(target, scores, c->padded_negatives, dt);
    return kge_margin(c->margin, target, scores, c->padded_negatives, dt);
}

/* Scores become gradients, the target's part of the queries' gradients is set and the target's own added. */
KGE_INLINE double kge_losses(const kge_config *c, const kge_work *w, int64_t n, const int32_t *targets,
                             const int32_t *negatives) {
    double loss = 0;
    int transe = c->model == KGE_TRANSE;
    for (int64_t i = 0; i < n; i++) {
        float *scores = w->scores + i * c->padded_negatives, dt;
        const float *query = w->queries + i * c->padded;
        float *dq = w->query_gradients + i * c->padded, *room = w->room;
        for (int64_t j = 0; j < c->padded_negatives; j++)
            scores[j] = j >= c->negatives || negatives[j] == targets[i] ? KGE_MASKED : scores[j];
        memcpy(room, kge_value(w, targets[i]), c->dim * sizeof(float));
        float target = transe ? kge_distance_score(c->norm, query, room, c->padded)
                              : kge_dot(query, room, c->dim);
        if (transe) /* its gradient needs the scores again */
            memcpy(w->distance_scores + i * c->padded_negatives, scores, c->padded_negatives * sizeof(float));
        loss += kge_row_loss(c, target, scores, &dt);
        memset(dq, 0, c->padded * sizeof(float));
        if (transe) {
            float *step = w->room + c->padded;
            memset(step, 0, c->padded * sizeof(float));
            kge_distance_backward(c->norm, target, dt, query, room, dq, step, c->padded);
            kge_add(1.0f, step, w->gradients + w->offsets[targets[i]], c->dim);
        } else {
            kge_add(dt, room, dq, c->dim);
            kge_add(dt, query, w->gradients + w->offsets[targets[i]], c->dim);
        }
    }
    return loss;
}

/* The negatives' part of the queries' gradients is added, and the negatives' own. */
KGE_INLINE void kge_negatives_backward(const kge_config *c, const kge_work *w, int64_t n,
                                       const int32_t *negatives) {
    int64_t p = c->padded, k = c->padded_negatives;
    if (c->model == KGE_TRANSE) {
        memset(w->negative_gradients, 0, k * p * sizeof(float));
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < c->negatives; j++)
                kge_distance_backward(c->norm, w->distance_scores[i * k + j], w->scores[i * k + j],
                                      w->queries + i * p, w->negatives + j * p,
                                      w->query_gradients + i * p, w->negative_gradients + j * p, p);
    } else {
        kge_multiply(k, p, n, w->scores, 1, k, w->queries, p, 0, w->negative_gradients, p, w->panel);
        /* the inputs are not needed any more where there is no dropout, but this is room enough for both */
        kge_multiply(n, p, c->negatives, w->scores, k, 1, w->negatives, p, 0, w->distance_scores, p, w->panel);
        kge_add(1.0f, w->distance_scores, w->query_gradients, n * p);
    }
    for (int64_t j = 0; j < c->negatives; j++)
        kge_add(1.0f, w->negative_gradients + j * p, w->gradients + w->offsets[negatives[j]], c->dim);
}

KGE_INLINE void kge_queries_backward(const kge_config *c, const kge_work *w, int asked, int64_t n,
                                     const int32_t *entities, const int32_t *relations, uint64_t state) {
    for (int64_t i = 0; i < n; i++) {
        float *de = w->room;
        memset(de, 0, c->dim * sizeof(float));
        kge_query_backward(c->model, asked, w->inputs + i * c->padded, kge_relation(w, relations[i]),
                           w->query_gradients + i * c->padded, de, w->gradients + w->offsets[relations[i]],
                           c->dim);
        if (c->entity_dropout > 0)
            kge_dropout(de, c->dim, c->entity_dropout, kge_mix(state + i));
        kge_add(1.0f, de, w->gradients + w->offsets[entities[i]], c->dim);
    }
}

/* Adds the gradients of one side of n triples and returns the sum of their losses.
 *
 * entities, relations, targets: rows per triple (the entity that is known and the one that is asked for);
 * negatives: their rows. Those equal to a triple's target are left out for it. */
KGE_CLONES
static double kge_side(const kge_config *c, const kge_work *w, int asked, int64_t n, const int32_t *entities,
                       const int32_t *relations, const int32_t *targets, const int32_t *negatives,
                       uint64_t state) {
    for (int64_t j = 0; j < c->negatives; j++)
        memcpy(w->negatives + j * c->padded, kge_value(w, negatives[j]), c->dim * sizeof(float));
    kge_make_queries(c, w, asked, n, entities, relations, state);
    kge_scores(c->model, c->norm, n, w->queries, c->padded_negatives, w->negatives, c->padded, w->scores,
               c->padded_negatives, w->panel);
    double loss = kge_losses(c, w, n, targets, negatives);
    kge_negatives_backward(c, w, n, negatives);
    kge_queries_backward(c, w, asked, n, entities, relations, state);
    return loss;
}

/* --- regularisation and the step ------------------------------------------------------------- */

/* Adds the gradient of n3 * sum |x|^3 + l2 * sum x^2 and returns that sum. With `half` above 0, x are
 * complex numbers, imaginary parts `half` floats behind the real ones (Lacroix et al. 2018). */
KGE_CLONES
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

/* AdaGrad (Duchi et al. 2011): the value [vector | sum of squares] becomes what is to be added to it. */
KGE_CLONES
static void kge_adagrad(float *restrict value, const float *restrict gradient, int64_t n, float rate) {
    float *squares = value + n;
    for (int64_t i = 0; i < n; i++) {
        float square = gradient[i] * gradient[i];
        value[i] = -rate * gradient[i] / (sqrtf(squares[i] + square) + 1e-10f);
        squares[i] = square;
    }
}

/* Queries of n entities (padded rows), for evaluation; the relation of query i is row `rows[i]`. */
KGE_CLONES
static void kge_queries(int model, int asked, int64_t n, const float *entities, const float *relations,
                        const int64_t *rows, int64_t relation_length, float *queries, int64_t dim,
                        int64_t padded) {
    for (int64_t i = 0; i < n; i++)
        kge_query(model, asked, entities + i * padded, relations + rows[i] * relation_length,
                  queries + i * padded, dim);
}

#endif
