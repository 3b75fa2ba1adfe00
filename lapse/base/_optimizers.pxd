"""Floor 0. Optimizers in C: the length of their states, and one step; see `_optimizers.h`.

What a user chooses is in `lapse.options.optimizers`.
"""

from libc.stdint cimport uint32_t

cdef extern from "lapse/base/_optimizers.h" nogil:
    ctypedef struct optimizer_t "lapse_optimizer":
        void (*step)(const optimizer_t* optimizer, double rate, uint32_t step, void* value, void* state,
                     const void* gradient, size_t length) noexcept nogil
        double weight_decay
        double epsilon
        double initial
        double beta1
        double beta2
        double* corrections
    size_t state_length "lapse_state_length"(int kind, size_t length)
    bint prepare_optimizer "lapse_prepare_optimizer"(optimizer_t* optimizer, int kind, int itemsize)
