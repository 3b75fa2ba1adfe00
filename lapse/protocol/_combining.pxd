"""Floor 2. What the contributions of several ranks to one value come to: the rules of `lapse.Replication(combine=...)`.

Used by the homes alone, which send the results: whatever a rule computes, all replicas get the same bits. A rule is
applied in place, to the sum of the contributions.

All functions but the first and last are called under the latch of rounds.
"""

from libc.stdint cimport int64_t, uint32_t

from lapse._store cimport store_t
from lapse.storage._replicas cimport replica_t

cdef enum rule_t:
    SUM_RULE = 0
    ADAPTIVE_RULE = 1       # sums saturate along the directions in which values vary most
    ADAGRAD_RULE = 2        # values are parameters and as many sums of squares of their gradients


cdef struct combining_t:
    int rule
    double constant             # of the adaptive rule; the page of replication calls it kappa
    void* curvatures            # by slab: values of different lengths never meet in a dot product
    int num_curvatures
    float* weights              # by replica: what it has gathered in late rounds, on all ranks
    float* last_weights         # by replica whose home is here: of its last sum
    uint32_t* sampled           # numbers of the replicas from which the curvature is computed
    uint32_t num_sampled
    int interval                # rounds from one computation of the curvatures to the next
    int age                     # rounds since the last one


cdef int prepare_combining(combining_t* self, const store_t* store, int rule, double constant) noexcept
cdef void gather(combining_t* self, const replica_t* replica, uint32_t number, double weight) noexcept nogil
cdef void renew_curvatures_if_due(combining_t* self, const store_t* store, bint is_needed) noexcept nogil
cdef void combine(combining_t* self, const store_t* store, replica_t* replica, uint32_t number) noexcept nogil
cdef void free_combining(combining_t* self) noexcept
