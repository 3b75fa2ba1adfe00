"""Floor 0. Random numbers by SplitMix64; the state of a stream is one word, its seed. For C: `_random.h`."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "lapse/base/_random.h" nogil:
    uint64_t mix "lapse_mix"(uint64_t z)
    uint64_t next_u64 "lapse_next_u64"(uint64_t* state)
    uint32_t next_below "lapse_next_below"(uint64_t* state, uint32_t n)     # one of 0 .. n - 1
