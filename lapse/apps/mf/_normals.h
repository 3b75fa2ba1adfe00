/* Draws from the standard normal distribution, of streams that are named by a seed and a key. */
#ifndef LAPSE_MF_NORMALS_H
#define LAPSE_MF_NORMALS_H

#include <math.h>
#include <stdint.h>

#include "lapse/base/_random.h"

/* The state from which the stream of a key begins. */
static inline uint64_t mf_stream(uint64_t seed, int64_t key) {
    return lapse_mix(seed + lapse_mix((uint64_t)(key + 1)));
}

/* Two draws from the standard normal distribution (Box and Muller 1958). */
static inline void mf_two_normals(uint64_t *state, double *first, double *second) {
    double u = ((lapse_next_u64(state) >> 11) + 1) * 0x1p-53, angle = (lapse_next_u64(state) >> 11) * 0x1p-53;
    double radius = sqrt(-2.0 * log(u));
    *first = radius * cos(6.283185307179586 * angle);
    *second = radius * sin(6.283185307179586 * angle);
}

/* Add a draw to each of n numbers. */
static inline void mf_add_normals(uint64_t *state, double *to, int64_t n) {
    double first, second = 0.0;
    for (int64_t i = 0; i < n; i++) {
        if (i & 1)
            first = second;
        else
            mf_two_normals(state, &first, &second);
        to[i] += first;
    }
}

#endif
