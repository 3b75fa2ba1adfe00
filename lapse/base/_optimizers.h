/* The steps of optimizers: what a gradient does to a value and to the state behind it.

   One row of LAPSE_OPTIMIZERS for each: its name, its number, the elements of state that a value of n elements has, and
   whether a step also needs what `lapse_prepare_optimizer` computes. A step is a plain loop over the elements, written
   once for float32 and float64; the compiler makes vector code of it. A state of zeros is that of a value to which no
   gradient came yet: what else an optimizer begins with is added when it is read.

   Only operations that IEEE 754 rounds correctly are used on values, and none is contracted: every processor computes
   the same bits. */
#ifndef LAPSE_OPTIMIZERS_H
#define LAPSE_OPTIMIZERS_H
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* DO(name, number, elements of state for n elements of value) */
#define LAPSE_OPTIMIZERS(DO) \
    DO(sgd, 1, 0) \
    DO(adagrad, 2, n) \
    DO(row_wise_adagrad, 3, 1) \
    DO(adam, 4, 2 * n + 1)

typedef struct lapse_optimizer lapse_optimizer;
/* `number` is that of the step that its caller makes, from 1 on; 0 if it is not known. */
typedef void lapse_step(const lapse_optimizer *optimizer, double rate, uint32_t number, void *value, void *state,
                        const void *gradient, size_t length);

struct lapse_optimizer {
    lapse_step *step;
    double weight_decay; /* times the value is added to the gradient */
    double epsilon;
    double initial;      /* AdaGrad: what every accumulator begins with; it is not part of the state */
    double beta1, beta2; /* Adam */
    double *corrections; /* Adam: sqrt(1 - beta2^t) / (1 - beta1^t) for the steps t below */
    size_t num_corrections;
    double last_correction; /* for later steps; 0: to be computed for each */
};

/* With beta2 = 0.999 the correction is 1 from step 37,412 on. */
enum { LAPSE_MOST_CORRECTIONS = 65536 };
enum { LAPSE_LAST_EXACT = 1 << 24 }; /* smaller numbers are exact in float32 */

/* As in base/_values.pxd: in messages, values of 8 bytes lie at multiples of 4. */
typedef float lapse_step_float __attribute__((may_alias));
typedef double lapse_step_double __attribute__((aligned(4), may_alias));
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define LAPSE_STEP __attribute__((target_clones("avx2", "default"), unused)) static
#else
#define LAPSE_STEP static __attribute__((unused))
#endif
#define LAPSE_STEP_HEAD(NAME, SUFFIX, TYPE) \
    LAPSE_STEP void lapse_##NAME##_##SUFFIX(const lapse_optimizer *o, double rate, uint32_t number, void *value, \
                                            void *state, const void *gradient, size_t n) { \
        TYPE *restrict v = value; \
        TYPE *restrict s = state; \
        const TYPE *restrict given = gradient; \
        const TYPE decay = (TYPE)o->weight_decay, eps = (TYPE)o->epsilon; \
        (void)s; (void)eps; (void)number;

static inline double lapse_compute_correction(const lapse_optimizer *o, double steps) {
    return sqrt(1 - pow(o->beta2, steps)) / (1 - pow(o->beta1, steps));
}

static inline double lapse_correction(const lapse_optimizer *o, double steps) {
    if (steps < (double)o->num_corrections) return o->corrections[(size_t)steps];
    return o->last_correction != 0 ? o->last_correction : lapse_compute_correction(o, steps);
}

#define LAPSE_STEPS(SUFFIX, TYPE, ROOT) \
    /* as torch.optim.SGD, without momentum */ \
    LAPSE_STEP_HEAD(sgd, SUFFIX, TYPE) \
        const TYPE r = (TYPE)rate; \
        for (size_t i = 0; i < n; i++) v[i] -= r * (given[i] + decay * v[i]); \
    } \
    /* Duchi et al., Adaptive Subgradient Methods, JMLR 12, 2011; as torch.optim.Adagrad */ \
    LAPSE_STEP_HEAD(adagrad, SUFFIX, TYPE) \
        const TYPE r = (TYPE)rate, initial = (TYPE)o->initial; \
        for (size_t i = 0; i < n; i++) { \
            TYPE g = given[i] + decay * v[i]; \
            s[i] += g * g; \
            v[i] -= r * (g / (ROOT(initial + s[i]) + eps)); \
        } \
    } \
    /* One accumulator for a whole value: the mean of the squares, as in FBGEMM and TorchRec. The sum has eight parts, \
       in an order of its own, so that every vector length gives the same bits. */ \
    LAPSE_STEP_HEAD(row_wise_adagrad, SUFFIX, TYPE) \
        TYPE part[8] = {0}, total, factor; \
        size_t i = 0; \
        for (; i + 8 <= n; i += 8) \
            for (size_t k = 0; k < 8; k++) { \
                TYPE g = given[i + k] + decay * v[i + k]; \
                part[k] += g * g; \
            } \
        for (size_t k = 0; i + k < n; k++) { \
            TYPE g = given[i + k] + decay * v[i + k]; \
            part[k] += g * g; \
        } \
        total = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7])); \
        s[0] += total / (TYPE)n; \
        factor = (TYPE)rate / (ROOT((TYPE)o->initial + s[0]) + eps); \
        for (i = 0; i < n; i++) v[i] -= factor * (given[i] + decay * v[i]); \
    } \
    /* Kingma and Ba, Adam, ICLR 2015. In front of its moments a value has the number of its last step: that of the \
       caller, as in torch.optim.SparseAdam, or the next one if that is larger or the caller has none. A count that is \
       too large for TYPE stays where it is. \
       A gradient with the number of the last step is a part of that step, which another worker has: moments do not \
       decay again, and the value moves from where the step has brought it to where both parts bring it. The second \
       moment takes the parts for independent: the product of two parts, which is not known any more, is left out. */ \
    LAPSE_STEP_HEAD(adam, SUFFIX, TYPE) \
        TYPE *restrict first = s + 1; \
        TYPE *restrict second = s + 1 + n; \
        const TYPE kept1 = (TYPE)(1 - o->beta1), kept2 = (TYPE)(1 - o->beta2); \
        const int is_part = number != 0 && number < LAPSE_LAST_EXACT && s[0] == (TYPE)number; \
        TYPE size; \
        if (!is_part) s[0] = s[0] + 1 < (TYPE)number ? (TYPE)number : s[0] + 1; \
        size = (TYPE)(rate * lapse_correction(o, (double)s[0])); \
        if (is_part) { \
            for (size_t i = 0; i < n; i++) { \
                TYPE g = given[i] + decay * v[i], before = first[i] / (ROOT(second[i]) + eps); \
                first[i] += kept1 * g; \
                second[i] += kept2 * (g * g); \
                v[i] -= size * (first[i] / (ROOT(second[i]) + eps) - before); \
            } \
            return; \
        } \
        for (size_t i = 0; i < n; i++) { \
            TYPE g = given[i] + decay * v[i]; \
            first[i] += kept1 * (g - first[i]); \
            second[i] += kept2 * (g * g - second[i]); \
            v[i] -= size * (first[i] / (ROOT(second[i]) + eps)); \
        } \
    }
LAPSE_STEPS(float, lapse_step_float, sqrtf)
LAPSE_STEPS(double, lapse_step_double, sqrt)

#define LAPSE_OPTIMIZER_STEP(name, number, state) \
    case number: return itemsize == 4 ? lapse_##name##_float : lapse_##name##_double;
static inline lapse_step *lapse_step_of(int kind, int itemsize) {
    switch (kind) { LAPSE_OPTIMIZERS(LAPSE_OPTIMIZER_STEP) default: return 0; }
}

#define LAPSE_OPTIMIZER_STATE(name, number, state) case number: return state;
static inline size_t lapse_state_length(int kind, size_t n) {
    (void)n;
    switch (kind) { LAPSE_OPTIMIZERS(LAPSE_OPTIMIZER_STATE) default: return 0; }
}

/* Fill in what follows from the parameters; 0 if there is no memory. */
static inline int lapse_prepare_optimizer(lapse_optimizer *o, int kind, int itemsize) {
    double most = fmax(log(DBL_EPSILON) / log(fmax(o->beta1, o->beta2)), 0) + 2; /* then the correction is 1 */
    o->step = lapse_step_of(kind, itemsize);
    if (!o->step) return 0;
    o->num_corrections = most < LAPSE_MOST_CORRECTIONS ? (size_t)most : LAPSE_MOST_CORRECTIONS;
    o->last_correction = most < LAPSE_MOST_CORRECTIONS ? 1 : 0;
    o->corrections = malloc(o->num_corrections * sizeof(double));
    if (!o->corrections) return 0;
    for (size_t t = 0; t < o->num_corrections; t++) o->corrections[t] = t ? lapse_compute_correction(o, (double)t) : 0;
    return 1;
}
#endif
