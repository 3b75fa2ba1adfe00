/* Questions of the full softmax: queries of a batch, and what their gradients are for the vectors that they are made of.
 *
 * A query is a given entity and a relation, with the targets that are asked for: one or more entities. Those of the same
 * query share its scores, so that it counts once for the products of matrices, whatever the number of its targets. */
#ifndef LAPSE_KGE_FULL_QUESTIONS_H
#define LAPSE_KGE_FULL_QUESTIONS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lapse/apps/kge/_gradients.h"
#include "lapse/apps/kge/_scores.h"

typedef struct {
    int model;
    int64_t length, relation_length; /* of an entity's and of a relation's vector */
    int64_t step, relation_step;     /* floats from one query to the next one, for entities and for relations */
    float entity_dropout;
    float dura; /* weight of the penalty of `full_dura` */
    /* Row i has its vector at vectors[i] and its gradient at gradients + offsets[i]; `mine`: whether it is wanted. */
    const float *const *vectors;
    float *gradients;
    const int64_t *offsets;
    const uint8_t *mine;
    const float *masked; /* relations after dropout, at offsets[i]; NULL without */
    const int32_t *given, *relations; /* rows, per query */
    /* Query i has the targets of rows targets[begins[i]] to targets[begins[i + 1] - 1]. */
    const int32_t *targets, *begins;
    int64_t num_objects; /* queries from this one on ask as `asked` says, those before it for the object */
    int asked;
    float *inputs;  /* entities after dropout, per query; NULL without */
    float *queries;
    float *highest; /* per query: the highest score of its targets */
    float *gaps;    /* per query: how far its targets' scores are below that, in all */
    float *room;    /* for two vectors of an entity */
} full_questions;

LAPSE_INLINE const float *full_relation(const full_questions *x, int64_t i) {
    int32_t row = x->relations[i];
    return x->masked ? x->masked + x->offsets[row] : x->vectors[row];
}

LAPSE_INLINE const float *full_input(const full_questions *x, int64_t i) {
    return x->inputs ? x->inputs + i * x->length : x->vectors[x->given[i]];
}

LAPSE_INLINE int full_asked(const full_questions *x, int64_t i) {
    return i < x->num_objects ? KGE_OBJECT : x->asked;
}

/* The scores of a query's targets: the highest, and the sum of the differences from it. */
LAPSE_INLINE void full_score_targets(const full_questions *x, int64_t i) {
    const float *query = x->queries + i * x->step;
    float highest = -INFINITY, sum = 0;
    for (int32_t t = x->begins[i]; t < x->begins[i + 1]; t++) {
        float score = lapse_dot(query, x->vectors[x->targets[t]], x->length);
        highest = score > highest || score != score ? score : highest; /* one that is no number is not passed over */
        sum += score;
    }
    x->highest[i] = highest;
    x->gaps[i] = (float)(x->begins[i + 1] - x->begins[i]) * highest - sum;
}

/* The first n queries, and the scores of their targets. */
LAPSE_CLONES
static void full_ask(const full_questions *x, int64_t n, uint64_t state) {
    for (int64_t i = 0; i < n; i++) {
        if (x->inputs) {
            float *input = x->inputs + i * x->length;
            memcpy(input, x->vectors[x->given[i]], x->length * sizeof(float));
            kge_dropout(input, x->length, x->entity_dropout, lapse_mix(state + i));
        }
        kge_query(x->model, full_asked(x, i), full_input(x, i), full_relation(x, i), x->queries + i * x->step,
                  x->length);
        full_score_targets(x, i);
    }
}

/* Adds a penalty of query i and one of its targets to the gradients that are mine, but for the query's part to `dq`;
 * returns it, as far as it was needed for that.
 *
 * It is the weight of the squared norms of the query, of the query by which the target would ask for the given entity,
 * and of both entities (DURA: Zhang, Cai, Wang, *Duality-Induced Regularizer for Tensor Factorization Based Knowledge
 * Graph Completion*, NeurIPS 2020). */
LAPSE_INLINE double full_dura(const full_questions *x, int64_t i, int32_t target, const float *query, float *dq) {
    int32_t given = x->given[i], relation = x->relations[i];
    const float *vector = x->vectors[target], *other = x->vectors[given];
    int back = full_asked(x, i) == KGE_OBJECT ? KGE_SUBJECT : KGE_OBJECT;
    int64_t n = x->length;
    float *opposite = x->room + n, twice = 2.0f * x->dura;
    double norms = lapse_dot(query, query, n) + lapse_dot(vector, vector, n) + lapse_dot(other, other, n);
    lapse_axpy(twice, query, dq, n);
    lapse_axpy(twice, vector, x->gradients + x->offsets[target], n);
    lapse_axpy(twice, other, x->gradients + x->offsets[given], n);
    if (x->mine[target] || x->mine[relation]) {
        kge_query(x->model, back, vector, full_relation(x, i), opposite, n);
        norms += lapse_dot(opposite, opposite, n);
        for (int64_t k = 0; k < n; k++)
            opposite[k] *= twice;
        kge_query_backward(x->model, back, vector, full_relation(x, i), opposite, x->gradients + x->offsets[target],
                           x->gradients + x->offsets[relation], n);
    }
    return x->dura * norms;
}

/* Query i: it is multiplied by `scale`, and so is `pull`, the sum of all vectors by their weights; the vectors that are
 * mine get their gradients. */
LAPSE_INLINE void full_answer_one(const full_questions *x, int64_t i, uint64_t state, float scale, float *pull,
                                  double *penalties) {
    int32_t given = x->given[i], relation = x->relations[i];
    float *query = x->queries + i * x->step;
    for (int64_t k = 0; k < x->length; k++)
        pull[k] *= scale;
    for (int32_t t = x->begins[i]; t < x->begins[i + 1]; t++) {
        int32_t target = x->targets[t];
        if (x->mine[target])
            lapse_axpy(-1.0f, query, x->gradients + x->offsets[target], x->length);
        lapse_axpy(-1.0f, x->vectors[target], pull, x->length);
        if (x->dura > 0)
            *penalties += full_dura(x, i, target, query, pull);
    }
    for (int64_t k = 0; k < x->length; k++)
        query[k] *= scale;
    if (!x->mine[given] && !x->mine[relation])
        return;
    float *gradient = x->gradients + x->offsets[given], *de = x->inputs ? x->room : gradient;
    if (x->inputs)
        memset(de, 0, x->length * sizeof(float));
    kge_query_backward(x->model, full_asked(x, i), full_input(x, i), full_relation(x, i), pull, de,
                       x->gradients + x->offsets[relation], x->length);
    if (x->inputs) {
        kge_dropout(de, x->length, x->entity_dropout, lapse_mix(state + i));
        lapse_axpy(1.0f, de, gradient, x->length);
    }
}

/* Queries from `first` to `end` - 1, whose sums and pulls begin at `sums` and `pulls`. Returns the sum of losses. */
LAPSE_CLONES
static double full_answer(const full_questions *x, int64_t first, int64_t end, uint64_t state, const float *sums,
                          float *pulls, double *penalties) {
    double loss = 0;
    for (int64_t i = first; i < end; i++, sums++, pulls += x->step) {
        float count = (float)(x->begins[i + 1] - x->begins[i]);
        full_answer_one(x, i, state, count / *sums, pulls, penalties);
        loss += count * logf(*sums) + x->gaps[i];
    }
    return loss;
}

/* --- which relation is between two entities -------------------------------------------------------------------- */

/* A query for the relation between two entities, such that a score is its inner product with the relation's vector. */
LAPSE_INLINE void full_relation_query(int model, const float *s, const float *o, float *query, int64_t length) {
    int64_t half = length / 2;
    if (model == KGE_COMPLEX)
        for (int64_t k = 0; k < half; k++) {
            query[k] = s[k] * o[k] + s[half + k] * o[half + k];
            query[half + k] = s[k] * o[half + k] - s[half + k] * o[k];
        }
    else
        for (int64_t k = 0; k < length; k++)
            query[k] = s[k] * o[k];
}

/* The relation's queries of the given entity and each target of the first n queries, one behind the other, and the
 * scores of the true relations. */
LAPSE_CLONES
static void full_ask_relations(const full_questions *x, int64_t n, float *queries, float *scores) {
    for (int64_t i = 0; i < n; i++)
        for (int32_t t = x->begins[i]; t < x->begins[i + 1]; t++, queries += x->relation_step, scores++) {
            full_relation_query(x->model, x->vectors[x->given[i]], x->vectors[x->targets[t]], queries, x->length);
            *scores = lapse_dot(queries, x->vectors[x->relations[i]], x->length);
        }
}

/* Adds the gradients of both entities, given that of their query `dq`. They may be the same one. */
LAPSE_INLINE void full_relation_query_backward(int model, const float *dq, const float *s, const float *o, float *ds,
                                               float *d_o, int64_t length) {
    int64_t half = length / 2;
    if (model == KGE_COMPLEX)
        for (int64_t k = 0; k < half; k++) {
            float real = dq[k], imaginary = dq[half + k];
            ds[k] += real * o[k] + imaginary * o[half + k];
            ds[half + k] += real * o[half + k] - imaginary * o[k];
            d_o[k] += real * s[k] - imaginary * s[half + k];
            d_o[half + k] += real * s[half + k] + imaginary * s[k];
        }
    else
        for (int64_t k = 0; k < length; k++) {
            ds[k] += dq[k] * o[k];
            d_o[k] += dq[k] * s[k];
        }
}

/* A query for a relation: its part of the gradients that are mine. `pull` is the sum of the relations' vectors by their
 * weights. */
LAPSE_INLINE void full_answer_relation(const full_questions *x, int32_t given, int32_t relation, int32_t target,
                                       float weight, float scale, float *query, float *pull) {
    const float *vector = x->vectors[relation];
    if (x->mine[relation])
        lapse_axpy(-weight, query, x->gradients + x->offsets[relation], x->length);
    for (int64_t k = 0; k < x->length; k++) {
        query[k] *= scale;
        pull[k] = scale * pull[k] - weight * vector[k];
    }
    if (x->mine[given] || x->mine[target])
        full_relation_query_backward(x->model, pull, x->vectors[given], x->vectors[target],
                                     x->gradients + x->offsets[given], x->gradients + x->offsets[target], x->length);
}

/* As `full_answer`, for what `full_ask_relations` has made of the first n queries, and with a weight of the loss. */
LAPSE_CLONES
static double full_answer_relations(const full_questions *x, int64_t n, float weight, const float *sums,
                                    float *queries, float *pulls) {
    double loss = 0;
    for (int64_t i = 0; i < n; i++)
        for (int32_t t = x->begins[i]; t < x->begins[i + 1]; t++) {
            full_answer_relation(x, x->given[i], x->relations[i], x->targets[t], weight, weight / *sums, queries,
                                 pulls);
            loss += weight * logf(*sums++);
            queries += x->relation_step;
            pulls += x->relation_step;
        }
    return loss;
}

#endif
