/* Included by _sgns.h once per vector length, with SGNS_WIDTH, SGNS_SUFFIX and SGNS_TARGET.
 *
 * Vectors are spelled out (a GCC and Clang extension), because a compiler may not reorder the sum of a
 * dot product by itself, and -ffast-math would free it to do more than that. */

#define SGNS_FN static inline __attribute__((always_inline)) SGNS_TARGET
#define SGNS_V SGNS(v)
#define SGNS_I SGNS(i)

typedef float SGNS_V __attribute__((vector_size(4 * SGNS_WIDTH), aligned(4), may_alias));
typedef int32_t SGNS_I __attribute__((vector_size(4 * SGNS_WIDTH), aligned(4), may_alias));

#define SGNS_LOAD(p) (*(const SGNS_V *)(p))
#define SGNS_QUAD(p) (*(const sgns_quad *)(p))

SGNS_FN sgns_quad SGNS(fold)(SGNS_V v) {
    union { SGNS_V v; sgns_quad q[SGNS_WIDTH / 4]; } u = {v};
#if SGNS_WIDTH == 16
    return (u.q[0] + u.q[1]) + (u.q[2] + u.q[3]);
#elif SGNS_WIDTH == 8
    return u.q[0] + u.q[1];
#else
    return u.q[0];
#endif
}

/* Four partial sums of the dot products of `na` with `nb` rows; constants to the compiler. */
SGNS_FN void SGNS(dots)(float *const *as, float *const *bs, const int na, const int nb, int dim,
                        float *sums, int64_t stride) {
    SGNS_V s[2][3] = {{{0}}};
    sgns_quad rest[2][3] = {{{0}}};
    const float *a[2], *b[3]; /* in registers: what is stored may alias the arrays that are given */
    int c = 0;
    for (int i = 0; i < na; i++)
        a[i] = as[i];
    for (int j = 0; j < nb; j++)
        b[j] = bs[j];
    for (; c + SGNS_WIDTH <= dim; c += SGNS_WIDTH) {
        SGNS_V y[3];
        for (int j = 0; j < nb; j++)
            y[j] = SGNS_LOAD(b[j] + c);
        for (int i = 0; i < na; i++) {
            SGNS_V x = SGNS_LOAD(a[i] + c);
            for (int j = 0; j < nb; j++)
                s[i][j] += x * y[j];
        }
    }
    for (; c + 4 <= dim; c += 4)
        for (int i = 0; i < na; i++)
            for (int j = 0; j < nb; j++)
                rest[i][j] += SGNS_QUAD(a[i] + c) * SGNS_QUAD(b[j] + c);
    for (; c < dim; c++)
        for (int i = 0; i < na; i++)
            for (int j = 0; j < nb; j++)
                rest[i][j][0] += a[i][c] * b[j][c];
    for (int i = 0; i < na; i++)
        for (int j = 0; j < nb; j++)
            *(sgns_quad *)(sums + 4 * (i * stride + j)) = SGNS(fold)(s[i][j]) + rest[i][j];
}

/* All dot products of a group: three outputs at a time with two inputs, as the registers allow. */
SGNS_FN void SGNS(all_dots)(float *const *in, int m, float *const *out, int k, int dim, float *sums) {
    for (int j = 0; j < k; j += 3) {
        int i = 0, left = k - j;
        float *to = sums + 4 * j;
        for (; i + 2 <= m; i += 2, to += 8 * k) {
            if (left >= 3)
                SGNS(dots)(in + i, out + j, 2, 3, dim, to, k);
            else if (left == 2)
                SGNS(dots)(in + i, out + j, 2, 2, dim, to, k);
            else
                SGNS(dots)(in + i, out + j, 2, 1, dim, to, k);
        }
        if (i < m) {
            if (left >= 3)
                SGNS(dots)(in + i, out + j, 1, 3, dim, to, k);
            else if (left == 2)
                SGNS(dots)(in + i, out + j, 1, 2, dim, to, k);
            else
                SGNS(dots)(in + i, out + j, 1, 1, dim, to, k);
        }
    }
}

/* e to the power of x, for x from -87 to 0: 2^n times a polynomial; the relative error is below 3e-7. */
SGNS_FN SGNS_V SGNS(exp)(SGNS_V x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers in the low bits */
    SGNS_V z = x * 1.44269504f;
    SGNS_V whole = z + shift;
    SGNS_I n = (SGNS_I)whole << 23;
    SGNS_V f = z - (whole - shift); /* from -1/2 to 1/2 */
    SGNS_V p = 1.3333558e-3f * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (SGNS_V)((SGNS_I)p + n);
}

/* The sum of logarithms is the logarithm of a product, which grows at most by 2 at each factor. */
typedef struct {
    SGNS_V product;
    SGNS_V sum;     /* what is added as it is */
    double total;   /* what was taken out of the others */
    int factors;
} SGNS(loss);

enum { SGNS(most_factors) = 100 };

SGNS_FN void SGNS(settle)(SGNS(loss) *loss) {
    for (int l = 0; l < SGNS_WIDTH; l++)
        loss->total += (double)logf(loss->product[l]) + loss->sum[l];
    loss->product = (SGNS_V){0} + 1.0f;
    loss->sum = (SGNS_V){0};
    loss->factors = 0;
}

/* Scores to factors of the gradient: signs * s(y), with y the score, or minus the score of a pair with the
 * word to predict; the loss of each, log(1 + e^y), is added up. */
SGNS_FN void SGNS(logistic)(const float *sums, int64_t pairs, const float *signs, float *scores,
                            SGNS(loss) *loss) {
    SGNS_I at;
    for (int l = 0; l < SGNS_WIDTH; l++)
        at[l] = l;
    for (int64_t p = 0; p < pairs; p++)
        scores[p] = (sums[4 * p] + sums[4 * p + 1]) + (sums[4 * p + 2] + sums[4 * p + 3]);
    for (int64_t p = 0; p < pairs; p += SGNS_WIDTH, at += SGNS_WIDTH) {
        SGNS_V sign = SGNS_LOAD(signs + p);
        SGNS_I is_pair = at < (int32_t)pairs;
        SGNS_V y = SGNS_LOAD(scores + p);
        y = (SGNS_V)((SGNS_I)y ^ (~(SGNS_I)sign & (int32_t)0x80000000));
        y = (SGNS_V)((is_pair & (SGNS_I)y) | (~is_pair & (SGNS_I)((SGNS_V){0} - 80.0f)));
        SGNS_V size = (SGNS_V)((SGNS_I)y & 0x7fffffff);
        SGNS_I in_range = size < 80.0f;
        SGNS_V bounded = (SGNS_V)((in_range & (SGNS_I)size) | (~in_range & (SGNS_I)((SGNS_V){0} + 80.0f)));
        SGNS_V t = SGNS(exp)(-bounded);
        SGNS_I is_positive = y > 0.0f;
        SGNS_V above = (SGNS_V)((is_positive & (SGNS_I)((SGNS_V){0} + 1.0f)) | (~is_positive & (SGNS_I)t));
        *(SGNS_V *)(scores + p) = sign * (above / (1.0f + t));
        loss->product *= 1.0f + t;
        loss->sum += 0.5f * (y + size); /* y or 0; NaN stays NaN */
        loss->factors++;
    }
}

/* inputs += scores * outputs, and outputs += scores^T * inputs, for `n` outputs, a constant to the compiler.
 *
 * A row that occurs twice gets both changes: each is read again before it is written. */
SGNS_FN void SGNS(update)(float *const *in, int m, float *const *outs, const int n, int dim,
                          const float *scores, int64_t stride) {
    float *out[6]; /* in registers: what is stored may alias the array that is given */
    int c = 0;
    for (int j = 0; j < n; j++)
        out[j] = outs[j];
    for (; c + SGNS_WIDTH <= dim; c += SGNS_WIDTH) {
        SGNS_V y[6], change[6];
        for (int j = 0; j < n; j++) {
            y[j] = SGNS_LOAD(out[j] + c);
            change[j] = (SGNS_V){0};
        }
        for (int i = 0; i < m; i++) {
            SGNS_V x = SGNS_LOAD(in[i] + c), z = x;
            const float *g = scores + i * stride;
            for (int j = 0; j < n; j++) {
                change[j] += g[j] * x;
                z += g[j] * y[j];
            }
            *(SGNS_V *)(in[i] + c) = z;
        }
        for (int j = 0; j < n; j++)
            *(SGNS_V *)(out[j] + c) += change[j];
    }
    for (; c + 4 <= dim; c += 4) {
        sgns_quad y[6], change[6];
        for (int j = 0; j < n; j++) {
            y[j] = SGNS_QUAD(out[j] + c);
            change[j] = (sgns_quad){0};
        }
        for (int i = 0; i < m; i++) {
            sgns_quad x = SGNS_QUAD(in[i] + c), z = x;
            const float *g = scores + i * stride;
            for (int j = 0; j < n; j++) {
                change[j] += g[j] * x;
                z += g[j] * y[j];
            }
            *(sgns_quad *)(in[i] + c) = z;
        }
        for (int j = 0; j < n; j++)
            *(sgns_quad *)(out[j] + c) += change[j];
    }
    for (; c < dim; c++)
        for (int j = 0; j < n; j++) {
            float y = out[j][c], change = 0;
            for (int i = 0; i < m; i++) {
                float g = scores[i * stride + j];
                change += g * in[i][c];
                in[i][c] += g * y;
            }
            out[j][c] += change;
        }
}

SGNS_FN void SGNS(update_all)(float *const *in, int m, float *const *out, int k, int dim,
                              const float *scores) {
    for (int j = 0; j < k; j += 6)
        switch (k - j) {
        case 1: SGNS(update)(in, m, out + j, 1, dim, scores + j, k); break;
        case 2: SGNS(update)(in, m, out + j, 2, dim, scores + j, k); break;
        case 3: SGNS(update)(in, m, out + j, 3, dim, scores + j, k); break;
        case 4: SGNS(update)(in, m, out + j, 4, dim, scores + j, k); break;
        case 5: SGNS(update)(in, m, out + j, 5, dim, scores + j, k); break;
        default: SGNS(update)(in, m, out + j, 6, dim, scores + j, k);
        }
}

/* The word to predict is the first of each `k` outputs; what is behind the last pair does not matter. */
SGNS_FN void SGNS(make_signs)(sgns_scratch *scratch, int m, int k, float alpha) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < k; j++)
            scratch->signs[i * k + j] = j ? -alpha : alpha;
}

SGNS_FN void SGNS(fetch)(const float *row, int dim) {
    for (int c = 0; c < dim; c += 16)
        __builtin_prefetch(row + c, 1);
    __builtin_prefetch(row + dim - 1, 1);
}

/* Where the m inputs and k outputs of a group are. */
SGNS_FN void SGNS(find)(float *rows, const int32_t *inputs, int m, const int32_t *outputs, int k, int dim, float **in,
                        float **out) {
    for (int i = 0; i < m; i++)
        in[i] = rows + (int64_t)inputs[i] * dim;
    for (int j = 0; j < k; j++)
        out[j] = rows + (int64_t)outputs[j] * dim;
}

/* Of a group that comes next, the outputs and the input that the present one does not have, as a rule. */
SGNS_FN void SGNS(fetch_group)(const float *rows, const int32_t *inputs, int m, const int32_t *outputs, int k,
                               int dim) {
    for (int j = 0; j < k; j++)
        SGNS(fetch)(rows + (int64_t)outputs[j] * dim, dim);
    SGNS(fetch)(rows + (int64_t)inputs[m - 1] * dim, dim);
}

/* Train groups one after the other; the pairs of one see the same vectors.
 *
 * Of `inputs` and `outputs`, numbers of rows, each group takes its `num_inputs` and `num_outputs`; the first
 * output is the word to predict, the others are negatives. Returns the sum of the losses before each
 * group's update. `ahead`: fetch the rows of the next group, for tables larger than the cache. */
SGNS_TARGET
static double SGNS(train)(float *rows, const sgns_group *groups, int64_t num_groups, const int32_t *inputs,
                          const int32_t *outputs, int dim, float alpha, int ahead, sgns_scratch *scratch) {
    SGNS(loss) loss = {(SGNS_V){0} + 1.0f, {0}, 0, 0};
    float **in = scratch->inputs, **out = scratch->outputs;
    int widest = 0;
    for (int64_t g = 0; g < num_groups; g++) {
        int m = groups[g].num_inputs, k = groups[g].num_outputs;
        SGNS(find)(rows, inputs, m, outputs, k, dim, in, out);
        inputs += m;
        outputs += k;
        if (ahead && g + 1 < num_groups)
            SGNS(fetch_group)(rows, inputs, groups[g + 1].num_inputs, outputs, groups[g + 1].num_outputs, dim);
        if (k != scratch->signs_period || alpha != scratch->signs_alpha || m > widest) {
            SGNS(make_signs)(scratch, m, k, alpha);
            scratch->signs_period = k;
            scratch->signs_alpha = alpha;
            widest = m;
        }
        SGNS(all_dots)(in, m, out, k, dim, scratch->sums);
        SGNS(logistic)(scratch->sums, (int64_t)m * k, scratch->signs, scratch->scores, &loss);
        SGNS(update_all)(in, m, out, k, dim, scratch->scores);
        if (loss.factors > SGNS(most_factors) - (m * k) / SGNS_WIDTH - 1)
            SGNS(settle)(&loss);
    }
    SGNS(settle)(&loss);
    return loss.total;
}

/* mean = the mean of `m` rows. */
SGNS_FN void SGNS(mean)(float *const *in, int m, int dim, float *mean) {
    float share = 1.0f / (float)m;
    int c = 0;
    for (; c + SGNS_WIDTH <= dim; c += SGNS_WIDTH) {
        SGNS_V sum = SGNS_LOAD(in[0] + c);
        for (int i = 1; i < m; i++)
            sum += SGNS_LOAD(in[i] + c);
        *(SGNS_V *)(mean + c) = share * sum;
    }
    for (; c < dim; c++) {
        float sum = in[0][c];
        for (int i = 1; i < m; i++)
            sum += in[i][c];
        mean[c] = share * sum;
    }
}

/* change = scores * outputs, and outputs += scores^T * mean; a row that occurs twice gets both changes. */
SGNS_FN void SGNS(update_outputs)(const float *mean, float *change, float *const *out, int k, int dim,
                                  const float *scores) {
    int c = 0;
    for (; c + SGNS_WIDTH <= dim; c += SGNS_WIDTH) {
        SGNS_V x = SGNS_LOAD(mean + c), sum = {0};
        for (int j = 0; j < k; j++)
            sum += scores[j] * SGNS_LOAD(out[j] + c);
        for (int j = 0; j < k; j++)
            *(SGNS_V *)(out[j] + c) += scores[j] * x;
        *(SGNS_V *)(change + c) = sum;
    }
    for (; c < dim; c++) {
        float sum = 0;
        for (int j = 0; j < k; j++)
            sum += scores[j] * out[j][c];
        for (int j = 0; j < k; j++)
            out[j][c] += scores[j] * mean[c];
        change[c] = sum;
    }
}

SGNS_FN void SGNS(add_to_all)(float *const *in, int m, int dim, const float *change) {
    for (int i = 0; i < m; i++) {
        float *to = in[i];
        int c = 0;
        for (; c + SGNS_WIDTH <= dim; c += SGNS_WIDTH)
            *(SGNS_V *)(to + c) += SGNS_LOAD(change + c);
        for (; c < dim; c++)
            to[c] += change[c];
    }
}

/* As `train`, but the mean of a group's inputs predicts, once, and each input gets the whole of its gradient: as in
 * the word2vec program, where the share of each input in the mean is left out of the derivative. */
SGNS_TARGET
static double SGNS(cbow)(float *rows, const sgns_group *groups, int64_t num_groups, const int32_t *inputs,
                         const int32_t *outputs, int dim, float alpha, int ahead, sgns_scratch *scratch) {
    SGNS(loss) loss = {(SGNS_V){0} + 1.0f, {0}, 0, 0};
    float **in = scratch->inputs, **out = scratch->outputs;
    float *mean = scratch->middle, *change = mean + dim;
    for (int64_t g = 0; g < num_groups; g++) {
        int m = groups[g].num_inputs, k = groups[g].num_outputs;
        SGNS(find)(rows, inputs, m, outputs, k, dim, in, out);
        inputs += m;
        outputs += k;
        if (ahead && g + 1 < num_groups)
            SGNS(fetch_group)(rows, inputs, groups[g + 1].num_inputs, outputs, groups[g + 1].num_outputs, dim);
        if (k != scratch->signs_period || alpha != scratch->signs_alpha) {
            SGNS(make_signs)(scratch, 1, k, alpha);
            scratch->signs_period = k;
            scratch->signs_alpha = alpha;
        }
        SGNS(mean)(in, m, dim, mean);
        SGNS(all_dots)(&mean, 1, out, k, dim, scratch->sums);
        SGNS(logistic)(scratch->sums, k, scratch->signs, scratch->scores, &loss);
        SGNS(update_outputs)(mean, change, out, k, dim, scratch->scores);
        SGNS(add_to_all)(in, m, dim, change);
        if (loss.factors > SGNS(most_factors) - k / SGNS_WIDTH - 1)
            SGNS(settle)(&loss);
    }
    SGNS(settle)(&loss);
    return loss.total;
}

/* new - old, in place of new */
SGNS_TARGET
static void SGNS(subtract)(float *new_rows, const float *old_rows, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        new_rows[i] -= old_rows[i];
}

#undef SGNS_FN
#undef SGNS_V
#undef SGNS_I
#undef SGNS_LOAD
#undef SGNS_QUAD
#undef SGNS_SUFFIX
#undef SGNS_TARGET
#undef SGNS_WIDTH
