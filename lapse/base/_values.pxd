"""Floor 0. Arithmetic on values: runs of float32 or float64."""

from libc.stdint cimport int32_t

cdef extern from *:
    r"""
    #ifndef LAPSE_VALUES
    #define LAPSE_VALUES
    #include <math.h>
    #include <stddef.h>
    #include <stdint.h>
    /* Into the second-level cache: the first one is too small for the current rows and those ahead. If rows come from
       memory, this takes half the time of a prefetch into the first level. The empty statement is needed because gcc
       considers a function that only prefetches to be without effect, and drops calls to it. */
    static inline void lapse_prefetch(const void *p) {
        __builtin_prefetch(p, 0, 2);
        __asm__ __volatile__("" : : "r"(p));
    }
    /* In messages values lie at multiples of 4 bytes, including those of 8 bytes each. */
    typedef float lapse_float __attribute__((may_alias));
    typedef double lapse_double __attribute__((aligned(4), may_alias));
    /* Each kernel exists once for any processor and once for AVX2; gcc selects one when the module is loaded, if the C
       library supports that (musl does not). Only additions and multiplications element by element are compiled this
       way: both versions give the same bits, which replicas on different processors rely on. For the same reason
       there is no FMA, hence no AVX-512, which is no faster for rows that are not aligned to 64 bytes. */
    #if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
    #define LAPSE_KERNEL __attribute__((target_clones("avx2", "default"), unused)) static
    #else
    #define LAPSE_KERNEL static inline
    #endif
    #define LAPSE_FOR_EACH_TYPE(DO) DO(float, lapse_float) DO(double, lapse_double)
    #define LAPSE_ARITHMETIC(NAME, TYPE) \
    LAPSE_KERNEL void lapse_add_##NAME(void *value, const void *update, size_t bytes) { \
        TYPE *restrict v = value; \
        const TYPE *restrict u = update; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) v[i] += u[i]; \
    } \
    LAPSE_KERNEL void lapse_take_##NAME(void *value, const void *update, size_t bytes) { \
        TYPE *restrict v = value; \
        const TYPE *restrict u = update; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) v[i] -= u[i]; \
    } \
    /* Let value and mark be as far apart as they were, with mark at base. */ \
    LAPSE_KERNEL void lapse_rebase_##NAME(void *value, void *mark, const void *base, size_t bytes) { \
        TYPE *restrict v = value, *restrict m = mark; \
        const TYPE *restrict b = base; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) { TYPE d = v[i] - m[i]; v[i] = b[i] + d; m[i] = b[i]; } \
    } \
    /* The same with value at base. */ \
    LAPSE_KERNEL void lapse_rebase_mark_##NAME(void *value, void *mark, const void *base, size_t bytes) { \
        TYPE *restrict v = value, *restrict m = mark; \
        const TYPE *restrict b = base; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) { TYPE d = v[i] - m[i]; m[i] = b[i] - d; v[i] = b[i]; } \
    } \
    /* sum = first + second */ \
    LAPSE_KERNEL void lapse_sum_##NAME(void *sum, const void *first, const void *second, size_t bytes) { \
        TYPE *restrict s = sum; \
        const TYPE *restrict a = first, *restrict b = second; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) s[i] = a[i] + b[i]; \
    } \
    /* difference = first - second */ \
    LAPSE_KERNEL void lapse_subtract_##NAME(void *difference, const void *first, const void *second, size_t bytes) { \
        TYPE *restrict d = difference; \
        const TYPE *restrict a = first, *restrict b = second; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) d[i] = a[i] - b[i]; \
    } \
    LAPSE_KERNEL void lapse_scale_##NAME(void *value, double factor, size_t bytes) { \
        TYPE *restrict v = value; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) v[i] = (TYPE)(v[i] * factor); \
    } \
    static inline double lapse_norm_##NAME(const void *value, size_t bytes) { \
        const TYPE *restrict v = value; \
        double squares = 0; \
        for (size_t i = 0; i < bytes / sizeof(TYPE); i++) squares += (double)v[i] * v[i]; \
        return sqrt(squares); \
    }
    LAPSE_FOR_EACH_TYPE(LAPSE_ARITHMETIC)
    #endif
    """
    void prefetch "lapse_prefetch"(const void* address) noexcept nogil
    void add_float "lapse_add_float"(void* value, const void* update, size_t size) noexcept nogil
    void add_double "lapse_add_double"(void* value, const void* update, size_t size) noexcept nogil
    void take_float "lapse_take_float"(void* value, const void* update, size_t size) noexcept nogil
    void take_double "lapse_take_double"(void* value, const void* update, size_t size) noexcept nogil
    void rebase_float "lapse_rebase_float"(void* value, void* mark, const void* base, size_t size) noexcept nogil
    void rebase_double "lapse_rebase_double"(void* value, void* mark, const void* base, size_t size) noexcept nogil
    void rebase_mark_float "lapse_rebase_mark_float"(void* value, void* mark, const void* base,
                                                     size_t size) noexcept nogil
    void rebase_mark_double "lapse_rebase_mark_double"(void* value, void* mark, const void* base,
                                                       size_t size) noexcept nogil
    void sum_float "lapse_sum_float"(void* sum, const void* a, const void* b, size_t size) noexcept nogil
    void sum_double "lapse_sum_double"(void* sum, const void* a, const void* b, size_t size) noexcept nogil
    void subtract_float "lapse_subtract_float"(void* d, const void* a, const void* b, size_t size) noexcept nogil
    void subtract_double "lapse_subtract_double"(void* d, const void* a, const void* b, size_t size) noexcept nogil
    void scale_float "lapse_scale_float"(void* value, double factor, size_t size) noexcept nogil
    void scale_double "lapse_scale_double"(void* value, double factor, size_t size) noexcept nogil
    double norm_float "lapse_norm_float"(const void* value, size_t size) noexcept nogil
    double norm_double "lapse_norm_double"(const void* value, size_t size) noexcept nogil


cdef enum:
    MAX_PREFETCHED = 1024   # bytes of one run; the processor prefetches the rest of a longer one by itself


cdef inline void prefetch_bytes(const char* run, size_t size) noexcept nogil:
    cdef size_t at = 0
    while at < size and at < MAX_PREFETCHED:
        prefetch(run + at)
        at += 64


# Sizes are in bytes; `itemsize` 4 means float32, 8 float64.

cdef inline void add_values(int32_t itemsize, char* value, const char* update, size_t size) noexcept nogil:
    if itemsize == 4:
        add_float(value, update, size)
    else:
        add_double(value, update, size)


cdef inline void take_from(int32_t itemsize, char* value, const char* update, size_t size) noexcept nogil:
    if itemsize == 4:
        take_float(value, update, size)
    else:
        take_double(value, update, size)


cdef inline void rebase_values(int32_t itemsize, char* value, char* mark, const char* base,
                               size_t size) noexcept nogil:
    if itemsize == 4:
        rebase_float(value, mark, base, size)
    else:
        rebase_double(value, mark, base, size)


cdef inline void rebase_marks(int32_t itemsize, char* value, char* mark, const char* base, size_t size) noexcept nogil:
    if itemsize == 4:
        rebase_mark_float(value, mark, base, size)
    else:
        rebase_mark_double(value, mark, base, size)


cdef inline void sum_values(int32_t itemsize, char* total, const char* first, const char* second,
                            size_t size) noexcept nogil:
    if itemsize == 4:
        sum_float(total, first, second, size)
    else:
        sum_double(total, first, second, size)


cdef inline void subtract_values(int32_t itemsize, char* difference, const char* first, const char* second,
                                 size_t size) noexcept nogil:
    if itemsize == 4:
        subtract_float(difference, first, second, size)
    else:
        subtract_double(difference, first, second, size)


cdef inline void scale_value(int32_t itemsize, char* value, double factor, size_t size) noexcept nogil:
    if itemsize == 4:
        scale_float(value, factor, size)
    else:
        scale_double(value, factor, size)


cdef inline double norm_of(int32_t itemsize, const char* value, size_t size) noexcept nogil:
    return norm_float(value, size) if itemsize == 4 else norm_double(value, size)
