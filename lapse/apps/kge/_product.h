/* Products of small matrices, all of which stay in the caches of a core.
 *
 * Matrices are row-major, their rows padded with zeros to a multiple of KGE_PANEL floats. */
#ifndef LAPSE_KGE_PRODUCT_H
#define LAPSE_KGE_PRODUCT_H

#include <stdint.h>
#include <string.h>

#include "lapse/apps/_shared/_vector.h"

enum { KGE_PANEL = 16, KGE_DEPTH = 256, KGE_ROWS = 6 };

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
 * `kge_pack` makes them, or, if it is small, as it is. `columns` is a multiple of KGE_PANEL. */
LAPSE_INLINE void kge_multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row_step,
                               int64_t depth_step, const float *b, int64_t b_step, int64_t panel_step, float *c,
                               int64_t c_step, int add) {
    for (int64_t column = 0; column < columns; column += KGE_PANEL, b += panel_step)
        for (int64_t first = 0; first < depth; first += KGE_DEPTH) /* part of a panel stays in the first-level cache */
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

#endif
