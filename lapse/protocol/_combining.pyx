"""Floor 2. What the contributions of several ranks to one value come to."""

from libc.math cimport pow, sqrt
from libc.stdlib cimport calloc, free, malloc

from lapse._store cimport lock_entry, unlock_entry
from lapse.base._types cimport NO_MEMORY, OK
from lapse.base._values cimport prefetch, prefetch_bytes
from lapse.protocol._prefetch cimport REPLICAS_AHEAD, VALUES_AHEAD
from lapse.storage._replicas cimport base_of, prefetch_replica, root_growth

cdef extern from "_curvature.h":  # here and not in the .pxd: kernels of other packages include what that names
    ctypedef struct curvature_t "lapse_curvature":
        size_t length
    bint make_curvature "lapse_make_curvature"(curvature_t* curvature, size_t length) noexcept nogil
    void begin_moment "lapse_begin_moment"(curvature_t* curvature) noexcept nogil
    void add_to_moment "lapse_add_to_moment"(curvature_t* curvature, const float* first, const float* second,
                                             double factor, double weight) noexcept nogil
    void finish_moment "lapse_finish_moment"(curvature_t* curvature) noexcept nogil
    void combine_along "lapse_combine"(const curvature_t* curvature, float* total, double rate,
                                       uint32_t ranks) noexcept nogil
    void free_curvature "lapse_free_curvature"(curvature_t* curvature) noexcept

cdef enum:
    RENEW_EVERY = 4     # rounds; in simulations every eighth diverged once
    MOST_VALUES = 1024  # in a moment, about: of more, the same part each time

cdef double KEPT = 0.98     # of what a replica has gathered, from one round to the next


cdef int prepare_combining(combining_t* self, const store_t* store, int rule, double constant) noexcept:
    """Choose the rule, before the first round. After NO_MEMORY the caller calls `free_combining` as well."""
    cdef int i
    self.rule = rule
    self.constant = constant
    if rule != ADAPTIVE_RULE or store.replicas.homes == 0:
        return OK
    self.weights = <float*>calloc(store.replicas.count, sizeof(float))
    self.sampled = <uint32_t*>malloc(store.replicas.homes * sizeof(uint32_t))
    self.curvatures = calloc(store.num_slabs, sizeof(curvature_t))
    if self.weights == NULL or self.sampled == NULL or self.curvatures == NULL:
        return NO_MEMORY
    choose_sampled(self, store)
    self.num_curvatures = store.num_slabs
    for i in range(store.num_slabs):
        if not make_curvature(&(<curvature_t*>self.curvatures)[i], store.slabs[i].row_bytes // sizeof(float)):
            return NO_MEMORY
    return OK


cdef void choose_sampled(combining_t* self, const store_t* store) noexcept nogil:
    cdef uint32_t number, home = 0
    cdef uint32_t step = 1 + store.replicas.homes // MOST_VALUES
    for number in range(store.replicas.count):
        if store.replicas.all[number].sum != NULL:
            home += 1
            if home % step == 0:
                self.sampled[self.num_sampled] = number
                self.num_sampled += 1


cdef inline curvature_t* curvature_for(const combining_t* self, const store_t* store,
                                       const replica_t* replica) noexcept nogil:
    return &(<curvature_t*>self.curvatures)[0 if store.slab_of == NULL else store.slab_of[replica.key]]


cdef void gather(combining_t* self, replica_t* replica, uint32_t number) noexcept nogil:
    """Note that contributions to a replica are about to be combined. Under the key's latch."""
    if self.rule == ADAPTIVE_RULE:
        self.weights[number] = <float>(self.weights[number] * pow(KEPT, 1 << replica.level) + replica.total_weight)


cdef bint is_renewal_due(const combining_t* self, int64_t round_number) noexcept nogil:
    """Whether the curvature is to be computed anew: often at first, since values grow from almost nothing."""
    return self.rule == ADAPTIVE_RULE and (round_number <= 2 * RENEW_EVERY or round_number % RENEW_EVERY == 0)


cdef void renew_curvatures(combining_t* self, const store_t* store) noexcept nogil:
    """Compute the curvature from all values whose home is here, as they are and as this round leaves them.

    The curvature grows meanwhile, so that half of the weight is that of the values before the round and half that of
    the values behind it, for which the mean of the contributors' own values is taken.
    """
    cdef uint32_t i, number
    cdef int slab
    cdef replica_t* replica
    for slab in range(self.num_curvatures):
        begin_moment(&(<curvature_t*>self.curvatures)[slab])
    for i in range(self.num_sampled):
        look_ahead(self, store, i)
        number = self.sampled[i]
        if self.weights[number] <= 0:
            continue
        replica = &store.replicas.all[number]
        lock_entry(store, &store.entries[replica.key])
        add_value(curvature_for(self, store, replica), store, replica, sqrt(self.weights[number]))
        unlock_entry(&store.entries[replica.key])
    for slab in range(self.num_curvatures):
        finish_moment(&(<curvature_t*>self.curvatures)[slab])


cdef inline void look_ahead(const combining_t* self, const store_t* store, uint32_t i) noexcept nogil:
    # Without the latches: reads only what never changes.
    cdef const replica_t* replica
    if i + REPLICAS_AHEAD < self.num_sampled:
        prefetch_replica(&store.replicas.all[self.sampled[i + REPLICAS_AHEAD]])
    if i + VALUES_AHEAD < self.num_sampled:
        replica = &store.replicas.all[self.sampled[i + VALUES_AHEAD]]
        prefetch(&store.entries[replica.key])
        prefetch_bytes(base_of(replica), replica.bytes)
        prefetch_bytes(replica.sum, replica.bytes)


cdef inline void add_value(curvature_t* curvature, const store_t* store, const replica_t* replica,
                           double weight) noexcept nogil:
    cdef const float* before = <const float*>base_of(replica)
    if replica.has_sum:
        add_to_moment(curvature, before, NULL, 0, weight / 2)
        add_to_moment(curvature, before, <const float*>replica.sum, 1.0 / store.num_leaders, weight / 2)
    else:
        add_to_moment(curvature, before, NULL, 0, weight)


cdef void combine(combining_t* self, const store_t* store, replica_t* replica) noexcept nogil:
    """Replace the sum of the contributions by what they come to. Under the key's latch."""
    if self.rule == SUM_RULE or replica.contributors < 2:
        return
    if self.rule == ADAPTIVE_RULE:
        combine_along(curvature_for(self, store, replica), <float*>replica.sum,
                      self.constant * replica.total_weight, replica.contributors)
    else:
        combine_adagrad(replica)


cdef void combine_adagrad(replica_t* replica) noexcept nogil:
    """Scale each parameter's sum as AdaGrad scales steps that are taken one after the other.

    The steps of one rank add up to about the growth of the root of the sum of squares; so those of all ranks in turn
    come to the growth of the root of all their squares, not to the sum of the growths.
    """
    cdef size_t i, half = replica.bytes // 8
    cdef const float* before = <const float*>base_of(replica) + half
    cdef float* total = <float*>replica.sum
    cdef float growth
    for i in range(half):
        growth = root_growth(before[i], total[half + i])
        if 0 < growth < replica.growth[i]:
            total[i] *= growth / replica.growth[i]


cdef void free_combining(combining_t* self) noexcept:
    cdef int i
    for i in range(self.num_curvatures):
        free_curvature(&(<curvature_t*>self.curvatures)[i])
    free(self.curvatures)
    free(self.sampled)
    free(self.weights)
