/* Floor 0. Random numbers by SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
 *
 * The state of a stream is one word, and any word will do as a seed. */
#ifndef LAPSE_RANDOM_H
#define LAPSE_RANDOM_H

#include <stdint.h>

/* A word whose bits depend on all bits of z: the generator's finalizer, and a hash by itself. */
static inline uint64_t lapse_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t lapse_next_u64(uint64_t *state) {
    return lapse_mix(*state += 0x9E3779B97F4A7C15u);
}

/* One of 0 .. n - 1. The bias, below n / 2^32, is that of the multiplication without a rejection (Lemire 2019). */
static inline uint32_t lapse_next_below(uint64_t *state, uint32_t n) {
    return (uint32_t)((lapse_next_u64(state) >> 32) * n >> 32);
}

#endif
