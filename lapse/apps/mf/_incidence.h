/* Sums over the ratings of lines: which lines meet is all that counts, not the ratings themselves.
 *
 * Values have `stride` elements, a multiple of eight; line i has ratings with others[starts[i]], ..., up to starts[i+1]. */
#ifndef LAPSE_MF_INCIDENCE_H
#define LAPSE_MF_INCIDENCE_H

#include <stdint.h>

#include "lapse/apps/_shared/_vector.h"

enum { MF_INCIDENCE_AHEAD = 8 };

LAPSE_INLINE void mf_fetch_ahead(const float *values, const int32_t *others, int64_t i, int64_t end, int64_t stride) {
    if (i + MF_INCIDENCE_AHEAD < end) {
        const float *next = values + others[i + MF_INCIDENCE_AHEAD] * stride;
        for (int64_t k = 0; k < stride; k += 16)
            __builtin_prefetch(next + k);
    }
}

/* sums[line] += the values of its others */
LAPSE_CLONES
static void mf_sum_others(const int64_t *starts, const int32_t *others, int64_t lines, int64_t stride,
                          const float *values, float *sums) {
    for (int64_t line = 0; line < lines; line++) {
        float *sum = sums + line * stride;
        for (int64_t i = starts[line]; i < starts[line + 1]; i++) {
            const float *value = values + others[i] * stride;
            mf_fetch_ahead(values, others, i, starts[lines], stride);
            for (int64_t k = 0; k < stride; k += 8)
                *(lapse_v8 *)(sum + k) += *(const lapse_v8 *)(value + k);
        }
    }
}

/* sums[other] += the values of the lines that have a rating with it */
LAPSE_CLONES
static void mf_add_to_others(const int64_t *starts, const int32_t *others, int64_t lines, int64_t stride,
                             const float *values, float *sums) {
    for (int64_t line = 0; line < lines; line++) {
        const float *value = values + line * stride;
        for (int64_t i = starts[line]; i < starts[line + 1]; i++) {
            float *sum = sums + others[i] * stride;
            mf_fetch_ahead(sums, others, i, starts[lines], stride);
            for (int64_t k = 0; k < stride; k += 8)
                *(lapse_v8 *)(sum + k) += *(const lapse_v8 *)(value + k);
        }
    }
}

#endif
