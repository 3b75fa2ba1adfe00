"""Floor 2. How replicas on different ranks come to agree: what a rank does in a round and on each message."""

from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from lapse.messaging._flow cimport acquire_credits, release_credits
from lapse.messaging._messages cimport (APPLIED, DELTA, FENCE, MARK, REPLACE, ROUND_END, SUM, contains_contribution,
                                        epoch_of, frame_t, header_t, positions_of, record_t, value_behind)
from lapse.messaging._operations cimport ring_worker_slot
from lapse.messaging._senders cimport (send_applied, send_delta, send_fence, send_mark, send_replace, send_request,
                                       send_round_end, send_sum)
from lapse.storage._replicas cimport (add_contribution, add_sum, delta_of, drain, fill_replica, note_changed,
                                      push_replica, read_replica, replica_t)
from lapse.protocol._pending_acks cimport (acknowledge, close_pending_acks, free_pending_acks, open_pending_acks,
                                           pending_acks_t)
from lapse.protocol._rank cimport amount_of, header_of, output_of, protocol_error, rank_t
from lapse._store cimport REPLICATED, entry_t, lock_entry, store_t, unlock_entry, value_bytes
from lapse.base._sync cimport drop_latch, fence, fetch_add, load, load32, store as atomic_store, take_latch, try_latch
from lapse.base._types cimport NO_MEMORY, OK, PULL, PUSH, SET, key_t, operation_t
from lapse.base._values cimport norm_of, scale_value

cdef enum:
    NORMS_BEFORE_CLIPPING = 1000

cdef int64_t MILLISECOND = 1000000
# A home sends its sums when every rank has ended its next round, so that one sum contains what all
# contributed. A rank that others are ahead of ends a round as well: at once if nothing was pushed,
# else after the first time. After the second a home waits no longer for a rank that does not answer.
cdef int64_t JOIN_AFTER = 4 * MILLISECOND
cdef int64_t SEND_AFTER = 30 * MILLISECOND


cdef inline replica_t* replica_at(const store_t* store, uint32_t number) noexcept nogil:
    return &store.replicas.all[number]


# Contributions of this rank ---------------------------------------------------------------------------

cdef void came_back(replication_t* self) noexcept nogil:
    fetch_add(&self.awaited, -1)


cdef double factor_for(replication_t* self, double norm) noexcept nogil:
    """By what a delta is scaled before it is sent; `norm` is only needed for clipping."""
    cdef double factor = 1.0
    cdef double limit
    if self.in_setup:
        return factor
    if self.clip > 0:
        limit = self.clip * self.norm_total / self.norms if self.norms >= NORMS_BEFORE_CLIPPING else 0.0
        if isfinite(norm):  # one that overflowed would end clipping for good
            self.norms += 1
            self.norm_total += norm
        if limit > 0 and norm > limit:
            factor = limit / norm
    if self.average:
        factor /= self.state.size
    return factor


cdef int contribute(replication_t* self, uint32_t number, bint whatever_size) noexcept nogil:
    """Send the delta of one key to its home. Under the key's latch.

    A delta is the sum of what was pushed: replication assumes that pushes are additions. Another `change_value` needs
    a delta from which the home can still compute what all these pushes do to the value.
    """
    cdef store_t* store = self.state.store
    cdef replica_t* replica = replica_at(store, number)
    cdef entry_t* entry = &store.entries[replica.key]
    cdef char* delta = delta_of(replica)
    cdef double norm = 0.0, factor
    if self.threshold > 0 or self.clip > 0:
        norm = norm_of(store.itemsize, delta, replica.bytes)
        if norm < self.threshold and not whatever_size:
            note_changed(&store.replicas, number)
            return OK
    factor = factor_for(self, norm)
    if factor != 1.0:
        scale_value(store.itemsize, delta, factor, replica.bytes)
    if entry.route == self.state.rank:
        add_contribution(&store.replicas, number, self.state.rank, delta)
    else:
        if send_delta(&self.state.outboxes[entry.route], self.state.rank, replica.key, replica.epoch, delta,
                      replica.bytes) != OK:
            note_changed(&store.replicas, number)
            return NO_MEMORY
        self.keys_sent += 1
    fetch_add(&self.awaited, 1)
    replica.has_delta = False
    replica.is_awaited = True
    return OK


cdef int send_deltas(replication_t* self, bint whatever_size) noexcept nogil:
    cdef store_t* store = self.state.store
    cdef uint32_t i, count = drain(&store.replicas, &store.replicas.changed)
    cdef int status = OK
    cdef replica_t* replica
    cdef entry_t* entry
    for i in range(count):
        replica = replica_at(store, store.replicas.changed.drained[i])
        entry = &store.entries[replica.key]
        lock_entry(store, entry)
        replica.is_changed = False
        if replica.has_delta and status == OK:
            status = contribute(self, store.replicas.changed.drained[i], whatever_size)
        elif replica.has_delta:
            note_changed(&store.replicas, store.replicas.changed.drained[i])
        unlock_entry(entry)
    return status


cdef void reset_pending(replication_t* self) noexcept nogil:
    """Restart the count of pushes, and wake the workers that wait for that."""
    cdef int32_t i
    atomic_store(&self.pending, 0)
    fence()
    if load32(&self.waiting):
        for i in range(self.state.num_worker_slots):
            ring_worker_slot(&self.state.worker_slots[i])


cdef int begin_round(replication_t* self, bint whatever_size) noexcept nogil:
    """Send this rank's deltas to their homes.

    Under the latch of rounds, and only when every contribution of the last round has come back: one of a rank and
    key at a time is under way, so that a sum contains it or not.
    """
    cdef int status
    reset_pending(self)
    atomic_store(&self.awaited, 1)
    whatever_size = whatever_size or self.in_setup or self.is_full_wanted
    if whatever_size or self.threshold == 0:
        fetch_add(&self.full_rounds, 1)  # first: a wait that reads the number from now on is not covered by this round
        self.is_full_wanted = False
    status = send_deltas(self, whatever_size)
    if load(&self.awaited) > 1:
        self.rounds += 1
    if status == OK:
        status = end_round(self)
    came_back(self)
    return status


cdef int end_round(replication_t* self) noexcept nogil:
    cdef int32_t to
    for to in range(self.state.size):
        if to != self.state.rank and send_round_end(&self.state.outboxes[to], self.state.rank) != OK:
            return NO_MEMORY
    return hear_end(self, self.state.rank)


cdef inline bint is_round_due(replication_t* self) noexcept nogil:
    fence()  # a thread that adds to `pending` reads `awaited` afterwards, and vice versa: one of them sees both
    if load(&self.awaited):
        return False
    if self.max_pending and load(&self.pending):
        return load(&self.pending) >= self.max_pending
    return is_behind(self) and not load(&self.pending)


cdef int begin_round_if_due(replication_t* self) noexcept nogil:
    """Begin a round if the last one is complete and enough was pushed here since; or nothing, and others wait."""
    cdef int status = OK
    while status == OK and is_round_due(self):
        take_latch(&self.latch)
        if is_round_due(self):
            status = begin_round(self, False)
        drop_latch(&self.latch)
    return status


cdef int note_pushes(replication_t* self, int64_t count) noexcept nogil:
    """Count key positions pushed to replicas here."""
    fetch_add(&self.pending, count)
    return begin_round_if_due(self)


# Sums of this home ------------------------------------------------------------------------------------

cdef inline void take_in(replication_t* self, store_t* store, replica_t* replica, bint contains_mine,
                         const char* total) noexcept nogil:
    # under the key's latch
    if contains_mine and replica.is_awaited:
        replica.is_awaited = False
        came_back(self)
    add_sum(&store.replicas, replica, total)


cdef int send_sum_of(replication_t* self, replica_t* replica) noexcept nogil:
    # Under the key's latch: the sums of one key reach every rank in the order in which this home applies them.
    cdef store_t* store = self.state.store
    cdef int32_t to
    for to in range(self.state.size):
        if to == self.state.rank:
            continue
        if send_sum(&self.state.outboxes[to], self.state.rank, replica.key, replica.contained[to], replica.sum,
                    replica.bytes) != OK:
            return NO_MEMORY
        replica.contained[to] = False
        self.keys_sent += 1
    replica.has_sum = False
    take_in(self, store, replica, replica.contained[self.state.rank], replica.sum)
    replica.contained[self.state.rank] = False
    return OK


cdef int hear_end(replication_t* self, int32_t rank) noexcept nogil:
    """A rank has ended a round. Under the latch of rounds."""
    cdef int32_t i
    self.ends[rank] += 1
    self.most_ends = max(self.most_ends, self.ends[rank])
    self.heard += self.ends[rank] == self.complete + 1
    if self.heard < self.state.size:
        return OK
    self.complete += 1
    self.heard = 0
    for i in range(self.state.size):
        self.heard += self.ends[i] > self.complete
    return send_sums(self)


cdef int send_sums(replication_t* self) noexcept nogil:
    """Send what was collected to all ranks. Under the latch of rounds."""
    cdef store_t* store = self.state.store
    cdef uint32_t i, count
    cdef int status = OK
    cdef replica_t* replica
    cdef entry_t* entry
    self.waiting_since = 0
    count = drain(&store.replicas, &store.replicas.collected)
    for i in range(count):
        replica = replica_at(store, store.replicas.collected.drained[i])
        entry = &store.entries[replica.key]
        lock_entry(store, entry)
        replica.is_collected = False
        if replica.has_sum and status == OK:
            status = send_sum_of(self, replica)
        unlock_entry(entry)
    return status


# What all ranks have to apply before a request is answered -----------------------------------------------

cdef int ask_replica(replication_t* self, operation_t* operation, key_t key, uint32_t position,
                     const char* given, int64_t* done) noexcept nogil:
    """Carry out one key of a pull, push or set. The home orders sets; all ranks have to apply one before it is done."""
    cdef rank_t* state = self.state
    cdef entry_t* entry = &state.store.entries[key]
    cdef int status = OK
    if operation.kind == SET and entry.route != state.rank:
        return ask_home(state, operation, key, position, entry.route, given)
    lock_entry(state.store, entry)
    if operation.kind == PULL:
        read_replica(replica_at(state.store, entry.slot), output_of(state, operation, position))
        done[0] += 1
    elif operation.kind == PUSH:
        push_replica(&state.store.replicas, entry.slot, given)
        done[0] += 1
    else:
        status = set_at_home(self, operation, entry, given)
    unlock_entry(entry)
    return status


cdef int ask_home(rank_t* state, operation_t* operation, key_t key, uint32_t position, int32_t home,
                  const char* given) noexcept nogil:
    # No latch: the route of a replicated key is its home, for good.
    cdef int status
    acquire_credits(&state.flow, home, amount_of(state, key))
    status = send_request(&state.outboxes[home], header_of(state, operation, home), key, position, given,
                          value_bytes(state.store, key))
    if status != OK:
        release_credits(&state.flow, home, amount_of(state, key))
    return status


cdef int set_at_home(replication_t* self, operation_t* operation, entry_t* entry, const char* value) noexcept nogil:
    # Under the key's latch.
    cdef rank_t* state = self.state
    cdef int64_t amount = (state.size - 1) * <int64_t>(sizeof(record_t) + replica_at(state.store, entry.slot).bytes)
    cdef pending_acks_t* pending_acks = open_pending_acks(&self.unacknowledged,
                                                          header_of(state, operation, state.rank))
    cdef int status
    if pending_acks == NULL:
        return NO_MEMORY
    acquire_credits(&state.flow, state.rank, amount)
    status = replace_on_all(self, pending_acks, entry, value, amount)
    return status if status != OK else close_pending_acks(&self.unacknowledged, state, pending_acks)


cdef int set_replicas(replication_t* self, int32_t source, frame_t* frame, char* at, uint32_t count) noexcept nogil:
    """The home's step of so many sets of a frame, whose records begin at `at`."""
    cdef rank_t* state = self.state
    cdef pending_acks_t* pending_acks = open_pending_acks(&self.unacknowledged, frame.header)
    cdef record_t* record
    cdef entry_t* entry
    cdef uint32_t _i
    cdef int status
    if pending_acks == NULL:
        return NO_MEMORY
    for _i in range(count):
        record = <record_t*>at
        entry = &state.store.entries[record.key]
        if entry.route != state.rank:
            return protocol_error(state, source, "a set of a replicated key whose home is another rank", record.key)
        lock_entry(state.store, entry)
        status = replace_on_all(self, pending_acks, entry, value_behind(record), amount_of(state, record.key))
        unlock_entry(entry)
        if status != OK:
            return status
        at += sizeof(record_t) + value_bytes(state.store, record.key)
    return close_pending_acks(&self.unacknowledged, state, pending_acks)


cdef int replace_on_all(replication_t* self, pending_acks_t* pending_acks, entry_t* entry, const char* value,
                        int64_t credits) noexcept nogil:
    """The home's step of a set, under the key's latch: everything that was pushed before it is void."""
    cdef replica_t* replica = replica_at(self.state.store, entry.slot)
    cdef int32_t to
    replica.epoch += 1
    fetch_add(&pending_acks.remaining, self.state.size - 1)
    pending_acks.positions += 1
    pending_acks.credits += credits
    for to in range(self.state.size):
        replica.contained[to] = False
        if to != self.state.rank and send_replace(&self.state.outboxes[to], self.state.rank, <uint64_t>pending_acks,
                                                  replica.key, replica.epoch, value, replica.bytes) != OK:
            return NO_MEMORY
    put_in_place(self, replica, value)
    return OK


cdef void put_in_place(replication_t* self, replica_t* replica, const char* value) noexcept nogil:
    # under the key's latch
    if replica.is_awaited:
        came_back(self)
    fill_replica(replica, value)


cdef int ask_all(replication_t* self, header_t request) noexcept nogil:
    """Ask every rank to tell when it has applied all that this home has sent so far. Under the latch of rounds."""
    cdef pending_acks_t* pending_acks = open_pending_acks(&self.unacknowledged, request)
    cdef int32_t to
    if pending_acks == NULL:
        return NO_MEMORY
    pending_acks.positions = 1
    fetch_add(&pending_acks.remaining, self.state.size - 1)
    for to in range(self.state.size):
        if to != self.state.rank and send_fence(&self.state.outboxes[to], self.state.rank,
                                                <uint64_t>pending_acks) != OK:
            return NO_MEMORY
    return close_pending_acks(&self.unacknowledged, self.state, pending_acks)


cdef int mark(replication_t* self, operation_t* operation, int64_t full_rounds_before, bint* covered) noexcept nogil:
    """Ask all homes to send their sums now, and to answer when every rank has applied them.

    `covered` tells whether the deltas of this rank as they were at the caller's beginning are on their way: one
    contribution of a key at a time may be, so that the caller may have to come again after this operation, which
    brings the earlier ones back. `full_rounds_before` is `full_rounds` at its beginning.
    """
    cdef int32_t home
    cdef int status = OK
    take_latch(&self.latch)
    if load(&self.awaited) == 0:
        covered[0] = True
        status = begin_round(self, True)
    else:
        covered[0] = load(&self.full_rounds) > full_rounds_before
        self.is_full_wanted = self.is_full_wanted or not covered[0]  # another thread may begin the next round
    for home in range(self.state.size):
        if home != self.state.rank and status == OK:
            status = send_mark(&self.state.outboxes[home], self.state.rank, <uint64_t>operation)
    if status == OK:
        status = send_sums(self)
    if status == OK:
        status = ask_all(self, header_of(self.state, operation, self.state.rank))
    drop_latch(&self.latch)
    return status if status != OK else begin_round_if_due(self)


# Time ---------------------------------------------------------------------------------------------------

cdef int tick(replication_t* self, int64_t time) noexcept nogil:
    """Do what is due: a round of this rank, or sums that have waited for company long enough."""
    cdef bint is_due = self.interval and time >= self.next_round
    cdef int64_t waited
    cdef int status = OK
    if is_due:  # at common multiples: ranks of one host begin together
        self.next_round = (time // self.interval + 1) * self.interval
    if not self.state.store.replicas.collected.count and not is_behind(self):
        self.waiting_since = 0
    elif self.waiting_since == 0:
        self.waiting_since = time
    waited = time - self.waiting_since if self.waiting_since else 0
    if not is_due and waited <= JOIN_AFTER and not load32(&self.waiting) or not try_latch(&self.latch):
        return OK
    if load(&self.awaited) == 0 and (is_due and self.state.store.replicas.changed.count
                                  or waited > JOIN_AFTER and is_behind(self)):
        status = begin_round(self, False)
    elif waited > SEND_AFTER:
        status = send_sums(self)
    drop_latch(&self.latch)
    return status if status != OK else begin_round_if_due(self)


# Messages -------------------------------------------------------------------------------------------------

cdef inline int on_delta(replication_t* self, store_t* store, int32_t source, entry_t* entry,
                         record_t* record) noexcept nogil:
    if entry.route != self.state.rank:
        return protocol_error(self.state, source, "a contribution to a replica whose home is another rank", record.key)
    if epoch_of(record) == replica_at(store, entry.slot).epoch:
        add_contribution(&store.replicas, entry.slot, source, value_behind(record))
    return OK


cdef inline int on_replica_record(replication_t* self, store_t* store, int32_t source, frame_t* frame,
                                  record_t* record) noexcept nogil:
    cdef entry_t* entry = &store.entries[record.key]
    cdef replica_t* replica
    cdef int status = OK
    if entry.state != REPLICATED:
        return protocol_error(self.state, source, "news of a replica that is not here", record.key)
    replica = replica_at(store, entry.slot)
    lock_entry(store, entry)
    if frame.kind == DELTA:
        status = on_delta(self, store, source, entry, record)
    elif frame.kind == SUM:
        take_in(self, store, replica, contains_contribution(record), value_behind(record))
    else:
        replica.epoch = epoch_of(record)
        put_in_place(self, replica, value_behind(record))
    unlock_entry(entry)
    return status


cdef int on_replica_records(replication_t* self, int32_t source, frame_t* frame) noexcept nogil:
    cdef store_t* store = self.state.store  # in a register: it is used for each record
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef uint32_t _i
    cdef int status
    for _i in range(<uint32_t>frame.count):
        record = <record_t*>at
        status = on_replica_record(self, store, source, frame, record)
        if status != OK:
            return status
        at += sizeof(record_t) + replica_at(store, store.entries[record.key].slot).bytes
    if frame.kind == REPLACE:
        status = send_applied(&self.state.outboxes[source], source, frame.operation, frame.count)
        if status != OK:
            return status
    return OK if frame.kind == DELTA else begin_round_if_due(self)


cdef int on_round_end(replication_t* self, int32_t source) noexcept nogil:
    cdef int status
    take_latch(&self.latch)
    status = hear_end(self, source)
    drop_latch(&self.latch)
    return status if status != OK else begin_round_if_due(self)


cdef int on_mark(replication_t* self, frame_t* frame) noexcept nogil:
    cdef int status
    take_latch(&self.latch)  # also waits for the sums that a worker of this rank is about to send
    status = send_sums(self)
    if status == OK:
        status = ask_all(self, frame.header)
    drop_latch(&self.latch)
    return status if status != OK else begin_round_if_due(self)


cdef int handle_replication(replication_t* self, int32_t source, frame_t* frame) noexcept nogil:
    """Do what one message about replicas asks for; errors as in `handle_frame`."""
    if frame.kind == ROUND_END:
        return on_round_end(self, source)
    if frame.kind == MARK:
        return on_mark(self, frame)
    if frame.kind == FENCE:
        return send_applied(&self.state.outboxes[source], source, frame.operation, 1)
    if frame.kind == APPLIED:
        return acknowledge(&self.unacknowledged, self.state, <pending_acks_t*>frame.operation, positions_of(frame))
    return on_replica_records(self, source, frame)


# Memory -----------------------------------------------------------------------------------------------------

cdef int prepare_replication(replication_t* self, rank_t* state) noexcept:
    self.state = state
    self.ends = <int64_t*>calloc(self.state.size, sizeof(int64_t))
    return NO_MEMORY if self.ends == NULL else OK


cdef void free_replication(replication_t* self) noexcept:
    free_pending_acks(&self.unacknowledged)
    free(self.ends)
