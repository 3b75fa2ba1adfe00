/* Draws from the standard normal distribution. */
#ifndef LAPSE_MF_NORMALS_H
#define LAPSE_MF_NORMALS_H

#include <math.h>
#include <stdint.h>

#include "lapse/base/_random.h"

/* Two draws from the standard normal distribution (Box and Muller 1958). */
static inline void mf_two_normals(uint64_t *state, double *first, double *second) {
    double u = ((lapse_next_u64(state) >> 11) + 1) * 0x1p-53, angle = (lapse_next_u64(state) >> 11) * 0x1p-53;
    double radius = sqrt(-2.0 * log(u));
    *first = radius * cos(6.283185307179586 * angle);
    *second = radius * sin(6.283185307179586 * angle);
}

#endif
