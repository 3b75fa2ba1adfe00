/* Evaluation: the scores of all entities for queries, and the place of the wanted one among them. */
#ifndef LAPSE_KGE_RANKING_H
#define LAPSE_KGE_RANKING_H

#include <stdint.h>

#include "lapse/apps/_shared/_vector.h"
#include "lapse/apps/kge/_scores.h"

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

/* Scores of a query that are higher than the wanted one (or not a number), and those that are equal. */
typedef struct {
    int64_t higher, equal;
} kge_place;

LAPSE_INLINE void kge_add_place(kge_place *place, float score, float wanted, int64_t times) {
    if (score == wanted)
        place->equal += times;
    else if (!(score < wanted))
        place->higher += times;
}

LAPSE_CLONES
static void kge_add_places(kge_place *place, int64_t n, const float *scores, float wanted) {
    for (int64_t first = 0; first < n; first += 4096) {
        int64_t end = n - first < 4096 ? n : first + 4096;
        int32_t lower = 0, different = 0; /* 32 bits: as many lanes as scores */
        for (int64_t j = first; j < end; j++) {
            lower += scores[j] < wanted;
            different += scores[j] != wanted;
        }
        place->higher += different - lower;
        place->equal += end - first - different;
    }
}

#endif
