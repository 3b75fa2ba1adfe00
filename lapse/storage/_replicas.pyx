"""Floor 1. The replicas of this rank: three vectors for each replicated key."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lapse.base._memory cimport release, reserve
from lapse.base._sync cimport drop_latch, take_latch
from lapse.base._types cimport NO_MEMORY, OK
from lapse.base._values cimport add_twice, add_values, sum_values

cdef enum:
    ALIGNED_FROM = 256  # bytes; shorter vectors are packed, since aligning them would only cost memory


cdef void read_replica(const replica_t* replica, char* out) noexcept nogil:
    memcpy(out, replica.value, replica.bytes)


cdef void push_replica(replicas_t* replicas, uint32_t number, const char* update) noexcept nogil:
    # Additions only: deltas of all ranks are summed at the home, in any order (see `change_value` in _store.pyx).
    cdef replica_t* replica = &replicas.all[number]
    if replica.has_delta:
        add_twice(replicas.itemsize, replica.value, delta_of(replica), update, replica.bytes)
        return
    add_values(replicas.itemsize, replica.value, update, replica.bytes)
    memcpy(delta_of(replica), update, replica.bytes)
    replica.has_delta = True
    if not replica.is_changed:
        note_changed(replicas, number)


cdef void fill_replica(replica_t* replica, const char* value) noexcept nogil:
    """Replace the value; updates that were pushed here and have not come back count as earlier, and are dropped."""
    memcpy(replica.value, value, replica.bytes)
    memcpy(base_of(replica), value, replica.bytes)
    replica.has_delta = False
    replica.is_awaited = False
    replica.has_sum = False


cdef void add_contribution(replicas_t* replicas, uint32_t number, int32_t rank, const char* delta) noexcept nogil:
    """Add the contribution of a rank to the sum at the home."""
    cdef replica_t* replica = &replicas.all[number]
    if replica.has_sum:
        add_values(replicas.itemsize, replica.sum, delta, replica.bytes)
    else:
        memcpy(replica.sum, delta, replica.bytes)
        replica.has_sum = True
    replica.contained[rank] = True
    if not replica.is_collected:
        replica.is_collected = True
        append(replicas, &replicas.collected, number)


cdef void add_sum(replicas_t* replicas, replica_t* replica, const char* total) noexcept nogil:
    """Add the sum that a home has sent to base and value.

    `is_awaited` says whether a contribution of this rank is still in flight, hence not in this sum. Only then is the
    value not computed from the base, because it is the only place that holds the update in flight. At rest nothing is
    in flight, and the value equals the base, which the same additions have made equal on all ranks to the last bit.
    """
    add_values(replicas.itemsize, base_of(replica), total, replica.bytes)
    if replica.is_awaited:
        add_values(replicas.itemsize, replica.value, total, replica.bytes)
    elif replica.has_delta:
        sum_values(replicas.itemsize, replica.value, base_of(replica), delta_of(replica), replica.bytes)
    else:
        memcpy(replica.value, base_of(replica), replica.bytes)


# Lists -----------------------------------------------------------------------------------------------

cdef inline void append(replicas_t* replicas, numbers_t* numbers, uint32_t number) noexcept nogil:
    take_latch(&replicas.latch)
    numbers.growing[numbers.count] = number
    numbers.count += 1
    drop_latch(&replicas.latch)


cdef void note_changed(replicas_t* replicas, uint32_t number) noexcept nogil:
    replicas.all[number].is_changed = True
    append(replicas, &replicas.changed, number)


cdef uint32_t drain(replicas_t* replicas, numbers_t* numbers) noexcept nogil:
    """Exchange the two lists; return how many numbers are in the drained one. One thread at a time."""
    cdef uint32_t count
    take_latch(&replicas.latch)
    count = numbers.count
    numbers.count = 0
    numbers.growing, numbers.drained = numbers.drained, numbers.growing
    drop_latch(&replicas.latch)
    return count


# Memory ----------------------------------------------------------------------------------------------

cdef inline size_t stride_for(size_t size) noexcept nogil:
    return (size + 63) & ~<size_t>63 if size >= ALIGNED_FROM else (size + 7) & ~<size_t>7


cdef bint make_list(numbers_t* numbers, uint32_t count) noexcept:
    numbers.growing = <uint32_t*>calloc(count, sizeof(uint32_t))
    numbers.drained = <uint32_t*>calloc(count, sizeof(uint32_t))
    return numbers.growing != NULL and numbers.drained != NULL


cdef int make_replicas(replicas_t* replicas, const key_t* keys, const size_t* sizes, const uint8_t* is_home,
                       uint32_t count, int32_t ranks, int32_t itemsize) noexcept:
    """Allocate vectors of zeros for `count` keys. After NO_MEMORY the caller calls `free_replicas` too."""
    cdef uint32_t i, homes = 0
    cdef size_t at = 0
    cdef replica_t* replica
    replicas.itemsize = itemsize
    replicas.all = <replica_t*>calloc(count, sizeof(replica_t))
    if replicas.all == NULL or not make_list(&replicas.changed, count) or not make_list(&replicas.collected, count):
        return NO_MEMORY
    for i in range(count):
        homes += is_home[i]
        replicas.reserved += stride_for(sizes[i]) * (4 if is_home[i] else 3)
    replicas.vectors = <char*>reserve(replicas.reserved)
    replicas.contained = <uint8_t*>calloc(homes + 1, ranks)
    if replicas.vectors == NULL or replicas.contained == NULL:
        return NO_MEMORY
    homes = 0
    for i in range(count):
        replica = &replicas.all[i]
        replica.key = keys[i]
        replica.bytes = sizes[i]
        replica.stride = stride_for(sizes[i])
        replica.value = replicas.vectors + at
        at += 3 * replica.stride
        if is_home[i]:
            replica.sum = replicas.vectors + at
            at += replica.stride
            replica.contained = replicas.contained + <size_t>homes * ranks
            homes += 1
    replicas.count = count
    return OK


cdef void free_replicas(replicas_t* replicas) noexcept:
    if replicas.vectors != NULL:
        release(replicas.vectors, replicas.reserved)
    free(replicas.contained)
    free(replicas.all)
    free(replicas.changed.growing)
    free(replicas.changed.drained)
    free(replicas.collected.growing)
    free(replicas.collected.drained)
    memset(replicas, 0, sizeof(replicas_t))
