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
    double finish_moment "lapse_finish_moment"(curvature_t* curvature) noexcept nogil
    ctypedef struct additions_t "lapse_additions":
        double rate, ranks, late, last_rate
    void combine_along "lapse_combine"(const curvature_t* curvature, float* total,
                                       const additions_t* additions) noexcept nogil
    void free_curvature "lapse_free_curvature"(curvature_t* curvature) noexcept

cdef enum:
    RENEW_EVERY = 4     # rounds, once the curvature is steady; in simulations every eighth diverged once
    MOST_VALUES = 1024  # in a moment, about: of more, the same part each time and on each rank

cdef double KEPT = 0.98     # of what a replica has gathered, from one round to the next
# The curvature grows when it has changed by more than the one part since the last time, and is steady when by less than
# the other. While it grows, an old one is too small, and sums overshoot: many ranks, or rare rounds, diverge.
cdef double GROWS = 0.1
cdef double IS_STEADY = 0.05


cdef int prepare_combining(combining_t* self, const store_t* store, int rule, double constant) noexcept:
    """Choose the rule, before the first round. After NO_MEMORY the caller calls `free_combining` as well."""
    cdef int i
    self.rule = rule
    self.constant = constant
    self.interval = 1
    if rule != ADAPTIVE_RULE or store.replicas.homes == 0:
        return OK
    self.weights = <float*>calloc(store.replicas.count, sizeof(float))
    self.last_weights = <float*>calloc(store.replicas.count, sizeof(float))
    self.sampled = <uint32_t*>malloc(store.replicas.count * sizeof(uint32_t))
    self.curvatures = calloc(store.num_slabs, sizeof(curvature_t))
    if self.weights == NULL or self.last_weights == NULL or self.sampled == NULL or self.curvatures == NULL:
        return NO_MEMORY
    choose_sampled(self, store)
    self.num_curvatures = store.num_slabs
    for i in range(store.num_slabs):
        if not make_curvature(&(<curvature_t*>self.curvatures)[i], store.slabs[i].row_bytes // sizeof(float)):
            return NO_MEMORY
    return OK


cdef void choose_sampled(combining_t* self, const store_t* store) noexcept nogil:
    # Scattered (Fibonacci hashing): parameters of a kind may be every second or third key.
    cdef uint32_t number, share = 0xFFFFFFFF
    if store.replicas.count > MOST_VALUES:
        share = <uint32_t>(share // (store.replicas.count // MOST_VALUES + 1))
    for number in range(store.replicas.count):
        if number * <uint32_t>2654435769 <= share:
            self.sampled[self.num_sampled] = number
            self.num_sampled += 1


cdef inline curvature_t* curvature_for(const combining_t* self, const store_t* store,
                                       const replica_t* replica) noexcept nogil:
    return &(<curvature_t*>self.curvatures)[0 if store.slab_of == NULL else store.slab_of[replica.key]]


cdef void gather(combining_t* self, const replica_t* replica, uint32_t number, double weight) noexcept nogil:
    """Note that contributions of this weight are combined: at the key's home before, elsewhere when their sum comes.

    Elsewhere under the key's latch. At the home, once per round of its level, under the latch of rounds.
    """
    if self.weights != NULL:  # a rank that is no home combines nothing
        self.weights[number] = <float>(self.weights[number] * pow(KEPT, 1 << replica.level) + weight)


cdef void renew_curvatures_if_due(combining_t* self, const store_t* store, bint is_needed) noexcept nogil:
    """Compute the curvature anew for this round, or keep it: in each round while it grows, then more and more rarely.

    A round in which nothing is combined needs none, and says nothing about how it grows.
    """
    if self.rule != ADAPTIVE_RULE:
        return
    self.age += 1
    if self.age < self.interval or not is_needed:
        return
    self.age = 0
    choose_interval(self, renew_curvatures(self, store))


cdef inline void choose_interval(combining_t* self, double change) noexcept nogil:
    if change > GROWS:
        self.interval = 1
    elif change < IS_STEADY:
        self.interval = min(2 * self.interval, RENEW_EVERY)


cdef double renew_curvatures(combining_t* self, const store_t* store) noexcept nogil:
    """Compute the curvature from all values, and return by which part of it any has changed at most.

    The home of a key knows its value behind this round as well. The curvature grows meanwhile: half of the weight is
    that of the value before, half that of the value behind it, for which the mean of the contributors' own is taken.
    """
    cdef uint32_t i, number
    cdef int slab
    cdef double change = 0
    cdef const replica_t* replica
    for slab in range(self.num_curvatures):
        begin_moment(&(<curvature_t*>self.curvatures)[slab])
    for i in range(self.num_sampled):
        look_ahead(self, store, i)
        number = self.sampled[i]
        replica = &store.replicas.all[number]
        lock_entry(store, &store.entries[replica.key])
        if self.weights[number] > 0:
            add_value(curvature_for(self, store, replica), store, replica, sqrt(self.weights[number]))
        unlock_entry(&store.entries[replica.key])
    for slab in range(self.num_curvatures):
        change = max(change, finish_moment(&(<curvature_t*>self.curvatures)[slab]))
    return change


cdef inline void look_ahead(const combining_t* self, const store_t* store, uint32_t i) noexcept nogil:
    # Without the latches: reads only what never changes.
    cdef const replica_t* replica
    if i + REPLICAS_AHEAD < self.num_sampled:
        prefetch_replica(&store.replicas.all[self.sampled[i + REPLICAS_AHEAD]])
    if i + VALUES_AHEAD < self.num_sampled:
        replica = &store.replicas.all[self.sampled[i + VALUES_AHEAD]]
        prefetch(&store.entries[replica.key])
        prefetch_bytes(base_of(replica), replica.bytes)
        if replica.sum != NULL:
            prefetch_bytes(replica.sum, replica.bytes)


cdef inline void add_value(curvature_t* curvature, const store_t* store, const replica_t* replica,
                           double weight) noexcept nogil:
    cdef const float* before = <const float*>base_of(replica)
    if replica.has_sum:
        add_to_moment(curvature, before, NULL, 0, weight / 2)
        add_to_moment(curvature, before, <const float*>replica.sum, 1.0 / store.num_leaders, weight / 2)
    else:
        add_to_moment(curvature, before, NULL, 0, weight)


cdef void combine(combining_t* self, const store_t* store, replica_t* replica, uint32_t number) noexcept nogil:
    """Replace the sum of the contributions by what they come to. Under the key's latch."""
    if self.rule == ADAPTIVE_RULE:
        if replica.contributors > 1:
            combine_adaptively(self, store, replica, self.last_weights[number])
        self.last_weights[number] = replica.total_weight.all
    elif self.rule == ADAGRAD_RULE and replica.contributors > 1:
        combine_adagrad(replica)


cdef inline void combine_adaptively(combining_t* self, const store_t* store, replica_t* replica,
                                    double last_weight) noexcept nogil:
    cdef additions_t additions
    cdef double weight = replica.total_weight.all
    additions.rate, additions.last_rate = self.constant * weight, self.constant * last_weight
    additions.ranks = replica.contributors
    additions.late = replica.total_weight.late / weight if weight > 0 else 0
    combine_along(curvature_for(self, store, replica), <float*>replica.sum, &additions)


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
    free(self.last_weights)
