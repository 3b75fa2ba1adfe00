/* The softmax over all entities: its products of matrices, in vectors as long as the processor has.
 *
 * Three products take nearly all of the time: the scores of n queries for m vectors, and the gradients of both. They
 * are gone through so that each of them works on what the one before it has left in the caches:
 *
 *     forward     for a block of queries, for a group of vectors:
 *                     weights = exp(queries vectors' - offsets)       n x m, kept for `backward`
 *                     sums   += the rows' sums of the weights         the denominators of the softmax
 *                     pulls  += weights vectors                       n x length
 *     backward    for a block of queries, for each panel of vectors:
 *                     gradients += weights' queries                   m x length, queries divided by their denominators
 *
 * Vectors lie in *panels* of FULL_PANEL: element k of vector j is at panel[k * FULL_PANEL + j], and so do their
 * gradients; weights lie in panels as well: that of query i and vector j is at panel[i * FULL_PANEL + j].
 *
 * The order is that of Goto & van de Geijn, *Anatomy of High-Performance Matrix Multiplication*, ACM TOMS 34(3), 2008:
 * a tile of the result stays in registers, a strip of one operand in the first-level cache, and a block of the other one
 * in a further one. */
#ifndef LAPSE_KGE_FULL_H
#define LAPSE_KGE_FULL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lapse/apps/_shared/_vector.h"
#include "lapse/apps/kge/_full_panel.h"

enum {
    FULL_GROUP = 8,    /* panels, whose weights for a block of queries stay in the caches */
    FULL_LANES = 16,   /* floats that a query's sum is kept in */
    FULL_BLOCK = 504   /* queries: a multiple of the rows of the largest tile. With 252, so that all of a block would stay
                        * in the second-level cache, products were slower, by 5% for vectors of 200 and by 12% for 400 */
};

/* A score this far above the offset counts as no higher: e^70, times any number of entities, is a float. */
#define FULL_HIGHEST 70.0f

#define FULL_PASTE_(a, b) a##b
#define FULL_PASTE(a, b) FULL_PASTE_(a, b)
#define FULL(name) FULL_PASTE(FULL_PASTE(full_, name), FULL_SUFFIX)

#if defined(__x86_64__) && defined(__GNUC__)
#define FULL_X86

#define FULL_SUFFIX _avx512
#define FULL_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#define FULL_WIDTH 16
#define FULL_ROWS 12
#define FULL_FEW 4
#include "_full_width.h"

#define FULL_SUFFIX _avx2
#define FULL_TARGET __attribute__((target("avx2,fma")))
#define FULL_WIDTH 8
#define FULL_ROWS 6
#define FULL_FEW 2
#include "_full_width.h"
#endif

#define FULL_SUFFIX _plain
#define FULL_TARGET
#define FULL_WIDTH 4
#define FULL_ROWS 6
#define FULL_FEW 2
#include "_full_width.h"

typedef void (*full_forward_function)(int64_t, const float *, const float *, const float *, int64_t, int64_t, int64_t,
                                      int64_t, const float *, float *, float *, float *);
typedef void (*full_backward_function)(int64_t, const float *, int64_t, int64_t, int64_t, int64_t, const float *, float *);

static full_forward_function full_forward = full_forward_plain;
static full_backward_function full_backward = full_backward_plain;

/* Choose by what the processor has; `most` is the longest vector to use, in floats. Returns the choice. */
static int full_prepare(int most) {
#ifdef FULL_X86
    __builtin_cpu_init();
    if (most >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
        full_forward = full_forward_avx512;
        full_backward = full_backward_avx512;
        return 16;
    }
    if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        full_forward = full_forward_avx2;
        full_backward = full_backward_avx2;
        return 8;
    }
#endif
    (void)most;
    full_forward = full_forward_plain;
    full_backward = full_backward_plain;
    return 4;
}

/* Zeros, in large pages if there are many; for `free`. NULL if there is no memory. */
static float *full_allocate(int64_t count) {
    const size_t large = 2 << 20, bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64 + 64;
    void *memory = NULL;
    if (posix_memalign(&memory, bytes > large ? large : 64, bytes))
        return NULL;
    if (bytes > large)
        madvise(memory, bytes / large * large, MADV_HUGEPAGE); /* a wish: rows are strides of many pages */
    memset(memory, 0, bytes);
    return (float *)memory;
}

/* The sums of n queries, of which `lanes` has FULL_LANES parts each. */
static void full_sum(int64_t n, const float *lanes, float *sums) {
    for (int64_t i = 0; i < n; i++, lanes += FULL_LANES)
        sums[i] = lapse_sum(*(const lapse_v8 *)lanes + *(const lapse_v8 *)(lanes + 8));
}

#endif
