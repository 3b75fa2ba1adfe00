/* The arithmetic of skip-gram with negative sampling, for one pair of words.
 *
 * Vectors of eight floats are spelled out (a GCC and Clang extension), because a compiler may not
 * reorder the sum of a dot product by itself, and -ffast-math would free it to do more than that. */
#ifndef LAPSE_SGNS_H
#define LAPSE_SGNS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float sgns_v8 __attribute__((vector_size(32), aligned(4), may_alias));

/* The same source for several generations of processors; the loader picks one. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SGNS_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define SGNS_CLONES
#endif
#define SGNS_INLINE static inline __attribute__((always_inline))

/* Logistic function and -log of it, by linear interpolation: the errors are below 4e-6 and 8e-6. */
enum { SGNS_RANGE = 16, SGNS_STEPS = 64, SGNS_SIZE = 2 * SGNS_RANGE * SGNS_STEPS };
typedef struct { float sigmoid, loss; } sgns_entry;
static sgns_entry sgns_table[SGNS_SIZE + 2];

static void sgns_prepare(void) {
    for (int i = 0; i < SGNS_SIZE + 2; i++) {
        double x = (double)i / SGNS_STEPS - SGNS_RANGE;
        sgns_table[i].sigmoid = (float)(1.0 / (1.0 + exp(-x)));
        sgns_table[i].loss = (float)log1p(exp(-x));
    }
}

SGNS_INLINE sgns_entry sgns_logistic(float x) {
    sgns_entry result;
    if (!(x < SGNS_RANGE && x > -SGNS_RANGE)) { /* beyond, the limits are exact to 2e-7 */
        result.sigmoid = x > 0 ? 1.0f : x < 0 ? 0.0f : x; /* NaN stays NaN */
        result.loss = x > 0 ? 0.0f : -x;
        return result;
    }
    float at = (x + SGNS_RANGE) * SGNS_STEPS;
    int i = (int)at;
    float part = at - (float)i;
    const sgns_entry *e = sgns_table + i;
    result.sigmoid = e[0].sigmoid + part * (e[1].sigmoid - e[0].sigmoid);
    result.loss = e[0].loss + part * (e[1].loss - e[0].loss);
    return result;
}

SGNS_INLINE float sgns_dot(const float *a, const float *b, int n) {
    sgns_v8 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 += *(const sgns_v8 *)(a + i) * *(const sgns_v8 *)(b + i);
        s1 += *(const sgns_v8 *)(a + i + 8) * *(const sgns_v8 *)(b + i + 8);
        s2 += *(const sgns_v8 *)(a + i + 16) * *(const sgns_v8 *)(b + i + 16);
        s3 += *(const sgns_v8 *)(a + i + 24) * *(const sgns_v8 *)(b + i + 24);
    }
    for (; i + 8 <= n; i += 8)
        s0 += *(const sgns_v8 *)(a + i) * *(const sgns_v8 *)(b + i);
    s0 = (s0 + s1) + (s2 + s3);
    float sum = ((s0[0] + s0[4]) + (s0[2] + s0[6])) + ((s0[1] + s0[5]) + (s0[3] + s0[7]));
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* gradient += g * output; output += g * input */
SGNS_INLINE void sgns_step(float g, const float *input, float *output, float *gradient, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        sgns_v8 *out = (sgns_v8 *)(output + i), *grad = (sgns_v8 *)(gradient + i);
        *grad += g * *out;
        *out += g * *(const sgns_v8 *)(input + i);
    }
    for (; i < n; i++) {
        gradient[i] += g * output[i];
        output[i] += g * input[i];
    }
}

SGNS_INLINE void sgns_add(float *a, const float *b, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        *(sgns_v8 *)(a + i) += *(const sgns_v8 *)(b + i);
    for (; i < n; i++)
        a[i] += b[i];
}

/* Train pairs one after the other, as sequential stochastic gradient descent does.
 *
 * Pair p has the input row inputs[p] and the output rows targets[p * width] (the word to predict)
 * to targets[p * width + width - 1] (negatives; below 0: none). Returns the sum of the losses
 * before each pair's update. `gradient` is room for one row. */
SGNS_CLONES
static double sgns_train(float *rows, const int32_t *inputs, const int32_t *targets,
                         int64_t pairs, int width, int dim, float alpha, float *gradient) {
    double loss = 0;
    for (int64_t p = 0; p < pairs; p++) {
        float *input = rows + (int64_t)inputs[p] * dim;
        memset(gradient, 0, sizeof(float) * dim);
        for (int k = 0; k < width; k++) {
            int32_t row = targets[p * width + k];
            if (row < 0)
                continue;
            float *output = rows + (int64_t)row * dim;
            float score = sgns_dot(input, output, dim);
            /* the logistic of a negative is 1 - s(x) = s(-x) */
            sgns_entry e = sgns_logistic(k == 0 ? score : -score);
            loss += e.loss;
            float g = alpha * (1.0f - e.sigmoid);
            sgns_step(k == 0 ? g : -g, input, output, gradient, dim);
        }
        sgns_add(input, gradient, dim);
    }
    return loss;
}

/* new - old, in place of new */
SGNS_CLONES
static void sgns_subtract(float *new_rows, const float *old_rows, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        new_rows[i] -= old_rows[i];
}

#endif
