/* Losses and gradients of a block of triples, and the step.
 *
 * The scores of a block against the negatives that it shares are products of matrices, and the rest is done triple by
 * triple. A block is gone through a few triples at a time, so that what belongs to them, and the negatives, stay in the
 * second-level cache. */
#ifndef LAPSE_KGE_GRADIENTS_H
#define LAPSE_KGE_GRADIENTS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lapse/apps/_shared/_vector.h"
#include "lapse/apps/kge/_scores.h"
#include "lapse/base/_random.h"

enum { KGE_SOFTMAX, KGE_BCE, KGE_MARGIN };

/* Dropout: each element is zeroed with probability `rate`, the others grow by 1 / (1 - rate). Which ones
 * depends on `state` alone, so that a gradient meets the mask of its value. */
static void kge_dropout(float *x, int64_t n, float rate, uint64_t state) {
    const uint32_t limit = (uint32_t)(rate * 65536.0f);
    const float scale = 1.0f / (1.0f - rate);
    for (int64_t i = 0; i < n; i += 4) {
        uint64_t bits = lapse_next_u64(&state);
        for (int64_t j = i; j < i + 4 && j < n; j++, bits >>= 16)
            x[j] = (bits & 0xFFFF) < limit ? 0.0f : x[j] * scale;
    }
}

/* --- losses --------------------------------------------------------------------------------- */

/* In place: a row of scores becomes the row of their gradients. `target` is the true entity's score, `*dt`
 * receives its gradient. Scores of `KGE_MASKED` or below do not count. `n` is a multiple of 8. */
static const float KGE_MASKED = -1e30f;

LAPSE_INLINE double kge_softmax(float target, float *scores, int64_t n, float *dt) {
    lapse_v8 most = target + (lapse_v8){0};
    for (int64_t j = 0; j < n; j += 8) {
        lapse_v8 s = *(lapse_v8 *)(scores + j);
        most = lapse_choose(s > most, s, most);
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
            *(lapse_v8 *)(scores + j) = lapse_choose(above, large, small);
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
            kge_dropout(input, c->dim, c->entity_dropout, lapse_mix(state + i));
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
            kge_dropout(de, c->dim, c->entity_dropout, lapse_mix(state + i));
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

/* --- regularization and the step ------------------------------------------------------------- */

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

#endif
