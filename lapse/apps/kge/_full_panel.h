/* Panels of vectors; see _full.h. */
#ifndef LAPSE_KGE_FULL_PANEL_H
#define LAPSE_KGE_FULL_PANEL_H

#include <stdint.h>

#include "lapse/apps/_shared/_vector.h"

enum { FULL_PANEL = 32 }; /* vectors */

/* Rows (`step` floats apart) of a panel's vectors, into the panel or out of it. */
LAPSE_CLONES
static void full_to_panel(const float *restrict rows, int64_t step, int64_t count, int64_t length,
                          float *restrict panel) {
    for (int64_t first = 0; first < length; first += 16) /* a few lines of the panel at a time */
        for (int64_t j = 0; j < count; j++)
            for (int64_t k = first; k < length && k < first + 16; k++)
                panel[k * FULL_PANEL + j] = rows[j * step + k];
}

LAPSE_CLONES
static void full_from_panel(const float *restrict panel, int64_t count, int64_t length, float *restrict rows,
                            int64_t step) {
    for (int64_t first = 0; first < length; first += 16)
        for (int64_t j = 0; j < count; j++)
            for (int64_t k = first; k < length && k < first + 16; k++)
                rows[j * step + k] = panel[k * FULL_PANEL + j];
}

#endif
