"""Floor 2. Replicated keys: what a rank does on each request and message about them."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.messaging._flow cimport acquire_credits, release_credits
from lapse.messaging._messages cimport (APPLIED, DELTA, GRADIENT_DELTA, REPLACE, ROUND_END, ROUND_NEWS, SUM, SUMS_END,
                                        epoch_of, frame_t, is_of_full_round, positions_of, record_t, sum_head_t,
                                        value_behind)
from lapse.messaging._senders cimport send_applied, send_replace, send_request
from lapse.storage._replica_gradients cimport apply_to_replica
from lapse.storage._replicas cimport fill_replica, push_replica, read_replica, replica_t
from lapse.protocol._pending_acks cimport (acknowledge, close_pending_acks, find_pending_acks, free_pending_acks,
                                           open_pending_acks, pending_acks_t)
from lapse.protocol._prefetch cimport look_ahead_at_replicas
from lapse.protocol._rank cimport amount_of, header_of, output_of, protocol_error, rank_t
from lapse.protocol._rounds cimport (delta_bytes, free_rounds, on_round_end, on_round_news, on_sums_end,
                                     prepare_rounds, replica_at, sum_bytes, take_contribution, take_gradient, take_sum)
from lapse._store cimport entry_t, is_replicated, lock_entry, slab_for, store_t, unlock_entry, value_bytes, view_of
from lapse.storage._slabs cimport rate_for
from lapse.base._sync cimport fetch_add
from lapse.base._types cimport GRADIENT, NO_MEMORY, OK, PULL, PUSH, SET, key_t, operation_t


# Requests: all ranks have to apply a set before it is answered -------------------------------------------------

cdef int ask_replica(replication_t* self, operation_t* operation, key_t key, uint32_t position,
                     const char* given, int64_t* done) noexcept nogil:
    """Carry out one key of a call. The home orders sets; all ranks have to apply one before it is done."""
    cdef rank_t* state = self.rounds.state
    cdef store_t* store = view_of(state.store, key)  # the leader's
    cdef entry_t* entry = &store.entries[key]
    cdef int status = OK
    if operation.kind == SET and entry.route != state.rank:
        return ask_home(state, operation, key, position, entry.route, given)
    lock_entry(store, entry)
    if operation.kind == PULL:
        read_replica(&store.replicas, entry.slot, output_of(state, operation, position))
        done[0] += 1
    elif operation.kind == PUSH:
        push_replica(&store.replicas, entry.slot, given, 1)
        done[0] += 1
    elif operation.kind == GRADIENT:
        apply_to_replica(&store.replicas, entry.slot, given, rate_for(slab_for(store, key), operation.terms),
                         operation.terms.step)
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
    cdef rank_t* state = self.rounds.state
    cdef int64_t amount = self.rounds.num_peers * amount_of(state, replica_at(state.store, entry.slot).key)
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
    cdef rank_t* state = self.rounds.state
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
    cdef rank_t* state = self.rounds.state
    cdef replica_t* replica = replica_at(state.store, entry.slot)
    cdef int32_t i
    replica.epoch += 1
    fetch_add(&pending_acks.remaining, self.rounds.num_peers)
    pending_acks.positions += 1
    pending_acks.credits += credits
    for i in range(self.rounds.num_peers):
        if send_replace(&state.outboxes[self.rounds.peers[i]], state.rank, pending_acks.name, replica.key,
                        replica.epoch, value, replica.bytes) != OK:
            return NO_MEMORY
    fill_replica(&state.store.replicas, entry.slot, value)
    return OK


# Messages --------------------------------------------------------------------------------------------------------

cdef inline size_t bytes_behind(const replication_t* self, int kind, const replica_t* replica) noexcept nogil:
    if kind == DELTA:
        return delta_bytes(&self.rounds, replica)
    if kind == GRADIENT_DELTA:
        return sizeof(sum_head_t) + replica.bytes
    return sum_bytes(&self.rounds, replica) if kind == SUM else replica.bytes


cdef inline void on_replica_record(replication_t* self, int kind, entry_t* entry, record_t* record) noexcept nogil:
    # under the key's latch
    cdef replica_t* replica = replica_at(self.rounds.state.store, entry.slot)
    if kind == SUM:
        take_sum(&self.rounds, entry.slot, value_behind(record))
    elif kind == REPLACE:
        replica.epoch = epoch_of(record)
        fill_replica(&self.rounds.state.store.replicas, entry.slot, value_behind(record))
    elif epoch_of(record) != replica.epoch:
        pass  # it is of before a set
    elif kind == GRADIENT_DELTA:
        take_gradient(&self.rounds, entry.slot, value_behind(record))
    else:
        take_contribution(&self.rounds, entry.slot, value_behind(record))


cdef int on_replica_records(replication_t* self, int32_t source, frame_t* frame) noexcept nogil:
    cdef rank_t* state = self.rounds.state
    cdef store_t* store = state.store  # in a register: it is used for each record
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef entry_t* entry
    cdef int kind = frame.kind
    cdef uint32_t i
    cdef size_t stride = 0
    if store.slab_of == NULL and store.replicas.count:  # else a record ahead is not found without those before it
        stride = sizeof(record_t) + bytes_behind(self, kind, replica_at(store, 0))
    for i in range(<uint32_t>frame.count):
        record = <record_t*>at
        if stride:
            look_ahead_at_replicas(state, at, stride, <uint32_t>frame.count - i)
        entry = &store.entries[record.key]
        if not is_replicated(entry):
            return protocol_error(state, source, "a message about a replica that is not here", record.key)
        if (kind == DELTA or kind == GRADIENT_DELTA) and entry.route != state.rank:
            return protocol_error(state, source, "a contribution to a key whose home is another rank", record.key)
        lock_entry(store, entry)
        on_replica_record(self, kind, entry, record)
        unlock_entry(entry)
        at += sizeof(record_t) + bytes_behind(self, kind, replica_at(store, entry.slot))
    if kind == REPLACE:
        return send_applied(&state.outboxes[source], source, frame.operation, frame.count)
    return OK


cdef int handle_replication(replication_t* self, int32_t source, frame_t* frame) noexcept nogil:
    """Do what one message about replicas asks for; errors as in `handle_frame`."""
    if frame.kind == ROUND_END:
        return on_round_end(&self.rounds, is_of_full_round(<record_t*>(frame + 1)))
    if frame.kind == SUMS_END:
        return on_sums_end(&self.rounds)
    if frame.kind == ROUND_NEWS:
        return on_round_news(&self.rounds)
    if frame.kind == APPLIED:
        return acknowledge(&self.unacknowledged, self.rounds.state,
                           find_pending_acks(&self.unacknowledged, frame.operation), positions_of(frame))
    return on_replica_records(self, source, frame)


# Memory -----------------------------------------------------------------------------------------------------

cdef int prepare_replication(replication_t* self, rank_t* state) noexcept:
    return prepare_rounds(&self.rounds, state)


cdef void free_replication(replication_t* self) noexcept:
    free_pending_acks(&self.unacknowledged)
    free_rounds(&self.rounds)
