"""Floor 2. The rounds in which replicas come to agree: contributions to homes, what they come to back to all ranks."""

from libc.math cimport isfinite
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lapse._store cimport entry_t, is_leader, lock_entry, slab_for, store_t, unlock_entry
from lapse.base._bfloat16 cimport round_to_bfloat16, widen_bfloat16
from lapse.base._counting cimport add_to
from lapse.base._sync cimport (drop_latch, fence, fetch_add, load, load32, peek, peek32, store as atomic_store,
                               store32, swap32, take_latch_as, try_latch_as)
from lapse.base._types cimport NO_MEMORY, OK
from lapse.base._values cimport add_values, norm_of, prefetch, scale_value, subtract_values
from lapse.messaging._operations cimport ring_worker_slot
from lapse.messaging._messages cimport sum_head_t
from lapse.messaging._senders cimport (send_delta, send_gradient_delta, send_round_end, send_round_news, send_sum,
                                       send_sums_end)
from lapse.protocol._combining cimport combine, free_combining, gather, renew_curvatures_if_due
from lapse.protocol._prefetch cimport REPLICAS_AHEAD, VALUES_AHEAD
from lapse.storage._replica_gradients cimport (collect_gradient, gradient_of, has_collected_gradient, has_gradient,
                                               step_at_home)
from lapse.storage._replicas cimport (NUM_LEVELS, NUM_TURNS, ROUNDS_BYTES, add_contribution, add_sum, drain_changed,
                                      drain_collected, first_turn, mark_of, note_changed, prefetch_replica,
                                      prefetch_vectors, read_delta, replica_gradient_t, turns_of, weight_t)

cdef enum:
    NORMS_BEFORE_CLIPPING = 1000

assert sizeof(common_t) <= ROUNDS_BYTES


cdef inline void lock_rounds(rounds_t* self) noexcept nogil:
    take_latch_as(&self.common.latch, self.state.store.holder, self.state.store.watch)


cdef inline void unlock_rounds(rounds_t* self) noexcept nogil:
    drop_latch(&self.common.latch)


# Values on the wire -----------------------------------------------------------------------------------

cdef inline size_t short_bytes(const replica_t* replica) noexcept nogil:
    # two for each float, and at a multiple of 4 bytes
    return (replica.bytes // 2 + 3) & ~<size_t>3


cdef size_t delta_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil:
    """The size of a contribution in a message: its weight, if there is one, and the value."""
    return (sizeof(weight_t) if self.has_weights else 0) + value_bytes(self, replica)


cdef size_t sum_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil:
    """The size of a sum in a message: its whole weight, if there is one, and the value."""
    return (sizeof(float) if self.has_weights else 0) + value_bytes(self, replica)


cdef inline size_t value_bytes(const rounds_t* self, const replica_t* replica) noexcept nogil:
    return short_bytes(replica) if self.is_short else replica.bytes


cdef inline void write_delta(rounds_t* self, const replica_t* replica) noexcept nogil:
    """Write the delta as it travels; what rounding keeps back is left of it."""
    cdef char* at = self.wire
    if self.has_weights:
        memcpy(at, &replica.weight, sizeof(weight_t))
        at += sizeof(weight_t)
    if self.is_short:
        round_value(<float*>self.delta, at, replica)
    else:
        memcpy(at, self.delta, replica.bytes)


cdef inline const char* write_sum(rounds_t* self, replica_t* replica) noexcept nogil:
    """The sum as it travels. What rounding keeps back is left in `owed`, and the sum is what others will read."""
    cdef char* at = self.wire
    if not self.has_weights and not self.is_short:
        return replica.sum
    if self.has_weights:
        memcpy(at, &replica.total_weight.all, sizeof(float))
        at += sizeof(float)
    if self.is_short:
        add_values(self.state.store.itemsize, <char*>replica.owed, replica.sum, replica.bytes)
        round_value(replica.owed, at, replica)
        widen_bfloat16(<const uint16_t*>at, <float*>replica.sum, replica.bytes // sizeof(float))
    else:
        memcpy(at, replica.sum, replica.bytes)
    return self.wire


cdef inline void round_value(float* value, char* at, const replica_t* replica) noexcept nogil:
    cdef size_t count = replica.bytes // sizeof(float)
    if count % 2:
        (<uint16_t*>at)[count] = 0
    round_to_bfloat16(value, <uint16_t*>at, value, count)


cdef inline const char* read_value(rounds_t* self, const replica_t* replica, const char* wire,
                                   char* widened) noexcept nogil:
    if not self.is_short:
        return wire
    widen_bfloat16(<const uint16_t*>wire, <float*>widened, replica.bytes // sizeof(float))
    return widened


cdef void take_contribution(rounds_t* self, uint32_t number, const char* wire) noexcept nogil:
    """Add what a rank has contributed to a sum of this home. Under the key's latch."""
    cdef replica_t* replica = replica_at(self.state.store, number)
    cdef weight_t weight = weight_t(0, 0)
    if self.has_weights:
        memcpy(&weight, wire, sizeof(weight_t))
        wire += sizeof(weight_t)
    add_contribution(&self.state.store.replicas, number, read_value(self, replica, wire, self.widened), weight)


cdef void take_sum(rounds_t* self, uint32_t number, const char* wire) noexcept nogil:
    """Add what a home has sent. Under the key's latch."""
    cdef replica_t* replica = replica_at(self.state.store, number)
    cdef float weight
    if self.has_weights:
        memcpy(&weight, wire, sizeof(float))
        wire += sizeof(float)
        gather(&self.combining, replica, number, weight)
    add_sum(&self.state.store.replicas, replica, read_value(self, replica, wire, self.widened))


# Contributions of this rank, and of those that share its memory ------------------------------------------------

cdef double factor_for(rounds_t* self, double norm) noexcept nogil:
    """By what a delta is scaled before it is sent; `norm` is only needed for clipping."""
    cdef double factor = 1.0
    cdef double limit
    if load32(&self.common.in_setup):
        return factor
    if self.clip > 0:
        limit = self.clip * self.norm_total / self.norms if self.norms >= NORMS_BEFORE_CLIPPING else 0.0
        if isfinite(norm):  # one that overflowed would end clipping for good
            self.norms += 1
            self.norm_total += norm
        if limit > 0 and norm > limit:
            factor = limit / norm
    if self.average:
        factor /= self.num_peers + 1
    return factor


cdef int contribute(rounds_t* self, uint32_t number, bint is_full) noexcept nogil:
    """Send the delta of one key to its home. Under the key's latch.

    A delta is the sum of what was pushed: replication assumes that pushes are additions. Another `change_value` needs
    a delta from which the home can still compute what all these pushes do to the value.
    """
    cdef store_t* store = self.state.store
    cdef replica_t* replica = replica_at(store, number)
    cdef int32_t home = store.entries[replica.key].route
    cdef double norm = 0.0, factor
    read_delta(&store.replicas, replica, self.seen, self.delta)
    if self.threshold > 0 or self.clip > 0:
        norm = norm_of(store.itemsize, self.delta, replica.bytes)
        if norm < self.threshold and not is_full:
            note_changed(&store.replicas, number)
            return OK
    factor = factor_for(self, norm)
    if factor != 1.0:
        scale_value(store.itemsize, self.delta, factor, replica.bytes)
    if home == self.state.rank:
        add_contribution(&store.replicas, number, self.delta, replica.weight)
    else:
        write_delta(self, replica)
        if send_delta(&self.state.outboxes[home], self.state.rank, replica.key, replica.epoch, self.wire,
                      delta_bytes(self, replica)) != OK:
            note_changed(&store.replicas, number)
            return NO_MEMORY
        add_to(&self.keys_sent, 1)
    note_contributed(self, replica, home != self.state.rank)
    return OK


cdef inline void note_contributed(rounds_t* self, replica_t* replica, bint has_travelled) noexcept nogil:
    """What is left of the delta is what was pushed since it was read, and what rounding has kept back."""
    replica.has_rest = has_travelled and self.is_short
    if replica.has_rest:
        subtract_values(self.state.store.itemsize, mark_of(replica), self.seen, self.delta, replica.bytes)
    else:
        memcpy(mark_of(replica), self.seen, replica.bytes)
    replica.has_delta = False
    replica.weight.all = replica.weight.late = 0
    self.contributed += 1


cdef int contribute_gradient(rounds_t* self, uint32_t number) noexcept nogil:
    """Send the gradients of one key to its home, as they are: the home scales their sum. Under the key's latch."""
    cdef store_t* store = self.state.store
    cdef replica_t* replica = replica_at(store, number)
    cdef replica_gradient_t* own = &store.replicas.gradients[number]
    cdef int32_t home = store.entries[replica.key].route
    cdef sum_head_t head
    if home == self.state.rank:
        collect_gradient(&store.replicas, number, gradient_of(&store.replicas, number), own.rates, own.calls, own.step)
    else:
        head.rates, head.calls, head.step = own.rates, own.calls, own.step
        if send_gradient_delta(&self.state.outboxes[home], self.state.rank, replica.key, replica.epoch, head,
                               gradient_of(&store.replicas, number), replica.bytes) != OK:
            note_changed(&store.replicas, number)
            return NO_MEMORY
        self.keys_sent += 1
    own.is_there = False
    self.contributed += 1
    return OK


cdef void take_gradient(rounds_t* self, uint32_t number, const char* wire) noexcept nogil:
    """Add what a rank has contributed to the gradients of this home. Under the key's latch."""
    cdef sum_head_t head
    memcpy(&head, wire, sizeof(head))
    collect_gradient(&self.state.store.replicas, number, wire + sizeof(head), head.rates, head.calls,
                     <uint32_t>head.step)


cdef inline void look_along(store_t* store, const uint32_t* numbers, uint32_t i, uint32_t count) noexcept nogil:
    """Fetch ahead the replicas of a list, their vectors and the entries of their keys."""
    cdef replica_t* replica
    if i + REPLICAS_AHEAD < count:
        prefetch_replica(replica_at(store, numbers[i + REPLICAS_AHEAD]))
    if i + VALUES_AHEAD < count:
        replica = replica_at(store, numbers[i + VALUES_AHEAD])
        prefetch(&store.entries[replica.key])
        prefetch_vectors(replica)
        if replica.sum != NULL:
            prefetch(replica.sum)
            if replica.growth != NULL:
                prefetch(replica.growth)


cdef int send_turn(rounds_t* self, int turn, bint is_full) noexcept nogil:
    """Send the deltas of the keys that have the same turn."""
    cdef store_t* store = self.state.store
    cdef uint32_t i, number, count = drain_changed(&store.replicas, turn)
    cdef int status = OK
    cdef replica_t* replica
    cdef entry_t* entry
    for i in range(count):
        number = store.replicas.drained[i]
        look_along(store, store.replicas.drained, i, count)
        replica = replica_at(store, number)
        entry = &store.entries[replica.key]
        lock_entry(store, entry)
        replica.is_changed = False
        if status != OK:
            note_changed(&store.replicas, number)
        if replica.has_delta and status == OK:
            status = contribute(self, number, is_full)
        if has_gradient(&store.replicas, number) and status == OK:
            status = contribute_gradient(self, number)
        unlock_entry(entry)
    return status


cdef int send_all_turns(rounds_t* self) noexcept nogil:
    cdef int turn
    cdef int status = OK
    for turn in range(NUM_TURNS):
        if status == OK:
            status = send_turn(self, turn, True)
    return status


cdef int send_due_turns(rounds_t* self) noexcept nogil:
    """Send the deltas of the keys whose turn it is: of each level one turn, at most."""
    cdef int64_t begun = self.common.begun
    cdef int64_t period, spacing
    cdef int level
    cdef int status = OK
    for level in range(NUM_LEVELS):
        period = <int64_t>1 << level
        spacing = period // turns_of(level)
        if status == OK and begun % spacing == 0:
            status = send_turn(self, first_turn(level) + <int>(begun % period // spacing), False)
    return status


cdef inline void wake_own(rounds_t* self) noexcept nogil:
    cdef int32_t i
    if load32(waiting_here(self)):
        for i in range(self.state.num_worker_slots):
            ring_worker_slot(&self.state.worker_slots[i])


cdef int wake_waiting(rounds_t* self) noexcept nogil:
    """Something has changed for those who wait for rounds, here and on the ranks that share memory."""
    cdef int32_t i
    cdef int status = OK
    fence()
    wake_own(self)
    for i in range(1, self.num_members):
        if status == OK and load32(&self.common.waiting[i]):
            status = send_round_news(&self.state.outboxes[self.members[i]], self.state.rank)
    return status


cdef int begin_round(rounds_t* self) noexcept nogil:
    """Send this rank's contributions, and tell all ranks that these were all.

    Under the latch of rounds, by the leader, and only when the last round is complete.
    """
    cdef common_t* common = self.common
    cdef int32_t i
    cdef int status
    cdef bint is_full
    atomic_store(&common.unreturned, self.num_peers + 2)
    fetch_add(&common.begun, 1)
    atomic_store(&common.pending, 0)
    is_full = load32(&common.in_setup) or load(&common.full) >= common.begun
    self.contributed = 0
    status = send_all_turns(self) if is_full else send_due_turns(self)
    add_to(&self.rounds, self.contributed > 0)
    for i in range(self.num_peers):
        if status == OK:
            status = send_round_end(&self.state.outboxes[self.peers[i]], self.state.rank, is_full)
    if status == OK:
        status = hear_end(self)
    fetch_add(&common.unreturned, -1)
    return status if status != OK else wake_waiting(self)


cdef inline bint is_round_wanted(common_t* common) noexcept nogil:
    cdef int64_t most = peek(&common.max_pending)  # it may change
    fence()  # a thread that adds to `pending` reads `unreturned` afterwards, and vice versa: one of them sees both
    return load(&common.unreturned) == 0 and (
        load(&common.wanted) > load(&common.begun)
        or (most and load(&common.pending) >= most))


cdef inline bint is_round_due(common_t* common) noexcept nogil:
    return is_round_wanted(common) or (load(&common.unreturned) == 0 and is_behind(common))


cdef int tell_leader_if_due(rounds_t* self) noexcept nogil:
    """Let the leader look whether a round is due. One message is enough until it has looked."""
    cdef int status
    if not is_round_wanted(self.common) or swap32(&self.common.is_told, 1):
        return OK
    status = send_round_news(&self.state.outboxes[self.leader], self.state.rank)
    store32(&self.has_news, 1)
    return status


cdef int begin_round_if_due(rounds_t* self) noexcept nogil:
    """Begin a round if the last one is complete, and enough was pushed here since, or others have begun or want one."""
    cdef int status = OK
    if not self.is_leader:
        return tell_leader_if_due(self)
    while status == OK and is_round_due(self.common):
        lock_rounds(self)
        if is_round_due(self.common):
            status = begin_round(self)
        unlock_rounds(self)
    return status


cdef int on_round_news(rounds_t* self) noexcept nogil:
    """A rank that shares memory has seen that a round is due, or the leader has news for workers that wait."""
    if not self.is_leader:
        wake_own(self)
        return OK
    store32(&self.common.is_told, 0)
    fence()  # what is pushed after this look is told anew
    return begin_round_if_due(self)


cdef int note_pushes(rounds_t* self, int64_t count) noexcept nogil:
    """Count key positions pushed to replicas here."""
    fetch_add(&self.common.pending, count)
    return begin_round_if_due(self)


cdef int request_sync(rounds_t* self, int64_t* last_round) noexcept nogil:
    """Ask for a round that leaves no delta behind, and one more.

    When all ranks have ended the second one, `last_round`, the sums of the first are in place on all of them: until
    then a rank begins none.
    """
    cdef common_t* common = self.common
    lock_rounds(self)
    last_round[0] = common.begun + 2
    atomic_store(&common.full, max(load(&common.full), last_round[0] - 1))
    atomic_store(&common.wanted, max(load(&common.wanted), last_round[0]))
    unlock_rounds(self)
    return begin_round_if_due(self)


cdef int tick(rounds_t* self, int64_t time) noexcept nogil:
    """Begin a round that is due, by time or for other reasons."""
    cdef common_t* common = self.common
    cdef int64_t interval = peek(&common.interval)
    cdef bint is_due = interval and time >= self.next_round
    cdef int status = OK
    if not self.is_leader or self.state.store.replicas.count == 0:
        return OK
    if interval and (self.known != load(&common.begun) or self.next_round == 0):
        self.known = load(&common.begun)  # whoever began it: ranks whose clocks differ begin together
        self.next_round = time + interval
        is_due = False
    if is_due:
        self.next_round = time + interval
        is_due = peek32(&self.state.store.replicas.lists.num_changed) > 0
    if not is_due and not is_round_due(common) or not try_latch_as(&common.latch, self.state.store.holder):
        return OK
    if load(&common.unreturned) == 0 and (is_due or is_round_due(common)):
        status = begin_round(self)
    unlock_rounds(self)
    return status


# Sums of this home ------------------------------------------------------------------------------------

cdef int hear_end(rounds_t* self) noexcept nogil:
    """A rank has ended the round behind `summed`. Under the latch of rounds."""
    cdef common_t* common = self.common
    cdef int32_t i
    cdef int status
    fetch_add(&common.ended, 1)
    if load(&common.ended) <= self.num_peers:
        return OK
    status = send_sums(self)
    atomic_store(&common.ended, 0)
    fetch_add(&common.summed, 1)
    for i in range(self.num_peers):
        if status == OK:
            status = send_sums_end(&self.state.outboxes[self.peers[i]], self.state.rank)
    fetch_add(&common.unreturned, -1)
    return status if status != OK else wake_waiting(self)


cdef int send_sums(rounds_t* self) noexcept nogil:
    """Combine what was collected, take the steps, and send what comes of it to all ranks. Under the latch of rounds."""
    cdef store_t* store = self.state.store
    cdef uint32_t i, count = drain_collected(&store.replicas)
    cdef uint32_t* numbers = store.replicas.collected.drained
    cdef int status = OK
    cdef replica_t* replica
    cdef entry_t* entry
    for i in range(count):
        replica = replica_at(store, numbers[i])
        gather(&self.combining, replica, numbers[i], replica.total_weight.all)
    renew_curvatures_if_due(&self.combining, store, count > 0)
    for i in range(count):
        look_along(store, numbers, i, count)
        replica = replica_at(store, numbers[i])
        entry = &store.entries[replica.key]
        lock_entry(store, entry)
        replica.is_collected = False
        if status == OK and has_collected_gradient(&store.replicas, numbers[i]):
            step_at_home(&store.replicas, numbers[i], slab_for(store, replica.key), step_factor(self))
        if replica.has_sum and status == OK:
            status = send_sum_of(self, replica, numbers[i])
        unlock_entry(entry)
    return status


cdef inline double step_factor(const rounds_t* self) noexcept nogil:
    return 1.0 / (self.num_peers + 1) if self.average and not self.common.in_setup else 1.0


cdef int send_sum_of(rounds_t* self, replica_t* replica, uint32_t number) noexcept nogil:
    # Under the key's latch: the sums of one key reach every rank in the order in which this home applies them.
    cdef store_t* store = self.state.store
    cdef const char* wire
    cdef int32_t i
    combine(&self.combining, store, replica, number)
    wire = write_sum(self, replica)
    for i in range(self.num_peers):
        if send_sum(&self.state.outboxes[self.peers[i]], self.state.rank, replica.key, wire,
                    sum_bytes(self, replica)) != OK:
            return NO_MEMORY
        add_to(&self.keys_sent, 1)
    replica.has_sum = False
    add_sum(&store.replicas, replica, replica.sum)
    return OK


cdef int on_round_end(rounds_t* self, bint is_full) noexcept nogil:
    """Another rank has ended a round; this one joins it, as soon as its last one is complete."""
    cdef common_t* common = self.common
    cdef int status
    lock_rounds(self)
    if is_full:
        atomic_store(&common.full, max(load(&common.full), load(&common.summed) + 1))
    status = hear_end(self)
    unlock_rounds(self)
    return status if status != OK else begin_round_if_due(self)


cdef int on_sums_end(rounds_t* self) noexcept nogil:
    """A home has sent all its sums of the round that is under way here."""
    cdef int status = OK
    if fetch_add(&self.common.unreturned, -1) == 1:
        status = wake_waiting(self)
    return status if status != OK else begin_round_if_due(self)


# Memory -----------------------------------------------------------------------------------------------------

cdef int prepare_rounds(rounds_t* self, rank_t* state) noexcept:
    """Allocate what a zeroed state needs. After NO_MEMORY the caller calls `free_rounds` as well."""
    cdef size_t longest = state.store.slabs[state.store.num_slabs - 1].row_bytes  # they are ordered by length
    cdef size_t most = sizeof(weight_t) + longest + 4
    self.state = state
    self.common = &self.alone
    if state.store.replicas.count:
        self.common = <common_t*>state.store.replicas.rounds
    self.wire = <char*>malloc(most)
    self.widened = <char*>malloc(most)
    self.seen = <char*>malloc(most)
    self.delta = <char*>malloc(most)
    self.peers = <int32_t*>calloc(state.size, sizeof(int32_t))
    self.members = <int32_t*>calloc(state.size, sizeof(int32_t))
    if (self.wire == NULL or self.widened == NULL or self.seen == NULL or self.delta == NULL or self.peers == NULL
            or self.members == NULL):
        return NO_MEMORY
    note_ranks(self)
    return OK


cdef void note_ranks(rounds_t* self) noexcept:
    """Who takes part in rounds, and who shares memory with this rank."""
    cdef const store_t* store = self.state.store
    cdef int32_t rank, leader
    self.leader = store.leaders[store.rank]
    self.is_leader = is_leader(store)
    for rank in range(store.size):
        leader = store.leaders[rank]
        if rank == store.rank:
            self.place = self.num_members
        if leader == self.leader:
            self.members[self.num_members] = rank
            self.num_members += 1
        elif leader == rank:
            self.peers[self.num_peers] = rank
            self.num_peers += 1


cdef void free_rounds(rounds_t* self) noexcept:
    free_combining(&self.combining)
    free(self.wire)
    free(self.widened)
    free(self.seen)
    free(self.delta)
    free(self.peers)
    free(self.members)
