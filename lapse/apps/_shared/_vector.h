/* Vectors of eight floats for the kernels of applications: sums, exp, the logistic function.
 *
 * They are spelled out (a GCC and Clang extension), because a compiler may not reorder sums by itself, and
 * -ffast-math would free it to do more than that. Loops without a sum, on memory that does not overlap, it
 * makes vectors of by itself. A function that is marked LAPSE_CLONES, and what is inlined into it, is compiled also
 * for processors with FMA and AVX2, and the loader picks one; elsewhere (Clang, musl, ARM) it is plain C.
 *
 * Not "arch=haswell", which asks for that very processor, not for what it has; not "avx2", which leaves FMA out.
 * AVX-512 (vectors of sixteen) was no faster here: 107 against 112 GFLOP/s in products of matrices on Zen 4. */
#ifndef LAPSE_APPS_VECTOR_H
#define LAPSE_APPS_VECTOR_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define LAPSE_CLONES __attribute__((unused, target_clones("arch=x86-64-v3", "default")))
#else
#define LAPSE_CLONES __attribute__((unused, target_clones("fma", "default")))
#endif
#else
#define LAPSE_CLONES __attribute__((unused))
#endif
#define LAPSE_INLINE static inline __attribute__((always_inline))

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only */
#endif

typedef float lapse_v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t lapse_i8 __attribute__((vector_size(32), aligned(4), may_alias));

LAPSE_INLINE float lapse_sum(lapse_v8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

LAPSE_INLINE lapse_v8 lapse_abs(lapse_v8 x) {
    return (lapse_v8)((lapse_i8)x & 0x7FFFFFFF);
}

/* `chosen` if the mask is all ones, else `otherwise` */
LAPSE_INLINE lapse_v8 lapse_choose(lapse_i8 mask, lapse_v8 chosen, lapse_v8 otherwise) {
    return (lapse_v8)(((lapse_i8)chosen & mask) | ((lapse_i8)otherwise & ~mask));
}

LAPSE_INLINE float lapse_dot(const float *a, const float *b, int64_t n) {
    lapse_v8 s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += *(const lapse_v8 *)(a + i) * *(const lapse_v8 *)(b + i);
        s1 += *(const lapse_v8 *)(a + i + 8) * *(const lapse_v8 *)(b + i + 8);
    }
    if (i + 8 <= n) {
        s0 += *(const lapse_v8 *)(a + i) * *(const lapse_v8 *)(b + i);
        i += 8;
    }
    float sum = lapse_sum(s0 + s1);
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += f * x */
LAPSE_INLINE void lapse_axpy(float f, const float *restrict x, float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += f * x[i];
}

/* exp(x), relative error below 2e-7; 0 below -86 (no subnormal numbers: they are slow), exp(88) above 88; the
 * result for NaN is unspecified. Polynomial and reduction as in Cephes (Moshier). */
LAPSE_INLINE lapse_v8 lapse_exp(lapse_v8 x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, found in the low bits */
    lapse_i8 tiny = x < -86.0f;
    x = lapse_choose(x > 88.0f, 88.0f + (lapse_v8){0}, x);
    lapse_v8 t = x * 1.44269504f + shift;
    lapse_v8 n = t - shift;
    lapse_v8 r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    lapse_v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    lapse_i8 bits = (lapse_i8)p + ((lapse_i8)t << 23);
    return (lapse_v8)(bits & ~tiny);
}

/* 1 / (1 + exp(-x)), relative error below 2e-7 for x > -80, absolute error below 1e-34 elsewhere */
LAPSE_INLINE lapse_v8 lapse_logistic(lapse_v8 x) {
    return 1.0f / (1.0f + lapse_exp(-x));
}

#endif
