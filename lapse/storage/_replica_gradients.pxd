"""Floor 1. Gradients of replicated keys: summed on each host, then at the home, which takes one step with the sum.

The value does not change before that. Every function is called under the latch of the key's directory entry.
"""

from libc.stdint cimport uint32_t

from lapse.storage._replicas cimport replicas_t
from lapse.storage._slabs cimport slab_t


cdef inline char* gradient_of(const replicas_t* replicas, uint32_t number) noexcept nogil:
    return <char*>&replicas.gradients[number] + replicas.gradients[number].at


cdef inline bint has_gradient(const replicas_t* replicas, uint32_t number) noexcept nogil:
    """Whether gradients were applied here that are not sent yet."""
    return replicas.gradients != NULL and replicas.gradients[number].is_there


cdef inline bint has_collected_gradient(const replicas_t* replicas, uint32_t number) noexcept nogil:
    """Whether this home has gradients for its next step."""
    return replicas.home_gradients != NULL and replicas.home_gradients[number].has_total


cdef void apply_to_replica(replicas_t* replicas, uint32_t number, const char* gradient, double rate,
                           uint32_t step) noexcept nogil
cdef void collect_gradient(replicas_t* replicas, uint32_t number, const char* gradient, double rates,
                           double calls, uint32_t step) noexcept nogil
cdef void step_at_home(replicas_t* replicas, uint32_t number, const slab_t* slab, double factor) noexcept nogil
cdef void begin_state(replicas_t* replicas, uint32_t number) noexcept nogil
