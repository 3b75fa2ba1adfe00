"""Floor 1. Gradients of replicated keys: summed on each host, then at the home, which takes one step with the sum."""

from libc.string cimport memcpy, memset

from lapse.base._values cimport add_values, scale_value, subtract_values, sum_values
from lapse.storage._replicas cimport (base_of, home_gradient_t, note_changed, note_collected, replica_gradient_t,
                                      replica_t)
from lapse.storage._slabs cimport take_step


cdef void apply_to_replica(replicas_t* replicas, uint32_t number, const char* gradient, double rate,
                           uint32_t step) noexcept nogil:
    """Add a gradient to those of the next round."""
    cdef replica_t* replica = &replicas.all[number]
    cdef replica_gradient_t* own = &replicas.gradients[number]
    if own.is_there:
        add_values(replicas.itemsize, gradient_of(replicas, number), gradient, replica.bytes)
    else:
        memcpy(gradient_of(replicas, number), gradient, replica.bytes)
        own.is_there = True
        own.rates = own.calls = own.step = 0
    own.rates += rate
    own.calls += 1
    own.step = max(own.step, step)
    if not replica.is_changed:
        note_changed(replicas, number)


cdef void collect_gradient(replicas_t* replicas, uint32_t number, const char* gradient, double rates,
                           double calls, uint32_t step) noexcept nogil:
    """Add what a rank has contributed, at the home."""
    cdef replica_t* replica = &replicas.all[number]
    cdef home_gradient_t* home = &replicas.home_gradients[number]
    if home.has_total:
        add_values(replicas.itemsize, home.total, gradient, replica.bytes)
    else:
        memcpy(home.total, gradient, replica.bytes)
        home.has_total = True
        home.rates = home.calls = home.step = 0
    home.rates += rates
    home.calls += calls
    home.step = max(home.step, step)
    if not replica.is_collected:
        replica.is_collected = True
        note_collected(replicas, number)


cdef void step_at_home(replicas_t* replicas, uint32_t number, const slab_t* slab, double factor) noexcept nogil:
    """Take one step with all gradients that were collected, times `factor`; the sum becomes what all ranks have to add.

    The rate is the mean of those of all calls. What was pushed in the same round comes before the step.
    """
    cdef replica_t* replica = &replicas.all[number]
    cdef home_gradient_t* home = &replicas.home_gradients[number]
    if replica.has_sum:
        sum_values(replicas.itemsize, home.stepped, base_of(replica), replica.sum, replica.bytes)
    else:
        memcpy(home.stepped, base_of(replica), replica.bytes)
    if factor != 1.0:
        scale_value(replicas.itemsize, home.total, factor, replica.bytes)
    take_step(slab, home.stepped, home.state, home.total, home.rates / home.calls, home.step)
    subtract_values(replicas.itemsize, replica.sum, home.stepped, base_of(replica), replica.bytes)
    home.has_total = False
    replica.has_sum = True


cdef void begin_state(replicas_t* replicas, uint32_t number) noexcept nogil:
    """Let the state of a replica's optimizer be that of before the first step, if its home is here."""
    if replicas.home_gradients != NULL and replicas.home_gradients[number].total != NULL:
        memset(replicas.home_gradients[number].state, 0, replicas.home_gradients[number].state_bytes)
