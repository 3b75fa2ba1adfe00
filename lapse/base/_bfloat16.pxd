"""Floor 0. Values as bfloat16: the upper half of a float32, in half of its bytes."""

from libc.stdint cimport uint16_t

cdef extern from *:
    r"""
    #ifndef LAPSE_BFLOAT16
    #define LAPSE_BFLOAT16
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    static inline float lapse_from_bfloat16(uint16_t half) {
        uint32_t bits = (uint32_t)half << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    /* To the nearest, ties to even; what would become infinite is cut off instead, and a NaN stays one. */
    static inline uint16_t lapse_to_bfloat16(float value) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        uint32_t size = bits & 0x7FFFFFFF;
        uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
        rounded = size >= 0x7F7F8000 ? bits : rounded;
        return (uint16_t)(rounded >> 16 | (size > 0x7F800000 ? 0x40 : 0));
    }
    /* `rest` becomes what `halves` lack of `values`, and may be `values` itself. */
    static inline void lapse_round_to_bfloat16(const float *values, uint16_t *halves, float *rest, size_t count) {
        for (size_t i = 0; i < count; i++) {
            float value = values[i];
            halves[i] = lapse_to_bfloat16(value);
            float missing = value - lapse_from_bfloat16(halves[i]);
            rest[i] = missing == missing ? missing : 0;  /* of an infinite value and of a NaN nothing is missing */
        }
    }
    static inline void lapse_widen_bfloat16(const uint16_t *halves, float *values, size_t count) {
        for (size_t i = 0; i < count; i++) values[i] = lapse_from_bfloat16(halves[i]);
    }
    #endif
    """
    void round_to_bfloat16 "lapse_round_to_bfloat16"(const float* values, uint16_t* halves, float* rest,
                                                     size_t count) noexcept nogil
    void widen_bfloat16 "lapse_widen_bfloat16"(const uint16_t* halves, float* values, size_t count) noexcept nogil
