/* The arithmetic of skip-gram and CBOW with negative sampling, for groups of pairs.
 *
 * In a group every input row meets every output row: the contexts of a word, the word itself and its
 * negatives (Ji, Satish, Li, Dubey: Parallelizing Word2Vec in Shared and Distributed Memory, 2016).
 * A pair with negatives of its own is a group with one input row. In CBOW the mean of a group's input
 * rows meets the output rows.
 *
 * `_sgns_width.h` is the same source for several vector lengths; `sgns_prepare` picks the longest one
 * that the processor has. That is done here and not by the loader, which not every C library can. */
#ifndef LAPSE_SGNS_H
#define LAPSE_SGNS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int32_t num_inputs, num_outputs;
} sgns_group;

/* Room that a call of sgns_train needs, for groups of at most that many rows; one per thread. */
typedef struct {
    float **inputs, **outputs; /* pointers to the rows of a group */
    float *sums;               /* per pair: four partial sums of its dot product */
    float *scores;             /* per pair: the score, then the factor of its gradient */
    float *middle;             /* CBOW: the mean of the inputs, then its gradient */
    float *signs;              /* per pair: its share of the learning rate, negative for a negative */
    int signs_period;          /* the number of outputs that `signs` is made for, 0 for none */
    float signs_alpha;
} sgns_scratch;

enum { SGNS_MOST_WIDTH = 16 };

/* How many floats `sums`, `scores` and `signs` need for groups of at most so many pairs. */
static inline int64_t sgns_scores_room(int64_t pairs) {
    return (pairs + SGNS_MOST_WIDTH - 1) / SGNS_MOST_WIDTH * SGNS_MOST_WIDTH;
}

#define SGNS_PASTE_(a, b) a##b
#define SGNS_PASTE(a, b) SGNS_PASTE_(a, b)
#define SGNS(name) SGNS_PASTE(SGNS_PASTE(sgns_, name), SGNS_SUFFIX)

typedef float sgns_quad __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__x86_64__) && defined(__GNUC__)
#define SGNS_X86

#define SGNS_SUFFIX _avx512
#define SGNS_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma")))
#define SGNS_WIDTH 16
#include "_sgns_width.h"

#define SGNS_SUFFIX _avx2
#define SGNS_TARGET __attribute__((target("avx2,fma")))
#define SGNS_WIDTH 8
#include "_sgns_width.h"
#endif

#define SGNS_SUFFIX _plain
#define SGNS_TARGET
#define SGNS_WIDTH 4
#include "_sgns_width.h"

typedef double (*sgns_train_function)(float *, const sgns_group *, int64_t, const int32_t *,
                                      const int32_t *, int, float, int, sgns_scratch *);
typedef void (*sgns_subtract_function)(float *, const float *, int64_t);

static sgns_train_function sgns_train = sgns_train_plain, cbow_train = sgns_cbow_plain;
static sgns_subtract_function sgns_subtract = sgns_subtract_plain;

/* Choose by what the processor has; `most` is the longest vector to use, in floats. Returns the choice. */
static int sgns_prepare(int most) {
#ifdef SGNS_X86
    __builtin_cpu_init();
    if (most >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("fma")) {
        sgns_train = sgns_train_avx512;
        cbow_train = sgns_cbow_avx512;
        sgns_subtract = sgns_subtract_avx512;
        return 16;
    }
    if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        sgns_train = sgns_train_avx2;
        cbow_train = sgns_cbow_avx2;
        sgns_subtract = sgns_subtract_avx2;
        return 8;
    }
#endif
    (void)most;
    sgns_train = sgns_train_plain;
    cbow_train = sgns_cbow_plain;
    sgns_subtract = sgns_subtract_plain;
    return 4;
}

#endif
