"""Floor 1. The replicas of this rank and the ranks that share memory with it: vectors for each replicated key."""

from libc.math cimport sqrtf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lapse.base._memory cimport release, reserve
from lapse.base._sync cimport drop_latch, peek32, put32, take_latch, take_latch_as
from lapse.base._types cimport NO_MEMORY, OK
from lapse.base._values cimport (add_values, rebase_marks, rebase_values, subtract_values, sum_values,
                                 take_from)
from lapse.storage._segment cimport SEGMENT_HEAD

cdef enum:
    ALIGNED_FROM = 256  # bytes; shorter vectors are packed, since aligning them would only cost memory
    PAGE_BYTES = 4096


cdef void read_replica(const replicas_t* replicas, uint32_t number, char* out) noexcept nogil:
    cdef const replica_t* replica = &replicas.all[number]
    if replica.has_aside:
        sum_values(replicas.itemsize, out, value_of(replica), aside_of(replica), replica.bytes)
    else:
        memcpy(out, value_of(replica), replica.bytes)


cdef void push_replica(replicas_t* replicas, uint32_t number, const char* update, float weight) noexcept nogil:
    # Additions only: deltas of all ranks are combined at the home, in any order (see `change_value` in _store.pyx).
    cdef replica_t* replica = &replicas.all[number]
    if replica.lent:
        put_aside(replicas, replica, update)
    else:
        add_values(replicas.itemsize, value_of(replica), update, replica.bytes)
    note_delta(replicas, number, weight)


cdef inline void note_delta(replicas_t* replicas, uint32_t number, float weight) noexcept nogil:
    cdef replica_t* replica = &replicas.all[number]
    replica.weight.all += weight
    replica.has_delta = True
    replica.has_rest = False
    if not replica.is_changed:
        note_changed(replicas, number)


cdef void fill_replica(replicas_t* replicas, uint32_t number, const char* value) noexcept nogil:
    """Replace the value; updates that were made here and have not come back count as earlier, and are dropped."""
    cdef replica_t* replica = &replicas.all[number]
    if replicas.gradients != NULL:
        replicas.gradients[number].is_there = False
        if replicas.home_gradients != NULL:
            replicas.home_gradients[number].has_total = False
    memcpy(base_of(replica), value, replica.bytes)
    if replica.lent:
        memcpy(mark_of(replica), value_of(replica), replica.bytes)
        follow_base(replicas, replica)
    else:
        memcpy(mark_of(replica), value, replica.bytes)
        memcpy(value_of(replica), value, replica.bytes)
    replica.has_delta = replica.has_rest = replica.has_sum = False
    replica.weight.all = replica.weight.late = 0
    if replica.owed != NULL:
        memset(replica.owed, 0, replica.bytes)


cdef void add_contribution(replicas_t* replicas, uint32_t number, const char* delta, weight_t weight) noexcept nogil:
    """Add the contribution of a rank to the sum at the home."""
    cdef replica_t* replica = &replicas.all[number]
    if replica.growth != NULL:
        note_growth(replica, <const float*>delta, not replica.has_sum)
    if replica.has_sum:
        add_values(replicas.itemsize, replica.sum, delta, replica.bytes)
        replica.contributors += 1
        replica.total_weight.all += weight.all
        replica.total_weight.late += weight.late
    else:
        memcpy(replica.sum, delta, replica.bytes)
        replica.has_sum = True
        replica.contributors = 1
        replica.total_weight = weight
    if not replica.is_collected:
        replica.is_collected = True
        note_collected(replicas, number)


cdef void note_growth(replica_t* replica, const float* delta, bint is_first) noexcept nogil:
    # The second half of a value are AdaGrad's sums of squares.
    cdef size_t i, half = replica.bytes // 8
    cdef const float* before = <const float*>base_of(replica) + half
    if is_first:
        memset(replica.growth, 0, half * sizeof(float))
    for i in range(half):
        replica.growth[i] += root_growth(before[i], delta[half + i])


cdef void rebase_late_steps(replica_t* replica) noexcept nogil:
    """As `rebase_values`, with AdaGrad steps as if the sums of squares had been what the base says now.

    They were made while a round was under way, without the squares that the other ranks had contributed to it.
    """
    cdef size_t i, half = replica.bytes // 8
    cdef float* value = <float*>value_of(replica)
    cdef float* mark = <float*>mark_of(replica)
    cdef const float* base = <const float*>base_of(replica)
    cdef float step, squares, then, now
    for i in range(half):
        step = value[i] - mark[i]
        squares = value[half + i] - mark[half + i]
        then = sqrtf(max(value[half + i], <float>0)) + sqrtf(max(mark[half + i], <float>0))
        now = sqrtf(max(base[half + i] + squares, <float>0)) + sqrtf(max(base[half + i], <float>0))
        if now > then:
            step *= then / now
        value[i] = base[i] + step
        value[half + i] = base[half + i] + squares
    memcpy(mark, base, replica.bytes)


cdef void add_sum(replicas_t* replicas, replica_t* replica, const char* total) noexcept nogil:
    """Add what a home has sent to the base, and compute the value anew.

    It contains everything that this rank has contributed so far; what was pushed since then is the delta. At rest there
    is none, and the value equals the base, which the same additions have made equal on all ranks to the last bit.
    """
    replica.weight.late = replica.weight.all
    add_values(replicas.itemsize, base_of(replica), total, replica.bytes)
    if replica.lent:
        follow_base(replicas, replica)
    elif replica.has_delta and replicas.has_squares:
        rebase_late_steps(replica)
    elif replica.has_delta:
        rebase_values(replicas.itemsize, value_of(replica), mark_of(replica), base_of(replica), replica.bytes)
    elif replica.has_rest:
        rebase_marks(replicas.itemsize, value_of(replica), mark_of(replica), base_of(replica), replica.bytes)
    else:
        memcpy(value_of(replica), base_of(replica), replica.bytes)
        memcpy(mark_of(replica), base_of(replica), replica.bytes)


cdef void read_delta(const replicas_t* replicas, const replica_t* replica, char* seen, char* delta) noexcept nogil:
    """The delta, and the value that it was computed from: borrowers may be changing it."""
    memcpy(seen, value_of(replica), replica.bytes)
    subtract_values(replicas.itemsize, delta, seen, mark_of(replica), replica.bytes)


# Lending ---------------------------------------------------------------------------------------------

cdef char* lend_replica(replicas_t* replicas, uint32_t number, bint shared) noexcept nogil:
    """Lend the value; NULL: it cannot be lent now. What is aside has to reach its value before somebody joins."""
    cdef replica_t* replica = &replicas.all[number]
    if not replicas.can_lend or replica.has_aside or replica.lent >= (LENT_TO_ONE - 1 if shared else 1):
        return NULL
    replica.lent = replica.lent + 1 if shared else LENT_TO_ONE
    return value_of(replica)


cdef bint take_replica_back(replicas_t* replicas, uint32_t number, float weight) noexcept nogil:
    """Take back what was lent; False: it was not. A weight of 0 says that the borrower has not changed it."""
    cdef replica_t* replica = &replicas.all[number]
    if replica.lent == 0:
        return False
    if replica.has_aside:  # the borrower has seen nothing of what came meanwhile
        replica.weight.late += weight
    replica.lent = 0 if replica.lent == LENT_TO_ONE else replica.lent - 1
    if replica.lent == 0 and replica.has_aside:
        add_values(replicas.itemsize, value_of(replica), aside_of(replica), replica.bytes)
        add_values(replicas.itemsize, mark_of(replica), aside_of(replica), replica.bytes)
        replica.has_aside = False
    if weight != 0:
        note_delta(replicas, number, weight)
    return True


cdef void put_aside(replicas_t* replicas, replica_t* replica, const char* update) noexcept nogil:
    """Keep an update for the return; it belongs to the delta at once."""
    if replica.has_aside:
        add_values(replicas.itemsize, aside_of(replica), update, replica.bytes)
    else:
        memcpy(aside_of(replica), update, replica.bytes)
        replica.has_aside = True
    take_from(replicas.itemsize, mark_of(replica), update, replica.bytes)


cdef void follow_base(replicas_t* replicas, replica_t* replica) noexcept nogil:
    """Let value and aside together be the base and the delta. Nothing of this rank is under way to the home."""
    subtract_values(replicas.itemsize, aside_of(replica), base_of(replica), mark_of(replica), replica.bytes)
    replica.has_aside = True


# Lists -----------------------------------------------------------------------------------------------

cdef void note_collected(replicas_t* replicas, uint32_t number) noexcept nogil:
    cdef numbers_t* numbers = &replicas.collected
    take_latch(&replicas.latch)
    numbers.growing[numbers.count] = number
    numbers.count += 1
    drop_latch(&replicas.latch)


cdef void note_changed(replicas_t* replicas, uint32_t number) noexcept nogil:
    """List a replica as changed."""
    cdef replica_t* replica = &replicas.all[number]
    cdef lists_t* lists = replicas.lists
    cdef list_t* changed = &lists.changed[replica.turn]
    replica.is_changed = True
    take_latch_as(&lists.latch, replicas.holder, replicas.watch)
    replicas.following[number] = changed.first
    put32(&changed.first, number + 1)
    changed.count += 1
    put32(&lists.num_changed, lists.num_changed + 1)
    drop_latch(&lists.latch)


cdef uint32_t drain_changed(replicas_t* replicas, int turn) noexcept nogil:
    """Take the list of a turn into `drained`; return how many numbers it has. One thread of the leader at a time."""
    cdef lists_t* lists = replicas.lists
    cdef list_t* changed = &lists.changed[turn]
    cdef uint32_t following, count = 0
    if peek32(&changed.first) == 0:  # most turns of a full round
        return 0
    take_latch_as(&lists.latch, replicas.holder, replicas.watch)
    following = changed.first
    put32(&lists.num_changed, lists.num_changed - changed.count)
    put32(&changed.first, 0)
    changed.count = 0
    drop_latch(&lists.latch)
    while following:  # none is listed anew before `is_changed` is cleared
        replicas.drained[count] = following - 1
        following = replicas.following[following - 1]
        count += 1
    return count


cdef uint32_t drain_collected(replicas_t* replicas) noexcept nogil:
    """Exchange the two lists `collected`; return how many numbers are in the drained one. One thread at a time."""
    cdef numbers_t* numbers = &replicas.collected
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


cdef inline size_t stride_of(size_t size, bint can_lend) noexcept nogil:
    # Addresses of values of one length that are lent are multiples of their size apart.
    return size if can_lend else stride_for(size)


cdef bint make_list(numbers_t* numbers, uint32_t count) noexcept:
    numbers.growing = <uint32_t*>calloc(count + 1, sizeof(uint32_t))
    numbers.drained = <uint32_t*>calloc(count + 1, sizeof(uint32_t))
    return numbers.growing != NULL and numbers.drained != NULL


cdef inline size_t to_pages(size_t size) noexcept nogil:
    return (size + PAGE_BYTES - 1) & ~<size_t>(PAGE_BYTES - 1)


cdef size_t lay_out_replicas(replicas_t* replicas, char* address, const size_t* sizes, uint32_t count,
                             bint has_gradients, bint can_lend) noexcept:
    """Set the addresses of what ranks share within a segment of zeros; return its size. All ranks do this alike."""
    cdef size_t at = SEGMENT_HEAD
    cdef uint32_t i
    replicas.count = count
    replicas.can_lend = can_lend
    replicas.lists = <lists_t*>(address + at)
    at += (sizeof(lists_t) + 63) & ~<size_t>63
    replicas.rounds = address + at
    at = to_pages(at + ROUNDS_BYTES)
    replicas.following = <uint32_t*>(address + at)
    at = to_pages(at + count * sizeof(uint32_t))
    replicas.all = <replica_t*>(address + at)
    at = to_pages(at + count * sizeof(replica_t))
    for i in range(count):
        at += vectors_of(can_lend) * stride_of(sizes[i], can_lend)
    replicas.gradients = NULL
    if has_gradients:
        at = to_pages(at)
        replicas.gradients = <replica_gradient_t*>(address + at)
        at = to_pages(at + count * sizeof(replica_gradient_t))
        for i in range(count):
            at += stride_of(sizes[i], can_lend)
    return at


cdef int make_replicas(replicas_t* replicas, const key_t* keys, const size_t* sizes, const uint8_t* is_home) noexcept:
    """The leader's part: make replicas of zeros and level 0 where they were laid out, and the vectors of homes.

    After NO_MEMORY call `free_replicas` as well.
    """
    cdef uint32_t i
    cdef char* vectors = <char*>replicas.all + to_pages(replicas.count * sizeof(replica_t))
    cdef char* at
    cdef replica_t* replica
    replicas.drained = <uint32_t*>calloc(replicas.count + 1, sizeof(uint32_t))
    if replicas.drained == NULL or not make_list(&replicas.collected, replicas.count):
        return NO_MEMORY
    for i in range(replicas.count):
        replica = &replicas.all[i]
        replica.key = keys[i]
        replica.bytes = sizes[i]
        replica.stride = stride_of(sizes[i], replicas.can_lend)
        replica.at = vectors - <char*>replica
        vectors += vectors_of(replicas.can_lend) * replica.stride
        replicas.homes += is_home[i]
        replicas.reserved += replica.stride * is_home[i]
    if replicas.homes == 0:
        return OK
    at = replicas.sums = <char*>reserve(replicas.reserved)
    if at == NULL:
        return NO_MEMORY
    for i in range(replicas.count):
        if is_home[i]:
            replicas.all[i].sum = at
            at += replicas.all[i].stride
    return OK


cdef int make_gradients(replicas_t* replicas, const size_t* state_bytes, const uint8_t* is_home) noexcept:
    """The leader's part, after `make_replicas`: where gradients are summed, and what homes need for their steps."""
    cdef size_t at = to_pages(replicas.count * sizeof(replica_gradient_t))
    cdef uint32_t i
    cdef replica_t* replica
    cdef home_gradient_t* home
    cdef char* vector
    replicas.home_gradients = <home_gradient_t*>calloc(replicas.count, sizeof(home_gradient_t))
    if replicas.home_gradients == NULL:
        return NO_MEMORY
    for i in range(replicas.count):
        replica = &replicas.all[i]
        replicas.gradients[i].at = at - i * sizeof(replica_gradient_t)
        at += replica.stride
        if is_home[i]:
            replicas.home_reserved += 2 * replica.stride + stride_for(state_bytes[i])
    if replicas.home_reserved == 0:
        return OK
    vector = replicas.home_vectors = <char*>reserve(replicas.home_reserved)
    if vector == NULL:
        return NO_MEMORY
    for i in range(replicas.count):
        if is_home[i]:
            replica = &replicas.all[i]
            home = &replicas.home_gradients[i]
            home.total = vector
            home.stepped = home.total + replica.stride
            home.state = home.stepped + replica.stride
            home.state_bytes = state_bytes[i]
            vector = home.state + stride_for(state_bytes[i])
    return OK


cdef void set_levels(replicas_t* replicas, const uint8_t* levels) noexcept:
    """Give each replica a level, before anything is pushed."""
    cdef uint32_t i
    for i in range(replicas.count):
        replicas.all[i].level = levels[i]
        replicas.all[i].turn = <uint16_t>(first_turn(levels[i]) + i % turns_of(levels[i]))


cdef int add_home_vectors(replicas_t* replicas, bint owed, bint growth) noexcept:
    """Allocate `owed` and `growth` for the replicas whose home is here, before anything is pushed."""
    cdef uint32_t i
    cdef float* at
    cdef replica_t* replica
    replicas.has_squares = growth
    for i in range(replicas.count):
        if replicas.all[i].sum != NULL:
            replicas.more_reserved += replicas.all[i].stride * (owed + growth)
    if replicas.more_reserved == 0:
        return OK
    at = replicas.more_vectors = <float*>reserve(replicas.more_reserved)
    if at == NULL:
        return NO_MEMORY
    for i in range(replicas.count):
        replica = &replicas.all[i]
        if replica.sum != NULL and owed:
            replica.owed = at
            at += replica.stride // sizeof(float)
        if replica.sum != NULL and growth:
            replica.growth = at
            at += replica.stride // sizeof(float)
    return OK


cdef void free_replicas(replicas_t* replicas) noexcept:
    if replicas.sums != NULL:
        release(replicas.sums, replicas.reserved)
    if replicas.more_vectors != NULL:
        release(replicas.more_vectors, replicas.more_reserved)
    if replicas.home_vectors != NULL:
        release(replicas.home_vectors, replicas.home_reserved)
    free(replicas.home_gradients)
    free(replicas.drained)
    free(replicas.collected.growing)
    free(replicas.collected.drained)
    memset(replicas, 0, sizeof(replicas_t))
