/* Included by _full.h once per vector length, with FULL_WIDTH, FULL_SUFFIX, FULL_TARGET, and the rows of the large and of
 * the small tile, FULL_ROWS and FULL_FEW. */
#define FULL_FN static inline __attribute__((always_inline)) FULL_TARGET
#define FULL_V FULL(v)
#define FULL_I FULL(i)
#define FULL_AT(p) (*(FULL_V *)(p))
#define FULL_AT_CONST(p) (*(const FULL_V *)(p))

typedef float FULL_V __attribute__((vector_size(4 * FULL_WIDTH), aligned(4), may_alias));
typedef int32_t FULL_I __attribute__((vector_size(4 * FULL_WIDTH), aligned(4), may_alias));

/* exp(x) as `lapse_exp` has it, of numbers that are not above 88. */
FULL_FN FULL_V FULL(exp)(FULL_V x) {
    const float shift = 12582912.0f;
    FULL_I tiny = x < -86.0f;
    FULL_V t = x * 1.44269504f + shift;
    FULL_V n = t - shift;
    FULL_V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    FULL_V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (FULL_V)(((FULL_I)p + ((FULL_I)t << 23)) & ~tiny);
}

/* exp(scores - offset), of scores that are far above it that of the highest that counts */
FULL_FN FULL_V FULL(weight)(FULL_V scores, float offset) {
    FULL_V x = scores - offset, most = FULL_HIGHEST + (FULL_V){0};
    FULL_I above = x > most;
    return FULL(exp)((FULL_V)(((FULL_I)most & above) | ((FULL_I)x & ~above)));
}

/* rows x (vecs * width) sums += A B; element (i, k) of A is a[i * a_row + k * a_depth], row k of B b + k * b_depth. */
FULL_FN void FULL(add_product)(const int rows, const int vecs, const float *a, int64_t a_row, int64_t a_depth,
                               const float *b, int64_t b_depth, int64_t depth, FULL_V (*sums)[2]) {
    for (int64_t k = 0; k < depth; k++, a += a_depth, b += b_depth) {
        FULL_V b0 = FULL_AT_CONST(b), b1 = vecs > 1 ? FULL_AT_CONST(b + FULL_WIDTH) : b0;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            float x = a[i * a_row];
            sums[i][0] += x * b0;
            if (vecs > 1)
                sums[i][1] += x * b1;
        }
    }
}

FULL_FN void FULL(weigh_tile)(const int rows, const float *q, int64_t step, int64_t length, const float *panel,
                              const float *offsets, float *weights, float *sums) {
    FULL_V s[FULL_ROWS][2] = {{{0}}};
    FULL(add_product)(rows, 2, q, step, 1, panel, FULL_PANEL, length, s);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        FULL_V x0 = FULL(weight)(s[i][0], offsets[i]), x1 = FULL(weight)(s[i][1], offsets[i]);
        FULL_AT(weights + i * FULL_PANEL) = x0;
        FULL_AT(weights + i * FULL_PANEL + FULL_WIDTH) = x1;
        FULL_AT(sums + i * FULL_LANES) += x0 + x1;
    }
}

/* The weights of n queries for a panel of vectors, of which the last ones may be missing. */
FULL_FN void FULL(weigh)(int64_t n, const float *q, int64_t step, int64_t length, const float *panel, int64_t present,
                         const float *offsets, float *weights, float *sums) {
    for (int64_t column = 0; column < FULL_PANEL; column += 2 * FULL_WIDTH) {
        int64_t i = 0;
        for (; i + FULL_ROWS <= n; i += FULL_ROWS)
            FULL(weigh_tile)(FULL_ROWS, q + i * step, step, length, panel + column, offsets + i,
                             weights + i * FULL_PANEL + column, sums + i * FULL_LANES);
        for (; i + FULL_FEW <= n; i += FULL_FEW)
            FULL(weigh_tile)(FULL_FEW, q + i * step, step, length, panel + column, offsets + i,
                             weights + i * FULL_PANEL + column, sums + i * FULL_LANES);
        for (; i < n; i++)
            FULL(weigh_tile)(1, q + i * step, step, length, panel + column, offsets + i,
                             weights + i * FULL_PANEL + column, sums + i * FULL_LANES);
    }
    for (int64_t i = 0; present < FULL_PANEL && i < n; i++)
        for (int64_t j = present; j < FULL_PANEL; j++) {
            sums[i * FULL_LANES] -= weights[i * FULL_PANEL + j];
            weights[i * FULL_PANEL + j] = 0;
        }
}

FULL_FN void FULL(pull_tile)(const int rows, const int vecs, const float *weights, int64_t panel_step, int64_t count,
                             const float *vectors, int64_t step, float *pulls) {
    FULL_V s[FULL_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        s[i][0] = FULL_AT(pulls + i * step);
        s[i][1] = vecs > 1 ? FULL_AT(pulls + i * step + FULL_WIDTH) : s[i][0];
    }
    for (int64_t first = 0; first < count; first += FULL_PANEL, weights += panel_step)
        FULL(add_product)(rows, vecs, weights, FULL_PANEL, 1, vectors + first * step, step,
                          count - first < FULL_PANEL ? count - first : FULL_PANEL, s);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        FULL_AT(pulls + i * step) = s[i][0];
        if (vecs > 1)
            FULL_AT(pulls + i * step + FULL_WIDTH) = s[i][1];
    }
}

FULL_FN void FULL(pull_columns)(const int vecs, int64_t n, const float *weights, int64_t panel_step, int64_t count,
                                const float *vectors, int64_t step, float *pulls) {
    int64_t i = 0;
    for (; i + FULL_ROWS <= n; i += FULL_ROWS)
        FULL(pull_tile)(FULL_ROWS, vecs, weights + i * FULL_PANEL, panel_step, count, vectors, step, pulls + i * step);
    for (; i + FULL_FEW <= n; i += FULL_FEW)
        FULL(pull_tile)(FULL_FEW, vecs, weights + i * FULL_PANEL, panel_step, count, vectors, step, pulls + i * step);
    for (; i < n; i++)
        FULL(pull_tile)(1, vecs, weights + i * FULL_PANEL, panel_step, count, vectors, step, pulls + i * step);
}

/* pulls += weights vectors, for `count` vectors whose rows are `step` floats apart, `length` of them in use. */
FULL_FN void FULL(pull)(int64_t n, const float *weights, int64_t panel_step, int64_t count, const float *vectors,
                        int64_t step, int64_t length, float *pulls) {
    int64_t column = 0;
    for (; column + FULL_WIDTH < length; column += 2 * FULL_WIDTH)
        FULL(pull_columns)(2, n, weights, panel_step, count, vectors + column, step, pulls + column);
    if (column < length)
        FULL(pull_columns)(1, n, weights, panel_step, count, vectors + column, step, pulls + column);
}

FULL_FN void FULL(gradient_tile)(const int rows, int64_t n, const float *q, int64_t step, const float *weights,
                                 float *gradients) {
    FULL_V s[FULL_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        s[i][0] = FULL_AT(gradients + i * FULL_PANEL);
        s[i][1] = FULL_AT(gradients + i * FULL_PANEL + FULL_WIDTH);
    }
    FULL(add_product)(rows, 2, q, 1, step, weights, FULL_PANEL, n, s);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        FULL_AT(gradients + i * FULL_PANEL) = s[i][0];
        FULL_AT(gradients + i * FULL_PANEL + FULL_WIDTH) = s[i][1];
    }
}

/* For a block of n queries: their weights for `count` vectors, sums (FULL_LANES each) and pulls, which are added to.
 *
 * Queries, pulls and `vectors` have rows `step` floats apart, a multiple of FULL_LANES, with zeros behind `length`;
 * `panels` are the vectors once more, a panel `length` * FULL_PANEL floats; the weights of a panel lie `panel_step`
 * floats apart. */
FULL_TARGET
static void FULL(forward)(int64_t n, const float *q, const float *panels, const float *vectors, int64_t count,
                          int64_t step, int64_t length, int64_t panel_step, const float *offsets, float *weights,
                          float *sums, float *pulls) {
    for (int64_t first = 0; first < count; first += FULL_GROUP * FULL_PANEL) {
        int64_t some = count - first < FULL_GROUP * FULL_PANEL ? count - first : FULL_GROUP * FULL_PANEL;
        float *group = weights + first / FULL_PANEL * panel_step;
        for (int64_t j = 0; j < some; j += FULL_PANEL)
            FULL(weigh)(n, q, step, length, panels + (first + j) * length,
                        some - j < FULL_PANEL ? some - j : FULL_PANEL, offsets, group + j / FULL_PANEL * panel_step,
                        sums);
        FULL(pull)(n, group, panel_step, some, vectors + first * step, step, length, pulls);
    }
}

/* For a block of n queries, divided by their denominators: adds the gradients of `count` vectors, in panels. */
FULL_TARGET
static void FULL(backward)(int64_t n, const float *q, int64_t count, int64_t step, int64_t length,
                           int64_t panel_step, const float *weights, float *gradients) {
    for (int64_t first = 0; first < count; first += FULL_PANEL, weights += panel_step, gradients += length * FULL_PANEL)
        for (int64_t column = 0; column < FULL_PANEL; column += 2 * FULL_WIDTH) {
            int64_t k = 0;
            for (; k + FULL_ROWS <= length; k += FULL_ROWS)
                FULL(gradient_tile)(FULL_ROWS, n, q + k, step, weights + column, gradients + k * FULL_PANEL + column);
            for (; k + FULL_FEW <= length; k += FULL_FEW)
                FULL(gradient_tile)(FULL_FEW, n, q + k, step, weights + column, gradients + k * FULL_PANEL + column);
            for (; k < length; k++)
                FULL(gradient_tile)(1, n, q + k, step, weights + column, gradients + k * FULL_PANEL + column);
        }
}

#undef FULL_FN
#undef FULL_V
#undef FULL_I
#undef FULL_AT
#undef FULL_AT_CONST
#undef FULL_SUFFIX
#undef FULL_TARGET
#undef FULL_WIDTH
#undef FULL_ROWS
#undef FULL_FEW
